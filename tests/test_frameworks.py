# SPDX-License-Identifier: Apache-2.0
"""The real PyTorch and the real MindSpore as second judges: random layers, forward and backward, value by value."""

from __future__ import annotations

from math import prod, sqrt
from typing import Any, NamedTuple

import mindspore
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import tconv3d

LAYERS = 12  # per dtype or pad mode; each index is one seed

# Stored type -> PyTorch type that judges it. Narrow types are judged in float32: PyTorch's own narrow kernels add up
# in the narrow type, with larger errors than ours.
JUDGES = {
    "float16": torch.float32,
    "bfloat16": torch.float32,
    "float32": torch.float32,
    "float64": torch.float64,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
}


class Layer(NamedTuple):
    """One random layer that PyTorch accepts, with the shapes of its operands."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]

    def arguments(self) -> tuple[Any, ...]:
        """Everything after the bias, in the order that PyTorch and tconv3d share."""
        return self.stride, self.padding, self.output_padding, self.groups, self.dilation


def triple(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(rng.integers(low, high + 1, 3).tolist())


def random_layer(rng: np.random.Generator, max_channels: int = 20) -> Layer:
    """Draw until every axis of the output has at least one sample, even without output padding."""
    groups = int(rng.choice([1, 1, 2, 3]))
    per_group = rng.integers(1, max_channels // groups + 1, 2)
    while True:
        size, kernel, stride, dilation = triple(rng, 1, 7), triple(rng, 1, 5), triple(rng, 1, 4), triple(rng, 1, 3)
        padding = triple(rng, 0, 4)
        output_padding = tuple(int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True))
        axes = zip(size, kernel, stride, padding, dilation, strict=True)
        if min((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes) > 0:
            break
    c_in = groups * int(per_group[0])
    x = (int(rng.integers(1, 4)), c_in, *size)
    return Layer(x, (c_in, int(per_group[1]), *kernel), stride, padding, output_padding, groups, dilation)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if dtype.kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def to_torch(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    wide = array.astype(np.float32) if array.dtype.itemsize == 2 else array
    return torch.tensor(wide, dtype=dtype, requires_grad=True)


def assert_close(ours: np.ndarray, theirs: np.ndarray, reduction: int) -> None:
    """Both sides round while they add up `reduction` products of unit scale, and we round once to the stored type."""
    assert ours.shape == theirs.shape
    stored = float(ml_dtypes.finfo(ours.real.dtype).eps)
    accumulated = float(np.finfo(theirs.dtype).eps)
    wide = ours.astype(theirs.dtype)
    scale = float(np.abs(theirs).max(initial=1.0))
    assert_allclose(wide, theirs, rtol=stored, atol=16 * accumulated * sqrt(reduction) * scale)


@pytest.mark.parametrize("seed", range(LAYERS))
@pytest.mark.parametrize("dtype", JUDGES)
def test_functions_against_torch(dtype: str, seed: int) -> None:
    rng = np.random.default_rng([1, seed])
    layer = random_layer(rng)
    stored = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    x, weight = draw(rng, layer.x, stored), draw(rng, layer.weight, stored)
    bias = draw(rng, (layer.weight[1] * layer.groups,), stored)
    theirs = [to_torch(array, JUDGES[dtype]) for array in (x, weight, bias)]

    y = torch.nn.functional.conv_transpose3d(*theirs, *layer.arguments())
    grad = draw(rng, tuple(y.shape), stored)
    y.backward(to_torch(grad, JUDGES[dtype]).detach())

    taps, positions = prod(layer.weight[2:]), x.shape[0] * prod(layer.x[2:])
    ours = tconv3d.conv_transpose3d(x, weight, bias, *layer.arguments())
    assert ours.dtype == stored
    assert_close(ours, y.detach().numpy(), layer.x[1] * taps)
    grad_x = tconv3d.conv_transpose3d_input_grad(grad, weight, x.shape, *layer.arguments())
    assert_close(grad_x, theirs[0].grad.numpy(), layer.weight[1] * taps)
    grad_weight = tconv3d.conv_transpose3d_weight_grad(x, grad, weight.shape, *layer.arguments())
    assert_close(grad_weight, theirs[1].grad.numpy(), positions)


@pytest.mark.parametrize("seed", range(LAYERS))
def test_layer_against_torch(seed: int) -> None:
    """The layer face: same constructor call, same values, `output_size` and unbatched input included."""
    rng = np.random.default_rng([2, seed])
    layer = random_layer(rng)
    channels = layer.x[1], layer.weight[1] * layer.groups
    options: dict[str, Any] = layer._asdict()
    for operand in ("x", "weight"):
        del options[operand]
    options |= {"kernel_size": layer.weight[2:], "bias": bool(seed % 2)}
    theirs = torch.nn.ConvTranspose3d(*channels, **options)
    ours = tconv3d.ConvTranspose3d(*channels, **options)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})

    x = torch.tensor(rng.standard_normal(layer.x[seed % 3 == 0 :], np.float32), requires_grad=True)
    y = theirs(x)
    size = None
    if seed % 2:  # any size that this stride and padding can come from
        axes = zip(y.shape[-3:], layer.output_padding, layer.stride, strict=True)
        size = [n - extra + int(rng.integers(0, s)) for n, extra, s in axes]
        y = theirs(x, size)
    output = ours(x.detach().numpy(), size)
    grad = torch.tensor(rng.standard_normal(y.shape, np.float32))
    y.backward(grad)
    taps = prod(layer.weight[2:])
    assert_close(output, y.detach().numpy(), channels[0] * taps)
    assert_close(ours.backward(grad.numpy()), x.grad.numpy(), channels[1] * taps)
    positions = y[..., 0, :, :, :].numel()
    assert_close(ours.weight_grad, theirs.weight.grad.numpy(), positions)
    if seed % 2:
        assert_close(ours.bias_grad, theirs.bias.grad.numpy(), positions)


def mindspore_arguments(rng: np.random.Generator, pad_mode: str) -> tuple[dict[str, Any], Layer]:
    """A random layer inside of the limits of MindSpore's CPU back-end: depth dilation 1, output_padding < stride."""
    layer = random_layer(rng)
    dilation = (1, *layer.dilation[1:])
    options: dict[str, Any] = {
        "kernel_size": layer.weight[2:],
        "stride": layer.stride,
        "pad_mode": pad_mode,
        "dilation": dilation,
        "group": layer.groups,
    }
    if pad_mode == "pad":
        full = [d * (k - 1) + 1 for d, k in zip(dilation, layer.weight[2:], strict=True)]
        # Cut less than one kernel per axis, so that some output is left of every size.
        front = [int(rng.integers(0, extent)) for extent in full]
        back = [int(rng.integers(0, extent - cut)) for extent, cut in zip(full, front, strict=True)]
        options["padding"] = tuple(cut for pair in zip(front, back, strict=True) for cut in pair)
        options["output_padding"] = tuple(int(rng.integers(0, s)) for s in layer.stride)
    return options, layer


