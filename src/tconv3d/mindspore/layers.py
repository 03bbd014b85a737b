# SPDX-License-Identifier: Apache-2.0
"""Both layers as cells of MindSpore."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import mindspore
from mindspore import Parameter, Tensor, nn, ops
from mindspore._c_expression.amp import get_curr_amp_strategy, get_prim_cast_strategy_info
from mindspore.common import dtype as mstype
from mindspore.common.initializer import HeUniform, Uniform, initializer
from mindspore.rewrite.common import namespace

from ..contracts import mindspore as mindspore_contract
from ..contracts import pytorch as pytorch_contract
from ..errors import describe
from ..initializers import Initializer, generator
from . import _graph, _ops
from ._graph import as_type, computed_in, is_compiling, marker


class Conv3dTranspose(nn.Conv3dTranspose):
    """``mindspore.nn.Conv3dTranspose`` on this library's engine, with the comparison page's signature and ``dtype``.

    Input (N, C_in, D, H, W), output (N, C_out, D', H', W'). The default pad_mode='same' gives S * stride samples per
    axis; it crops max(0, E - stride) of them, E = dilation (K - 1) + 1, half in front and an odd extra one at the BACK.
    'valid' crops nothing; with a kernel shorter than the stride it appends stride - E zeros, as 'same' does. 'pad'
    crops ``padding``: one number, or six as (front, back) of depth, height and width; ``output_padding`` belongs to it
    alone. Any dilation, kernel volume, stride and group work; weight and input may be float16, bfloat16, float32,
    float64, complex64 or complex128.

    ``weight_init`` and ``bias_init`` take a name, a number, a Tensor, an Initializer of MindSpore or a law of
    `tconv3d.initializers`. THE DEFAULTS ARE THE PAGE'S, 'normal' (sigma 0.01) and 'zeros'; the installed MindSpore's
    are None since 2.1: the uniform law of PyTorch, which None gives here as well. The arguments keep the page's names
    and order also under a MindSpore whose own layer has taken PyTorch's, as 2.10 announces; that contract is
    `ConvTranspose3d`.

    It is an instance of mindspore.nn.Conv3dTranspose. Parameters, their names and repr are the original's, so
    checkpoints go both ways.

    Nearly everything is refused by the constructor, with ValueError or TypeError; the call refuses shapes with
    ValueError, dtypes with TypeError and negative output sizes with RuntimeError.

    >>> layer = Conv3dTranspose(2, 4, kernel_size=3, stride=2)
    >>> layer(mindspore.ops.ones((1, 2, 5, 5, 5))).shape
    (1, 4, 10, 10, 10)
    """

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
        dtype: Any = mstype.float32,
    ) -> None:
        # Not the original's constructor: it refuses what its operator cannot do, and it will change.
        nn.Cell.__init__(self)
        layer = mindspore_contract.layer_arguments(
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
            "zeros",
            "zeros",
            data_format,
            None if dtype is None else _ops.dtype_name(_checked_dtype(dtype)),
        )
        for name in _SHARED_ATTRIBUTES:
            setattr(self, name, getattr(layer, name))
        if weight_init is None:
            weight_init = HeUniform(math.sqrt(5))
        if bias_init is None and has_bias:
            bias_init = Uniform(1 / math.sqrt(math.prod(layer.weight_shape[1:])))
        self.weight_init, self.bias_init = weight_init, bias_init
        self.weight = _parameter("weight", weight_init, layer.weight_shape, dtype)
        self.bias = _parameter("bias", bias_init, (out_channels,), dtype) if has_bias else None
        self._arguments = _ops.Arguments(mindspore_contract, layer)
        # The original's operators; None where it has none for this layer.
        try:
            self.conv3d_transpose = self._arguments.own_operator((), None)
        except ValueError:
            self.conv3d_transpose = None
        self.bias_add = ops.BiasAdd(data_format)

    def construct(self, x):
        """Return the transposed convolution of ``x``, which must be (N, C_in, D, H, W); empty axes are fine."""
        if is_compiling(marker):
            return _graph.compiled(self._arguments, self.mixed_precision_type, x, self.weight, self.bias)
        return _call(self, x)

    def extend_repr(self) -> str:
        """Return the text between the brackets of the repr; output padding is not shown there."""
        return (
            f"input_channels={self.in_channels}, output_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, pad_mode={self.pad_mode}, padding={self.padding}, dilation={self.dilation}, "
            f"group={self.group}, has_bias={self.has_bias}, weight_init={self.weight_init}, "
            f"bias_init={self.bias_init}, format={self.data_format}"
        )


class ConvTranspose3d(nn.Cell):
    """``torch.nn.ConvTranspose3d`` as a cell of MindSpore: PyTorch's arguments, checks, law of weights and repr.

    Input (N, C_in, D, H, W) or (C_in, D, H, W), output likewise, with (S - 1) stride - 2 padding + dilation (K - 1) + 1
    + output_padding samples per axis. ``padding`` REMOVES samples at both ends. With stride > 1 several input sizes
    share one size after a forward convolution; ``output_padding``, below stride or dilation, tells them apart by
    appending at the BACK alone; ``output_size`` of the call replaces it.

    ``dtype`` is a type of MindSpore, float32 if left out; ``device`` may be None or the name of the context's target.
    Weight (C_in, C_out / groups, kD, kH, kW) and bias (C_out,) start as U(-B, B), B = 1 / sqrt(C_out / groups * kD kH
    kW), and are named as in PyTorch.

    ValueError for groups and padding_mode, TypeError and RuntimeError for other constructor arguments; geometry is
    checked by the call, with RuntimeError, in graphs when they are compiled.

    >>> layer = ConvTranspose3d(2, 4, kernel_size=3, stride=2, padding=1, output_padding=1)
    >>> layer
    ConvTranspose3d(2, 4, kernel_size=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), output_padding=(1, 1, 1))
    >>> layer(mindspore.ops.ones((1, 2, 5, 5, 5))).shape
    (1, 4, 10, 10, 10)
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: object = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        layer = pytorch_contract.layer_arguments(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
        )
        _check_device(device)
        dtype = mstype.float32 if dtype is None else _checked_dtype(dtype)
        if _ops.dtype_name(dtype) not in pytorch_contract.DTYPES:
            rule = f"parameters must have one of {pytorch_contract.DTYPES}"
            raise RuntimeError(describe("dtype", dtype, rule, "leave it out for float32"))
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups"):
            setattr(self, name, getattr(layer, name))
        self.dilation, self.padding_mode = layer.dilation, layer.padding_mode
        weight_law, bias_law = layer.initializers()
        if not math.prod(layer.weight_shape):
            warnings.warn("Initializing zero-element tensors is a no-op", UserWarning, stacklevel=2)
        self.weight = _parameter("weight", weight_law, layer.weight_shape, dtype)
        self.bias = _parameter("bias", bias_law, (layer.out_channels,), dtype) if layer.bias else None
        self._arguments = _ops.Arguments(pytorch_contract, layer)

    def construct(self, input, output_size=None):
        """Return the transposed convolution of (N, C, D, H, W) or (C, D, H, W); ``output_size`` as in PyTorch."""
        if is_compiling(marker):
            kind = self.mixed_precision_type
            return _graph.compiled(self._arguments, kind, input, self.weight, self.bias, output_size)
        return _call(self, input, output_size)

    def extend_repr(self) -> str:
        """Return the text between the brackets of the repr."""
        return self._arguments.layer.repr_arguments()


