# SPDX-License-Identifier: Apache-2.0
"""The yardstick itself: what counts as work, that wrong results are seen, and what is written where."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tconv3d.bench import engines, race
from tconv3d.bench.workload import Rates

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The modules of benchmarks/ by attribute; they import each other as a script's neighbors do."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ("workloads", "report")
    modules = ModuleType("benchmarks")
    for name in names:
        setattr(modules, name, importlib.import_module(name))
    yield modules
    for name in names:
        sys.modules.pop(name, None)


def tiny(module: ModuleType, **changes: object):
    fields = {
        "name": "tiny",
        "in_channels": 2,
        "out_channels": 4,
        "kernel": [3, 2, 4],
        "stride": [2, 1, 3],
        "padding": [1, 0, 2],
        "output_padding": [1, 0, 0],
        "dilation": [1, 2, 1],
        "groups": 2,
        "input_spatial": [3, 2, 4],
        "batch": 2,
        "source_repo": "",
        "source_file": "",
        "reduced_for_2_cores": False,
    }
    return module.workloads.Workload(**{**fields, **changes})


def test_flops_count_what_reaches_the_output(module: ModuleType) -> None:
    layer = tiny(module)
    counts = 1
    for axis in range(3):
        taps = product(range(layer.input_spatial[axis]), range(layer.kernel[axis]))
        places = [i * layer.stride[axis] + k * layer.dilation[axis] - layer.padding[axis] for i, k in taps]
        counts *= sum(0 <= place < layer.output_shape[2 + axis] for place in places)
    assert layer.flops(train=False) == 2 * counts * layer.batch * 2 * 4 // 2
    assert layer.flops(train=True) == 3 * layer.flops(train=False)


def test_every_recorded_layer_is_readable(module: ModuleType) -> None:
    layers = module.workloads.load()
    assert len(layers) == len({layer.name for layer in layers}) == 31
    assert all(min(layer.output_shape) > 0 for layer in layers)
    assert {layer.name for layer in module.workloads.load(only=["page"])} == {"page_example_1", "page_example_2"}


@pytest.mark.parametrize("train", [False, True])
def test_engines_agree_and_a_wrong_one_is_seen(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, train: bool
) -> None:
    known = engines.TRAIN if train else engines.FORWARD
    ours = known["tconv3d"]

    def wrong(*arguments: object):
        return lambda: tuple(result + np.float32(0.01) for result in ours(*arguments)())

    monkeypatch.setitem(known, "wrong", wrong)
    names = ["tconv3d", "torch", "torch_cl", "wrong"]
    rates = Rates(1e11, 1e10)
    (row,) = race.race([tiny(module)], names, rates, threads=1, rounds=1, budget=1.0, train=train)
    assert row.wrong == ["wrong"]
    assert set(row.seconds) == set(names)
    assert row.roof == max(row.gflop * 1e9 / rates.sgemm, row.gflop * 1e9 / row.intensity / rates.copy)


def test_a_run_is_kept_and_written_into_the_readme(module: ModuleType, tmp_path: Path) -> None:
    report, kept = module.report, tmp_path / "kept.json"
    command = [sys.executable, str(FOLDER / "run.py"), "--only", "page_example_1", "--rounds", "1"]
    command += ["--engines", "tconv3d,tconv3d_live,torch", "--json", str(kept), "--plot", str(tmp_path / "roof.png")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "roof.png").stat().st_size > 10_000
    assert json.loads(kept.read_text())["rows"][0]["name"] == "page_example_1"
    run = report.Run.read(kept)
    assert run.engines == ["tconv3d", "tconv3d_live", "torch"]

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold figures\n{report.END}\nafter\n", encoding="utf-8")
    report.write_readme(run, readme)
    text = readme.read_text(encoding="utf-8")
    assert text == f"before\n{report.BEGIN}\n{report.readme_block(run)}{report.END}\nafter\n"
    assert "| tconv3d | 1 |" in text
    with pytest.raises(ValueError, match="no block"):
        report.write_readme(run, kept)


def test_the_readme_has_the_block(module: ModuleType) -> None:
    text = module.report.README.read_text(encoding="utf-8")
    assert text.index(module.report.BEGIN) < text.index(module.report.END)
