# SPDX-License-Identifier: Apache-2.0
"""A U-Net of MONAI, its transposed convolutions exchanged in place: the same outputs, another engine.

python examples/accelerate_monai.py
"""

import time

import torch
from monai.networks.nets import UNet

from tconv3d.torch import accelerate, freeze, restore


def seconds(model, x):
    """The shortest of three forward passes."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return min(times)


torch.manual_seed(0)
model = UNet(3, in_channels=1, out_channels=3, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2).eval()
x = torch.randn(1, 1, 64, 64, 64)

with torch.inference_mode():
    expected, before = model(x), seconds(model, x)
    report = accelerate(model)
    freeze(model)  # inference: the packed weights are kept
    after = seconds(model, x)
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)

print(report)
print(f"{len(report.accelerated)} layers exchanged; {before:.3f} s before, {after:.3f} s after, for the whole model")
restore(model)  # PyTorch's own classes again, for a file that others load
