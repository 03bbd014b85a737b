# SPDX-License-Identifier: Apache-2.0
"""A layer call put through its contract for one input shape: everything the explanation needs to know about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..contracts import mindspore, pytorch
from ..geometry import Geometry
from . import RequestError
from .signature import LayerCall, SourceText

_ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16}
# Taps and phases are counted one by one.
_LARGEST_EXPLAINED = 1_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """`call` with the shapes and the geometry it has on an input of `input_shape`."""

    call: LayerCall
    arguments: pytorch.LayerArguments | mindspore.LayerArguments
    input_shape: tuple[int, ...]
    output_size: tuple[int, ...] | None
    geometry: Geometry

    @property
    def bias(self) -> bool:
        """Whether the layer adds a bias."""
        arguments = self.arguments
        return arguments.bias if isinstance(arguments, pytorch.LayerArguments) else arguments.has_bias

    @property
    def batch(self) -> int:
        """Images in the input; 1 for an unbatched one."""
        return self.input_shape[0] if len(self.input_shape) == 5 else 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The input's rank: (N, C_out, D, H, W), or (C_out, D, H, W) where it has no batch."""
        return (*self.input_shape[:-4], self.arguments.out_channels, *self.geometry.output_size)

    def bytes_of(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of this shape in the layer's element type."""
        return math.prod(shape) * _ITEM_BYTES[self.call.dtype]


def resolve(call: LayerCall, input_shape: tuple[int, ...], output_size: tuple[int, ...] | None = None) -> Layer:
    """Apply the call's own contract. Raises RequestError where it refuses the call, saying at which stage and how."""
    _check_outside_the_contract(call, output_size)
    values = {name: value for name, value in call.arguments.items() if _concerns_the_contract(name, value)}
    make = pytorch.layer_arguments if call.is_pytorch else mindspore.layer_arguments
    arguments = _ask(call, "constructor", lambda: make(**values))
    _ask(call, "constructor", lambda: _draw_bias(arguments))
    at_call = (input_shape, output_size) if call.is_pytorch else (input_shape,)
    geometry = _ask(call, "call", lambda: arguments.geometry(*at_call))
    if max(*geometry.kernel_size, *geometry.stride) > _LARGEST_EXPLAINED:
        raise RequestError(f"kernel {geometry.kernel_size} or stride {geometry.stride} is too large to be explained")
    return Layer(call, arguments, input_shape, output_size, geometry)


def _draw_bias(arguments: pytorch.LayerArguments | mindspore.LayerArguments) -> None:
    """Raise what drawing the parameters raises: an unknown law, or one that a bias with its one axis cannot have."""
    _, law = arguments.initializers()
    law((1,), np.dtype(np.float32), np.random.default_rng())


def _check_outside_the_contract(call: LayerCall, output_size: tuple[int, ...] | None) -> None:
    if call.dtype not in _ITEM_BYTES:
        raise RequestError(
            f"dtype={call.arguments['dtype']!r} is not one of torch.float32 or mindspore.float32 and such"
        )
    if output_size is not None and not call.is_pytorch:
        raise RequestError("an output size is PyTorch's alone: Conv3dTranspose has output_padding with pad_mode='pad'")


def _concerns_the_contract(name: str, value: object) -> bool:
    """Neither where a tensor lies nor what an unevaluated initializer draws changes shapes and values."""
    return name not in ("device", "dtype") and not isinstance(value, SourceText)


def _ask(call: LayerCall, stage: str, contract: Callable[[], T]) -> T:
    try:
        return contract()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"{call.layer} refuses this at the {stage} with {type(error).__name__}: {error}") from None
