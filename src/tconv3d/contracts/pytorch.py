# SPDX-License-Identifier: Apache-2.0
"""The contract of ``torch.nn.ConvTranspose3d`` and ``torch.nn.functional.conv_transpose3d``.

Per axis: out = (S - 1) s - 2 p + d (K - 1) + 1 + output_padding, with p samples cropped in front. Padding is
symmetric and removes samples; output padding extends the BACK only, with real samples where the uncropped signal
still has some. ``output_size`` replaces output padding and may exceed the smallest size by less than the stride.

The constructor refuses groups, padding mode, types and negative sizes; every question of geometry is answered at the
call, with RuntimeError, except that a bad ``output_size`` is a ValueError and a number of the wrong type a TypeError.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

from ..errors import describe
from ..geometry import Geometry, Triple, check_element_count, effective_kernel, padded_size, same_size, valid_size
from ..initializers import HeUniform, Initializer, Uniform, Zero

DTYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
_FUNCTIONAL_DTYPES = (*DTYPES, "int64")
# Types that PyTorch has and cannot convolve. Anything else is no tensor at all there.
_REFUSED_DTYPES = ("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "uint64")

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class LayerArguments:
    """The constructor arguments of a layer as PyTorch stores them: sizes are tuples, not checked yet.

    ``padding`` may hold the characters of a string: the constructor takes ``padding='same'``, the call refuses it.

    >>> layer_arguments(2, 4, 3, stride=2).geometry((1, 2, 5, 5, 5)).output_size
    (11, 11, 11)
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[Any, ...]
    stride: tuple[Any, ...]
    padding: tuple[Any, ...]
    output_padding: tuple[Any, ...]
    groups: int
    bias: bool
    dilation: tuple[Any, ...]
    padding_mode: str

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(C_in, C_out / groups, *kernel_size); five entries unless the kernel has the wrong length."""
        return (self.in_channels, self.out_channels // self.groups, *self.kernel_size)

    def geometry(self, input_shape: Sequence[int], output_size: Sequence[int] | None = None) -> Geometry:
        """Resolve the call for an input (N, C, D, H, W) or (C, D, H, W); raises what ``forward`` would raise."""
        bias_shape = (self.out_channels,) if self.bias else None
        return functional_geometry(
            input_shape,
            self.weight_shape,
            bias_shape,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            self.dilation,
            output_size=output_size,
        )

    def initializers(self) -> tuple[Initializer, Initializer]:
        """Return the laws of weight and bias: both U(-B, B) with B = 1 / sqrt(fan_in), and 0 without a fan."""
        fan_in = math.prod(self.weight_shape[1:])
        return HeUniform(math.sqrt(5)), Uniform(1 / math.sqrt(fan_in)) if fan_in else Zero()

    def repr_arguments(self) -> str:
        """Return the text between the brackets of the layer's repr."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        for name, plain in (("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name)
            if value != (plain,) * len(value):
                text += f", {name}={value}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias else text + ", bias=False"


def layer_arguments(
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
) -> LayerArguments:
    """Check what the constructor checks and return the stored arguments.

    ValueError for groups that are not positive or do not divide the channels, and for any padding mode but 'zeros';
    TypeError for channels, kernel or groups that are not integers; RuntimeError for negative channels or kernel and
    for a weight with more elements than 64 bits can count.

    >>> layer_arguments(2, 4, 3, padding="same").padding
    ('s', 'a', 'm', 'e')
    """
    if padding_mode != "zeros":
        raise ValueError(describe("padding_mode", padding_mode, "only 'zeros' exists here", "pad the input yourself"))
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        # True is an integer to Python; PyTorch minds it in the channels at once, in groups at the call.
        if not _is_integer(channels) or (isinstance(channels, bool) and name != "groups"):
            raise TypeError(describe(name, channels, "it must be an integer", "pass an int"))
    if groups <= 0:
        raise ValueError(describe("groups", groups, "it must be at least 1", "use 1 to connect all channels"))
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % groups:
            raise ValueError(describe(name, channels, f"groups={groups} must divide it", "change one of the two"))
    arguments = LayerArguments(
        index(in_channels),
        index(out_channels),
        _kernel(kernel_size),
        _stored(stride),
        _stored(padding),
        _stored(output_padding),
        groups if isinstance(groups, bool) else index(groups),  # the call refuses a bool
        bool(bias),
        _stored(dilation),
        padding_mode,
    )
    _check_weight_shape(arguments)
    return arguments


