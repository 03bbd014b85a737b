# SPDX-License-Identifier: Apache-2.0
"""Both layers on NumPy arrays: PyTorch's ``ConvTranspose3d`` and MindSpore's ``Conv3dTranspose``.

A layer holds ``weight`` and ``bias`` as plain arrays that can be read, changed in place and assigned; ``bias`` is None
where it is off. The other arguments are fixed when the layer is made. ``backward(grad_output)`` returns the gradient
of the last input and OVERWRITES ``weight_grad`` and ``bias_grad``; nothing accumulates, so a step over several
batches adds them up itself. For it the layer keeps the last input, by reference and not in pickles or copies: change
that array in between, and the weight gradient changes with it. One layer serves one thread at a time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .contracts import mindspore, pytorch
from .errors import describe
from .functional import (
    as_operand,
    check_grad_shape,
    check_memory,
    dtype_name,
    output_shape,
    run_bias_grad,
    run_forward,
    run_input_grad,
    run_weight_grad,
)
from .geometry import Geometry
from .initializers import Initializer, generator

Array = NDArray[Any]


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found: names the layer has and the dict has not, and the other way round.

    >>> IncompatibleKeys(["bias"], [])
    IncompatibleKeys(missing_keys=['bias'], unexpected_keys=[])
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class _Layer:
    """Parameters, state and gradients; a subclass adds its contract: arguments, dtype rules, exception types."""

    weight: Array
    bias: Array | None
    weight_grad: Array | None
    bias_grad: Array | None

    _fixed: ClassVar[frozenset[str]]
    _check_dtypes: ClassVar[Any]
    _shape_error: ClassVar[type[Exception]]

    _arguments: Any
    _dtype: np.dtype[Any]
    _saved: tuple[Array, Geometry] | None

    def __init__(self, arguments: Any, dtype: np.dtype[Any]) -> None:
        self._arguments = arguments
        self._dtype = dtype
        self._saved = None
        self.weight_grad = self.bias_grad = None
        self.reset_parameters()

    def __getattr__(self, name: str) -> Any:
        if name in type(self)._fixed:
            return getattr(self._arguments, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self)._fixed:
            raise AttributeError(describe(name, value, "it is fixed when the layer is made", "make a new layer"))
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_saved": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._arguments.repr_arguments()})"

    def reset_parameters(self) -> None:
        """Draw weight and bias anew from their laws; ``np.random.seed`` makes it repeatable."""
        weight_law, bias_law = self._arguments.initializers()
        self.weight = self._draw(weight_law, self._arguments.weight_shape)
        self.bias = self._draw(bias_law, (self._arguments.out_channels,)) if self._has_bias() else None

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters under the names both originals use: 'weight' and, if on, 'bias'."""
        return {name: np.array(getattr(self, name)) for name in self._parameter_shapes()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy parameters in, converted to the layer's dtype; all or nothing.

        RuntimeError for a wrong shape and, unless ``strict`` is off, for missing and unexpected names.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict is a {type(state_dict).__name__}, but it must map names to arrays; use a dict")
        shapes = self._parameter_shapes()
        missing = [name for name in shapes if name not in state_dict]
        unexpected = [name for name in state_dict if name not in shapes]
        surprises = {"missing": missing, "unexpected": unexpected} if strict else {}
        problems = [f"{kind} key(s): {keys}" for kind, keys in surprises.items() if keys]
        loaded = {
            name: np.array(state_dict[name], dtype=getattr(self, name).dtype) for name in shapes if name in state_dict
        }
        problems += [
            f"the shape of {name} is {array.shape}, but it must be {shapes[name]}"
            for name, array in loaded.items()
            if array.shape != shapes[name]
        ]
        if problems:
            raise RuntimeError(f"cannot load the state of {self!r}: {'; '.join(problems)}")
        for name, array in loaded.items():
            setattr(self, name, array)
        return IncompatibleKeys(missing, unexpected)

    def backward(self, grad_output: Array) -> Array:
        """Return the gradient of the last input and overwrite ``weight_grad`` and ``bias_grad``.

        ``grad_output`` has the shape and dtype of the last output. RuntimeError before the first call of the layer.
        """
        if self._saved is None:
            raise RuntimeError(f"{type(self).__name__} has seen no input yet, but backward needs one; call it first")
        input, geometry = self._saved
        grad_output = as_operand("grad_output", grad_output)
        check_grad_shape(grad_output, output_shape(input.shape, self.weight.shape, geometry), self._shape_error)
        grad_input = run_input_grad(grad_output, self.weight, geometry, self._check_dtypes)
        weight_grad = self._weight_grad(input, grad_output, geometry)
        self.bias_grad = None if self.bias is None else run_bias_grad(grad_output)
        self.weight_grad = weight_grad
        return grad_input

    def _run(self, input: Array, geometry: Geometry) -> Array:
        """Check the parameters, which the user may have assigned, and compute."""
        self._check_parameters()
        output = run_forward(input, self.weight, self.bias, geometry, self._check_dtypes)
        self._saved = (input, geometry)
        return output

    def _weight_grad(self, input: Array, grad_output: Array, geometry: Geometry) -> Array:
        return run_weight_grad(input, grad_output, geometry, self._check_dtypes)

    def _check_parameters(self) -> None:
        for name, shape in self._parameter_shapes().items():
            array = as_operand(name, getattr(self, name))
            if array.shape != shape:
                raise self._shape_error(
                    describe(f"the shape of {name}", array.shape, f"this layer needs {shape}", "assign such an array")
                )

    def _parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {"weight": self._arguments.weight_shape}
        if self.bias is not None:
            shapes["bias"] = (self._arguments.out_channels,)
        return shapes

    def _draw(self, law: Initializer, shape: tuple[int, ...]) -> Array:
        check_memory("parameter", shape, self._dtype)
        return law(shape, self._dtype, generator())

    def _has_bias(self) -> bool:
        raise NotImplementedError


class ConvTranspose3d(_Layer):
    """``torch.nn.ConvTranspose3d`` on NumPy arrays: the same arguments, attributes, checks, law and repr.

    Input (N, C_in, D, H, W) or (C_in, D, H, W), output likewise, with (S - 1) stride - 2 padding + dilation (K - 1) + 1
    + output_padding samples per axis. ``padding`` REMOVES samples at both ends. With stride > 1 several input sizes
    share one size after a forward convolution; ``output_padding``, below stride or dilation, tells them apart by
    appending at the BACK alone. ``kernel_size < stride`` leaves outputs that no input reaches; they hold the bias.

    ``dtype`` is a NumPy dtype or scalar type, float32 if left out; ``device`` may be None or 'cpu'. Weight
    (C_in, C_out / groups, kD, kH, kW) and bias (C_out,) start as U(-B, B), B = 1 / sqrt(C_out / groups * kD kH kW).

    ValueError for groups and padding_mode, TypeError and RuntimeError for other constructor arguments; geometry is
    checked by the call, with RuntimeError. Source: PyTorch 2.13, by trial.

    >>> layer = ConvTranspose3d(2, 4, kernel_size=3, stride=2, padding=1, output_padding=1)
    >>> layer
    ConvTranspose3d(2, 4, kernel_size=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), output_padding=(1, 1, 1))
    >>> layer(np.ones((1, 2, 5, 5, 5), np.float32)).shape
    (1, 4, 10, 10, 10)
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    padding_mode: str
    transposed = True

    _fixed = frozenset(pytorch.LayerArguments.__dataclass_fields__) - {"bias"}
    _check_dtypes = staticmethod(pytorch.check_dtypes)
    _shape_error = RuntimeError

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
        arguments = pytorch.layer_arguments(
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
        if device is not None and not isinstance(device, str):
            raise TypeError(describe("device", device, "it must be None or a string", "use 'cpu'"))
        if device not in (None, "cpu"):
            raise RuntimeError(describe("device", device, "NumPy arrays live on 'cpu'", "use tconv3d.torch for others"))
        resolved = np.dtype(np.float32) if dtype is None else _native_dtype(dtype)
        if dtype_name(resolved) not in pytorch.DTYPES:
            rule = f"parameters must have one of {pytorch.DTYPES}"
            raise RuntimeError(describe("dtype", resolved, rule, "leave it out for float32"))
        if math.prod(arguments.weight_shape) == 0:
            warnings.warn("Initializing zero-element tensors is a no-op", UserWarning, stacklevel=2)
        super().__init__(arguments, resolved)

    def forward(self, input: Array, output_size: Sequence[int] | None = None) -> Array:
        """Return the transposed convolution; ``output_size`` replaces output padding (3 entries, or all of them).

        RuntimeError for what does not fit together, ValueError for an output size out of range, TypeError for an
        input that is no array, NotImplementedError for dtypes that cannot be convolved.

        >>> layer = ConvTranspose3d(1, 1, 3, stride=2, padding=1)
        >>> layer.forward(np.ones((1, 1, 4, 4, 4), np.float32), output_size=(8, 7, 8)).shape
        (1, 1, 8, 7, 8)
        """
        input = as_operand("input", input)
        return self._run(input, self._arguments.geometry(input.shape, output_size))

    def __call__(self, input: Array, output_size: Sequence[int] | None = None) -> Array:
        return self.forward(input, output_size)

    def _has_bias(self) -> bool:
        return bool(self._arguments.bias)


class Conv3dTranspose(_Layer):
    """``mindspore.nn.Conv3dTranspose`` on NumPy arrays, with the comparison page's signature and ``dtype``.

    Input (N, C_in, D, H, W), output (N, C_out, D', H', W'). The default pad_mode='same' gives S * stride samples per
    axis; it crops max(0, E - stride) of them, E = dilation (K - 1) + 1, half in front and an odd extra one at the BACK,
    so it equals PyTorch's padding only for an even number. 'valid' crops nothing; with a kernel shorter than the
    stride it appends stride - E zeros, as 'same' does. 'pad' crops ``padding``: one number, or six as (front, back) of
    depth, height and width; ``output_padding`` belongs to it alone.

    ``weight_init`` and ``bias_init`` take a name, a number, a law of `tconv3d.initializers`, an array, or None for the
    law of MindSpore 2.1 and later. ``weight`` is (C_in, C_out / group, kD, kH, kW), as in PyTorch; the default
    weights are N(0, 0.01^2) and there is no bias unless ``has_bias=True``.

    Nearly everything is refused by the constructor, with ValueError or TypeError; the call refuses shapes with
    ValueError, dtypes with TypeError and negative output sizes with RuntimeError. Limits that the original has only
    because of its back-ends are lifted. Source: MindSpore 2.10 and the page for r2.0.0-alpha, by trial.

    >>> layer = Conv3dTranspose(2, 4, kernel_size=3, stride=2)
    >>> layer(np.ones((1, 2, 5, 5, 5), np.float32)).shape
    (1, 4, 10, 10, 10)
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    pad_mode: str
    padding: int | tuple[int, ...]
    dilation: tuple[int, int, int]
    group: int
    output_padding: tuple[int, int, int]
    has_bias: bool
    weight_init: Any
    bias_init: Any
    data_format: str

    _fixed = frozenset(mindspore.LayerArguments.__dataclass_fields__) - {"dtype"}
    _check_dtypes = staticmethod(mindspore.check_dtypes)
    _shape_error = ValueError

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
        dtype: Any = np.float32,
    ) -> None:
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
            weight_init,
            bias_init,
            data_format,
            None if dtype is None else dtype_name(_native_dtype(dtype)),
        )
        super().__init__(arguments, _native_dtype(dtype))

    def construct(self, x: Array) -> Array:
        """Return the transposed convolution of ``x``, which must be (N, C_in, D, H, W); empty axes are fine.

        >>> Conv3dTranspose(1, 1, 5, stride=3, weight_init="ones").construct(np.ones((1, 1, 1, 1, 2), np.float32)).shape
        (1, 1, 3, 3, 6)
        """
        x = as_operand("x", x)
        return self._run(x, self._arguments.geometry(x.shape))

    def __call__(self, x: Array) -> Array:
        return self.construct(x)

    def _weight_grad(self, input: Array, grad_output: Array, geometry: Geometry) -> Array:
        name = mindspore.weight_grad_dtype(dtype_name(input.dtype))
        if name != dtype_name(input.dtype):
            input, grad_output = input.astype(name), grad_output.astype(name)
        return super()._weight_grad(input, grad_output, geometry)

    def _has_bias(self) -> bool:
        return bool(self._arguments.has_bias)


def _native_dtype(dtype: Any) -> np.dtype[Any]:
    """Return a dtype object in this machine's byte order; names are refused, as both originals do."""
    if isinstance(dtype, (np.dtype, type)):
        return np.dtype(dtype).newbyteorder("=")
    raise TypeError(
        describe("dtype", dtype, "it must be a NumPy dtype or scalar type", "use for example numpy.float32")
    )
