# SPDX-License-Identifier: Apache-2.0
"""The laws that fill weights and biases, under MindSpore's names; PyTorch's default law is one of them.

Every law is called as ``law(shape, dtype, rng)`` and returns a new array. For a weight of shape
(C_in, C_out / groups, kD, kH, kW) both frameworks count

    fan_in  = C_out / groups * kD * kH * kW          (the OUTPUT channels: shape[1], not shape[0])
    fan_out = C_in * kD * kH * kW

so a transposed convolution starts with other bounds than an ordinary one of the same channels. The laws can be
matched to the originals, the values never: no random stream here equals theirs. ``np.random.seed`` makes a run
repeatable: NumPy's global generator supplies one seed per tensor, and a Philox generator draws from it.

A complex tensor gets the law in its real and in its imaginary part, independently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Number, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import describe

Array = NDArray[Any]

_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2)}
_LINEAR = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_DISTRIBUTIONS = ("uniform", "truncated_normal", "untruncated_normal")
# Fewer accepted draws than this would make rejection sampling endless.
_SMALLEST_ACCEPTANCE = 1e-3


def generator() -> np.random.Generator:
    """Return a generator for one tensor, seeded with 63 bits of NumPy's global one.

    >>> np.random.seed(0)
    >>> a = generator().random()
    >>> np.random.seed(0)
    >>> a == generator().random()
    True
    """
    return np.random.Generator(np.random.Philox(int(np.random.randint(0, 2**63 - 1, dtype=np.int64))))


class Initializer:
    """Base of all laws; a subclass provides ``draw(shape, real, rng)`` for one real type.

    >>> Constant(2)((2,), np.dtype(np.float16), generator())
    array([2., 2.], dtype=float16)
    """

    def __call__(self, shape: Sequence[int], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
        """Return a new array of this shape and dtype; ``rng`` is used by the random laws alone."""
        shape = tuple(shape)
        dtype = np.dtype(dtype)
        if dtype.kind != "c":
            # Narrow types are drawn in float32 and rounded once, as the frameworks do.
            real = np.float64 if dtype.itemsize > 4 else np.float32
            return self.draw(shape, real, rng).astype(dtype, copy=False)
        result = np.empty(shape, dtype)
        result.real = self.draw(shape, np.float64, rng)
        result.imag = self.draw(shape, np.float64, rng) if self.is_random else 0
        return result

    is_random = True

    def __post_init__(self) -> None:
        """Refuse, with TypeError, what is no number where a law takes one: its formula would fail much later."""
        annotations: dict[str, Any] = {each.name: each.type for each in fields(self)} if is_dataclass(self) else {}
        for name, annotation in annotations.items():
            kind = {"float": Real, "int": Integral}.get(str(annotation))
            value = getattr(self, name)
            if kind is not None and not isinstance(value, kind):
                rule = "it must be an integer" if kind is Integral else "it must be a real number"
                raise TypeError(describe(name, value, rule, "pass a number"))

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        """Return an array of this shape and of the real type float32 or float64."""
        raise NotImplementedError


@dataclass(frozen=True)
class Normal(Initializer):
    """N(mean, sigma^2). The page's default weight law, 'normal', is this one with sigma = 0.01.

    >>> round(float(Normal(0.01)((1000,), np.dtype(np.float32), np.random.default_rng(0)).std()), 3)
    0.01
    """

    sigma: float = 0.01
    mean: float = 0.0

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        return _normal(shape, real, rng, self.sigma, self.mean)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """N(mean, sigma^2) cut to the ABSOLUTE interval [a, b], not to multiples of sigma.

    With the defaults (sigma = 0.01, cut at -2 and 2) nothing is ever cut. ValueError for an empty interval and for
    one that holds less than a thousandth of the law.

    >>> float(abs(TruncatedNormal(1.0, a=-0.5, b=0.5)((100,), np.dtype(float), generator())).max()) <= 0.5
    True
    """

    sigma: float = 0.01
    mean: float = 0.0
    a: float = -2.0
    b: float = 2.0

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        if not self.a < self.b:
            raise ValueError(describe("the interval [a, b]", (self.a, self.b), "a must be below b", "swap them"))
        if self._mass() < _SMALLEST_ACCEPTANCE:
            raise ValueError(
                describe(
                    "the interval [a, b]",
                    (self.a, self.b),
                    f"it must hold at least {_SMALLEST_ACCEPTANCE} of N({self.mean}, {self.sigma}^2)",
                    "widen it or move the mean into it",
                )
            )
        result = _normal(shape, real, rng, self.sigma, self.mean)
        while (outside := (result < self.a) | (result > self.b)).any():
            result[outside] = _normal((int(outside.sum()),), real, rng, self.sigma, self.mean)
        return result

    def _mass(self) -> float:
        """The share of the normal law that lies in the interval."""
        if self.sigma == 0:
            return float(self.a <= self.mean <= self.b)
        low, high = ((edge - self.mean) / (self.sigma * math.sqrt(2)) for edge in (self.a, self.b))
        return (math.erf(high) - math.erf(low)) / 2


@dataclass(frozen=True)
class Uniform(Initializer):
    """U(-scale, scale).

    >>> float(abs(Uniform(0.07)((100,), np.dtype(float), generator())).max()) <= 0.07
    True
    """

    scale: float = 0.07

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        return _uniform(shape, real, rng, self.scale)


@dataclass(frozen=True)
class HeUniform(Initializer):
    """U(-B, B) with B = gain sqrt(3 / fan); ``negative_slope`` sets the gain sqrt(2 / (1 + slope^2)).

    With ``negative_slope=sqrt(5)`` the bound is exactly 1 / sqrt(fan_in): PyTorch's default for weights.

    >>> w = HeUniform(5**0.5)((1, 4, 1, 1, 1), np.dtype(float), generator())
    >>> bool((abs(w) <= 0.5).all())
    True
    """

    negative_slope: float = 0
    mode: str = "fan_in"
    nonlinearity: str = "leaky_relu"

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        gain = _gain(self.nonlinearity, self.negative_slope)
        return _uniform(shape, real, rng, gain * math.sqrt(3 / _fan(shape, self.mode)))


@dataclass(frozen=True)
class HeNormal(Initializer):
    """N(0, gain^2 / fan), with the gain of `HeUniform`.

    >>> round(float(HeNormal()((1, 2, 10, 10, 10), np.dtype(float), np.random.default_rng(0)).std()), 2)
    0.03
    """

    negative_slope: float = 0
    mode: str = "fan_in"
    nonlinearity: str = "leaky_relu"

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        gain = _gain(self.nonlinearity, self.negative_slope)
        return _normal(shape, real, rng, gain / math.sqrt(_fan(shape, self.mode)))


@dataclass(frozen=True)
class XavierUniform(Initializer):
    """U(-B, B) with B = gain sqrt(6 / (fan_in + fan_out)).

    >>> w = XavierUniform()((3, 3, 1, 1, 1), np.dtype(float), generator())
    >>> bool((abs(w) <= 1).all())
    True
    """

    gain: float = 1

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        fan_in, fan_out = fans(shape)
        return _uniform(shape, real, rng, self.gain * math.sqrt(6 / max(1, fan_in + fan_out)))


@dataclass(frozen=True)
class XavierNormal(Initializer):
    """N(0, gain^2 * 2 / (fan_in + fan_out)).

    >>> round(float(XavierNormal()((1, 1, 10, 10, 10), np.dtype(float), np.random.default_rng(0)).std()), 2)
    0.03
    """

    gain: float = 1

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        fan_in, fan_out = fans(shape)
        return _normal(shape, real, rng, self.gain * math.sqrt(2 / max(1, fan_in + fan_out)))


@dataclass(frozen=True)
class Constant(Initializer):
    """Every element has the same value.

    >>> Constant(0.5)((2,), np.dtype(np.float32), generator())
    array([0.5, 0.5], dtype=float32)
    """

    value: float
    is_random = False

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        return np.full(shape, self.value, real)


@dataclass(frozen=True)
class One(Constant):
    """Every element is 1.

    >>> One()((2,), np.dtype(np.float32), generator())
    array([1., 1.], dtype=float32)
    """

    value: float = 1.0


@dataclass(frozen=True)
class Zero(Constant):
    """Every element is 0.

    >>> Zero()((2,), np.dtype(np.float32), generator())
    array([0., 0.], dtype=float32)
    """

    value: float = 0.0


@dataclass(frozen=True)
class Dirac(Initializer):
    """A single 1 at the centre k // 2 of the kernel from channel i to channel i; 0 elsewhere.

    With ``groups`` the first axis is cut into as many blocks, each with its own diagonal. ValueError unless the
    tensor has 3 to 5 axes and its first is divisible by ``groups``.

    >>> Dirac()((2, 2, 1, 1, 1), np.dtype(np.float32), generator()).ravel()
    array([1., 0., 0., 1.], dtype=float32)
    """

    groups: int = 1
    is_random = False

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        if not 3 <= len(shape) <= 5:
            raise ValueError(describe("the shape for Dirac", shape, "it must have 3 to 5 axes", "use another law"))
        if self.groups < 1 or shape[0] % self.groups:
            raise ValueError(
                describe("groups of Dirac", self.groups, f"it must be positive and divide {shape[0]}", "use groups=1")
            )
        result = np.zeros(shape, real)
        block = shape[0] // self.groups
        centre = tuple(size // 2 for size in shape[2:])
        for group in range(self.groups):
            for channel in range(min(block, shape[1])):
                result[(group * block + channel, channel, *centre)] = 1
        return result


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """A random tensor whose flattening (shape[0], everything else) has orthogonal rows or columns of length ``gain``.

    ValueError for tensors with fewer than two axes, such as a bias.

    >>> w = Orthogonal()((2, 8), np.dtype(float), np.random.default_rng(0))
    >>> bool(np.allclose(w @ w.T, np.eye(2)))
    True
    """

    gain: float = 1.0

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        _require_two_axes(shape)
        rows, columns = shape[0], math.prod(shape[1:])
        tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
        basis, triangle = np.linalg.qr(tall)
        # The sign makes the law uniform over all bases; QR alone prefers some.
        basis = basis * np.where(np.diagonal(triangle) < 0, -1, 1)
        flat = basis.T if rows < columns else basis
        return np.ascontiguousarray(self.gain * flat, real).reshape(shape)


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """A law of variance scale / fan: U(-B, B) with B = sqrt(3 scale / fan), or 'untruncated_normal'.

    MindSpore's default distribution is named 'truncated_normal', but what it draws under that name is the UNIFORM
    law; so does this class. ValueError for another distribution or a scale that is not positive.

    >>> w = VarianceScaling()((1, 3, 1, 1, 1), np.dtype(float), generator())
    >>> bool((abs(w) <= 1).all())
    True
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(describe("scale", self.scale, "it must be positive", "use 1.0"))
        if self.distribution not in _DISTRIBUTIONS:
            raise ValueError(describe("distribution", self.distribution, "it is unknown", f"use {_DISTRIBUTIONS}"))

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        variance = self.scale / _fan(shape, self.mode)
        if self.distribution == "untruncated_normal":
            return _normal(shape, real, rng, math.sqrt(variance))
        return _uniform(shape, real, rng, math.sqrt(3 * variance))