def functional_geometry(
    input_shape: Sequence[int],
    weight_shape: Sequence[int],
    bias_shape: Sequence[int] | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: Any,
    dilation: Any,
    *,
    output_size: Any = None,
    extended_padding: bool = False,
) -> Geometry:
    """Resolve a call of ``F.conv_transpose3d`` from shapes alone.

    ``extended_padding`` admits what PyTorch has not: six numbers (front, back of depth, height, width) and
    MindSpore's 'same' and 'valid', which leave no room for output padding or an output size.

    >>> functional_geometry((1, 2, 4, 4, 4), (2, 3, 5, 5, 5), None, 3, 1, 0, 1, 1).output_size
    (12, 12, 12)
    >>> shapes = (1, 2, 4, 4, 4), (2, 3, 4, 4, 4), None
    >>> functional_geometry(*shapes, 3, "same", 0, 1, 1, extended_padding=True).crop_front
    (0, 0, 0)
    """
    if not (extended_padding and isinstance(padding, str) and padding in ("same", "valid")):
        padding = size_argument("padding", padding)
    if output_size is not None:
        output_size = _last_three(output_size, len(input_shape))
    return _resolve(
        tuple(input_shape),
        tuple(weight_shape),
        None if bias_shape is None else tuple(bias_shape),
        size_argument("stride", stride),
        padding,
        size_argument("output_padding", output_padding),
        groups if type(groups) is int else _groups_argument(groups),
        size_argument("dilation", dilation),
        output_size,
        extended_padding,
    )


def size_argument(name: str, value: Any) -> Size:
    """Return an int or a tuple of ints, whatever integers or iterable of integers came in; TypeError otherwise.

    A single bool is refused and so is a leading one; like PyTorch, the entries behind it are not looked at.

    >>> size_argument("stride", [2, 1, 2])
    (2, 1, 2)
    """
    if type(value) is int:
        return value
    if type(value) is tuple and set(map(type, value)) == {int}:
        return value
    if isinstance(value, (bool, str)):
        raise _not_integers(name, value)
    if _is_integer(value):
        return index(value)
    try:
        entries = tuple(value)
        if entries and isinstance(entries[0], bool):
            raise TypeError
        return tuple(index(entry) for entry in entries)
    except TypeError:
        raise _not_integers(name, value) from None


