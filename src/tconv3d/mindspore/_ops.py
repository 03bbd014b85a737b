# SPDX-License-Identifier: Apache-2.0
"""What a call resolves to, and the route of PyNative mode: three functions and their derivatives of any order.

The three operations are each linear in two operands, and the derivative of each is made of the other two:

    y  = forward(x, w) + b        gx = input_grad(gy, w)      gw = weight_grad(x, gy)      gb = sum of gy
    gx = input_grad(gy, w)        ggy = forward(v, w)         gw = weight_grad(v, gy)      for v, the gradient of gx
    gw = weight_grad(x, gy)       gx = input_grad(gy, u)      ggy = forward(x, u)          for u, the gradient of gw

So backward is written with the same functions, and a second backward is right because the first one was; complex
operands are conjugated inside the two gradients.

MindSpore queues its operations. An address waits for whatever still writes to its tensor, so operands are complete when
the engine reads them. Results are fresh NumPy arrays, never buffers of the output pool: an operation that was queued on
a result may read it long after the result's Python object has died.
"""

from __future__ import annotations

from functools import lru_cache
from operator import index
from types import ModuleType
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, ops
from mindspore.common._grad_function import _Function

from .. import _engine
from ..contracts import mindspore as mindspore_contract
from ..errors import describe
from ..functional import check_memory
from ..geometry import Geometry

NAMES = {
    getattr(mindspore, name): name
    for name in ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int64", "int32", "bool_")
}
DTYPES = {name: dtype for dtype, name in NAMES.items()}

# Calls that one layer keeps. Networks see a handful of shapes; whoever sees more resolves anew, some 30 us.
_MAX_CALLS = 64

Shape = tuple[int, ...]


def dtype_name(dtype: Any) -> str:
    """Return the name that the contracts know a type of MindSpore by."""
    return NAMES.get(dtype) or str(dtype).lower()


@lru_cache(maxsize=16)
def array_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the type of NumPy arrays that share memory with tensors of a type of MindSpore."""
    return Tensor(0, dtype).asnumpy().dtype


def on_cpu() -> bool:
    """Whether MindSpore runs its operations on the CPU, where this library's engine is."""
    return mindspore.get_context("device_target") == "CPU"


