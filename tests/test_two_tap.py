# SPDX-License-Identifier: Apache-2.0
"""The two-tap method: its choice, its error, its bits, and what differences do to an infinity or a large sample."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from engine_support import (
    arguments,
    assert_forward_keeps_its_bits,
    block_of,
    channels_last,
    draw_geometry,
    draw_operands,
    forward,
)

import tconv3d
from tconv3d import _core, _engine, reference
from tconv3d.geometry import Geometry

EPS = float(np.finfo(np.float32).eps)
FOUR, THREE = (4, 4, 4), (3, 3, 3)


pytestmark = pytest.mark.usefixtures("restored_engine")


def input_grad(gy: np.ndarray, weight: np.ndarray, g: Geometry, algorithm: str) -> np.ndarray:
    _core.set_algorithm(algorithm)
    gx = np.full((gy.shape[0], weight.shape[0], *g.input_size), 77, gy.dtype)
    _core.input_grad(gy, weight, gx, *arguments(g))
    return gx


def weight_grad(x: np.ndarray, gy: np.ndarray, g: Geometry, algorithm: str) -> np.ndarray:
    _core.set_algorithm(algorithm)
    gw = np.full((x.shape[1], gy.shape[1] // g.groups, *g.kernel_size), 77, x.dtype)
    _core.weight_grad(x, gy, gw, *arguments(g))
    return gw


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("seed", range(24))
def test_integers_are_exact_on_every_geometry_it_applies_to(seed: int, isa: str) -> None:
    rng = np.random.default_rng(seed)
    g, x, weight = draw_operands(rng, 40, 30)
    gy = rng.integers(-3, 4, (2, weight.shape[1] * g.groups, *g.output_size)).astype(np.float32)
    _core.set_instruction_set(isa)
    np.testing.assert_array_equal(forward(x, weight, g, "two_tap"), reference.forward(x, weight, None, g))
    np.testing.assert_array_equal(input_grad(gy, weight, g, "two_tap"), reference.input_grad(gy, weight, g))
    np.testing.assert_array_equal(weight_grad(x, gy, g, "two_tap"), reference.weight_grad(x, gy, g))


LAYERS = {
    "k4s2": Geometry((7, 8, 9), FOUR, (2, 2, 2), (1, 1, 1), (1, 1, 1), (14, 16, 18), 1),
    "k3s2": Geometry((7, 8, 9), THREE, (2, 2, 2), (1, 1, 1), (1, 1, 1), (14, 16, 18), 1),
    "k3s1": Geometry((7, 8, 9), THREE, (1, 1, 1), (1, 1, 1), (1, 1, 1), (7, 8, 9), 1),
    "k5s2": Geometry((7, 8, 9), (5, 5, 5), (2, 2, 2), (1, 1, 1), (2, 2, 2), (13, 15, 17), 1),
    "k5s1": Geometry((7, 8, 9), (5, 5, 5), (1, 1, 1), (1, 1, 1), (2, 2, 2), (7, 8, 9), 1),  # a pair and three in a row
}


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("size", [(1, 1, 1), (4, 5, 4)])
def test_integers_are_exact_for_any_number_of_columns(size: tuple[int, int, int], isa: str) -> None:
    """Column tiles differ by one vector, and each width must be there, for one row of a tile and for many."""
    _core.set_instruction_set(isa)
    g = Geometry(size, FOUR, (2, 2, 2), (1, 1, 1), (1, 1, 1), tuple(2 * n for n in size), 1)
    rng = np.random.default_rng(3)
    x = rng.integers(-3, 4, (1, 3, *size)).astype(np.float32)
    for columns in (1, 9, 24, 41, 44, 65, 88, 113, 136, 168, 176, 201, 260, 353, 450):
        weight = rng.integers(-3, 4, (3, columns, *FOUR)).astype(np.float32)
        expected = reference.forward(x.astype(float), weight.astype(float), None, g)
        pairs = _engine.forward(x, weight, None, g, method=(1, 1, 1))  # of one sample, none would be formed unasked
        np.testing.assert_array_equal(pairs, expected)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seed", range(4))
def test_integers_are_exact_while_sums_of_magnitudes_stay_below_2_to_the_16th(layer: str, seed: int) -> None:
    g, rng = LAYERS[layer], np.random.default_rng(seed)
    x = rng.choice([-1.0, 0, 0, 0, 1], (1, 32, *g.input_size)) * rng.integers(1, 120, (1, 32, *g.input_size))
    weight = rng.choice([-1.0, 0, 0, 0, 1], (32, 16, *g.kernel_size))
    weight *= np.floor((2**16 - 1) / reference.forward(abs(x), abs(weight), None, g).max())
    assert 2**15 < reference.forward(abs(x), abs(weight), None, g).max() < 2**16
    y = forward(x.astype(np.float32), weight.astype(np.float32), g, "two_tap")
    np.testing.assert_array_equal(y, reference.forward(x, weight, None, g))


def test_samples_beyond_an_eighth_of_the_largest_float_may_overflow_and_direct_is_the_cure() -> None:
    g = LAYERS["k3s1"]
    x = np.full((1, 1, *g.input_size), 1e38, np.float32)
    weight = np.full((1, 8, *g.kernel_size), 0.01, np.float32)
    assert np.isfinite(forward(x, weight, g, "direct")).all()
    assert not np.isfinite(forward(x, weight, g, "two_tap")).all()
    assert np.isfinite(forward(x * np.float32(0.4), weight, g, "two_tap")).all()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("data", ["normal", "constant", "alternating"])
def test_the_error_keeps_the_promise(layer: str, data: str) -> None:
    """Within 4 eps sqrt(terms) of the largest sum of magnitudes, also where differences of neighbors are largest."""
    g, rng = LAYERS[layer], np.random.default_rng(5)
    x = {
        "normal": rng.standard_normal((1, 32, *g.input_size)),
        "constant": np.full((1, 32, *g.input_size), 0.1),
        "alternating": rng.standard_normal((1, 32, 1, 1, 1)) * (-1.0) ** np.indices(g.input_size).sum(0),
    }[data].astype(np.float32)
    weight = rng.standard_normal((32, 16, *g.kernel_size)).astype(np.float32)
    exact = reference.forward(x.astype(float), weight.astype(float), None, g)
    magnitude = reference.forward(abs(x).astype(float), abs(weight).astype(float), None, g).max()
    terms = 32 * np.prod(np.ceil(np.divide(g.kernel_size, g.stride)))
    bound = 4 * EPS * terms**0.5 * magnitude
    np.testing.assert_allclose(forward(x, weight, g, "two_tap"), exact, rtol=0, atol=bound)
    gy = rng.standard_normal((1, 16, *g.output_size)).astype(np.float32)
    exact = reference.input_grad(gy.astype(float), weight.astype(float), g)
    magnitude = reference.input_grad(abs(gy).astype(float), abs(weight).astype(float), g).max()
    bound = 4 * EPS * (16 * np.prod(g.kernel_size)) ** 0.5 * magnitude
    np.testing.assert_allclose(input_grad(gy, weight, g, "two_tap"), exact, rtol=0, atol=bound)
    exact = reference.weight_grad(x.astype(float), gy.astype(float), g)
    magnitude = reference.weight_grad(abs(x).astype(float), abs(gy).astype(float), g).max()
    bound = 4 * EPS * np.prod(g.input_size) ** 0.5 * magnitude
    np.testing.assert_allclose(weight_grad(x, gy, g, "two_tap"), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("isa", _core.instruction_sets())
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_same_bits_for_threads_batch_and_memory_format(layer: str, dtype: type, isa: str) -> None:
    g, rng = LAYERS[layer], np.random.default_rng(6)
    _core.set_instruction_set(isa)
    x = rng.standard_normal((3, 20, *g.input_size)).astype(dtype)
    weight = rng.standard_normal((20, 24, *g.kernel_size)).astype(dtype)
    gy = rng.standard_normal((3, 24, *g.output_size)).astype(dtype)
    assert_forward_keeps_its_bits(x, weight, g, "two_tap")
    tconv3d.set_num_threads(1)
    gx, gw = input_grad(gy, weight, g, "two_tap"), weight_grad(x, gy, g, "two_tap")
    for threads in (2, 3, 8):
        tconv3d.set_num_threads(threads)
        assert gx.tobytes() == input_grad(gy, weight, g, "two_tap").tobytes()
        assert gw.tobytes() == weight_grad(x, gy, g, "two_tap").tobytes()
    assert gx.tobytes() == input_grad(channels_last(gy), weight, g, "two_tap").tobytes()
    assert gw.tobytes() == weight_grad(channels_last(x), channels_last(gy), g, "two_tap").tobytes()
    assert gx[1:2].tobytes() == input_grad(gy[1:2], weight, g, "two_tap").tobytes()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("at", [(3, 4, 4), (2, 3, 4), (0, 0, 0), (6, 7, 8)])
def test_an_infinity_reaches_its_own_outputs_alone_and_may_arrive_as_nan(layer: str, at: tuple[int, int, int]) -> None:
    g, rng = LAYERS[layer], np.random.default_rng(7)
    x = rng.standard_normal((1, 4, *g.input_size)).astype(np.float32)
    weight = np.ones((4, 8, *g.kernel_size), np.float32)
    x[(0, 1, *at)] = np.inf
    marked = np.zeros_like(x)
    marked[(0, 1, *at)] = 1
    reached = reference.forward(marked, weight, None, g) != 0
    two_tap, direct = forward(x, weight, g, "two_tap"), forward(x, weight, g, "direct")
    np.testing.assert_array_equal(np.isinf(direct), reached)  # direct is the cure: it keeps the infinity
    np.testing.assert_array_equal(np.isfinite(two_tap), ~reached)
    if at == (3, 4, 4):
        assert np.isnan(two_tap[reached]).any()


def test_a_one_beside_a_large_sample_is_lost_and_direct_is_the_cure() -> None:
    """Along one axis x = (1e8, 1): the tap that sees the 1 alone must give 1; a difference of the two has lost it."""
    g = Geometry((1, 1, 4), (1, 1, 4), (1, 1, 2), (1, 1, 1), (0, 0, 1), (1, 1, 8), 1)
    x = np.array([0, 1e8, 1, 0], np.float32).reshape(1, 1, 1, 1, 4)
    weight = np.array([1, 0, 0, 0], np.float32).reshape(1, 1, 1, 1, 4)
    exact = reference.forward(x.astype(float), weight.astype(float), None, g)
    np.testing.assert_array_equal(forward(x, weight, g, "direct"), exact)
    assert np.abs(forward(x, weight, g, "two_tap") - exact).max() <= 4 * EPS * 1e8  # the promise, which 1 is below


@pytest.mark.parametrize(
    ("shape", "kernel", "expected"),
    [((1, 128, 12, 16, 32), 3, "two-tap"), ((1, 128, 12, 16, 32), 2, "direct"), ((4, 512, 2, 2, 2), 4, "direct")],
)
def test_the_choice_by_cost_and_not_by_batch_or_threads(shape: tuple[int, ...], kernel: int, expected: str) -> None:
    _core.set_algorithm("automatic")
    output_size = tuple(2 * n for n in shape[2:])
    weight = (shape[1], 64, kernel, kernel, kernel)
    crop = (int(kernel > 2),) * 3
    for batch in (1, 7):
        for threads in (1, 2, 8):
            plan = _core.describe_plan(
                (batch, *shape[1:]), weight, output_size, (2, 2, 2), (1, 1, 1), crop, 1, threads=threads
            )
            assert plan.startswith(expected), plan


def weight_grad_plan(shape: tuple[int, ...], columns: int, g: Geometry) -> str:
    return _core.describe_weight_grad(shape, (shape[1], columns, *g.kernel_size), g.output_size, *arguments(g))


@pytest.mark.parametrize(
    ("shape", "columns", "cut"),
    [
        ((2, 28, 7, 8, 19), 96, "grad_output parts"),
        ((1, 8, 6, 8, 400), 9, "blocks of a strand"),
        ((1, 1200, 4, 4, 8), 16, "input parts"),
        ((9, 16, 3, 4, 4), 12, "images of a block"),
    ],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_weight_gradient_however_it_is_cut(layer: str, shape: tuple[int, ...], columns: int, cut: str) -> None:
    batch, channels, *size = shape
    loose = dataclasses.replace(LAYERS[layer], input_size=tuple(size), groups=2)
    out = tuple(full - 2 * crop for full, crop in zip(loose.full_size, loose.crop_front, strict=True))
    g = dataclasses.replace(loose, output_size=out)
    rng = np.random.default_rng(8)
    x = rng.integers(-3, 4, (batch, 2 * channels, *size)).astype(np.float32)
    gy = rng.integers(-3, 4, (batch, 2 * columns, *out)).astype(np.float32)
    _core.set_algorithm("two_tap")
    plan = weight_grad_plan(x.shape, columns, g)
    found = re.search(r"(\d+) blocks of (\d+) x .* positions in \d+ x (\d+) x (\d+) x (\d+) rounds", plan)
    assert plan.startswith("two-tap along dhw") and found
    blocks, images, strands, inputs, outputs = map(int, found.groups())
    counts = {
        "grad_output parts": outputs,
        "blocks of a strand": blocks / strands,
        "input parts": inputs,
        "images of a block": images,
    }
    assert counts[cut] > 1
    np.testing.assert_array_equal(weight_grad(x, gy, g, "two_tap"), weight_grad(x, gy, g, "direct"))


@pytest.mark.parametrize("dilation", [(1, 2**32 - 1, 2**32 - 1), (1, 1, 2**60 - 1)])
@pytest.mark.parametrize("algorithm", ["automatic", "two_tap"])
def test_a_far_dilation(dilation: tuple[int, int, int], algorithm: str) -> None:
    g = Geometry((16, 16, 16), (3, 2, 2), (1, 1, 1), dilation, (1, 0, 0), (16, 16, 16), 1)
    rng = np.random.default_rng(11)
    x, gy = (rng.integers(-3, 4, (1, 64, 16, 16, 16)).astype(np.float32) for _ in range(2))
    weight = rng.integers(-3, 4, (64, 64, *g.kernel_size)).astype(np.float32)
    for operation, operands in ((forward, (x, weight)), (input_grad, (gy, weight)), (weight_grad, (x, gy))):
        result = operation(*operands, g, algorithm)
        assert result.any()
        np.testing.assert_array_equal(result, operation(*operands, g, "direct"))


def test_sums_of_a_weight_gradient_beyond_64_mib_are_formed_in_rounds() -> None:
    g = Geometry((2, 2, 2), THREE, (1, 1, 1), (1, 1, 1), (1, 1, 1), (2, 2, 2), 1)
    rng = np.random.default_rng(9)
    x, gy = (rng.integers(-3, 4, (1, channels, 2, 2, 2)).astype(np.float32) for channels in (600, 500))
    _core.set_algorithm("two_tap")
    assert " in 2 x " in weight_grad_plan(x.shape, 500, g)  # 4^3 sums of 600 x 500 elements: 77 MB
    np.testing.assert_array_equal(weight_grad(x, gy, g, "two_tap"), reference.weight_grad(x, gy, g))


@pytest.mark.parametrize(
    ("shape", "columns", "kernel", "expected"),
    [
        ((1, 64, 32, 32, 32), 64, 3, "two-tap along dhw"),
        ((1, 64, 32, 32, 32), 64, 1, "direct"),
        ((1, 8, 4, 4, 4), 8, 3, "direct"),
    ],
)
def test_the_weight_gradients_choice(shape: tuple[int, ...], columns: int, kernel: int, expected: str) -> None:
    _core.set_algorithm("automatic")
    size = shape[2:]
    g = Geometry(size, (kernel,) * 3, (1, 1, 1), (1, 1, 1), (kernel // 2,) * 3, size, 1)
    assert weight_grad_plan(shape, columns, g).startswith(expected)
    _core.set_algorithm("direct")
    assert weight_grad_plan(shape, columns, g).startswith("direct")


@pytest.mark.parametrize("layer", LAYERS)
def test_an_infinity_spoils_the_gradients_of_its_own_channel_alone(layer: str) -> None:
    g, rng = LAYERS[layer], np.random.default_rng(10)
    x = rng.standard_normal((1, 4, *g.input_size)).astype(np.float32)
    gy = rng.standard_normal((1, 8, *g.output_size)).astype(np.float32)
    x[0, 1, 3, 4, 4] = np.inf
    finite = np.isfinite(weight_grad(x, gy, g, "two_tap"))
    assert not finite[1].any() and np.delete(finite, 1, 0).all()
    x[0, 1, 3, 4, 4], gy[0, 2, 3, 4, 5] = 0, np.nan
    finite = np.isfinite(weight_grad(x, gy, g, "two_tap"))
    assert not finite[:, 2].all() and np.delete(finite, 2, 1).all()


@pytest.mark.parametrize(
    ("value", "expected"), [("direct", "direct"), ("two_tap", "two_tap"), ("col2im", "col2im"), ("", "automatic")]
)
def test_the_environment_names_the_algorithm(value: str, expected: str) -> None:
    code = "from tconv3d import _core; print(_core.active_algorithm())"
    environment = {**os.environ, "TCONV3D_ALGORITHM": value}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_an_unknown_algorithm_is_refused_by_the_first_call() -> None:
    code = "import numpy as np, tconv3d; x = np.ones((1, 1, 1, 1, 1)); tconv3d.conv_transpose3d(x, x)"
    environment = {**os.environ, "TCONV3D_ALGORITHM": "winograd"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "TCONV3D_ALGORITHM: 'winograd' is none of automatic, direct, two_tap, col2im" in done.stderr


@pytest.mark.parametrize("algorithm", ["automatic", "two_tap", "direct", "col2im"])
@pytest.mark.parametrize("seed", range(30))
def test_a_block_alone_has_the_bits_of_the_whole(seed: int, algorithm: str) -> None:
    rng = np.random.default_rng(seed)
    g = draw_geometry(rng)
    if seed % 2:  # a layer that takes the method by itself
        kernel, stride = ((4, 4, 4), (2, 2, 2)) if seed % 4 == 1 else ((3, 3, 3), (2, 2, 2))
        g = Geometry((9, 11, 33), kernel, stride, (1, 1, 1), (1, 1, 1), (17, 20, 64), 1)
    channels, columns = g.groups * np.array([128, 64] if seed % 2 else [9, 16])
    x = rng.standard_normal((2, channels, *g.input_size)).astype(np.float32)
    weight = rng.standard_normal((channels, columns // g.groups, *g.kernel_size)).astype(np.float32)
    bias = rng.standard_normal(columns).astype(np.float32)
    _core.set_algorithm(algorithm)
    whole = _engine.forward(x, weight, bias, g)
    method = _engine.method_of(x.shape, weight.shape, g, x.dtype)
    assert any(method) or (seed % 4 != 1 and algorithm != "col2im") or algorithm == "direct"
    for _ in range(12):
        ends = [np.sort(rng.integers(0, size + 1, 2)) for size in g.output_size]
        start, stop = (tuple(int(e[i]) for e in ends) for i in range(2))
        alone, part = block_of(g, start, stop)
        origin = tuple(p.start for p in part)
        some = slice(0, None) if g.groups > 1 else slice(3, 14)
        piece = _engine.forward(
            x[(slice(0, 1), slice(None), *part)], weight[:, some], bias[some], alone, method=method, origin=origin
        )
        expected = whole[(slice(0, 1), some, *(slice(a, b) for a, b in zip(start, stop, strict=True)))]
        np.testing.assert_array_equal(piece, expected)
