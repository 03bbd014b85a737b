# SPDX-License-Identifier: Apache-2.0
"""Every row recorded from the real libraries: outputs and gradients, errors and their stage, initial laws.

Numeric rows draw their data from a seed and hold checksums: a sum, a sum of magnitudes, a position-sensitive sum and
eight samples. The first line of the file explains the recipe.
"""

from __future__ import annotations

import builtins
import json
import warnings
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tconv3d

ROWS = [json.loads(line) for line in (Path(__file__).parent / "corpus" / "corpus.jsonl").read_text().splitlines()]
TOLERANCE = ROWS[0]["tol_rel_to_max_abs"]
# Refusals that come from a back-end of the original and not from mathematics: this library computes them.
LIFTED = "library/back-end LIMIT"
# Chance of a false alarm per moment of a law, from Chebyshev's bound far below the normal tail; the seed is fixed.
SIGMAS = 6


def rows(kind: str) -> list[Any]:
    return [pytest.param(row, id=row["id"]) for row in ROWS if row["kind"] == kind]


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def decode(value: Any) -> Any:
    """Undo the JSON encoding of constructor arguments."""
    if isinstance(value, list):
        return tuple(decode(entry) for entry in value)
    if not isinstance(value, dict):
        return value
    if "list" in value:
        return [decode(entry) for entry in value["list"]]
    if "tensor" in value:
        return np.ones(value["tensor"], value["dtype"])
    if "dtype" in value:
        return dtype_of(value["dtype"])
    if "np_int64" in value:
        return np.int64(value["np_int64"])
    return float(value["float"])


def make_layer(row: dict[str, Any]) -> Any:
    arguments = {name: decode(value) for name, value in row["ctor"].items()}
    if row["kind"] == "ok":
        arguments["dtype"] = dtype_of(row["dtype"])
    return (tconv3d.ConvTranspose3d if row["framework"] == "torch" else tconv3d.Conv3dTranspose)(**arguments)


def drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    values = rng.standard_normal(shape)
    if dtype.kind == "c":
        values = values + 1j * rng.standard_normal(shape)
    return values.astype(dtype)


def flat(array: np.ndarray) -> np.ndarray:
    """Everything as float64; complex numbers as (real, imaginary) pairs."""
    if array.dtype.kind == "c":
        return np.ascontiguousarray(array, np.complex128).view(np.float64).ravel()
    return array.astype(np.float64).ravel()


def assert_matches(array: np.ndarray, expected: dict[str, Any], tolerance: float) -> None:
    values = flat(array)
    assert values.size == expected["n"]
    if not values.size:
        return
    scale = tolerance * max(1.0, np.abs(values).max())
    weights = ((np.arange(values.size) % 97) - 48) / 48
    sums = {"sum": values.sum(), "abs": np.abs(values).sum(), "wsum": (values * weights).sum()}
    for name, total in sums.items():
        assert total == pytest.approx(expected[name], rel=0, abs=4 * scale * values.size**0.5), name
    assert values[expected["idx"]] == pytest.approx(expected["val"], rel=0, abs=2 * scale)


@pytest.mark.parametrize("row", rows("ok"))
def test_outputs_and_gradients(row: dict[str, Any]) -> None:
    layer, rng, dtype = make_layer(row), np.random.default_rng(row["seed"]), dtype_of(row["dtype"])
    x = drawn(rng, row["x_shape"], dtype)
    layer.weight = drawn(rng, layer.weight.shape, dtype)
    if layer.bias is not None:
        layer.bias = drawn(rng, layer.bias.shape, dtype)
    grad_output = drawn(rng, row["y_shape"], dtype)

    y = layer(x, **{name: decode(value) for name, value in row["call"].items()})
    gx = layer.backward(grad_output)

    assert list(y.shape) == row["y_shape"]
    assert y.dtype == dtype_of(row["y_dtype"])
    assert layer.weight_grad.dtype == dtype_of(row.get("gw_dtype", row["dtype"]))
    for name, result in {"y": y, "gx": gx, "gw": layer.weight_grad, "gb": layer.bias_grad}.items():
        assert (result is None) == (name not in row), name
        if result is not None:
            assert_matches(result, row[name], TOLERANCE[row["dtype"]])


@pytest.mark.parametrize("row", rows("error"))
# Layers without weights warn, as PyTorch's do, before the call refuses them.
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_errors_and_lifted_limits(row: dict[str, Any]) -> None:
    x = np.ones(row["x_shape"], dtype_of(row["dtype"]))
    call = {name: decode(value) for name, value in row["call"].items()}
    if row.get("note", "").startswith(LIFTED):
        assert np.isfinite(make_layer(row)(x, **call)).all()
        return
    error = getattr(builtins, row["error"])
    if row["stage"] == "ctor":
        with pytest.raises(error) as caught:
            make_layer(row)
    else:
        layer = make_layer(row)
        with pytest.raises(error) as caught:
            layer(x, **call)
    assert type(caught.value) is error


@pytest.mark.parametrize("row", rows("init"))
def test_initial_laws(row: dict[str, Any]) -> None:
    layer = make_layer(row)
    for name in ("weight", "bias"):
        if name in row:
            assert_law(getattr(layer, name).astype(float), row[name])


def assert_law(values: np.ndarray, law: dict[str, Any]) -> None:
    count = values.size
    assert count == law["observed"]["n"]
    if law["dist"] == "const":
        assert (values == law["value"]).all()
    elif law["dist"] == "dirac":
        expected = np.zeros_like(values)
        for channel in range(min(values.shape[:2])):
            expected[channel, channel, 1, 1, 1] = 1
        assert (values == expected).all()
    else:
        uniform = law["dist"] == "uniform"
        deviation = law["bound"] / 3**0.5 if uniform else law["std"]
        # Kurtosis 1.8 and 3: how far the sample deviation strays from the true one.
        stray = ((1.8 if uniform else 3.0) - 1) ** 0.5 / 2
        assert abs(values.mean()) <= SIGMAS * deviation / count**0.5
        assert abs(values.std() - deviation) <= SIGMAS * stray * deviation / count**0.5
        if uniform:
            assert np.abs(values).max() <= law["bound"] * (1 + 1e-6)


def test_no_row_is_left_out() -> None:
    assert {row["kind"] for row in ROWS} == {"meta", "ok", "error", "init"}
    assert sum(row["kind"] == "ok" for row in ROWS) == 404
    lifted = [row for row in ROWS if row.get("note", "").startswith(LIFTED)]
    assert len(lifted) == 6


def test_zero_element_weights_warn_as_in_pytorch() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tconv3d.ConvTranspose3d(2, 4, 0)
    assert [warning.category for warning in caught] == [UserWarning]