class Arguments:
    """The constructor arguments of one layer, checked by its contract, and the calls that they were resolved to."""

    def __init__(self, contract: ModuleType, layer: Any) -> None:
        self.contract, self.layer = contract, layer
        self._calls: dict[Any, Call] = {}
        self._own_operators: dict[Any, ops.Conv3DTranspose] = {}

    def __deepcopy__(self, memo: Any) -> Arguments:
        return self  # fixed from the start, so copies of a layer can share it

    def call(
        self,
        input_shape: Shape,
        weight_shape: Shape,
        dtypes: tuple[Any, ...],
        output_size: Any = None,
    ) -> Call:
        """Return the call for operands of these shapes and types; raises what the contract says about them."""
        output_size = _entries(output_size)
        if output_size is not None and any(type(entry) is not int for entry in output_size):
            return self._resolve(input_shape, weight_shape, dtypes, output_size)  # 8.0 is 8 to a dict, not to PyTorch
        key = input_shape, weight_shape, dtypes, output_size
        try:
            return self._calls[key]
        except KeyError:
            if len(self._calls) >= _MAX_CALLS:
                self._calls.clear()
            call = self._calls[key] = self._resolve(*key)
            return call

    def _resolve(self, input_shape: Shape, weight_shape: Shape, dtypes: tuple[Any, ...], output_size: Any) -> Call:
        size = () if output_size is None else (output_size,)
        geometry = self.layer.geometry(input_shape, *size)
        if weight_shape != self.layer.weight_shape:
            rule = f"this layer needs {self.layer.weight_shape}"
            error = ValueError if self.contract is mindspore_contract else RuntimeError
            raise error(describe("the shape of weight", weight_shape, rule, "assign such a tensor"))
        self.contract.check_dtypes(*map(dtype_name, dtypes))
        dtype = dtypes[0]
        of_weight_grad = dtype
        if self.contract is mindspore_contract:
            of_weight_grad = DTYPES[mindspore_contract.weight_grad_dtype(dtype_name(dtype))]
        return Call(geometry, input_shape, weight_shape, dtype, of_weight_grad)

    def own_operator(self, input_shape: Shape, output_size: Any) -> ops.Conv3DTranspose:
        """Return MindSpore's operator for a call; ValueError for what it has not, such as dilation of the depth."""
        output_size = _entries(output_size)
        key = None if output_size is None else (input_shape, output_size)
        if key not in self._own_operators:
            self._own_operators[key] = ops.Conv3DTranspose(**self._own_arguments(input_shape, output_size))
        return self._own_operators[key]

    def _own_arguments(self, input_shape: Shape, output_size: Any) -> dict[str, Any]:
        layer = self.layer
        shared = {
            "in_channel": layer.in_channels,
            "out_channel": layer.out_channels,
            "kernel_size": layer.kernel_size,
        }
        if self.contract is mindspore_contract:
            return shared | {
                "stride": layer.stride,
                "dilation": layer.dilation,
                "group": layer.group,
                "pad_mode": layer.pad_mode,
                "pad": layer.padding,
                "output_padding": layer.output_padding,
            }
        stride, padding, dilation, extra = (
            value * 3 if len(value) == 1 else value
            for value in (layer.stride, layer.padding, layer.dilation, layer.output_padding)
        )
        if output_size is not None:
            geometry = layer.geometry(input_shape, output_size)
            full = (size + crop for size, crop in zip(geometry.output_size, geometry.crop_front, strict=True))
            extra = tuple(n + p - whole for n, p, whole in zip(full, padding, geometry.full_size, strict=True))
        return shared | {
            "stride": stride,
            "dilation": dilation,
            "group": layer.groups,
            "pad_mode": "pad",
            "pad": tuple(cut for cut in padding for _ in range(2)),
            "output_padding": extra,
        }


def _entries(output_size: Any) -> tuple[Any, ...] | None:
    """Return an output size as a tuple, with Python's ints for whatever integers came in."""
    if output_size is None:
        return None
    return tuple(index(entry) if hasattr(entry, "__index__") else entry for entry in output_size)


