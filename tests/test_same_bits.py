# SPDX-License-Identifier: Apache-2.0
"""One result, to the last bit, whatever the threads, the batch, the memory format and the shape of the register tile.

The promise is per instruction set, so everything here runs once for each that this machine has. Weight and bias
gradients add over the batch, so these two may depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import tconv3d
from tconv3d import _core, _engine
from tconv3d.geometry import Geometry, Triple

THREADS = (1, 2, 3, 8)


class Case(NamedTuple):
    """A layer; the sizes straddle vector widths (4, 8, 16 lanes) and the fixed channel split (256)."""

    batch: int
    channels: tuple[int, int]
    groups: int
    size: Triple
    kernel: Triple
    stride: Triple
    dilation: Triple
    crop: Triple
    output: Triple

    def geometry(self) -> Geometry:
        return Geometry(self.size, self.kernel, self.stride, self.dilation, self.crop, self.output, self.groups)


CASES = {
    "k3s2": Case(3, (20, 24), 1, (5, 6, 17), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (10, 12, 34)),
    "k4s2": Case(2, (33, 17), 1, (4, 9, 9), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (8, 18, 18)),
    "kernel_is_stride": Case(2, (40, 12), 1, (3, 8, 15), (2, 2, 2), (2, 2, 2), (1, 1, 1), (0, 0, 0), (6, 16, 30)),
    "few_positions": Case(2, (300, 70), 1, (2, 2, 2), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (4, 4, 4)),
    "one_position": Case(2, (513, 40), 1, (1, 1, 1), (4, 4, 4), (1, 1, 1), (1, 1, 1), (0, 0, 0), (4, 4, 4)),
    "one_tap_missed": Case(3, (9, 3), 3, (1, 2, 1), (2, 4, 4), (3, 4, 2), (1, 3, 1), (1, 3, 0), (1, 11, 1)),
    "one_plane": Case(2, (40, 24), 1, (1, 9, 17), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1), (2, 18, 34)),
    "one_sample_dilated": Case(2, (40, 60), 2, (1, 1, 3), (3, 3, 3), (2, 2, 2), (3, 2, 1), (1, 0, 1), (6, 5, 6)),
    "kernel_is_stride_ragged": Case(1, (24, 40), 1, (3, 4, 9), (2, 2, 2), (2, 2, 2), (1, 1, 1), (0, 0, 0), (5, 7, 17)),
    "kernel_is_stride_many": Case(1, (16, 24), 1, (2, 3, 5), (2, 4, 4), (2, 4, 4), (1, 1, 1), (0, 0, 0), (4, 12, 20)),
    "kernel_is_stride_groups": Case(2, (48, 40), 2, (3, 4, 5), (2, 2, 2), (2, 2, 2), (1, 1, 1), (0, 0, 0), (6, 8, 10)),
    "one_channel_out": Case(2, (64, 1), 1, (6, 7, 21), (5, 5, 5), (3, 3, 3), (1, 1, 1), (2, 2, 2), (18, 21, 63)),
    "depthwise": Case(2, (12, 12), 12, (5, 9, 19), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (9, 17, 37)),
    "depthwise_wide": Case(2, (72, 72), 72, (5, 4, 9), (3, 5, 4), (2, 1, 2), (1, 1, 2), (1, 2, 1), (9, 5, 20)),
    # Weight gradients with the positions on the lanes: runs of planes, rows in place, several channels out.
    "depthwise_runs": Case(2, (20, 20), 20, (18, 20, 22), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (35, 39, 43)),
    "few_long_rows": Case(2, (10, 2), 1, (5, 6, 67), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (10, 12, 133)),
    "few_channels_groups": Case(2, (6, 9), 3, (6, 9, 11), (5, 4, 3), (1, 2, 3), (1, 1, 1), (2, 1, 0), (6, 19, 33)),
    "groups_of_many_channels": Case(2, (520, 240), 2, (2, 1, 2), (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1), (4, 2, 4)),
    "groups_dilation_holes": Case(2, (12, 15), 3, (4, 5, 13), (2, 3, 2), (3, 1, 5), (1, 2, 3), (2, 0, 1), (12, 11, 70)),
}
# Complex numbers are composed of real calls and have no bits of their own.
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


class Operands(NamedTuple):
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    grad_output: np.ndarray
    geometry: Geometry


class Results(NamedTuple):
    forward: np.ndarray
    input_grad: np.ndarray
    weight_grad: np.ndarray
    bias_grad: np.ndarray


@pytest.fixture(params=_core.instruction_sets())
def active_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test under each instruction set and put the old one back."""
    before = _core.active_instruction_set()
    _core.set_instruction_set(request.param)
    yield request.param
    _core.set_instruction_set(before)


pytestmark = pytest.mark.usefixtures("restored_engine")