# Attributes of the page's layer that its checked arguments carry.
_SHARED_ATTRIBUTES = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "pad_mode",
    "padding",
    "dilation",
    "group",
    "output_padding",
    "has_bias",
    "data_format",
)


def _call(cell: Any, input: Any, output_size: Sequence[int] | None = None) -> Tensor:
    """What `construct` does in PyNative mode."""
    if not isinstance(input, Tensor):
        return _graph.refuse_input(input)
    weight, bias = cell.weight, cell.bias
    dtype = computed_in(cell.mixed_precision_type)
    if dtype is not None:
        bias = None if bias is None else as_type(bias, dtype)
        return _run(cell, as_type(input, dtype), as_type(weight, dtype), bias, output_size)
    strategy = get_curr_amp_strategy()  # of amp's level 'auto', which goes by the names of operators
    if strategy is not None:
        rule = get_prim_cast_strategy_info(strategy, "Conv3DTranspose")
        if rule.strategy.name == "AmpDoCast":
            output = _run(cell, as_type(input, rule.dtype), as_type(weight, rule.dtype), None, output_size)
            return output if bias is None else output + bias.reshape(-1, 1, 1, 1)
    return _run(cell, input, weight, bias, output_size)


def _run(cell: Any, input: Tensor, weight: Tensor, bias: Tensor | None, output_size: Sequence[int] | None) -> Tensor:
    arguments = cell._arguments
    dtypes = (input.dtype, weight.dtype) if bias is None else (input.dtype, weight.dtype, bias.dtype)
    call = arguments.call(input.shape, weight.shape, dtypes, output_size)
    if not call.on_cpu:
        return _graph.own_operator(arguments, input, weight, bias, output_size)
    if call.weight_grad_dtype != call.dtype:
        # The gradient of an operand of a _Function is rounded to its type, that of an operator stays as it is.
        return _graph.conv_transpose3d(arguments, input, weight, bias, output_size)
    return _ops.conv_transpose3d(call, input, weight, bias)


# amp's level O1 writes the source of a network anew, which these cells would not survive. It leaves them in float32.
getattr(namespace, "_subtree_black_list", []).extend((Conv3dTranspose, ConvTranspose3d))


def _parameter(name: str, init: Any, shape: tuple[int, ...], dtype: Any) -> Parameter:
    if isinstance(init, Initializer):
        array = init(shape, _ops.array_dtype(dtype), generator())
        return Parameter(Tensor(array, dtype), name=name)
    return Parameter(initializer(init, shape, dtype), name=name)


def _checked_dtype(dtype: Any) -> Any:
    if not isinstance(dtype, mstype.Type):
        rule = "it must be a type of MindSpore"
        raise TypeError(describe("dtype", dtype, rule, "use for example mindspore.float32"))
    return dtype


def _check_device(device: Any) -> None:
    target = mindspore.get_context("device_target")
    if device is not None and not isinstance(device, str):
        raise TypeError(describe("device", device, "it must be None or a string", f"use {target!r}"))
    if device is not None and device.upper() != target.upper():
        rule = f"MindSpore's context runs on {target!r}"
        raise RuntimeError(describe("device", device, rule, "leave it out and use mindspore.set_device"))
