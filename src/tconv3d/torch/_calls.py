# SPDX-License-Identifier: Apache-2.0
"""What the arguments of a call resolve to: geometry, shapes and memory formats, found once and kept.

A `Call` runs the three operations of one resolved call on plain tensors. `Calls` keeps those that one
set of arguments has led to; there is a subclass for each contract.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _engine
from ..contracts import mindspore, pytorch
from ..functional import check_memory
from ..geometry import Geometry

_engine.use_tensors_of(Tensor, Parameter)

DTYPES = {getattr(torch, name): core for name, core in _engine.DTYPES_AT.items()}
_POOL_NAMES = {torch.float32: "float32", torch.float64: "float64"}  # and uint16, seen anew as what it is

# Calls that one set of arguments keeps. Networks see a handful of shapes; whoever sees more resolves anew, some 20 us.
_MAX_CALLS = 64

Shape = tuple[int, ...]


class Calls:
    """The calls that one set of arguments was resolved to, by the shapes, strides and dtype of the operands.

    ``latest`` is the call found last, None before the first: most likely that of the next operands too.
    """

    __slots__ = ("_calls", "latest")

    def __init__(self) -> None:
        self._calls: dict[Any, Call | None] = {}
        self.latest: Call | None = None

    def call(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Call | None:
        """Return the call for these operands, a batched input among them; None where `_geometry` has none."""
        shapes = input.shape, weight.shape, None if bias is None else bias.shape
        key = shapes, input.stride(), weight.stride(), input.dtype
        try:
            call = self._calls[key]
        except KeyError:
            if len(self._calls) >= _MAX_CALLS:
                self._calls.clear()
            geometry = self._geometry(*shapes)
            call = None if geometry is None else Call(geometry, shapes[0], key[1], shapes[1], key[2], key[3])
            self._calls[key] = call
        if call is not None:
            self.latest = call
        return call

    def _geometry(self, input_shape: Shape, weight_shape: Shape, bias_shape: Shape | None) -> Geometry | None:
        raise NotImplementedError


class TorchCalls(Calls):
    """Calls under PyTorch's contract; stride, padding, output padding, groups and dilation are kept as given."""

    __slots__ = ("dilation", "groups", "output_padding", "padding", "stride")

    def __init__(self, stride: Any, padding: Any, output_padding: Any, groups: Any, dilation: Any) -> None:
        super().__init__()
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.groups, self.dilation = groups, dilation

    def _geometry(self, input_shape: Shape, weight_shape: Shape, bias_shape: Shape | None) -> Geometry | None:
        """None for a call that PyTorch would refuse, whose own operator words it, and for an empty one."""
        if 0 in input_shape:
            return None
        sizes = self.stride, self.padding, self.output_padding, self.groups, self.dilation
        try:
            return pytorch.functional_geometry(input_shape, weight_shape, bias_shape, *sizes)
        except (RuntimeError, TypeError, ValueError):
            return None


class MindSporeCalls(Calls):
    """Calls under MindSpore's contract, which the constructor of its layer has checked."""

    __slots__ = ("_arguments",)

    def __init__(self, arguments: mindspore.LayerArguments) -> None:
        super().__init__()
        self._arguments = arguments

    def _geometry(self, input_shape: Shape, weight_shape: Shape, bias_shape: Shape | None) -> Geometry:
        """Raises what `construct` raises."""
        return self._arguments.geometry(input_shape)


