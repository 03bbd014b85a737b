# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of the PyTorch face measure what they say; how fast it is they alone say."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module(name)


def test_overhead_calls_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    for state, timed in load("overhead", monkeypatch).entries().items():
        shapes = {getattr(entry(), "shape", None) for entry in timed.values()}
        assert len(shapes) == 1, state


def test_a_model_is_compared_and_a_wrong_one_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = load("torch_models", monkeypatch)
    model = torch.nn.Sequential(torch.nn.ConvTranspose3d(1, 2, 2, stride=2), torch.nn.Sigmoid())
    monkeypatch.setitem(module.MODELS, "small", (lambda: model, (4, 4, 4)))
    with torch.no_grad():
        assert module.compare("small", rounds=2, freeze=True)
        row = capsys.readouterr().out.split()
        assert row[:2] == ["small", "1"]
        assert 0 < float(row[3]) < 100

        def broken(model: Any) -> Any:
            model[0].bias.add_(1)
            return ()

        monkeypatch.setattr(module.face, "accelerate", lambda model: type("Report", (), {"accelerated": broken(model)}))
        assert not module.compare("small", rounds=1, freeze=False)
