# SPDX-License-Identifier: Apache-2.0
"""What several test files share: a repeatable global generator, instruction sets, the modes of MindSpore."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import tconv3d
from tconv3d import _core, _engine

# The same examples on every machine and in every run; no deadline, since shared machines stall.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Start every test from one state of the global generators; NumPy's gets its old state back."""
    state = np.random.get_state()
    np.random.seed(20240)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(20240)
    yield
    np.random.set_state(state)


@pytest.fixture(params=_engine.instruction_sets())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this machine has, by the name that TCONV3D_ISA takes when a process starts."""
    return request.param


@pytest.fixture
def restored_engine() -> Iterator[None]:
    """Algorithm, instruction set and number of threads of the engine, back as they were after a test."""
    algorithm, isa, threads = _core.active_algorithm(), _core.active_instruction_set(), tconv3d.get_num_threads()
    yield
    _core.set_algorithm(algorithm)
    _core.set_instruction_set(isa)
    tconv3d.set_num_threads(threads)


@pytest.fixture(params=["pynative", "graph"])
def mode(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """MindSpore's modes in turn, in a folder where it may leave files about graphs that it refused."""
    import mindspore

    monkeypatch.chdir(tmp_path)
    modes = {"pynative": mindspore.PYNATIVE_MODE, "graph": mindspore.GRAPH_MODE}
    mindspore.set_context(mode=modes[request.param])
    yield request.param
    mindspore.set_context(mode=mindspore.PYNATIVE_MODE)


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that the face for PyTorch makes of the engine, by name."""
    from tconv3d.torch._calls import Call

    calls: list[str] = []

    def counted(name: str) -> Any:
        real = getattr(Call, name)
        return lambda *args: calls.append(name) or real(*args)

    for name in ("forward", "input_grad", "weight_grad"):
        monkeypatch.setattr(Call, name, counted(name))
    return calls


@pytest.fixture
def fresh_compiler() -> None:
    """Let torch.compile forget the graphs of other tests."""
    sys.modules["torch"]._dynamo.reset()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=1, help="how often each format's run is killed and resumed")


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """Repetitions of the tests that kill a run at a random moment."""
    return int(request.config.getoption("--kills"))
