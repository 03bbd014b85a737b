# SPDX-License-Identifier: Apache-2.0
"""Random geometry against the float64 reference, the adjoint identity, exact integers and the error bound.

Examples are derandomised (see conftest.py), so every run tries the same ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from math import prod, sqrt
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tconv3d import Conv3dTranspose, _engine, conv_transpose3d, functional, reference
from tconv3d.contracts import mindspore
from tconv3d.geometry import Geometry

# (stored type, type that accumulates)
PRECISIONS = [
    (np.float16, np.float32),
    (ml_dtypes.bfloat16, np.float32),
    (np.float32, np.float32),
    (np.float64, np.float64),
    (np.complex64, np.float32),
    (np.complex128, np.float64),
]


class Case(NamedTuple):
    """One random call: a free geometry, more general than either contract."""

    geometry: Geometry
    batch: int
    in_channels: int
    out_channels: int
    seed: int

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Shapes of input, weight and output."""
        g = self.geometry
        weight = (self.in_channels, self.out_channels // g.groups, *g.kernel_size)
        return (
            (self.batch, self.in_channels, *g.input_size),
            weight,
            (self.batch, self.out_channels, *g.output_size),
        )


def triples(low: int, high: int) -> st.SearchStrategy[tuple[int, int, int]]:
    return st.tuples(*[st.integers(low, high)] * 3)


@st.composite
def cases(draw: Any) -> Case:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    input_size, kernel, stride, dilation = (
        draw(triples(0, 5)),
        draw(triples(1, 4)),
        draw(triples(1, 4)),
        draw(triples(1, 3)),
    )
    loose = Geometry(input_size, kernel, stride, dilation, (0, 0, 0), (0, 0, 0), groups)
    # The crop may cut real samples or everything; the output may end early or run into the zeros behind.
    crop = tuple(draw(st.integers(0, min(6, full + 1))) for full in loose.full_size)
    out = tuple(
        draw(st.integers(0, max(0, full - front) + 3)) for full, front in zip(loose.full_size, crop, strict=True)
    )
    return Case(
        Geometry(input_size, kernel, stride, dilation, crop, out, groups),
        batch=draw(st.integers(0, 3)),
        in_channels=groups * draw(st.integers(1, 5)),
        out_channels=groups * draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


def no_check(*names: Any) -> None:
    """The operands are ours; the contracts have tests of their own."""


def operands(case: Case, dtype: Any, integers: int | None = None) -> list[np.ndarray]:
    """Input, weight, bias and output gradient."""
    rng = np.random.default_rng(case.seed)
    x, w, y = case.shapes
    if integers is not None:
        return [rng.integers(-integers, integers + 1, shape).astype(dtype) for shape in (x, w, (y[1],), y)]
    values = [rng.standard_normal(shape) for shape in (x, w, (y[1],), y)]
    if np.dtype(dtype).kind == "c":
        values = [value + 1j * rng.standard_normal(value.shape) for value in values]
    return [value.astype(dtype) for value in values]


def results(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, gy: np.ndarray, g: Geometry) -> list[np.ndarray]:
    return [
        functional.run_forward(x, w, b, g, no_check),
        functional.run_input_grad(gy, w, g, no_check),
        functional.run_weight_grad(x, gy, g, no_check),
    ]


def references(x: np.ndarray, w: np.ndarray, b: np.ndarray | None, gy: np.ndarray, g: Geometry) -> list[np.ndarray]:
    return [reference.forward(x, w, b, g), reference.input_grad(gy, w, g), reference.weight_grad(x, gy, g)]


def reductions(case: Case) -> list[int]:
    """How many products each result adds up at most: of the forward pass, input gradient and weight gradient."""
    g, taps = case.geometry, prod(case.geometry.kernel_size)
    per_output = (
        case.in_channels
        // g.groups
        * prod(
            -(-kernel // max(1, stride // np.gcd(stride, dilation)))
            for kernel, stride, dilation in zip(g.kernel_size, g.stride, g.dilation, strict=True)
        )
    )
    return [per_output + 1, case.out_channels // g.groups * taps, case.batch * prod(g.input_size)]


def magnitude(a: np.ndarray) -> np.ndarray:
    """|re| + |im|, which bounds the sums of all real products that a complex one is made of."""
    wide = a.astype(np.complex128)
    return np.abs(wide.real) + np.abs(wide.imag)


@pytest.mark.parametrize(("stored", "accumulating"), PRECISIONS, ids=lambda t: np.dtype(t).name)
@given(case=cases())
def test_error_stays_within_the_bound(stored: Any, accumulating: Any, case: Case) -> None:
    """4 eps sqrt(reduction length) max(|x| conv |w| + |b|), plus one rounding to the stored type."""
    x, w, b, gy = operands(case, stored)
    bounds = references(*(magnitude(a) for a in (x, w, b, gy)), case.geometry)
    real = np.empty(0, stored).real.dtype
    rounding = float(ml_dtypes.finfo(real).eps)
    for result, exact, bound, length in zip(
        results(x, w, b, gy, case.geometry),
        references(x, w, b, gy, case.geometry),
        bounds,
        reductions(case),
        strict=True,
    ):
        assert result.shape == exact.shape and result.dtype == stored
        largest = bound.max(initial=0)
        allowed = 4 * float(np.finfo(accumulating).eps) * sqrt(max(1, length)) * largest + rounding * np.abs(exact)
        assert (np.abs(result.astype(exact.dtype) - exact) <= allowed).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(case=cases())
def test_integers_are_exact(dtype: Any, case: Case) -> None:
    """Small integers: every sum stays far below 2^24, so nothing may be rounded."""
    x, w, b, gy = operands(case, dtype, integers=8)
    for result, exact in zip(results(x, w, b, gy, case.geometry), references(x, w, b, gy, case.geometry), strict=True):
        assert np.array_equal(result, exact)


@given(case=cases())
def test_the_three_results_are_adjoint(case: Case) -> None:
    """<y, gy> = <x, gx> = <w, gw> without a bias; with integers the three numbers are equal to the last bit."""
    x, w, _, gy = operands(case, np.float64, integers=8)
    y, gx, gw = results(x, w, None, gy, case.geometry)
    assert (y * gy).sum() == (x * gx).sum() == (w * gw).sum()


@given(case=cases())
def test_complex_results_are_adjoint(case: Case) -> None:
    """The same with the conjugate inner product, which fixes which factor each gradient conjugates."""
    x, w, _, gy = operands(case, np.complex128)
    y, gx, gw = results(x, w, None, gy, case.geometry)
    inner = [np.vdot(a, b) for a, b in ((y, gy), (x, gx), (w, gw))]
    scale = np.abs(y).sum() * np.abs(gy).max(initial=0)
    assert np.allclose(inner, inner[0], rtol=0, atol=1e-12 * max(1.0, scale))


@given(case=cases())
def test_the_bias_gradient_is_a_sum(case: Case) -> None:
    *_, gy = operands(case, np.float64, integers=8)
    assert np.array_equal(functional.run_bias_grad(gy), gy.sum((0, 2, 3, 4)))


@given(
    kernel=triples(1, 5),
    stride=triples(1, 4),
    dilation=triples(1, 3),
    group=st.sampled_from([1, 2]),
    mode=st.sampled_from(["same", "valid", "pad"]),
    padding=st.tuples(*[st.integers(0, 2)] * 6),
    size=triples(1, 4),
)
def test_function_and_layer_agree_under_mindspores_arithmetic(
    kernel: Any, stride: Any, dilation: Any, group: int, mode: str, padding: Any, size: Any
) -> None:
    """The layer's pad modes are the function's extended padding."""
    padding = padding if mode == "pad" else 0
    arguments = mindspore.layer_arguments(2, 4, kernel, stride, mode, padding, dilation, group)
    full = zip(size, stride, kernel, dilation, strict=True)
    smallest = [(n - 1) * s + d * (k - 1) + 1 for n, s, k, d in full]
    if mode == "pad" and any(length - padding[2 * i] - padding[2 * i + 1] < 1 for i, length in enumerate(smallest)):
        return
    x = np.random.default_rng(0).standard_normal((1, 2, *size))
    layer = Conv3dTranspose(2, 4, kernel, stride, mode, padding, dilation, group, dtype=np.float64)
    extended = padding if mode == "pad" else mode
    y = conv_transpose3d(x, layer.weight, None, stride, extended, 0, group, dilation)
    assert y.shape[2:] == arguments.geometry(x.shape).output_size
    assert np.array_equal(y, layer(x))


def test_every_instruction_set_has_these_properties(isa: str) -> None:
    """An instruction set is chosen once per process, so this file runs again in a process of its own."""
    if isa == _engine.active_instruction_set():
        return  # the tests above have run with it
    program = (
        "import sys, pytest; from tconv3d import _engine\n"
        f"assert _engine.active_instruction_set() == {isa!r}\n"
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'not instruction_set', {__file__!r}]))"
    )
    environment = {**os.environ, "TCONV3D_ISA": isa}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