def operands(case: Case, dtype: Any = np.float32) -> Operands:
    rng = np.random.default_rng(7)
    (c_in, c_out), g = case.channels, case.groups

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(dtype)

    return Operands(
        normal(case.batch, c_in, *case.size),
        normal(c_in, c_out // g, *case.kernel),
        normal(c_out),
        normal(case.batch, c_out, *case.output),
        case.geometry(),
    )


def run(o: Operands) -> Results:
    return Results(
        _engine.forward(o.x, o.weight, o.bias, o.geometry),
        _engine.input_grad(o.grad_output, o.weight, o.geometry),
        _engine.weight_grad(o.x, o.grad_output, o.geometry),
        _engine.bias_grad(o.grad_output),
    )


def channels_last(array: np.ndarray) -> np.ndarray:
    """The same values with the channels side by side in memory, as torch.channels_last_3d keeps them."""
    return np.ascontiguousarray(np.moveaxis(array, 1, -1)).transpose(0, 4, 1, 2, 3)


def assert_same_bytes(one: np.ndarray, other: np.ndarray) -> None:
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()  # not ==: NaN has bits as well, and -0.0 is not 0.0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads(active_isa: str, case: str, dtype: str) -> None:
    o = operands(CASES[case], DTYPES[dtype])
    results = []
    for n in THREADS:
        tconv3d.set_num_threads(n)
        results.append(run(o))
    for other in results[1:]:
        for name in Results._fields:
            assert_same_bytes(getattr(results[0], name), getattr(other, name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_batched_and_one_by_one(active_isa: str, case: str, dtype: str) -> None:
    o = operands(CASES[case], DTYPES[dtype])
    forward, input_grad, _, _ = run(o)
    for i in range(len(o.x)):
        alone = o._replace(x=o.x[i : i + 1], grad_output=o.grad_output[i : i + 1])
        assert_same_bytes(forward[i : i + 1], _engine.forward(alone.x, alone.weight, alone.bias, o.geometry))
        assert_same_bytes(input_grad[i : i + 1], _engine.input_grad(alone.grad_output, alone.weight, o.geometry))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_channels_first_and_last(active_isa: str, case: str, dtype: str) -> None:
    o = operands(CASES[case], DTYPES[dtype])
    first = run(o)
    last = run(o._replace(x=channels_last(o.x), grad_output=channels_last(o.grad_output)))
    for name in Results._fields:
        assert_same_bytes(getattr(first, name), getattr(last, name))
    out = channels_last(np.full_like(first.forward, 77))
    _engine.forward(o.x, o.weight, o.bias, o.geometry, out=out)
    assert_same_bytes(first.forward, out)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_prepared_and_live_weights(active_isa: str, case: str, dtype: str) -> None:
    o = operands(CASES[case], DTYPES[dtype])
    g = o.geometry
    prepared = tconv3d.prepare(o.weight, g.stride, g.dilation, g.groups)
    live = _engine.forward(o.x, o.weight, o.bias, g)
    # The first packs, the last finds the panels.
    for layout in (np.ascontiguousarray, channels_last, np.ascontiguousarray):
        assert_same_bytes(live, _engine.forward(layout(o.x), prepared, o.bias, g, layout(np.full_like(live, 77))))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_every_tile_family_and_memory_format(active_isa: str, case: str, dtype: str) -> None:
    """The planner may lay the tile any way, so the choice must not show."""
    _core.set_algorithm("direct")  # the families are its own
    tconv3d.set_num_threads(1)  # which packs the weights of few positions chunk by chunk
    o = operands(CASES[case], DTYPES[dtype])
    g = o.geometry
    results = []
    for layout in (np.ascontiguousarray, channels_last):
        for family in _core.Family.__members__.values():
            y, gx = layout(np.full_like(o.grad_output, 77)), layout(np.full_like(o.x, 77))
            arguments = (g.stride, g.dilation, g.crop_front, g.groups)
            _core.forward(layout(o.x), o.weight, o.bias, y, *arguments, family=family)
            _core.input_grad(layout(o.grad_output), o.weight, gx, *arguments, family=family)
            results.append((y, gx))
    for y, gx in results[1:]:
        assert_same_bytes(results[0][0], y)
        assert_same_bytes(results[0][1], gx)


def test_weights_that_outgrow_the_idle_memory(active_isa: str) -> None:
    """38 MB of them: packed by each thread for the columns that it goes on to compute."""
    _core.set_algorithm("direct")
    o = operands(Case(1, (1024, 690), 2, (2, 3, 4), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1), (2, 3, 4)))
    g = o.geometry
    arguments = (g.stride, g.dilation, g.crop_front, g.groups)
    results = []
    for family in (_core.Family.spatial, _core.Family.rows, _core.Family.channels):
        for threads in (1, 2):
            tconv3d.set_num_threads(threads)
            y, gx = np.full_like(o.grad_output, 77), np.full_like(o.x, 77)
            _core.forward(o.x, o.weight, o.bias, y, *arguments, family=family)
            _core.input_grad(o.grad_output, o.weight, gx, *arguments, family=family)
            results.append((y, gx))
    for y, gx in results[1:]:
        assert_same_bytes(results[0][0], y)
        assert_same_bytes(results[0][1], gx)


def test_far_strides_of_a_depthwise_layer() -> None:
    """Sizes as the positions' places in the source, 2^60, fit no scratch and must not wrap."""
    g = Geometry((2, 2, 17), (1, 1, 1), (1, 1, 2**56), (1, 1, 1), (0, 0, 2**59), (2, 2, 1), 16)
    rng = np.random.default_rng(0)
    gy, weight = rng.standard_normal((1, 16, 2, 2, 1)), rng.standard_normal((16, 1, 1, 1, 1))
    gx = channels_last(np.full((1, 16, 2, 2, 17), 77.0))
    _core.input_grad(channels_last(gy), weight, gx, g.stride, g.dilation, g.crop_front, g.groups)
    expected = np.zeros_like(gx)
    expected[..., 8] = gy[..., 0] * weight[:, 0, :, :, 0]
    np.testing.assert_array_equal(gx, expected)


@pytest.mark.parametrize("case", CASES)
def test_every_call_of_many(active_isa: str, case: str) -> None:
    """Scratch memory is reused; nothing of an earlier, larger or smaller call may shine through."""
    o = operands(CASES[case])
    first = run(o)
    for disturbing in ("k4s2", "depthwise"):
        run(operands(CASES[disturbing], np.float64))
    for name in Results._fields:
        assert_same_bytes(getattr(first, name), getattr(run(o), name))
