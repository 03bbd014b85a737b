# SPDX-License-Identifier: Apache-2.0
"""The layers as torch modules: PyTorch's ConvTranspose3d with another engine, and MindSpore's Conv3dTranspose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as torch_functional
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..contracts import mindspore
from ..errors import describe
from ..initializers import Given, Initializer
from . import _aten, _ops, functional
from ._calls import MindSporeCalls, TorchCalls
from .frozen import Freezable


class ConvTranspose3d(Freezable, torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` with another engine under ``forward``.

    Constructor, initial weights from a seed, state_dict, repr, attributes and errors are PyTorch's own, because they
    are inherited. Gradients of any order work, backward and forward, and so do torch.func, torch.compile, torch.export
    and torch.fx; torch.jit.script finds PyTorch's own operator. An input in the memory format channels_last_3d gives
    such an output. Outputs of a mebibyte and more lie in pooled memory, which cannot be resized in place.

    >>> ConvTranspose3d(2, 4, 3, stride=2)(torch.ones(1, 2, 5, 5, 5)).shape
    torch.Size([1, 4, 11, 11, 11])
    """

    _calls = None  # TorchCalls of the attributes as they were at the last call

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed convolution of (N, C, D, H, W) or (C, D, H, W); ``output_size`` as in PyTorch."""
        if not torch.jit.is_scripting():
            return _forward(self, input, output_size)
        # What torch.jit.script compiles: the forward of torch.nn.ConvTranspose3d, since it cannot follow `super`.
        if self.padding_mode != "zeros":
            raise ValueError("Only `zeros` padding mode is supported for ConvTranspose3d")
        extra = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, 3, self.dilation)
        return torch_functional.conv_transpose3d(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )


class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):
    """``torch.nn.LazyConvTranspose3d``: takes ``in_channels`` from its first input and becomes a `ConvTranspose3d`.

    >>> layer = LazyConvTranspose3d(4, 3, stride=2)
    >>> layer(torch.ones(1, 2, 5, 5, 5)).shape, type(layer).__name__
    (torch.Size([1, 4, 11, 11, 11]), 'ConvTranspose3d')
    """

    cls_to_become = ConvTranspose3d


class Conv3dTranspose(Freezable):
    """``mindspore.nn.Conv3dTranspose`` as a torch module, with the comparison page's signature and ``dtype``.

    Input (N, C_in, D, H, W), output (N, C_out, D', H', W'). The default pad_mode='same' gives S * stride samples per
    axis; it crops max(0, E - stride) of them, E = dilation (K - 1) + 1, half in front and an odd extra one at the BACK,
    so it equals PyTorch's padding only for an even number. 'valid' crops nothing; with a kernel shorter than the
    stride it appends stride - E zeros, as 'same' does. 'pad' crops ``padding``: one number, or six as (front, back) of
    depth, height and width; ``output_padding`` belongs to it alone.

    ``weight_init`` and ``bias_init`` take a name, a number, a law of `tconv3d.initializers`, a tensor, or None for the
    law of MindSpore 2.1 and later; torch.manual_seed makes them repeatable. The default weights are N(0, 0.01^2) and
    there is no bias unless ``has_bias=True``. Parameters are those of torch.nn.ConvTranspose3d: ``weight`` (C_in,
    C_out / group, kD, kH, kW) and ``bias``; gradients have their parameter's dtype. What the constructor got is fixed.

    Nearly everything is refused by the constructor, with ValueError or TypeError; the call refuses shapes with
    ValueError, dtypes with TypeError and negative output sizes with RuntimeError. Source: as `tconv3d.Conv3dTranspose`.

    >>> Conv3dTranspose(2, 4, kernel_size=3, stride=2)(torch.ones(1, 2, 5, 5, 5)).shape
    torch.Size([1, 4, 10, 10, 10])
    """

    _calls = None  # MindSporeCalls, on the object alone

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        pad_mode: str = "same",
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        group: int = 1,
        output_padding: int | tuple[int, ...] = 0,
        has_bias: bool = False,
        weight_init: Any = "normal",
        bias_init: Any = "zeros",
        data_format: str = "NCDHW",
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(describe("dtype", dtype, "it must be a torch.dtype", "use for example torch.float32"))
        arguments = mindspore.layer_arguments(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            pad_mode,
            padding,
            dilation,
            group,
            output_padding,
            has_bias,
            _law(weight_init),
            _law(bias_init),
            data_format,
            None if dtype is None else _name(dtype),
        )
        super().__init__()
        for name in _FIXED:
            setattr(self, name, getattr(arguments, name))
        self._arguments = arguments
        weight_law, bias_law = arguments.initializers()
        self.weight = _drawn(weight_init, weight_law, arguments.weight_shape, dtype)
        bias = _drawn(bias_init, bias_law, (out_channels,), dtype) if has_bias else None
        self.register_parameter("bias", bias)
        self._front, self._back = arguments.crops
        self._aten_padding, self._aten_pad = _aten.split_crops(self._front, self._back)

    def forward(self, x: Tensor) -> Tensor:
        """Return the transposed convolution of ``x``, which must be (N, C_in, D, H, W); empty axes are fine."""
        if not torch.jit.is_scripting():
            return _construct(self, x)
        y = torch_functional.conv_transpose3d(  # what torch.jit.script compiles
            x, self.weight, None, self.stride, self._aten_padding, 0, self.group, self.dilation
        )
        y = torch_functional.pad(y, self._aten_pad)
        bias = self.bias
        return y if bias is None else y + bias.view(-1, 1, 1, 1)

    def construct(self, x: Tensor) -> Tensor:
        """`forward`, under the name it has in MindSpore."""
        return self.forward(x)

    def extra_repr(self) -> str:
        """Return the arguments as MindSpore shows them."""
        return self._arguments.repr_arguments()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(describe(name, value, "it is fixed when the layer is made", "make a new layer"))
        super().__setattr__(name, value)


_FIXED = frozenset(mindspore.LayerArguments.__dataclass_fields__) - {"dtype"}


def _forward(layer: ConvTranspose3d, input: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """The forward of a layer, eager first."""
    try:
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    except KeyError:  # computed anew on each call, so no parameter
        weight, bias = layer.weight, layer.bias
    if has_torch_function_variadic(input, weight, bias):
        # A subclass or a mode may want to see the call, or take its wrapper off and put it on again.
        if isinstance(input, Tensor):
            return handle_torch_function(_forward, (input, weight, bias), layer, input, output_size)
    elif not torch.compiler.is_compiling() and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
        calls = _calls(layer, input, output_size)
        result = None if calls is None else _ops.run(calls, input, weight, bias, layer.panels(weight))
        if result is not None:
            return result
    return _general(layer, input, output_size)


def _general(layer: ConvTranspose3d, input: Tensor, output_size: Sequence[int] | None) -> Tensor:
    """The forward of torch.nn.ConvTranspose3d, on this library's function; refusals are its own."""
    if layer.padding_mode != "zeros" or not isinstance(layer.padding, tuple):
        return torch.nn.ConvTranspose3d.forward(layer, input, output_size)
    if isinstance(input, Tensor):
        extra = _output_padding(layer, input, output_size)
        sizes = layer.stride, layer.padding, extra, layer.groups, layer.dilation
        return functional.general(input, layer.weight, layer.bias, *sizes)
    # A proxy of torch.fx, which records this one call, or no tensor at all.
    sizes = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
    return functional.conv_transpose3d(input, layer.weight, layer.bias, *sizes, output_size=output_size)


def _calls(layer: ConvTranspose3d, input: Tensor, output_size: Sequence[int] | None) -> TorchCalls | None:
    """Return what the attributes say, resolved again only if one of them was assigned since the last call."""
    if output_size is not None:
        extra = _output_padding(layer, input, output_size)
        return functional.calls_of(layer.stride, layer.padding, extra, layer.groups, layer.dilation)
    kept = layer._calls
    if (
        kept is None
        or kept.stride is not layer.stride
        or kept.padding is not layer.padding
        or kept.output_padding is not layer.output_padding
        or kept.groups is not layer.groups
        or kept.dilation is not layer.dilation
    ):
        kept = TorchCalls(layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        layer._calls = kept
    return kept


def _output_padding(layer: ConvTranspose3d, input: Tensor, output_size: Sequence[int] | None) -> Any:
    return layer._output_padding(input, output_size, layer.stride, layer.padding, layer.kernel_size, 3, layer.dilation)


def _construct(layer: Conv3dTranspose, x: Tensor) -> Tensor:
    """The forward of MindSpore's layer, eager first."""
    weight, bias = layer.weight, layer.bias
    sizes = layer.stride, layer.dilation, layer._front, layer._back, layer.group
    if has_torch_function_variadic(x, weight, bias):
        if isinstance(x, Tensor):
            return handle_torch_function(_construct, (x, weight, bias), layer, x)
        return _ops.cropped(x, weight, bias, *sizes)  # a proxy of torch.fx, which records this one call
    if not isinstance(x, Tensor):
        raise TypeError(describe("x", type(x), "it must be a torch.Tensor", "convert it with torch.as_tensor"))
    if not torch.compiler.is_compiling():
        if layer._calls is None:
            layer._calls = MindSporeCalls(layer._arguments)
        result = _ops.run(layer._calls, x, weight, bias, layer.panels(weight)) if x.dim() == 5 else None
        if result is not None:
            return result
    if not _ops.is_autocast(x):
        mindspore.check_dtypes(*(None if operand is None else _name(operand.dtype) for operand in (x, weight, bias)))
    # While torch.jit traces, a size is a tensor and no number to decide by.
    if x.dim() != 5 or (not torch.jit.is_tracing() and x.shape[1] != weight.shape[0]):
        rule = f"it must be (N, {weight.shape[0]}, D, H, W)"
        raise ValueError(describe("the shape of x", tuple(x.shape), rule, "check the order of the axes"))
    return _ops.cropped(x, weight, bias, *sizes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _law(init: Any) -> Any:
    """What the contract may know of a given tensor: its shape, since it need not be on the CPU."""
    return Given(np.broadcast_to(np.float32(0), tuple(init.shape))) if isinstance(init, Tensor) else init


def _drawn(init: Any, law: Initializer, shape: tuple[int, ...], dtype: torch.dtype) -> Parameter:
    """Return a parameter on the default device: a copy of a given tensor, else drawn by PyTorch's global generator."""
    drawn_as = dtype if dtype in _DRAWN_DTYPES else torch.float32  # narrow types are rounded once, afterwards
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    array = law(shape, np.dtype(_name(drawn_as)), np.random.default_rng(seed))
    if isinstance(init, Tensor):
        tensor = init.detach().clone()
    else:
        tensor = torch.from_numpy(array).to(torch.get_default_device(), dtype)
    return Parameter(tensor, requires_grad=tensor.is_floating_point() or tensor.is_complex())


_DRAWN_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
