# SPDX-License-Identifier: Apache-2.0
"""`accelerate` and `restore`: what changes in a finished model, what stays, and what the report says."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations, parametrize

import tconv3d.torch as face

Original = torch.nn.ConvTranspose3d


class Up(Original):
    """A user's subclass that leaves the forward alone."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels // 2, 2, stride=2)

    def extra_repr(self) -> str:
        return "up, " + super().extra_repr()


class OwnForward(Original):
    """A user's subclass that does not."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(input, output_size) + 1


class Net(torch.nn.Module):
    """Layers of every kind, one of them used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = Original(4, 4, 3, stride=2, padding=1)
        self.inner = torch.nn.Sequential(Up(4), torch.nn.ReLU())
        self.own = OwnForward(2, 2, 1)
        self.normed = parametrizations.weight_norm(Original(2, 2, 2))
        self.again = self.plain
        self.other = torch.nn.Conv3d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.normed(self.own(self.inner(self.again(self.plain(x))))))


X = torch.linspace(-1, 1, 2 * 4 * 27).view(2, 4, 3, 3, 3)


def test_what_changes_and_what_stays() -> None:
    model = Net()
    expected, text = model(X), repr(model)
    state, parameters = model.state_dict(), list(model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    report = face.accelerate(model)

    assert [row.module for row in report] == ["plain", "inner.0", "own", "normed"]
    assert [row.module for row in report.accelerated] == ["plain", "inner.0", "normed"]
    assert repr(model) == text
    assert [id(parameter) for parameter in model.parameters()] == [id(parameter) for parameter in parameters]
    assert list(model.state_dict()) == list(state)
    assert all(isinstance(layer, face.ConvTranspose3d) for layer in (model.plain, model.inner[0], model.normed))
    assert isinstance(model.inner[0], Up)
    assert model.again is model.plain
    assert type(model.own) is OwnForward
    torch.testing.assert_close(model(X), expected)

    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(model.plain.weight, state["plain.weight"]) or model.plain.weight.grad is not None

    assert face.restore(model) is model
    kinds = [type(layer) for layer in (model.plain, model.inner[0], model.own)]
    assert kinds == [Original, Up, OwnForward]
    assert not isinstance(model.normed, face.ConvTranspose3d)
    assert parametrize.is_parametrized(model.normed, "weight")


def test_the_report_says_what_and_why() -> None:
    model = Net()
    model.scripted = scripted()
    model.patched = Original(2, 2, 1)
    model.patched.forward = lambda x: x
    model.complex = complex_layer()
    model.lazy = torch.nn.LazyConvTranspose3d(3, 2)
    report = face.accelerate(model)
    rows = {row.module: row for row in report}
    assert "phases" in rows["plain"].plan
    assert rows["plain"].geometry == "4, 4, kernel_size=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1)"
    assert "8 phases of 1 to 8 taps, 27 in all" in rows["plain"].plan
    assert "computed on each call" in rows["normed"].plan
    assert "OwnForward has a forward of its own" in rows["own"].why_not
    assert "replaced on the object" in rows["patched"].why_not
    assert "no torch.nn.ConvTranspose3d any more" in rows["scripted"].why_not
    assert "complex64 on cpu" in rows["complex"].plan
    assert "first input" in rows["lazy"].plan
    assert len(report) == len(rows) == 8
    assert {row.module for row in report.skipped} == {"own", "patched", "scripted"}
    text = str(report)
    assert text.startswith("5 of 8 transposed 3-D convolutions accelerated")
    assert all(row.module in text for row in report)
    again = face.accelerate(model)
    assert {row.module for row in again.accelerated} == {row.module for row in report.accelerated}


def scripted() -> torch.nn.Module:
    with pytest.warns(DeprecationWarning):
        return torch.jit.script(Original(2, 2, 1))


def complex_layer() -> torch.nn.Module:
    with pytest.warns(UserWarning, match="Complex modules"):
        return Original(2, 2, 1).to(torch.complex64)


def test_the_report_of_a_very_large_stride() -> None:
    report = face.accelerate(Original(1, 1, 2, stride=90_000))
    assert f"{90_000**3} phases of 0 to 1 taps, 8 in all" in str(report)


@pytest.mark.parametrize("odd", [dict(stride=(2,)), dict(stride=0), dict(stride=2.0), dict(padding="same")])
def test_layers_that_only_the_call_would_refuse(odd: dict[str, Any]) -> None:
    layer = Original(2, 3, 2, **odd)
    assert len(face.accelerate(layer).accelerated) == 1
    assert str(face.accelerate(layer))
    results = []
    for module in (layer, face.restore(copy.deepcopy(layer))):
        try:
            results.append(module(X[:, :2, :1, :1, :1]))
        except Exception as error:
            results.append(type(error))
    assert results[0] is results[1] if isinstance(results[0], type) else torch.allclose(*results)


def test_single_layers_and_no_layers() -> None:
    layer = Original(2, 3, 2)
    assert [row.module for row in face.accelerate(layer)] == [""]
    assert isinstance(layer, face.ConvTranspose3d)
    assert type(face.restore(layer)) is Original
    report = face.accelerate(torch.nn.Linear(1, 1))
    assert (len(report), str(report)) == (0, "0 of 0 transposed 3-D convolutions accelerated")
    for function in (face.accelerate, face.restore):
        with pytest.raises(TypeError, match="list"):
            function([layer])


class ConvTranspose3d(torch.nn.Module):
    """A user's block of that name, which is no layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = Original(2, 3, 2), torch.nn.ReLU()


class LazyUp(torch.nn.LazyConvTranspose3d):
    """A user's lazy layer."""


def test_names_do_not_mislead() -> None:
    report = face.accelerate(torch.nn.Sequential(ConvTranspose3d(), LazyUp(3, 2)))
    assert [row.module for row in report.accelerated] == ["0.conv", "1"] == [row.module for row in report]


def test_a_lazy_subclass() -> None:
    model = torch.nn.Sequential(LazyUp(3, 2))
    face.accelerate(model)
    assert isinstance(model[0], LazyUp)
    torch.testing.assert_close(model(X), face.restore(copy.deepcopy(model))(X))
    assert type(model[0]) is face.ConvTranspose3d


def test_hooks_stay() -> None:
    layer, calls = Original(2, 3, 2), []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_forward_hook(lambda *_: calls.append("after"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    face.accelerate(layer)
    layer(torch.randn(1, 2, 3, 3, 3, requires_grad=True)).sum().backward()
    assert calls == ["before", "after", "backward"]


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "norm",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        torch.nn.utils.weight_norm,
        lambda layer: parametrizations.weight_norm(Up_(layer)),
    ],
)
def test_normed_weights(norm: Any) -> None:
    layer = norm(Original(2, 4, 2, stride=2)).eval()
    x = torch.randn(1, layer.in_channels, 3, 3, 3)
    results = []
    for accelerated in (False, True, False):
        (face.accelerate if accelerated else face.restore)(layer)
        assert isinstance(layer, face.ConvTranspose3d) == accelerated
        layer.zero_grad()
        y = layer(x)
        y.square().sum().backward()
        results.append([y.detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


def Up_(layer: torch.nn.Module) -> Up:
    return Up(layer.out_channels)


def test_removing_a_parametrization_from_an_accelerated_layer() -> None:
    layer = parametrizations.weight_norm(Original(2, 3, 2))
    expected = layer(X[:, :2])
    face.accelerate(layer)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is face.ConvTranspose3d
    torch.testing.assert_close(layer(X[:, :2]), expected)
    assert type(face.restore(layer)) is Original


def test_a_parametrization_that_came_after_acceleration() -> None:
    layer = Original(2, 3, 2)
    face.accelerate(layer)
    parametrizations.weight_norm(layer)
    expected = layer(X[:, :2])
    assert [row.accelerated for row in face.accelerate(layer)] == [True]
    face.restore(layer)
    assert not isinstance(layer, face.ConvTranspose3d)
    torch.testing.assert_close(layer(X[:, :2]), expected)
    parametrize.remove_parametrizations(layer, "weight")
    assert type(layer) is Original


class Stateful(Original):
    """A subclass that pickles itself in its own way."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "note": "kept"}


def test_a_state_of_their_own() -> None:
    layer = Stateful(4, 2, 2)
    face.accelerate(layer)
    expected = layer(X)
    other = copy.deepcopy(layer)
    assert other.note == "kept"
    assert torch.equal(other(X), expected)


def test_parametrized_classes_are_not_kept_alive() -> None:
    layer = parametrizations.weight_norm(Original(2, 3, 2))
    face.accelerate(layer)
    made = weakref.ref(type(layer))
    del layer
    gc.collect()
    assert made() is None


def test_lazy_layers() -> None:
    model = torch.nn.Sequential(torch.nn.LazyConvTranspose3d(3, 2), torch.nn.ReLU())
    face.accelerate(model)
    with pytest.raises(RuntimeError, match="call the model once"):
        face.freeze(model)
    torch.manual_seed(3)
    y = model(X)
    assert type(model[0]) is face.ConvTranspose3d
    torch.manual_seed(3)
    other = torch.nn.LazyConvTranspose3d(3, 2)
    torch.testing.assert_close(y, torch.relu(other(X)))
    lazy = torch.nn.Sequential(face.LazyConvTranspose3d(3, 2))
    assert type(face.restore(lazy)[0]) is torch.nn.LazyConvTranspose3d
    lazy(X)
    assert type(lazy[0]) is Original


def test_lazy_layers_like_pytorchs() -> None:
    ours, theirs = face.LazyConvTranspose3d(4, 3, groups=2), torch.nn.LazyConvTranspose3d(4, 3, groups=2)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, torch.nn.LazyConvTranspose3d)
    for module in (ours, theirs):
        torch.manual_seed(4)
        module(X)
    assert repr(ours) == repr(theirs)
    assert type(ours) is face.ConvTranspose3d
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="divisible"):
        face.LazyConvTranspose3d(4, 3, groups=2)(X[:, :3])


def test_copies_and_pickles_of_an_accelerated_model() -> None:
    model = Net()
    model.normed = Original(2, 2, 2)  # PyTorch pickles no parametrized module
    face.accelerate(model)
    expected = model(X)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert isinstance(other.inner[0], Up)
        assert isinstance(other.inner[0], face.ConvTranspose3d)
        assert other.again is other.plain
        assert torch.equal(other(X), expected)
        assert type(face.restore(other).inner[0]) is Up


def test_a_receiver_without_this_library_needs_restore_first(tmp_path: Path) -> None:
    model = torch.nn.Sequential(Original(4, 2, 2), torch.nn.ReLU())
    face.accelerate(model)
    face.freeze(model)
    with torch.no_grad():
        expected = model(X)
    torch.save(face.restore(model), tmp_path / "model.pt")
    torch.save((X, expected), tmp_path / "values.pt")
    program = (
        "import sys, torch; sys.modules['tconv3d'] = None\n"
        "model = torch.load('model.pt', weights_only=False); x, expected = torch.load('values.pt')\n"
        "torch.testing.assert_close(model(x), expected); print('equal')"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.stdout.split() == ["equal"], run.stderr


def test_frozen_and_trained_again() -> None:
    model = torch.nn.Sequential(Original(4, 2, 2), torch.nn.ReLU(), Original(2, 2, 3, stride=2))
    expected = model(X)
    face.accelerate(model)
    face.freeze(model)
    torch.testing.assert_close(model(X), expected)
    with pytest.raises(RuntimeError, match="thaw"):
        model.train()
    face.restore(model).train()
    assert "_frozen" not in model[0].__dict__
