# SPDX-License-Identifier: Apache-2.0
"""Every row recorded from the real libraries, on the face for MindSpore: in PyNative mode and as compiled graphs."""

from __future__ import annotations

import builtins
from typing import Any

import mindspore
import numpy as np
import pytest
import test_corpus as corpus
from mindspore import Tensor, ops

import tconv3d.mindspore as face

LAYERS = {"mindspore": face.Conv3dTranspose, "torch": face.ConvTranspose3d}


def rows(framework: str, kind: str) -> list[Any]:
    found = [row for row in corpus.ROWS if row["kind"] == kind and row["framework"] == framework]
    return [pytest.param(row, id=row["id"]) for row in found]


def decode(value: Any) -> Any:
    """As the corpus's own, with MindSpore's types and tensors."""
    if isinstance(value, dict) and "tensor" in value:
        return Tensor(np.ones(value["tensor"], value["dtype"]))
    if isinstance(value, dict) and "dtype" in value:
        return getattr(mindspore, value["dtype"])
    return corpus.decode(value)


def make_layer(row: dict[str, Any]) -> Any:
    arguments = {name: decode(value) for name, value in row["ctor"].items()}
    if row["kind"] == "ok":
        arguments["dtype"] = getattr(mindspore, row["dtype"])
    return LAYERS[row["framework"]](**arguments)


def drawn(rng: np.random.Generator, shape: Any, dtype: str) -> Tensor:
    """The corpus's values; bfloat16 through float32, since MindSpore's NumPy type of that name is its own."""
    values = corpus.drawn(rng, shape, corpus.dtype_of(dtype))
    return Tensor(values.astype(np.float32) if dtype == "bfloat16" else values, getattr(mindspore, dtype))


def array(tensor: Tensor) -> np.ndarray:
    return (tensor.float() if tensor.dtype == mindspore.bfloat16 else tensor).asnumpy()


@pytest.mark.parametrize("row", rows("mindspore", "ok"))
def test_outputs_and_gradients(row: dict[str, Any], mode: str) -> None:
    check_numbers(row)


@pytest.mark.parametrize("row", rows("torch", "ok"))
def test_outputs_and_gradients_of_the_other_contract(row: dict[str, Any]) -> None:
    check_numbers(row)


@pytest.mark.parametrize("row", rows("torch", "ok")[::4])
@pytest.mark.parametrize("mode", ["graph"], indirect=True)
def test_the_other_contract_in_graphs(row: dict[str, Any], mode: str) -> None:
    check_numbers(row)


def check_numbers(row: dict[str, Any]) -> None:
    layer, rng, dtype = make_layer(row), np.random.default_rng(row["seed"]), row["dtype"]
    x = drawn(rng, row["x_shape"], dtype)
    layer.weight.set_data(drawn(rng, layer.weight.shape, dtype))
    if layer.bias is not None:
        layer.bias.set_data(drawn(rng, layer.bias.shape, dtype))
    grad_output = drawn(rng, row["y_shape"], dtype)
    call = {name: decode(value) for name, value in row["call"].items()}

    def forward(x, grad_output):
        y = layer(x, **call)
        return product(y, grad_output), y

    gradient = mindspore.value_and_grad(forward, 0, layer.trainable_params(), has_aux=True)
    (_, y), (gx, grads) = gradient(x, grad_output)

    results = dict(zip(("y", "gx", "gw", "gb"), (y, gx, *grads), strict=False))
    assert list(y.shape) == row["y_shape"]
    assert results["gw"].dtype == getattr(mindspore, row.get("gw_dtype", dtype))
    assert ("gb" in results) == ("gb" in row)
    for name, result in results.items():
        assert name == "gw" or result.dtype == x.dtype
        corpus.assert_matches(array(result), row[name], corpus.TOLERANCE[dtype])


def product(y: Tensor, grad_output: Tensor) -> Tensor:
    """A real number whose gradient is grad_output. MindSpore cannot differentiate products of complex numbers."""
    if y.dtype in (mindspore.complex64, mindspore.complex128):
        return (ops.real(y) * ops.real(grad_output)).sum() + (ops.imag(y) * ops.imag(grad_output)).sum()
    wide = mindspore.float64 if y.dtype == mindspore.float64 else mindspore.float32
    return (ops.cast(y, wide) * ops.cast(grad_output, wide)).sum()


@pytest.mark.parametrize("row", [*rows("mindspore", "error"), *rows("torch", "error")])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_errors_and_lifted_limits(row: dict[str, Any], mode: str) -> None:
    x = Tensor(np.ones(row["x_shape"]), getattr(mindspore, row["dtype"]))
    call = {name: decode(value) for name, value in row["call"].items()}
    if row.get("note", "").startswith(corpus.LIFTED):
        assert np.isfinite(make_layer(row)(x, **call).asnumpy()).all()
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


@pytest.mark.parametrize("row", [*rows("mindspore", "init"), *rows("torch", "init")])
def test_initial_laws(row: dict[str, Any]) -> None:
    layer = make_layer(row)
    for name in ("weight", "bias"):
        if name in row:
            corpus.assert_law(getattr(layer, name).asnumpy().astype(float), row[name])


def test_no_row_is_left_out() -> None:
    counts = {kind: len(rows("mindspore", kind)) for kind in ("ok", "error", "init")}
    assert counts == {"ok": 193, "error": 53, "init": 16}
