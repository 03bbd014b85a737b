# SPDX-License-Identifier: Apache-2.0
"""The contract of ``mindspore.nn.Conv3dTranspose``.

Per axis, with E = dilation (K - 1) + 1 and total = max(0, E - stride):

    pad_mode   output size                                       crop in front
    'same'     S stride                                          total // 2; an odd extra sample goes at the BACK
    'valid'    S stride + total                                  0
    'pad'      (S - 1) stride + E - front - back + output_padding   front

Kernels shorter than the stride get stride - E trailing zeros under 'same' and 'valid', none under 'pad'. Nearly
everything is checked by the constructor, with ValueError or TypeError. What the original refuses only because of its
back-ends is accepted here: dilation of the depth, kernels of more than 343 taps, any stride, output padding up to the
dilation, and every floating or complex dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..errors import describe
from ..geometry import Geometry, Triple, check_element_count, effective_kernel, padded_size, same_size, valid_size
from ..initializers import HeUniform, Initializer, Uniform, Zero, resolve

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
PAD_MODES = ("same", "valid", "pad")


@dataclass(frozen=True)
class LayerArguments:
    """The constructor arguments of a layer as MindSpore stores them, all checked.

    ``padding`` stays the int or the six numbers (front, back of depth, height, width) that were given, ``pad_mode``
    keeps its spelling.

    >>> layer_arguments(2, 4, 3, stride=2).geometry((1, 2, 5, 5, 5)).output_size
    (10, 10, 10)
    """

    in_channels: int
    out_channels: int
    kernel_size: Triple
    stride: Triple
    pad_mode: str
    padding: int | tuple[int, ...]
    dilation: Triple
    group: int
    output_padding: Triple
    has_bias: bool
    # An array among these two has no truth value to compare with.
    weight_init: Any = field(compare=False)
    bias_init: Any = field(compare=False)
    data_format: str
    dtype: str

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(C_in, C_out / group, kD, kH, kW), the same layout as PyTorch's."""
        return (self.in_channels, self.out_channels // self.group, *self.kernel_size)

    def geometry(self, input_shape: Sequence[int]) -> Geometry:
        """Resolve the call for an input (N, C, D, H, W).

        ValueError for another number of axes or channels, and for sizes past 64 bits; RuntimeError for a negative
        output size. Empty inputs and empty outputs are fine.
        """
        return _resolve(
            tuple(input_shape),
            self.weight_shape,
            self.stride,
            self.pad_mode.lower(),
            self.padding,
            self.dilation,
            self.group,
            self.output_padding,
        )

    @property
    def crops(self) -> tuple[Triple, Triple]:
        """Samples of the uncropped signal that the output lacks in front and behind, for every input alike.

        Negative behind, where zeros are appended.

        >>> layer_arguments(1, 1, 4).crops, layer_arguments(1, 1, 2, stride=3).crops
        (((1, 1, 1), (2, 2, 2)), ((0, 0, 0), (-1, -1, -1)))
        """
        effective = effective_kernel(self.kernel_size, self.dilation)
        if self.pad_mode.lower() == "pad":
            front, both = _crops(self.padding)
            back = (total - less - more for total, less, more in zip(both, front, self.output_padding, strict=True))
        else:
            resolve_size = same_size if self.pad_mode.lower() == "same" else valid_size
            front, out = resolve_size((1, 1, 1), effective, self.stride)  # where the uncropped signal is one kernel
            back = (length - less - size for length, less, size in zip(effective, front, out, strict=True))
        d, h, w = back
        return front, (d, h, w)

    def initializers(self) -> tuple[Initializer, Initializer]:
        """Return the laws of weight and bias; without a bias, what was given for it is ignored, even nonsense."""
        return resolve(self.weight_init), resolve(self.bias_init) if self.has_bias else Zero()

    def repr_arguments(self) -> str:
        """Return the text between the brackets of the layer's repr; output padding is not shown there."""
        return (
            f"input_channels={self.in_channels}, output_channels={self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, pad_mode={self.pad_mode}, padding={self.padding}, dilation={self.dilation}, "
            f"group={self.group}, has_bias={self.has_bias}, weight_init={self.weight_init}, "
            f"bias_init={self.bias_init}, format={self.data_format}"
        )


def layer_arguments(
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
    dtype: str | None = "float32",
) -> LayerArguments:
    """Check everything the constructor checks and return the stored arguments.

    TypeError for a value of the wrong type (lists and NumPy integers included: the original takes int and tuple
    only), ValueError for a value out of range. group=0 is a ValueError too, where the original divides by zero.
    The shapes of given arrays and laws that need a fan are checked when the parameters are drawn.

    >>> layer_arguments(2, 4, 3, padding=1)
    Traceback (most recent call last):
        ...
    ValueError: padding is 1, but it must be 0 with pad_mode='same'; use pad_mode='pad'
    """
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels), ("group", group)):
        _check_count(name, channels)
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % group:
            raise ValueError(describe(name, channels, f"group={group} must divide it", "change one of the two"))
    if not isinstance(has_bias, bool):
        raise TypeError(describe("has_bias", has_bias, "it must be a bool", "pass True or False"))
    if dtype is None:
        raise ValueError(describe("dtype", dtype, "the parameters need one", "leave it out for float32"))
    if data_format != "NCDHW":
        raise ValueError(describe("data_format", data_format, "only 'NCDHW' exists here", "move the channels first"))
    kernel = _triple("kernel_size", kernel_size, 1)
    # None is the law of MindSpore 2.1 and later, PyTorch's: both bounds come from the fan of the WEIGHT.
    if weight_init is None:
        weight_init = HeUniform(math.sqrt(5))
    if bias_init is None and has_bias:
        bias_init = Uniform(1 / math.sqrt(out_channels // group * math.prod(kernel)))
    arguments = LayerArguments(
        in_channels,
        out_channels,
        kernel,
        _triple("stride", stride, 1),
        _pad_mode(pad_mode),
        _padding(padding, pad_mode),
        _triple("dilation", dilation, 1),
        group,
        _triple("output_padding", output_padding, 0),
        has_bias,
        weight_init,
        bias_init,
        data_format,
        dtype,
    )
    _check_output_padding(arguments)
    try:
        check_element_count("weight", arguments.weight_shape)
    except OverflowError as error:
        raise ValueError(str(error)) from None
    arguments.initializers()  # unknown names and wrong types end here
    return arguments


def check_dtypes(input_dtype: str, weight_dtype: str, bias_dtype: str | None = None) -> None:
    """Refuse, with TypeError, types that cannot be convolved or that differ: nothing is promoted.

    >>> check_dtypes("float16", "float16")
    """
    if input_dtype not in DTYPES:
        raise TypeError(
            describe("the dtype of the input", input_dtype, f"it must be one of {DTYPES}", "convert the input")
        )
    for name, dtype in (("weight", weight_dtype), ("bias", bias_dtype)):
        if dtype is not None and dtype != input_dtype:
            raise TypeError(
                describe(f"the dtype of the {name}", dtype, f"it must be the input's, {input_dtype}", "convert one")
            )


def weight_grad_dtype(dtype: str) -> str:
    """Return the type of the weight gradient: that of the weight, except float32 for float16 weights.

    >>> weight_grad_dtype("float16"), weight_grad_dtype("float64")
    ('float32', 'float64')
    """
    return "float32" if dtype == "float16" else dtype


@lru_cache(maxsize=1024)
def _resolve(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: Triple,
    pad_mode: str,
    padding: int | tuple[int, ...],
    dilation: Triple,
    group: int,
    output_padding: Triple,
) -> Geometry:
    if len(input_shape) != 5:
        rule = "it must be (N, C, D, H, W)"
        raise ValueError(describe("the shape of the input", input_shape, rule, "add the batch with x[None]"))
    if input_shape[1] != weight_shape[0]:
        rule = f"it must have {weight_shape[0]} channels, as the weight {weight_shape} has rows"
        raise ValueError(describe("the shape of the input", input_shape, rule, "check the order of the axes"))
    input_size = (input_shape[2], input_shape[3], input_shape[4])
    kernel_size = (weight_shape[2], weight_shape[3], weight_shape[4])
    effective = effective_kernel(kernel_size, dilation)
    if pad_mode == "pad":
        crop_front, crop = _crops(padding)
        size = padded_size(input_size, effective, stride, crop)
        out = (size[0] + output_padding[0], size[1] + output_padding[1], size[2] + output_padding[2])
    else:
        crop_front, out = (same_size if pad_mode == "same" else valid_size)(input_size, effective, stride)
    if min(out) < 0:
        raise RuntimeError(describe("the output size", out, "no axis may be negative", "use less padding"))
    try:
        check_element_count("output", (input_shape[0], weight_shape[1] * group, *out))
        return Geometry(input_size, kernel_size, stride, dilation, crop_front, out, group)
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _crops(padding: int | tuple[int, ...]) -> tuple[Triple, Triple]:
    """Return the crop in front and the crop of both ends together, per axis."""
    p = (padding,) * 6 if isinstance(padding, int) else padding
    return (p[0], p[2], p[4]), (p[0] + p[1], p[2] + p[3], p[4] + p[5])


def _check_count(name: str, value: object) -> None:
    if type(value) is not int:
        raise TypeError(describe(name, value, "it must be an int", "convert it with int()"))
    if value < 1:
        raise ValueError(describe(name, value, "it must be at least 1", "use 1 or more"))


def _check_size_type(name: str, value: object) -> None:
    if type(value) is not int and not isinstance(value, tuple):
        raise TypeError(describe(name, value, "it must be an int or a tuple", "convert it with int() or tuple()"))


def _triple(name: str, value: object, smallest: int) -> Triple:
    _check_size_type(name, value)
    entries = value if isinstance(value, tuple) else (value,) * 3
    if len(entries) != 3:
        raise ValueError(describe(name, value, "it must be one int or three", "pass depth, height and width"))
    if any(type(entry) is not int or entry < smallest for entry in entries):
        raise ValueError(describe(name, value, f"every entry must be an int of at least {smallest}", "correct it"))
    return entries[0], entries[1], entries[2]


def _pad_mode(pad_mode: object) -> str:
    if not isinstance(pad_mode, str):
        raise TypeError(describe("pad_mode", pad_mode, "it must be a string", f"use one of {PAD_MODES}"))
    if pad_mode.lower() not in PAD_MODES:
        raise ValueError(describe("pad_mode", pad_mode, "it is unknown", f"use one of {PAD_MODES}"))
    return pad_mode


def _padding(padding: object, pad_mode: str) -> int | tuple[int, ...]:
    _check_size_type("padding", padding)
    entries: tuple[Any, ...] = padding if isinstance(padding, tuple) else (padding,) * 6
    if len(entries) != 6:
        rule = "it must be one int or six: front and back of depth, height and width"
        raise ValueError(describe("padding", padding, rule, "repeat each entry of a symmetric padding"))
    if any(type(entry) is not int for entry in entries):
        raise TypeError(describe("padding", padding, "its entries must be ints", "convert them with int()"))
    if min(entries) < 0:
        raise ValueError(describe("padding", padding, "no entry may be negative", "use output_padding to extend"))
    if pad_mode.lower() != "pad" and any(entries):
        raise ValueError(describe("padding", padding, f"it must be 0 with pad_mode={pad_mode!r}", "use pad_mode='pad'"))
    return padding if isinstance(padding, tuple) else entries[0]


def _check_output_padding(arguments: LayerArguments) -> None:
    extra = arguments.output_padding
    if any(extra) and arguments.pad_mode.lower() != "pad":
        rule = f"it must be 0 with pad_mode={arguments.pad_mode!r}"
        raise ValueError(describe("output_padding", extra, rule, "use pad_mode='pad'"))
    for more, stride, dilation in zip(extra, arguments.stride, arguments.dilation, strict=True):
        if more >= max(stride, dilation):
            rule = f"every entry must be below the stride {arguments.stride} or the dilation {arguments.dilation}"
            raise ValueError(describe("output_padding", extra, rule, "it picks one of several sizes; lower it"))