class Call:
    """One resolved call: everything but the operands themselves."""

    __slots__ = ("_core", "_grad_input", "_grad_weight", "_output", "fits", "geometry")

    def __init__(
        self,
        geometry: Geometry,
        input_shape: Shape,
        input_stride: Shape,
        weight_shape: Shape,
        weight_stride: Shape,
        dtype: torch.dtype,
    ) -> None:
        input_shape, weight_shape = tuple(input_shape), tuple(weight_shape)
        output_shape = (input_shape[0], weight_shape[1] * geometry.groups, *geometry.output_size)
        check_memory("output", output_shape, dtype)
        channels_last = is_channels_last(input_shape, input_stride)
        self._output = _Layout(output_shape, channels_last, dtype)
        self._grad_input = _Layout(input_shape, channels_last, dtype)
        self._grad_weight = _Layout(weight_shape, is_channels_last(weight_shape, weight_stride), dtype)
        self.geometry = geometry
        sizes = input_shape, weight_shape, *_engine.geometry_at(geometry)
        self._core = _engine.TensorCall(*sizes, DTYPES[dtype], input_stride, weight_stride)
        # (input, weight, bias or None) -> whether they are plain and what this call was resolved for
        self.fits = self._core.fits

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None, panels: Any = None) -> Tensor:
        """Return the output, in the memory format of the call's input."""
        return _written(self._output, self._core.forward, (input, weight, bias), panels)

    def input_grad(self, grad_output: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the input, in the input's memory format."""
        return _written(self._grad_input, self._core.input_grad, (grad_output, weight))

    def weight_grad(self, input: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient of the weight, in the weight's memory format, so that autograd can keep it as it is."""
        return _written(self._grad_weight, self._core.weight_grad, (input, grad_output))


def _written(target: _Layout, function: Any, operands: tuple[Tensor | None, ...], *rest: Any) -> Tensor:
    result = target.empty(operands[0])
    try:
        function(*operands, result, _threads(), *rest)
    except _engine.Unaddressable:  # only torch.frombuffer makes such tensors
        copies = [None if operand is None else operand.clone() for operand in operands]
        function(*copies, result, _threads(), *rest)
    return result


def _threads() -> int:
    return _engine.threads_at(torch.get_num_threads())


class _Layout:
    """Shape, strides and dtype of a result, and where its memory comes from."""

    __slots__ = ("_axes", "_dtype", "_in_memory", "_pooled", "shape", "stride")

    def __init__(self, shape: Shape, channels_last: bool, dtype: torch.dtype) -> None:
        self._axes = (0, 4, 1, 2, 3) if channels_last else (0, 1, 2, 3, 4)  # where in memory each axis lies
        self._in_memory = (shape[0], *shape[2:], shape[1]) if channels_last else shape
        steps = [1]
        for size in reversed(self._in_memory):
            steps.insert(0, steps[0] * max(1, size))  # PyTorch's strides of an empty tensor
        self._pooled = dtype.itemsize * steps[0] >= _engine.POOLED_BYTES and 0 not in shape
        self.shape, self.stride = shape, tuple(steps[axis + 1] for axis in self._axes)
        self._dtype = dtype

    def empty(self, like: Tensor) -> Tensor:
        """Return an uninitialized tensor on the device of ``like`` and of its dtype, which is that of the layout.

        Large ones hold a buffer of the output pool until they die.
        """
        if not self._pooled:
            return like.new_empty_strided(self.shape, self.stride)
        try:
            array = _engine.pooled_at(self._in_memory, _POOL_NAMES.get(self._dtype, "uint16"))
        except MemoryError:  # PyTorch's allocator may still find some, or raises what its users expect
            return like.new_empty_strided(self.shape, self.stride)
        tensor = torch.from_numpy(array.transpose(self._axes))
        # Of a view autograd would remember the base and refuse writes in place; .data forgets it.
        return tensor if tensor.dtype is self._dtype else tensor.view(self._dtype).data


def is_channels_last(shape: Shape, stride: Shape) -> bool:
    """Whether strides speak for channels_last_3d: PyTorch's own rule, which calls what could be both contiguous.

    >>> is_channels_last((1, 2, 3, 3, 3), (54, 1, 18, 6, 2)), is_channels_last((1, 1, 1, 1, 1), (1, 1, 1, 1, 1))
    (True, False)
    """
    if stride[1] == 0:
        return False
    reach = 0
    for axis in (1, 4, 3, 2, 0):
        if stride[axis] < reach or (axis == 0 and reach == stride[1]):
            return False
        reach = stride[axis] * max(1, shape[axis])
    return True
