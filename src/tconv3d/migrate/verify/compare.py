# SPDX-License-Identifier: Apache-2.0
"""The same inputs and parameters through two sides.

The tolerance of a layer is the engine's promise, for each side: 4 eps sqrt(n) max(|x| conv |w| + |b|) with n products a
sum, and one rounding to the stored type. Two results may differ by twice that. A network has no such bound: 1e-5 of the
largest output there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import reference
from .. import RequestError
from ..checkpoint.rename import rename
from ..checkpoint.rules import LAYERS, Rules, layers_of
from ..checkpoint.tensors import Tensor
from ..layer import Layer
from . import causes
from .sides import LayerSide, NetworkSide, make

Array = NDArray[Any]

_EPS = {"float16": 2**-10, "bfloat16": 2**-7, "float32": 2**-23, "float64": 2**-52}
_NETWORK_TOLERANCE = 1e-5
_AXES = ("batch", "channel", "depth", "height", "width")


@dataclass(frozen=True)
class Row:
    """One pair of outputs. `difference` is None where there is nothing to subtract; `profiles` has the largest"
    " difference at each position of each axis."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    equal: bool
    difference: float | None = None
    tolerance: float = 0.0
    largest: float = 0.0
    place: tuple[int, ...] = ()
    cause: str = ""
    profiles: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Both sides as text, a row for each output and each layer inside, and notes."""

    a: str
    b: str
    rows: list[Row]
    notes: list[str]

    @property
    def equal(self) -> bool:
        """Whether every row is."""
        return all(row.equal for row in self.rows)


def verify(a: str, b: str, inputs: list[tuple[int, ...]], seed: int = 0, rules: Rules | None = None) -> Report:
    """Run both sides on inputs of these shapes, drawn from `seed`. RequestError where a text means nothing."""
    first, second = make(a, inputs[0]), make(b, inputs[0])
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in inputs]
    if isinstance(first, LayerSide) and isinstance(second, LayerSide):
        return _layers(first, second, arrays[0], rng)
    if isinstance(first, NetworkSide) and isinstance(second, NetworkSide):
        return _networks(first, second, arrays, rules or Rules())
    raise RequestError("one side is a layer call and the other a factory: give two of a kind")


def _layers(a: LayerSide, b: LayerSide, x: Array, rng: np.random.Generator) -> Report:
    shapes = {side.layer.arguments.weight_shape for side in (a, b)}
    if len(shapes) > 1:
        raise RequestError(f"the weights have different shapes, {sorted(shapes)}: no numbers can be compared")
    if any(side.layer.call.dtype.startswith("complex") for side in (a, b)):
        raise RequestError("complex layers exist in PyTorch alone: there is nothing to compare them with")
    narrow: Any = np.float16 if "float16" in (a.layer.call.dtype, b.layer.call.dtype) else np.float32
    x, weight = x.astype(narrow), rng.standard_normal(shapes.pop()).astype(narrow)
    bias = rng.standard_normal(a.layer.arguments.out_channels).astype(narrow) + 1
    outputs: list[Array | Exception] = []
    for side in (a, b):
        try:
            outputs.append(side.run(x, weight, bias if side.layer.bias else None))
        except Exception as error:  # whatever a framework raises is the finding
            outputs.append(error)
    notes = [f"{side.text}: run by {side.framework}" for side in (a, b)]
    if law := causes.initial_laws(a.layer, b.layer):
        notes.append(law)
    for side, found in zip((a, b), outputs, strict=True):
        if isinstance(found, Exception):
            notes.append(f"{side.text}: refused")
            return Report(a.text, b.text, [Row("output", (), False, cause=causes.of_error(found))], notes)
    tolerance = sum(layer_tolerance(side.layer, x, weight, bias) for side in (a, b))
    said = [] if a.cut or b.cut else causes.of_layers(a.layer, b.layer)
    first, second = outputs
    assert not isinstance(first, Exception) and not isinstance(second, Exception)
    return Report(a.text, b.text, [_row("output", first, second, tolerance, said)], notes)


def layer_tolerance(layer: Layer, x: Array, weight: Array, bias: Array) -> float:
    """How far one side may be from the exact result."""
    g = layer.geometry
    batched = x.reshape((-1, *x.shape[-4:])) if x.ndim == 4 else x
    largest = float(np.abs(reference.forward(np.abs(batched), np.abs(weight), np.abs(bias), g)).max(initial=0))
    length = weight.shape[0] // g.groups * math.prod(weight.shape[2:]) + 1
    eps = _EPS.get(layer.call.dtype, _EPS["float32"])
    accumulated = _EPS["float64"] if layer.call.dtype == "float64" else _EPS["float32"]
    return (4 * accumulated * math.sqrt(length) + (eps if eps > accumulated else 0)) * largest


def _networks(a: NetworkSide, b: NetworkSide, inputs: list[Array], rules: Rules) -> Report:
    rules.by_path |= layers_of(a.model, LAYERS) | layers_of(b.model, LAYERS)
    state = {name: value for name, value in a.state().items()}
    tensors = [Tensor(name, _dtype(v), v.shape, lambda v=v: iter([v.tobytes()])) for name, v in state.items()]  # type: ignore[misc]
    moved = rename(tensors, a.framework, b.framework, rules)
    arrays = {
        t.name: np.frombuffer(b"".join(t.chunks()), np.dtype(t.dtype)).reshape(t.shape) for t in moved.tensors
    }  # fmt: skip
    unset = b.load(arrays)
    notes = [f"{a.text}: {a.framework}", f"{b.text}: {b.framework}", *moved.notes]
    notes += [f"{name}: keeps its own value, the other side has none" for name in unset]
    try:
        first, second = a.run(inputs), b.run(inputs)
    except Exception as error:  # the user's network and whatever it raises
        raise RequestError(
            f"a network failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    if len(first) != len(second):
        raise RequestError(f"one network has {len(first)} outputs, the other {len(second)}")
    pairs = [(path, a.captured[path], b.captured[path]) for path in a.captured if path in b.captured]
    pairs += [(f"output {i}", y, z) for i, (y, z) in enumerate(zip(first, second, strict=True))]
    rows = [_row(name, y, z, _NETWORK_TOLERANCE * max(1.0, _largest(y)), []) for name, y, z in pairs]
    return Report(a.text, b.text, rows, notes)


def _row(name: str, a: Array, b: Array, tolerance: float, said: list[str]) -> Row:
    if a.shape != b.shape:
        cause = "; ".join(said) or causes.of_shapes(a.shape, b.shape)
        return Row(name, (a.shape, b.shape), False, cause=cause)
    distance = np.abs(a - b)
    # Equal infinities are equal; one NaN makes the pair differ.
    distance[(a == b) | (np.isnan(a) & np.isnan(b))] = 0
    distance[np.isnan(distance)] = np.inf
    difference = float(distance.max(initial=0))
    equal = difference <= tolerance
    place = tuple(int(i) for i in np.unravel_index(int(distance.argmax()), distance.shape)) if distance.size else ()
    cause = "" if equal else _cause(a, b, tolerance, said)
    names = _AXES[-distance.ndim :] if distance.ndim <= len(_AXES) else map(str, range(distance.ndim))
    profiles = {
        axis: [float(v) for v in distance.max(axis=tuple(i for i in range(distance.ndim) if i != n), initial=0)]
        for n, axis in enumerate(names)
    }  # fmt: skip
    return Row(name, (a.shape, b.shape), equal, difference, tolerance, _largest(a), place, cause, profiles)


def _cause(a: Array, b: Array, tolerance: float, said: list[str]) -> str:
    seen = causes.of_values(a, b, tolerance)
    return "; ".join([*said, seen] if not said or not seen.startswith("not one") else said)


def _largest(a: Array) -> float:
    return float(np.abs(a).max(initial=0))


def _dtype(array: Array) -> str:
    return str(array.dtype.name)
