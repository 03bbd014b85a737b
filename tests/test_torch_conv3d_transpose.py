# SPDX-License-Identifier: Apache-2.0
"""MindSpore's contract as a torch module: every recorded row of MindSpore, derivatives, state."""

from __future__ import annotations

import builtins
import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from test_corpus import LIFTED, ROWS, TOLERANCE, assert_law, assert_matches, decode, drawn, dtype_of
from torch.autograd import gradcheck, gradgradcheck

import tconv3d
import tconv3d.torch as face


def rows(kind: str) -> list[Any]:
    return [pytest.param(row, id=row["id"]) for row in ROWS if row["kind"] == kind and row["framework"] == "mindspore"]


def torch_decode(value: Any) -> Any:
    if isinstance(value, dict) and "tensor" in value:
        return torch.ones(value["tensor"], dtype=getattr(torch, value["dtype"]))
    if isinstance(value, dict) and "dtype" in value:
        return getattr(torch, value["dtype"])
    return decode(value)


def make_layer(row: dict[str, Any]) -> face.Conv3dTranspose:
    arguments = {name: torch_decode(value) for name, value in row["ctor"].items()}
    if row["kind"] == "ok":
        arguments["dtype"] = getattr(torch, row["dtype"])
    return face.Conv3dTranspose(**arguments)


@pytest.mark.parametrize("row", rows("ok"))
def test_outputs_and_gradients(row: dict[str, Any]) -> None:
    layer, rng, dtype = make_layer(row), np.random.default_rng(row["seed"]), dtype_of(row["dtype"])
    x = torch.from_numpy(drawn(rng, row["x_shape"], dtype)).requires_grad_()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(drawn(rng, layer.weight.shape, dtype)))
        if layer.bias is not None:
            layer.bias.copy_(torch.from_numpy(drawn(rng, layer.bias.shape, dtype)))
    y = layer(x, **{name: torch_decode(value) for name, value in row["call"].items()})
    y.backward(torch.from_numpy(drawn(rng, row["y_shape"], dtype)))
    assert list(y.shape) == row["y_shape"]
    results = {"y": y, "gx": x.grad, "gw": layer.weight.grad, "gb": None if layer.bias is None else layer.bias.grad}
    for name, result in results.items():
        assert (result is None) == (name not in row), name
        if result is not None:
            assert_matches(result.detach().numpy(), row[name], TOLERANCE[row["dtype"]])


@pytest.mark.parametrize("row", rows("error"))
def test_errors_and_lifted_limits(row: dict[str, Any]) -> None:
    x = torch.ones(row["x_shape"], dtype=getattr(torch, row["dtype"]))
    call = {name: torch_decode(value) for name, value in row["call"].items()}
    if row.get("note", "").startswith(LIFTED):
        assert make_layer(row)(x, **call).isfinite().all()
        return
    error = getattr(builtins, row["error"])
    if row["stage"] == "ctor":
        with pytest.raises(error):
            make_layer(row)
        return
    layer = make_layer(row)
    with pytest.raises(error):
        layer(x, **call)


@pytest.mark.parametrize("row", rows("init"))
def test_initial_laws(row: dict[str, Any]) -> None:
    torch.manual_seed(11)
    layer = make_layer(row)
    for name in ("weight", "bias"):
        if name in row:
            assert_law(getattr(layer, name).detach().double().numpy(), row[name])


def layers() -> list[face.Conv3dTranspose]:
    """A kernel shorter than the stride, an odd crop, uneven pads, dilation and groups."""
    return [
        face.Conv3dTranspose(4, 2, 2, stride=4, dtype=torch.float64, has_bias=True, bias_init="ones"),
        face.Conv3dTranspose(4, 2, 4, stride=1, dtype=torch.float64, group=2),
        face.Conv3dTranspose(4, 2, 3, 2, "pad", (0, 3, 2, 0, 1, 1), (2, 1, 1), 2, 1, True, dtype=torch.float64),
        face.Conv3dTranspose(4, 2, 1, stride=3, pad_mode="valid", dtype=torch.float64),
    ]


def test_derivatives() -> None:
    for layer in layers():
        x = torch.randn(2, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
        names = [name for name, _ in layer.named_parameters()]

        def function(x: torch.Tensor, *values: torch.Tensor, layer: Any = layer, names: Any = names) -> torch.Tensor:
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), x)

        leaves = (x, *(parameter.detach().requires_grad_() for parameter in layer.parameters()))
        assert gradcheck(function, leaves, fast_mode=True)
        assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_everything_agrees_with_numpys_layer() -> None:
    """Eager, complex, channels_last_3d, compiled, exported, traced and frozen."""
    torch._dynamo.reset()
    for layer in layers():
        x = torch.randn(2, 4, 2, 3, 2, dtype=torch.float64)
        expected = numpys(layer)(x.numpy())
        sizes = {axis: torch.export.Dim.DYNAMIC for axis in (2, 3, 4)}
        exported = torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for module in (layer, exported, compiled, copy.deepcopy(layer)):
            np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
        y = layer(x.to(memory_format=torch.channels_last_3d))
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        face.freeze(layer)
        np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)
        face.thaw(layer).to(torch.complex128)
        with torch.no_grad():
            z = layer(x.to(torch.complex128))
        np.testing.assert_allclose(z.numpy(), expected, rtol=1e-12, atol=1e-12)


def numpys(layer: face.Conv3dTranspose) -> tconv3d.Conv3dTranspose:
    a = layer._arguments
    fields = {name: getattr(a, name) for name in a.__dataclass_fields__}
    other = tconv3d.Conv3dTranspose(**{**fields, "dtype": np.dtype(a.dtype)})
    other.load_state_dict({name: value.numpy() for name, value in layer.state_dict().items()})
    assert repr(other) == repr(layer)
    return other


def test_empty_inputs_and_outputs() -> None:
    layer = face.Conv3dTranspose(2, 3, 2, stride=2, has_bias=True, bias_init=0.5)
    for shape in ((0, 2, 3, 3, 3), (1, 2, 0, 3, 3)):
        y = layer(torch.ones(shape, requires_grad=True))
        y.sum().backward()
        assert list(y.shape) == [shape[0], 3, 2 * shape[2], 6, 6]
    cropped = face.Conv3dTranspose(2, 3, 2, pad_mode="pad", padding=1)
    assert cropped(torch.ones(1, 2, 1, 2, 2)).shape == (1, 3, 0, 1, 1)
    with pytest.raises(RuntimeError):
        face.Conv3dTranspose(2, 3, 1, pad_mode="pad", padding=1)(torch.ones(1, 2, 1, 2, 2))


def test_a_module_like_any_other() -> None:
    layer = face.Conv3dTranspose(2, 4, 3, has_bias=True, weight_init="he_uniform")
    x = torch.randn(1, 2, 3, 3, 3)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert torch.equal(layer.construct(x), layer(x))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))
    with pytest.raises(AttributeError, match="fixed"):
        layer.stride = (2, 2, 2)
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        layer(x.numpy())
    given = torch.randn(2, 4, 3, 3, 3)
    layer = face.Conv3dTranspose(2, 4, 3, weight_init=given)
    assert torch.equal(layer.weight, given)
    assert layer.weight.data_ptr() != given.data_ptr()
    torch.manual_seed(1)
    first = face.Conv3dTranspose(2, 4, 3).weight
    torch.manual_seed(1)
    assert torch.equal(face.Conv3dTranspose(2, 4, 3, dtype=torch.bfloat16).weight, first.bfloat16())
