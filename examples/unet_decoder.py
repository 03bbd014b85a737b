# SPDX-License-Identifier: Apache-2.0
"""The decoder of a 3-D U-Net, once in PyTorch and once in MindSpore, with the same weights: the outputs are equal.

python examples/unet_decoder.py
"""

from itertools import pairwise

import mindspore
import numpy as np
import torch

import tconv3d.mindspore
import tconv3d.torch

WIDTHS = (64, 32, 16)  # channels from the coarsest level up
UP = {"kernel_size": 3, "stride": 2, "pad_mode": "same", "has_bias": True}  # MindSpore's contract, in both frameworks


class TorchDecoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        pairs = list(pairwise(WIDTHS))
        self.ups = torch.nn.ModuleList(tconv3d.torch.Conv3dTranspose(a, b, **UP) for a, b in pairs)
        self.convs = torch.nn.ModuleList(torch.nn.Conv3d(2 * b, b, 3, padding=1) for _, b in pairs)

    def forward(self, x, *skips):
        for up, conv, skip in zip(self.ups, self.convs, skips, strict=True):
            x = torch.relu(conv(torch.cat([up(x), skip], dim=1)))
        return x


class MindSporeDecoder(mindspore.nn.Cell):
    def __init__(self):
        super().__init__()
        nn, pairs = mindspore.nn, list(pairwise(WIDTHS))
        self.ups = nn.CellList([tconv3d.mindspore.Conv3dTranspose(a, b, **UP) for a, b in pairs])
        self.convs = nn.CellList([nn.Conv3d(2 * b, b, 3, pad_mode="pad", padding=1, has_bias=True) for _, b in pairs])

    def construct(self, x, *skips):
        for up, conv, skip in zip(self.ups, self.convs, skips):  # noqa: B905  # graphs know no `strict`
            x = mindspore.ops.relu(conv(mindspore.ops.concat([up(x), skip], axis=1)))
        return x


torch.manual_seed(0)
first, second = TorchDecoder(), MindSporeDecoder()
weights = {name: parameter.detach().numpy() for name, parameter in first.state_dict().items()}
left = mindspore.load_param_into_net(second, {name: mindspore.Parameter(array) for name, array in weights.items()})
assert left == ([], []), left  # names and layouts are the same; nothing is left over

rng = np.random.default_rng(0)
sizes = [(1, WIDTHS[0], 4, 4, 4), *((1, width, 8 << i, 8 << i, 8 << i) for i, width in enumerate(WIDTHS[1:]))]
inputs = [rng.standard_normal(size).astype(np.float32) for size in sizes]
a = first(*map(torch.from_numpy, inputs)).detach().numpy()
b = second(*map(mindspore.Tensor, inputs)).asnumpy()
np.testing.assert_allclose(a, b, atol=1e-5)
print(f"both decoders give {a.shape}, the largest difference is {abs(a - b).max():.1g} of {abs(a).max():.2f}")