class Call:
    """One resolved call: everything but the operands themselves."""

    def __init__(
        self, geometry: Geometry, input_shape: Shape, weight_shape: Shape, dtype: Any, weight_grad_dtype: Any
    ) -> None:
        self.geometry, self.dtype, self.weight_grad_dtype = geometry, dtype, weight_grad_dtype
        self.unbatched = len(input_shape) == 4
        input_shape = (1, *input_shape) if self.unbatched else input_shape
        self.input_shape, self.weight_shape = input_shape, weight_shape
        self.output_shape = (input_shape[0], weight_shape[1] * geometry.groups, *geometry.output_size)
        self.is_complex = dtype_name(dtype).startswith("complex")
        self.on_cpu = on_cpu()
        # MindSpore's own count is its number of runtime threads, 30 unless someone says less.
        self._framework_threads = mindspore.get_context("runtime_num_threads")
        self.operators: Any = None  # of graph mode, made on first use
        self._sizes = (input_shape, weight_shape, *_engine.geometry_at(geometry))
        self._core_dtype = _engine.DTYPES_AT.get(dtype_name(dtype))
        self._array_dtype = array_dtype(dtype)
        check_memory("output", self.output_shape, self._array_dtype)

    @property
    def threads(self) -> int:
        """Threads to pass to the engine; 0 leaves the number to it."""
        fewer = self._framework_threads < _engine.get_num_threads()
        return _engine.threads_at(self._framework_threads if fewer else 0)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the output."""
        if self.is_complex:
            arrays = input.asnumpy(), weight.asnumpy(), None if bias is None else bias.asnumpy()
            return Tensor.from_numpy(_engine.forward(*arrays, self.geometry))
        return self._run(_engine.forward_at, input, weight, self.output_shape, bias)

    def input_grad(self, grad_output: Tensor, weight: Tensor) -> Tensor:
        """Return the gradient of the input."""
        if self.is_complex:
            return Tensor.from_numpy(_engine.input_grad(grad_output.asnumpy(), weight.asnumpy(), self.geometry))
        return self._run(_engine.input_grad_at, grad_output, weight, self.input_shape)

    def weight_grad(self, input: Tensor, grad_output: Tensor) -> Tensor:
        """Return the gradient of the weight, in the weight's type."""
        if self.is_complex:
            return Tensor.from_numpy(_engine.weight_grad(input.asnumpy(), grad_output.asnumpy(), self.geometry))
        return self._run(_engine.weight_grad_at, input, grad_output, self.weight_shape)

    def _run(self, function: Any, first: Tensor, second: Tensor, shape: Shape, bias: Tensor | None = None) -> Tensor:
        result = np.empty(shape, self._array_dtype)
        if bias is not None and not bias.is_contiguous():
            bias = bias.contiguous()
        addresses = first.data_ptr(), second.data_ptr(), 0 if bias is None else bias.data_ptr()
        if (addresses[0] | addresses[1] | addresses[2]) % result.itemsize:  # only Tensor.from_numpy makes such tensors
            return self._run(function, first.copy(), second.copy(), shape, None if bias is None else bias.copy())
        target = Tensor.from_numpy(result)
        function(
            self._core_dtype,
            (addresses[0], addresses[1], target.data_ptr()),
            first.stride(),
            second.stride(),
            tuple(step // result.itemsize for step in result.strides),
            addresses[2],
            *self._sizes,
            self.threads,
        )
        return target


def conv_transpose3d(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the output of a call in PyNative mode, and leave a way back for gradients of any order."""
    if call.unbatched:
        return _Forward.apply(input.expand_dims(0), weight, bias, call).squeeze(0)
    return _Forward.apply(input, weight, bias, call)


# Each keeps an operand only for the derivative that needs it.


class _Forward(_Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, call: Call) -> Tensor:
        input_asked, weight_asked = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if weight_asked else None, weight if input_asked else None)
        ctx.call = call
        return call.forward(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        input_asked, weight_asked, bias_asked = ctx.needs_input_grad[:3]
        return (
            _InputGrad.apply(grad_output, weight, ctx.call) if input_asked else None,
            _WeightGrad.apply(input, grad_output, ctx.call) if weight_asked else None,
            _BiasGrad.apply(grad_output) if bias_asked else None,
            None,
        )


class _InputGrad(_Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, weight: Tensor, call: Call) -> Tensor:
        grad_asked, weight_asked = ctx.needs_input_grad[:2]
        ctx.save_for_backward(grad_output if weight_asked else None, weight if grad_asked else None)
        ctx.call = call
        return call.input_grad(grad_output, weight)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, weight = ctx.saved_tensors
        grad_asked, weight_asked = ctx.needs_input_grad[:2]
        return (
            _Forward.apply(v, weight, None, ctx.call) if grad_asked else None,
            _WeightGrad.apply(v, grad_output, ctx.call) if weight_asked else None,
            None,
        )


class _WeightGrad(_Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, grad_output: Tensor, call: Call) -> Tensor:
        input_asked, grad_asked = ctx.needs_input_grad[:2]
        ctx.save_for_backward(input if grad_asked else None, grad_output if input_asked else None)
        ctx.call = call
        return call.weight_grad(input, grad_output)

    @staticmethod
    def backward(ctx: Any, u: Tensor) -> tuple[Tensor | None, ...]:
        input, grad_output = ctx.saved_tensors
        input_asked, grad_asked = ctx.needs_input_grad[:2]
        return (
            _InputGrad.apply(grad_output, u, ctx.call) if input_asked else None,
            _Forward.apply(input, u, None, ctx.call) if grad_asked else None,
            None,
        )


class _BiasGrad(_Function):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor) -> Tensor:
        ctx.shape = grad_output.shape
        return Tensor.from_numpy(_engine.bias_grad(grad_output.asnumpy()))

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, ...]:
        return (ops.broadcast_to(v.reshape(-1, 1, 1, 1), ctx.shape),)
