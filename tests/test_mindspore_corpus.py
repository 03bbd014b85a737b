# SPDX-License-Identifier: Apache-2.0
"""Every row recorded from the real MindSpore, on the face for MindSpore: in PyNative mode and as compiled graphs."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
import test_corpus as corpus
from mindspore import Tensor, ops

import tconv3d.mindspore as face

MODES = {"pynative": mindspore.PYNATIVE_MODE, "graph": mindspore.GRAPH_MODE}


def rows(kind: str) -> list[Any]:
    found = [row for row in corpus.ROWS if row["kind"] == kind and row["framework"] == "mindspore"]
    return [pytest.param(row, id=row["id"]) for row in found]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.chdir(tmp_path)  # MindSpore leaves files about graphs that it refused
    mindspore.set_context(mode=MODES[request.param])
    yield request.param
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)


def decode(value: Any) -> Any:
    """As the corpus's own, with MindSpore's types and tensors."""
    if isinstance(value, dict) and "tensor" in value:
        return Tensor(np.ones(value["tensor"], value["dtype"]))
    if isinstance(value, dict) and "dtype" in value:
        return getattr(mindspore, value["dtype"])
    return corpus.decode(value)


def make_layer(row: dict[str, Any]) -> face.Conv3dTranspose:
    arguments = {name: decode(value) for name, value in row["ctor"].items()}
    if row["kind"] == "ok":
        arguments["dtype"] = getattr(mindspore, row["dtype"])
    return face.Conv3dTranspose(**arguments)


@pytest.mark.parametrize("row", rows("ok"))
def test_outputs_and_gradients(row: dict[str, Any], mode: str) -> None:
    layer, rng, dtype = make_layer(row), np.random.default_rng(row["seed"]), np.dtype(row["dtype"])
    x = Tensor(corpus.drawn(rng, row["x_shape"], dtype))
    layer.weight.set_data(Tensor(corpus.drawn(rng, layer.weight.shape, dtype)))
    if layer.bias is not None:
        layer.bias.set_data(Tensor(corpus.drawn(rng, layer.bias.shape, dtype)))
    grad_output = Tensor(corpus.drawn(rng, row["y_shape"], dtype).astype(np.float32))

    def forward(x):
        y = layer(x)
        return (ops.cast(y, mindspore.float32) * grad_output).sum(), y

    (_, y), (gx, grads) = mindspore.value_and_grad(forward, 0, layer.trainable_params(), has_aux=True)(x)

    results = dict(zip(("y", "gx", "gw", "gb"), (y, gx, *grads), strict=False))
    assert list(y.shape) == row["y_shape"]
    assert results["gw"].dtype == getattr(mindspore, row["gw_dtype"])
    assert ("gb" in results) == ("gb" in row)
    for name, result in results.items():
        assert name == "gw" or result.dtype == x.dtype
        corpus.assert_matches(result.asnumpy(), row[name], corpus.TOLERANCE[row["dtype"]])


@pytest.mark.parametrize("row", rows("error"))
def test_errors_and_lifted_limits(row: dict[str, Any], mode: str) -> None:
    x = Tensor(np.ones(row["x_shape"], row["dtype"]))
    if row.get("note", "").startswith(corpus.LIFTED):
        assert np.isfinite(make_layer(row)(x).asnumpy()).all()
        return
    error = getattr(builtins, row["error"])
    if row["stage"] == "ctor":
        with pytest.raises(error) as caught:
            make_layer(row)
    else:
        layer = make_layer(row)
        with pytest.raises(error) as caught:
            layer(x)
    assert type(caught.value) is error


@pytest.mark.parametrize("row", rows("init"))
def test_initial_laws(row: dict[str, Any]) -> None:
    layer = make_layer(row)
    for name in ("weight", "bias"):
        if name in row:
            corpus.assert_law(getattr(layer, name).asnumpy().astype(float), row[name])


def test_no_row_is_left_out() -> None:
    counts = {kind: len(rows(kind)) for kind in ("ok", "error", "init")}
    assert counts == {"ok": 193, "error": 53, "init": 16}
