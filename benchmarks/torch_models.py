# SPDX-License-Identifier: Apache-2.0
"""Whole models of MONAI and dynamic_network_architectures, before and after `tconv3d.torch.accelerate`.

    pip install '.[test]' && python benchmarks/torch_models.py [--threads 2] [--rounds 7] [--only UNet,VNet] [--freeze]

One row a model: the forward pass without gradients, before and after, and the share of it that the transposed
convolutions take, measured by hooks in the same passes. The two are timed in turn; figures are medians. Outputs are
compared first: a model that is off by more than 1e-4 of the largest value is reported, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch

import tconv3d.torch as face

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what these packages import
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from monai.networks.nets import DynUNet, SwinUNETR, UNet, VNet


def nnunet(kind: type[torch.nn.Module], **blocks: object) -> torch.nn.Module:
    """Return a model with nnU-Net's default arguments for a 3-D task, four stages."""
    strides, norm = (1, 2, 2, 2), {"norm_op": torch.nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}}
    decoder = {"n_conv_per_stage_decoder": (2, 2, 2), "num_classes": 3, "conv_bias": True, "deep_supervision": False}
    return kind(
        1, 4, (32, 64, 128, 256), torch.nn.Conv3d, 3, strides, nonlin=torch.nn.LeakyReLU, **norm, **decoder, **blocks
    )


# Each model with the size of its input volume.
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, int, int]]] = {
    "UNet": (lambda: UNet(3, 1, 3, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2), (96,) * 3),
    "VNet": (lambda: VNet(3, 1, 3), (64,) * 3),
    "DynUNet": (lambda: DynUNet(3, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=(32, 64, 128, 256)), (64,) * 3),
    "SwinUNETR": (lambda: SwinUNETR(1, 3, feature_size=24), (64,) * 3),
    "PlainConvUNet": (lambda: nnunet(PlainConvUNet, n_conv_per_stage=(2, 2, 2, 2)), (64,) * 3),
    "ResidualEncoderUNet": (lambda: nnunet(ResidualEncoderUNet, n_blocks_per_stage=(1, 3, 4, 6)), (64,) * 3),
}


class Timed:
    """A model whose transposed convolutions report their time."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.inside, self.started = model, 0.0, 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.ConvTranspose3d):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave)

    def _enter(self, *_: object) -> None:
        self.started = time.perf_counter()

    def _leave(self, *_: object) -> None:
        self.inside += time.perf_counter() - self.started

    def run(self, x: torch.Tensor) -> tuple[float, float]:
        """Return the time of a forward pass and of the transposed convolutions in it, in seconds."""
        self.inside = 0.0
        start = time.perf_counter()
        self.model(x)
        return time.perf_counter() - start, self.inside


def compare(name: str, rounds: int, freeze: bool) -> bool:
    """Print the row of a model; whether both gave the same."""
    make, size = MODELS[name]
    torch.manual_seed(0)
    before = make().eval()
    after = copy.deepcopy(before)
    report = face.accelerate(after)
    if freeze:
        face.freeze(after)
    x = torch.randn(1, 1, *size)
    expected = before(x)
    error = float((after(x) - expected).abs().max() / expected.abs().max())
    runs: list[list[tuple[float, float]]] = [[], []]
    models = Timed(before), Timed(after)
    for _ in range(rounds):
        for timed, kept in zip(models, runs, strict=True):
            kept.append(timed.run(x))
    cells = []
    for kept in runs:
        whole, inside = (median(column) for column in zip(*kept, strict=True))
        cells.append((whole * 1e3, 100 * inside / whole))
    (old, old_share), (new, new_share) = cells
    print(
        f"{name:<20} {len(report.accelerated):>6} {old:>10.1f} {old_share:>6.1f} % {new:>10.1f} {new_share:>6.1f} % "
        f"{old / new:>8.2f} {error:>9.1e}",
        flush=True,
    )
    return error <= 1e-4


def main() -> int:
    """Time and print; 1 if a model's output changed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(MODELS), help="names, separated by commas")
    parser.add_argument("--freeze", action="store_true", help="keep packed weights")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, threads {arguments.threads}, milliseconds, medians of {arguments.rounds} rounds")
    print(
        f"{'model':<20} {'layers':>6} {'before':>10} {'share':>8} {'after':>10} {'share':>8} {'times':>8} {'off by':>9}"
    )
    with torch.no_grad():
        same = [compare(name, arguments.rounds, arguments.freeze) for name in arguments.only.split(",")]
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
