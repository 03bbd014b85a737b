# SPDX-License-Identifier: Apache-2.0
"""The face for dask: lazy, planned in few tasks, and to the bit the result of the whole."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import ml_dtypes
import numpy as np
import pytest

import tconv3d
import tconv3d.dask
from tconv3d import _core, functional
from tconv3d.contracts import pytorch
from tconv3d.dask import _tasks

DTYPES = [np.float32] * 6 + [np.float64, np.float16, ml_dtypes.bfloat16, np.complex64, np.int64]


class Case:
    """A random call: operands, arguments of either contract, and ragged chunks on both sides."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.large = seed % 3 == 0  # sizes and channels for which the engine takes the two-tap method by itself
        self.dtype = np.dtype(np.float32 if self.large else DTYPES[seed % len(DTYPES)])
        while True:
            shape, weight_shape, self.arguments = self.layer()
            try:
                self.geometry = pytorch.functional_geometry(
                    shape, weight_shape, None, **{"output_padding": 0, **self.arguments}, extended_padding=True
                )
                break
            except (RuntimeError, ValueError):  # no output left, or an output padding that is too large
                continue
        self.x, self.weight = self.values(shape), self.values(weight_shape)
        self.bias = self.values((weight_shape[1] * self.geometry.groups,)) if self.rng.random() < 0.7 else None

    def layer(self) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
        rng = self.rng
        if self.large:
            size, kernel = rng.integers(9, 15, 3), [3 if rng.random() < 0.2 else 4] * 3
            stride, dilation, groups = 2, 1, 1
            rows, columns = 64, 32
        else:
            size, kernel = rng.integers(1, 8, 3), rng.integers(1, 6, 3)
            stride, dilation = self.triple(1, 4), self.triple(1, 3)
            groups = int(rng.integers(1, 5))
            rows, columns = map(int, rng.integers(1, 7, 2))
        batch = (int(rng.integers(1, 4)),) if rng.random() < 0.7 else ()
        arguments: dict[str, Any] = {
            "stride": stride,
            "dilation": dilation,
            "groups": groups,
            "padding": self.padding(),
        }
        if not isinstance(arguments["padding"], str) and rng.random() < 0.4:
            arguments["output_padding"] = self.triple(0, 2)
        return (*batch, groups * rows, *map(int, size)), (groups * rows, columns, *map(int, kernel)), arguments

    def padding(self) -> Any:
        kind = self.rng.integers(5)
        six = tuple(int(p) for p in self.rng.integers(0, 4, 6))
        return [int(self.rng.integers(0, 3)), self.triple(0, 3), six, "same", "valid"][kind]

    def triple(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(int(n) for n in self.rng.integers(low, high + 1, 3))

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        if self.dtype.kind == "i":
            return self.rng.integers(-99, 100, shape)
        if self.dtype.kind == "c":
            return (self.rng.standard_normal(shape) + 1j * self.rng.standard_normal(shape)).astype(self.dtype)
        return self.rng.standard_normal(shape).astype(self.dtype)

    def ragged(self, size: int) -> tuple[int, ...]:
        """Random sizes that add up."""
        ends = self.rng.integers(1, size + 1, self.rng.integers(0, 4))
        return tuple(int(n) for n in np.diff(np.unique([0, *ends, size])))

    def output_chunks(self, shape: tuple[int, ...]) -> Any:
        kind = self.rng.integers(4)
        if kind == 0:
            return None
        if kind == 1:
            return tuple(int(self.rng.integers(1, size + 1)) for size in shape[-3:])
        return tuple(self.ragged(size) for size in shape)


@pytest.fixture(params=["two_tap", "col2im"])
def algorithm(request: pytest.FixtureRequest) -> Iterator[None]:
    """A method other than the direct one wherever it applies, which is nearly everywhere."""
    before = _core.active_algorithm()
    _core.set_algorithm(request.param)
    yield
    _core.set_algorithm(before)


def check(case: Case, seed: int) -> None:
    whole = tconv3d.conv_transpose3d(case.x, case.weight, case.bias, **case.arguments)
    x = da.from_array(case.x, chunks=tuple(case.ragged(size) for size in case.x.shape))
    chunks = case.output_chunks(whole.shape)
    lazy = tconv3d.dask.conv_transpose3d(x, case.weight, case.bias, **case.arguments, chunks=chunks)
    assert (lazy.shape, lazy.dtype, type(lazy._meta)) == (whole.shape, whole.dtype, np.ndarray)
    if isinstance(chunks, tuple) and len(chunks) == whole.ndim:
        assert lazy.chunks == chunks
    result = lazy.compute(scheduler="threads" if seed % 4 == 0 else "synchronous")
    assert (result.shape, result.dtype) == (whole.shape, whole.dtype)
    assert result.tobytes() == whole.tobytes()


@pytest.mark.parametrize("seed", range(200))
def test_every_block_has_the_bits_of_the_whole(seed: int) -> None:
    check(Case(seed), seed)


@pytest.mark.parametrize("seed", range(30, 60))
def test_by_other_methods_too(seed: int, algorithm: None) -> None:
    check(Case(seed), seed)


def test_the_random_cases_reach_what_they_should() -> None:
    cases = [Case(seed) for seed in range(200)]
    methods = [functional.block_method(c.x.shape, c.weight.shape, c.geometry, c.dtype) for c in cases]
    assert sum(any(method) for method in methods) >= 20  # the engine's own choice; it depends on the machine
    assert sum(c.geometry.groups > 1 for c in cases) >= 40
    assert sum(max(c.geometry.dilation) > 1 for c in cases) >= 40
    assert sum(any(k < s for k, s in zip(c.weight.shape[2:], c.geometry.stride, strict=True)) for c in cases) >= 40
    assert sum(c.geometry.crop_front != c.geometry.crop_back for c in cases) >= 40
    assert {c.arguments["padding"] for c in cases} >= {"same", "valid"}
    assert {c.dtype.name for c in cases} >= {"float16", "bfloat16", "float64", "complex64", "int64"}


def layer(seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (2, 6, 12, 12, 12), weight (6, 4, 4, 4, 4) for two groups, bias (8,)."""
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((2, 6, 12, 12, 12), (6, 4, 4, 4, 4), (8,)))


ARGUMENTS = {"stride": 2, "padding": 1, "groups": 2}


@pytest.mark.parametrize("channels", [(8,), (4, 4), (2, 6), (3, 3, 2), (1,) * 8])
@pytest.mark.parametrize("kind", ["numpy", "dask", "prepared"])
def test_weights_of_every_kind_and_channels_cut_anywhere(kind: str, channels: tuple[int, ...]) -> None:
    x, weight, bias = layer()
    whole = tconv3d.conv_transpose3d(x, weight, bias, **ARGUMENTS)
    given: Any = weight
    if kind == "dask":
        given, bias = da.from_array(weight, chunks=2), da.from_array(bias, chunks=3)
    elif kind == "prepared":
        given = tconv3d.prepare(weight, stride=2, groups=2)
    for input_channels in (6, 3, 2):
        lazy = tconv3d.dask.conv_transpose3d(
            da.from_array(x, chunks=(1, input_channels, 6, 6, 6)), given, bias, **ARGUMENTS,
            chunks=((1, 1), channels, (12, 12), (24,), (10, 14)),
        )  # fmt: skip
        np.testing.assert_array_equal(lazy.compute(), whole)


def optimized(array: da.Array) -> dict[Any, Any]:
    return dict(dask.optimize(array)[0].__dask_graph__())


@pytest.mark.parametrize("chunks", [(1, 6, 32, 32, 32), (2, 3, 32, 32, 32), (1, 2, 16, 64, 32)])
def test_three_tasks_for_a_block(chunks: tuple[int, ...]) -> None:
    """The block itself, the edges of a chunk, and what gathers a chunk's channels, besides the input's own tasks."""
    _, weight, bias = layer()
    x = da.ones((2, 6, 64, 64, 64), chunks=chunks, dtype=np.float32)
    lazy = tconv3d.dask.conv_transpose3d(x, weight, bias, **ARGUMENTS)
    a_layer = 3  # weight, bias, and both cut for a chunk of output channels
    assert len(optimized(lazy)) <= 3 * lazy.npartitions + len(optimized(x)) + a_layer
    if chunks[1] == 6:
        assert len(optimized(lazy)) <= 3 * lazy.npartitions + a_layer  # the input's included


def test_many_chunks_in_a_block_cost_no_tasks() -> None:
    _, weight, _ = layer()
    x = da.ones((1, 6, 64, 64, 64), chunks=(1, 6, 8, 8, 8), dtype=np.float32)
    lazy = tconv3d.dask.conv_transpose3d(x, weight, **ARGUMENTS, chunks=(64, 64, 64))
    assert lazy.npartitions == 8
    assert len(optimized(lazy)) <= 8 + x.npartitions + 2


def test_blocks_take_edges_of_their_neighbors_and_no_whole_chunks() -> None:
    x = da.ones((1, 32, 32, 32), chunks=(1, 16, 16, 16), dtype=np.float32)
    lazy = tconv3d.dask.conv_transpose3d(x, np.ones((1, 1, 4, 4, 4), np.float32), stride=2, padding=1)
    graph = dict(lazy.__dask_graph__())
    for index in np.ndindex(2, 2, 2):
        dependencies = graph[(lazy.name, 0, *index)].dependencies
        assert {key for key in dependencies if key[0] == x.name} == {(x.name, 0, *index)}
        assert sum(str(key[0]).startswith("edges-") for key in dependencies) == 7
    edges = next(task for key, task in graph.items() if str(key[0]).startswith("edges-"))
    cut = _tasks.cut_edges(np.ones((1, 16, 16, 16), np.float32), edges.args[1])
    assert sum(part.size for part in cut.values()) == 17**3 - 16**3  # one sample along each axis


def test_the_weight_is_in_the_graph_once() -> None:
    weight = np.ones((16, 16, 4, 4, 4), np.float32)
    x = da.ones((1, 16, 32, 32, 32), chunks=(1, 16, 4, 4, 4), dtype=np.float32)
    for given in (weight, tconv3d.prepare(weight, stride=2)):
        lazy = tconv3d.dask.conv_transpose3d(x, given, stride=2)
        tasks = list(optimized(lazy).values())
        assert len(tasks) > 512
        sizes = [len(pickle.dumps(task)) for task in tasks]
        assert sum(size > weight.nbytes for size in sizes) == 1
        assert np.median(sizes) < 8000


def test_nothing_runs_before_it_is_asked_for() -> None:
    def refuse(*_: Any, **__: Any) -> np.ndarray:
        raise AssertionError("computed")

    x, weight, bias = layer()
    lazy_x, lazy_weight, lazy_bias = (
        da.from_delayed(dask.delayed(refuse)(), a.shape, a.dtype).rechunk(2) for a in (x, weight, bias)
    )
    lazy = tconv3d.dask.conv_transpose3d(lazy_x, lazy_weight, lazy_bias, **ARGUMENTS)
    assert lazy.shape == (2, 8, 24, 24, 24)
    with pytest.raises(AssertionError, match="computed"):
        lazy.compute()


def test_a_block_without_input_reads_nothing() -> None:
    def refuse(block: np.ndarray) -> np.ndarray:
        raise AssertionError("read")

    x = da.ones((1, 4, 1, 1), chunks=1, dtype=np.float32).map_blocks(refuse, meta=np.empty((0,) * 4, np.float32))
    weight, bias = np.ones((1, 2, 1, 1, 1), np.float32), np.array([3, 4], np.float32)
    lazy = tconv3d.dask.conv_transpose3d(
        x, weight, bias, (8, 1, 1), (0, 4, 0, 0, 0, 0), (7, 0, 0), chunks=((1, 7, 1, 7, 1, 7, 1, 3), 1, 1)
    )
    np.testing.assert_array_equal(lazy[:, 1:8].compute()[:, :, 0, 0], [[3] * 7, [4] * 7])
    with pytest.raises(AssertionError, match="read"):
        lazy[:, :1].compute()


def test_chosen_chunks_follow_the_input_and_the_limit() -> None:
    x = da.ones((2, 4, 64, 64, 100), chunks=(1, 2, 32, 32, 100), dtype=np.float32)
    weight = np.ones((4, 8, 3, 3, 3), np.float32)
    lazy = tconv3d.dask.conv_transpose3d(x, weight, stride=2, padding=1, output_padding=1)
    assert lazy.chunks == ((1, 1), (8,), (64, 64), (64, 64), (200,))
    with dask.config.set({"array.chunk-size": "1MiB"}):
        small = tconv3d.dask.conv_transpose3d(x, weight, stride=2, padding=1, output_padding=1)
    assert all(whole % part == 0 for whole, part in zip(lazy.chunksize, small.chunksize, strict=True))
    assert (1 << 17) < 4 * np.prod(small.chunksize) < (1 << 20)
    with dask.config.set({"array.chunk-size": "1B"}):  # nothing fits: the smallest blocks there are
        x = da.ones((1, 4, 5, 5, 5), dtype=np.float32)
        assert tconv3d.dask.conv_transpose3d(x, weight, stride=2).chunksize == (1, 8, 2, 2, 2)


def test_empty_batches_and_arrays_of_numpy() -> None:
    x, weight, bias = layer()
    whole = tconv3d.conv_transpose3d(x, weight, bias, **ARGUMENTS)
    np.testing.assert_array_equal(tconv3d.dask.conv_transpose3d(x, weight, bias, **ARGUMENTS).compute(), whole)
    empty = tconv3d.dask.conv_transpose3d(da.from_array(x[:0]), weight, bias, **ARGUMENTS)
    assert empty.compute().shape == (0, 8, 24, 24, 24)


def test_refusals() -> None:
    x, weight, _ = layer()
    lazy = da.from_array(x, chunks=6)

    def refused(error: type[Exception], match: str, array: Any = lazy, given: Any = weight, **arguments: Any) -> None:
        with pytest.raises(error, match=match):
            tconv3d.dask.conv_transpose3d(array, given, **{**ARGUMENTS, **arguments})

    refused(TypeError, "array is a list", [1.0])
    refused(TypeError, "array is a masked array", da.ma.masked_equal(lazy, 0))
    refused(TypeError, "weight is a str", given="kernel")
    refused(RuntimeError, "channels, as the weight", lazy[:, :4])
    refused(RuntimeError, "stride is", stride=(0, 1, 1))
    refused(RuntimeError, "dtype", lazy.astype(np.float64))
    refused(NotImplementedError, "int32", lazy.astype(np.int32), weight.astype(np.int32))
    refused(ValueError, "the weight was prepared for", given=tconv3d.prepare(weight, stride=1, groups=2))
    refused(ValueError, "call compute_chunk_sizes", lazy[lazy[:, 0, 0, 0, 0] > 0])
    refused(ValueError, "chunks is .* give three entries", chunks=(5, 5))
    refused(ValueError, "the output has the shape", chunks=((20, 20), -1, -1))
    refused(TypeError, "out", out=x)


def test_a_missing_dask_is_named_with_its_extra() -> None:
    program = (
        "import sys; sys.modules['dask'] = None\n"
        "import tconv3d\n"
        "for load in (lambda: tconv3d.dask, lambda: __import__('tconv3d.dask')):\n"
        "    try: load()\n"
        "    except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.stdout.count("tconv3d.dask needs dask") == 2, run.stderr
    assert run.stdout.count("pip install 'tconv3d[dask]'") == 2


def test_blocks_that_run_at_once_share_the_threads() -> None:
    before = tconv3d.get_num_threads()
    tconv3d.set_num_threads(6)
    try:
        with _tasks._share_of_threads() as one, _tasks._share_of_threads() as two, _tasks._share_of_threads() as three:
            assert (one, two, three) == (6, 3, 2)
        with _tasks._share_of_threads() as alone:
            assert alone == 6
    finally:
        tconv3d.set_num_threads(before)


def test_the_readmes_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it writes image.zarr
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "tconv3d.dask" in b)
    exec(block, names := {})
    x = names["volume"][:, :4, :5, :6].compute()
    np.testing.assert_array_equal(
        names["doubled"][:, :8, :10, :12], x.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    )