@dataclass(frozen=True)
class ICNR(Initializer):
    """Taps that are equal over each stride: a layer that starts as nearest-neighbor upsampling, without a checkerboard.

    Random taps give each output phase a law of its own, which is seen as a pattern with the period of the stride. Here
    ``law`` draws a kernel of kernel_size / stride taps per axis, and each tap is repeated ``stride`` times; all phases
    then compute the same numbers (Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017). Give the
    stride of the layer, one number or three, and use dilation 1. ValueError where the kernel is no multiple of the
    stride: then the phases have different numbers of taps, and no weights make them equal.

    >>> ICNR(2, Constant(1))((1, 1, 1, 1, 4), np.dtype(np.float32), generator())
    Traceback (most recent call last):
        ...
    ValueError: the kernel for ICNR is (1, 1, 4), but it must be a multiple of the stride (2, 2, 2); use a larger one
    >>> w = ICNR((1, 1, 2))((1, 1, 1, 1, 4), np.dtype(np.float32), generator()).ravel()
    >>> bool(w[0] == w[1] and w[2] == w[3])
    True
    """

    stride: int | tuple[int, int, int]
    law: Initializer = HeNormal()

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether the imaginary part of a complex tensor is drawn too, or zero: as ``law`` has it."""
        return self.law.is_random

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        kernel, stride = _kernel_of("ICNR", shape), _stride_of("ICNR", self.stride)
        if any(size % step for size, step in zip(kernel, stride, strict=True)):
            rule = f"it must be a multiple of the stride {stride}"
            raise ValueError(describe("the kernel for ICNR", kernel, rule, "use a larger one"))
        distinct = (size // step for size, step in zip(kernel, stride, strict=True))
        result = self.law((*shape[:2], *distinct), np.dtype(real), rng)
        for axis, step in enumerate(stride, start=2):
            result = np.repeat(result, step, axis)
        return result


@dataclass(frozen=True)
class Linear(Initializer):
    """Taps of linear interpolation: a layer that starts as trilinear upsampling by its stride.

    Along each axis tap k is max(0, 1 - |k - (K - 1) / 2| / stride), so [1, 3, 3, 1] / 4 for kernel 4 and stride 2. The
    taps of every phase add up to 1, so a constant input gives a constant output away from the border. Give the stride
    of the layer, one number or three, and use dilation 1. ``law`` draws how channels mix, of shape
    (C_in, C_out / groups, 1, 1, 1): by default channel i goes to channel i; with groups use ``Dirac(groups)``, and any
    random law for a mixture. ValueError for a kernel below 2 stride - 1, which has no room for the slope.

    >>> Linear((1, 1, 2))((1, 1, 1, 1, 4), np.dtype(np.float32), generator()).ravel()
    array([0.25, 0.75, 0.75, 0.25], dtype=float32)
    """

    stride: int | tuple[int, int, int]
    law: Initializer = Dirac()

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether the imaginary part of a complex tensor is drawn too, or zero: as ``law`` has it."""
        return self.law.is_random

    def draw(self, shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator) -> Array:
        kernel, stride = _kernel_of("Linear", shape), _stride_of("Linear", self.stride)
        if any(size < 2 * step - 1 for size, step in zip(kernel, stride, strict=True)):
            rule = f"it must be at least 2 stride - 1, with the stride {stride}"
            raise ValueError(describe("the kernel for Linear", kernel, rule, "use twice the stride"))
        result = self.law((*shape[:2], 1, 1, 1), np.dtype(real), rng)
        for axis, (size, step) in enumerate(zip(kernel, stride, strict=True)):
            slope = np.maximum(0, 1 - abs(np.arange(size) - (size - 1) / 2) / step).astype(real)
            result = result * slope.reshape([size if other == axis else 1 for other in range(3)])
        return result