@pytest.mark.parametrize("seed", range(LAYERS))
@pytest.mark.parametrize("pad_mode", ["same", "valid", "pad"])
def test_layer_against_mindspore(pad_mode: str, seed: int) -> None:
    rng = np.random.default_rng([3, seed])
    options, layer = mindspore_arguments(rng, pad_mode)
    channels = layer.x[1], layer.weight[1] * layer.groups
    x, weight = (rng.standard_normal(shape, np.float32) for shape in (layer.x, layer.weight))
    bias = rng.standard_normal(channels[1], np.float32)

    ours = tconv3d.Conv3dTranspose(*channels, **options, has_bias=True)
    ours.weight, ours.bias = weight, bias
    theirs = mindspore.nn.Conv3dTranspose(
        *channels,
        **options,
        has_bias=True,
        weight_init=mindspore.Tensor(weight),
        bias_init=mindspore.Tensor(bias),
    )
    y = theirs(mindspore.Tensor(x)).asnumpy()
    taps = prod(layer.weight[2:])
    assert_close(ours(x), y, channels[0] * taps)

    grad = rng.standard_normal(y.shape, np.float32)
    gradient = mindspore.grad(
        lambda value: (theirs(value) * mindspore.Tensor(grad)).sum(), 0, [theirs.weight, theirs.bias]
    )
    grad_x, (grad_weight, grad_bias) = gradient(mindspore.Tensor(x))
    positions = y[:, 0].size
    assert_close(ours.backward(grad), grad_x.asnumpy(), channels[1] * taps)
    assert_close(ours.weight_grad, grad_weight.asnumpy(), positions)
    assert_close(ours.bias_grad, grad_bias.asnumpy(), positions)