def shape_argument(name: str, value: Any, lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape given by the user as a tuple of ints that are not negative, with one of these lengths.

    >>> shape_argument("input_size", [1, 2, 3, 3, 3], (4, 5))
    (1, 2, 3, 3, 3)
    """
    shape = size_argument(name, value)
    if isinstance(shape, int) or len(shape) not in lengths:
        expected = " or ".join(map(str, lengths))
        raise RuntimeError(describe(name, value, f"it must have {expected} entries", "pass the whole shape"))
    if min(shape) < 0:
        raise RuntimeError(describe(name, shape, "no entry may be negative", "pass the shape of the array"))
    return shape


def check_dtypes(input_dtype: str, weight_dtype: str, bias_dtype: str | None = None) -> None:
    """Refuse types that cannot be convolved, or that differ: nothing is promoted.

    NotImplementedError for small integers and bool, RuntimeError for types that differ, TypeError for what PyTorch
    has no tensors of. int64 passes: the functional form adds it up exactly.

    >>> check_dtypes("float32", "float32")
    """
    if input_dtype not in _FUNCTIONAL_DTYPES:
        error = NotImplementedError if input_dtype in _REFUSED_DTYPES or "float8" in input_dtype else TypeError
        raise error(describe("the dtype of the input", input_dtype, f"it must be one of {DTYPES}", "convert the input"))
    for name, dtype in (("weight", weight_dtype), ("bias", bias_dtype)):
        if dtype is not None and dtype != input_dtype:
            raise RuntimeError(
                describe(f"the dtype of the {name}", dtype, f"it must be the input's, {input_dtype}", "convert one")
            )


@lru_cache(maxsize=1024)
def _resolve(
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    stride_argument: Size,
    padding_argument: Size | str,
    output_padding_argument: Size,
    groups: int,
    dilation_argument: Size,
    output_size: Triple | None,
    extended_padding: bool,
) -> Geometry:
    """The rules themselves, on plain ints (which the cache needs: to it 1, 1.0 and True are one key)."""
    _check_shapes(input_shape, weight_shape, bias_shape, groups)
    stride = _triple("stride", stride_argument, 1)
    dilation = _triple("dilation", dilation_argument, 1)
    output_padding = _triple("output_padding", output_padding_argument, 0)
    input_size, kernel_size = _last(input_shape), _last(weight_shape)
    effective = effective_kernel(kernel_size, dilation)
    if isinstance(padding_argument, str):
        if output_size is not None or any(output_padding):
            raise RuntimeError(
                describe("padding", padding_argument, "it fixes the output size", "drop output_padding and output_size")
            )
        crop_front, out = (same_size if padding_argument == "same" else valid_size)(input_size, effective, stride)
    else:
        crop_front, crop_back = _crops(padding_argument, extended_padding)
        crop = _map(lambda front, back: front + back, crop_front, crop_back)
        smallest = padded_size(input_size, effective, stride, crop)
        if output_size is None:
            _check_output_padding(output_padding, stride, dilation)
            out = _map(lambda size, extra: size + extra, smallest, output_padding)
        else:
            _check_output_size(output_size, smallest, stride)
            out = output_size
    _check_out(out, input_shape)
    try:
        check_element_count("output", (*input_shape[:-4], weight_shape[1] * groups, *out))
        return Geometry(input_size, kernel_size, stride, dilation, crop_front, out, groups)
    except OverflowError as error:
        raise RuntimeError(str(error)) from None


def _check_shapes(
    input_shape: tuple[int, ...], weight_shape: tuple[int, ...], bias_shape: tuple[int, ...] | None, groups: int
) -> None:
    if len(input_shape) not in (4, 5):
        rule = "it must be (N, C, D, H, W), or (C, D, H, W) without a batch"
        raise RuntimeError(describe("the shape of the input", input_shape, rule, "add or remove axes"))
    if len(weight_shape) != 5 or min(weight_shape) < 1:
        rule = "it must be (C_in, C_out / groups, kD, kH, kW) without a zero"
        raise RuntimeError(describe("the shape of the weight", weight_shape, rule, "pass a 3-D kernel"))
    if groups < 1:
        raise RuntimeError(describe("groups", groups, "it must be at least 1", "use 1 to connect all channels"))
    if weight_shape[0] % groups:
        rule = f"its first entry must be a multiple of groups={groups}"
        raise RuntimeError(describe("the shape of the weight", weight_shape, rule, "change one of the two"))
    if input_shape[-4] != weight_shape[0]:
        rule = f"it must have {weight_shape[0]} channels, as the weight {weight_shape} has rows"
        raise RuntimeError(describe("the shape of the input", input_shape, rule, "check the order of the axes"))
    if bias_shape is not None and bias_shape != (weight_shape[1] * groups,):
        rule = f"it must be ({weight_shape[1] * groups},), one entry for each output channel"
        raise RuntimeError(describe("the shape of the bias", bias_shape, rule, "reshape it"))


def _check_output_padding(output_padding: Triple, stride: Triple, dilation: Triple) -> None:
    for extra, step, spread in zip(output_padding, stride, dilation, strict=True):
        if extra >= step and extra >= spread:
            rule = f"every entry must be below the stride {stride} or the dilation {dilation} of its axis"
            raise RuntimeError(
                describe("output_padding", output_padding, rule, "it picks one of several sizes; use a larger stride")
            )


def _check_output_size(output_size: Triple, smallest: Triple, stride: Triple) -> None:
    largest = _map(lambda size, step: size + step - 1, smallest, stride)
    for size, low, high in zip(output_size, smallest, largest, strict=True):
        if not low <= size <= high:
            rule = f"this input allows {smallest} to {largest}"
            raise ValueError(describe("output_size", output_size, rule, "choose a size in between, or change padding"))


def _check_out(out: Triple, input_shape: tuple[int, ...]) -> None:
    """PyTorch lets empty axes pass where the batch is empty, and nowhere else."""
    empty_batch = len(input_shape) == 5 and input_shape[0] == 0
    if not empty_batch and 0 in input_shape:
        rule = "only its batch may be empty"
        raise RuntimeError(describe("the shape of the input", input_shape, rule, "skip the call for empty data"))
    if min(out) < (0 if empty_batch else 1):
        rule = "every axis needs at least one sample"
        raise RuntimeError(describe("the output size", out, rule, "use less padding or a larger kernel"))


def _crops(padding: Size, extended: bool) -> tuple[Triple, Triple]:
    """Return what is cropped in front and behind; six numbers give the two separately."""
    if extended and isinstance(padding, tuple) and len(padding) == 6:
        if min(padding) < 0:
            raise RuntimeError(describe("padding", padding, "no entry may be negative", "pad the output yourself"))
        return (padding[0], padding[2], padding[4]), (padding[1], padding[3], padding[5])
    both = _triple("padding", padding, 0)
    return both, both


def _triple(name: str, value: Size, smallest: int) -> Triple:
    """Spread one number over three axes and check the sign."""
    entries = (value,) if isinstance(value, int) else value
    if len(entries) == 1:
        entries *= 3
    if len(entries) != 3:
        rule = "it must be one integer or three, for depth, height and width"
        raise RuntimeError(describe(name, value, rule, "pass three"))
    if min(entries) < smallest:
        raise RuntimeError(describe(name, value, f"every entry must be at least {smallest}", f"use {smallest}"))
    return entries[0], entries[1], entries[2]


def _last_three(output_size: Any, rank: int) -> Triple:
    """Return the spatial part of ``output_size``; what stands before it is ignored, as PyTorch does."""
    if isinstance(output_size, str) or not hasattr(output_size, "__len__"):
        raise _not_integers("output_size", output_size)
    entries = tuple(output_size)
    if len(entries) not in (3, rank):
        rule = f"for an input of {rank} axes it must have 3 or {rank} entries"
        raise ValueError(describe("output_size", output_size, rule, "pass depth, height and width"))
    size = size_argument("output_size", entries[-3:])
    assert isinstance(size, tuple)  # a tuple went in
    return size[0], size[1], size[2]


def _groups_argument(groups: Any) -> int:
    if isinstance(groups, bool) or not _is_integer(groups):
        raise TypeError(describe("groups", groups, "it must be an integer", "pass an int"))
    return index(groups)


def _stored(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,) * 3


def _kernel(kernel_size: Any) -> tuple[int, ...]:
    try:
        return tuple(index(entry) for entry in _stored(kernel_size))
    except TypeError:
        raise _not_integers("kernel_size", kernel_size) from None


def _check_weight_shape(arguments: LayerArguments) -> None:
    """The part of the constructor that PyTorch leaves to the allocation of the weight."""
    if min(arguments.weight_shape) < 0:
        rule = "no entry may be negative"
        raise RuntimeError(describe("the shape of the weight", arguments.weight_shape, rule, "use positive sizes"))
    try:
        check_element_count("weight", arguments.weight_shape)
    except OverflowError as error:
        raise RuntimeError(str(error)) from None


def _is_integer(value: Any) -> bool:
    try:
        index(value)
    except TypeError:
        return False
    return True


def _not_integers(name: str, value: Any) -> TypeError:
    return TypeError(describe(name, value, "it must be an integer or a sequence of integers", "pass ints"))


def _last(shape: tuple[int, ...]) -> Triple:
    return shape[-3], shape[-2], shape[-1]


def _map(function: Any, a: Triple, b: Triple) -> Triple:
    return function(a[0], b[0]), function(a[1], b[1]), function(a[2], b[2])