@dataclass(frozen=True, eq=False)
class Given(Initializer):
    """A copy of an array that the user supplied; its own dtype wins over the layer's, as in MindSpore.

    ValueError unless its shape is the parameter's.

    >>> Given(np.ones(2))((2,), np.dtype(np.float32), generator()).dtype
    dtype('float64')
    """

    array: Array

    def __post_init__(self) -> None:
        if not isinstance(self.array, np.ndarray):
            raise TypeError(describe("the given array", self.array, "it must be a NumPy array", "use numpy.asarray"))

    def __call__(self, shape: Sequence[int], dtype: np.dtype[Any], rng: np.random.Generator) -> Array:
        """Return the copy; dtype and generator are ignored."""
        if self.array.shape != tuple(shape):
            raise ValueError(
                describe("the shape of the given array", self.array.shape, f"it must be {tuple(shape)}", "reshape it")
            )
        return np.array(self.array, dtype=self.array.dtype.newbyteorder("="), order="C", copy=True, subok=False)


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a tensor; ValueError below two axes, where neither is defined.

    >>> fans((16, 32, 3, 3, 3))
    (864, 432)
    """
    _require_two_axes(shape)
    field = math.prod(shape[2:])
    return shape[1] * field, shape[0] * field


_LAWS: dict[str, Callable[[], Initializer]] = {
    "normal": Normal,
    "truncatednormal": TruncatedNormal,
    "uniform": Uniform,
    "heuniform": HeUniform,
    "he_uniform": HeUniform,
    "henormal": HeNormal,
    "he_normal": HeNormal,
    "xavieruniform": XavierUniform,
    "xavier_uniform": XavierUniform,
    "xaviernormal": XavierNormal,
    "xavier_normal": XavierNormal,
    "one": One,
    "ones": One,
    "zero": Zero,
    "zeros": Zero,
    "dirac": Dirac,
    "orthogonal": Orthogonal,
    "variancescaling": VarianceScaling,
}


def resolve(init: object) -> Initializer:
    """Return the law that MindSpore's ``weight_init`` or ``bias_init`` means.

    ``init`` is a name (in any case), a number, an instance of `Initializer`, or an array. ValueError for an unknown
    name, TypeError for anything else, the class of a law (without brackets) included.

    >>> resolve("He_Uniform")
    HeUniform(negative_slope=0, mode='fan_in', nonlinearity='leaky_relu')
    >>> resolve(3)
    Constant(value=3.0)
    """
    if isinstance(init, Initializer):
        return init
    if isinstance(init, str):
        return _named(init)
    if isinstance(init, np.ndarray):
        return Given(init)
    if isinstance(init, Number) and not isinstance(init, (complex, np.complexfloating)):
        return Constant(float(init))  # type: ignore[arg-type]  # every real Number converts
    raise TypeError(
        describe("the initializer", init, "it must be a name, a number, a law or an array", "use for example 'normal'")
    )


def _named(name: str) -> Initializer:
    lowered = name.lower()
    if lowered == "sparse":
        raise TypeError(describe("the initializer", name, "it needs a sparsity", "pass an array of your own"))
    if lowered == "identity":
        raise ValueError(describe("the initializer", name, "it exists for 2 axes only", "use 'dirac' for a kernel"))
    if lowered not in _LAWS:
        raise ValueError(describe("the initializer", name, "no law has this name", f"use one of {sorted(_LAWS)}"))
    return _LAWS[lowered]()


def _require_two_axes(shape: Sequence[int]) -> None:
    if len(shape) < 2:
        raise ValueError(
            describe("the shape", tuple(shape), "this law needs two axes or more", "use 'zeros', 'uniform' or 'normal'")
        )


def _kernel_of(law: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) != 5:
        raise ValueError(describe(f"the shape for {law}", shape, "it must have 5 axes", "use 'zeros' for a bias"))
    return shape[2:]


def _stride_of(law: str, stride: object) -> tuple[int, ...]:
    entries = stride if isinstance(stride, tuple) else (stride,) * 3
    if len(entries) != 3 or any(type(entry) is not int or entry < 1 for entry in entries):
        rule = "it must be one int of at least 1, or three"
        raise ValueError(describe(f"the stride of {law}", stride, rule, "pass the stride of the layer"))
    return entries


def _fan(shape: Sequence[int], mode: str) -> int:
    """The fan named by ``mode``; at least 1, since a tensor without elements needs no finite bound."""
    if mode not in ("fan_in", "fan_out", "fan_avg"):
        raise ValueError(describe("mode", mode, "it is unknown", "use 'fan_in' or 'fan_out'"))
    fan_in, fan_out = fans(shape)
    return max(1, {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) // 2}[mode])


def _gain(nonlinearity: str, negative_slope: float) -> float:
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + negative_slope**2))
    if nonlinearity in _LINEAR:
        return 1.0
    if nonlinearity not in _GAINS:
        known = sorted([*_GAINS, *_LINEAR, "leaky_relu"])
        raise ValueError(describe("nonlinearity", nonlinearity, "its gain is unknown", f"use one of {known}"))
    return _GAINS[nonlinearity]


def _uniform(shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator, bound: float) -> Array:
    # In place: a second array of this size would double the memory of a large layer.
    result = rng.random(shape, dtype=real)
    result *= real(2 * bound)
    result -= real(bound)
    return result


def _normal(
    shape: tuple[int, ...], real: type[np.floating[Any]], rng: np.random.Generator, sigma: float, mean: float = 0.0
) -> Array:
    result = rng.standard_normal(shape, dtype=real)
    result *= real(sigma)
    result += real(mean)
    return result
