# SPDX-License-Identifier: Apache-2.0
"""Models of MONAI and dynamic_network_architectures, built from their packages, accelerated: the same values."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tconv3d.torch as face

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what these packages import
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from monai.data import MetaTensor
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import DynUNet, SwinUNETR, UNet, VNet

# Sizes are small, since these are tests; the kinds and arguments of the layers are the models' own.


def nnunet(kind: Any, **blocks: Any) -> torch.nn.Module:
    return kind(
        1, 3, (4, 8, 16), torch.nn.Conv3d, 3, (1, 2, 2), num_classes=2, n_conv_per_stage_decoder=(1, 1), conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d, norm_op_kwargs={"affine": True}, nonlin=torch.nn.LeakyReLU,
        deep_supervision=False, **blocks,
    )  # fmt: skip


# Each model with the size of its input and the number of its transposed convolutions.
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], int]] = {
    "UNet": (lambda: UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=2), (16, 16, 16), 2),
    "VNet": (lambda: VNet(3, 1, 2), (16, 16, 16), 4),
    "DynUNet": (
        lambda: DynUNet(3, 1, 2, [3, 3, (1, 3, 3)], [1, 2, (1, 2, 2)], [2, (1, 2, 2)], filters=(4, 8, 16)),
        (16, 16, 16),
        2,
    ),
    "SwinUNETR": (
        lambda: SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)),
        (64, 32, 32),
        5,
    ),
    "PlainConvUNet": (lambda: nnunet(PlainConvUNet, n_conv_per_stage=(1, 1, 1)), (16, 16, 16), 2),
    "ResidualEncoderUNet": (lambda: nnunet(ResidualEncoderUNet, n_blocks_per_stage=(1, 1, 1)), (16, 16, 16), 2),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def models(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, torch.nn.Module, Tensor]:
    """A model, its accelerated copy and an input."""
    make, size, count = MODELS[request.param]
    torch.manual_seed(0)
    theirs = make().eval()  # batch norms and dropout do not meet on a single small volume
    ours = copy.deepcopy(theirs)
    report = face.accelerate(ours)
    assert len(report) == len(report.accelerated) == count
    return theirs, ours, torch.randn(1, 1, *size)


def assert_near(mine: Tensor, other: Tensor, floor: float = 0.0) -> None:
    """Equal to within 1e-4 of the largest value; ``floor`` is what counts as the least largest value."""
    assert mine.shape == other.shape
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-4 * max(floor, float(other.detach().abs().max())))


def output_and_grads(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().mean().backward()
    return [y, x.grad, *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def test_equal_outputs_and_gradients(models: tuple[torch.nn.Module, torch.nn.Module, Tensor]) -> None:
    """In double precision: ReLUs and norms of tiny batches make too much of the last bits of a float."""
    theirs, ours, x = models
    results = [output_and_grads(model.double(), x.double()) for model in (ours, theirs)]
    # The gradient of a bias before a norm is zero, but for rounding; so it is held against all the others.
    floor = 1e-9 * max(float(grad.abs().max()) for grad in results[1][1:])
    for mine, other in zip(*results, strict=True):
        assert_near(mine, other, floor)


def test_equal_outputs_of_single_precision(models: tuple[torch.nn.Module, torch.nn.Module, Tensor]) -> None:
    theirs, ours, x = models
    with torch.no_grad():
        expected = theirs(x)
        assert_near(ours(x), expected)
        assert_near(face.freeze(ours)(x), expected)
        assert_near(face.restore(ours)(x), expected)


def test_three_training_steps() -> None:
    torch.manual_seed(0)
    theirs = nnunet(PlainConvUNet, n_conv_per_stage=(1, 1, 1))
    ours = copy.deepcopy(theirs)
    face.accelerate(ours)
    x, target = torch.randn(2, 1, 16, 16, 16), torch.randint(2, (2, 16, 16, 16))
    losses = []
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for _ in range(3):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_sliding_windows_of_monai_keep_the_meta_data() -> None:
    torch.manual_seed(0)
    theirs = UNet(3, 1, 2, channels=(4, 8), strides=(2,)).eval()
    ours = copy.deepcopy(theirs)
    face.accelerate(ours)
    face.freeze(ours)
    volume = MetaTensor(torch.randn(1, 1, 24, 20, 16), affine=2 * torch.eye(4))
    with torch.no_grad():
        mine, other = (
            sliding_window_inference(volume, (16, 16, 16), 2, model, overlap=0.5) for model in (ours, theirs)
        )
        direct = ours(volume)
    assert isinstance(mine, MetaTensor)
    assert isinstance(direct, MetaTensor)
    assert torch.equal(direct.affine, volume.affine)
    assert_near(mine.as_tensor(), other.as_tensor())
