# SPDX-License-Identifier: Apache-2.0
"""`tconv3d bench`: every peer that is installed computes the user's layer, in either contract, and is named if not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tconv3d
from tconv3d.bench import engines, race
from tconv3d.bench.workload import GivenLayer, Rates
from tconv3d.cli import main
from tconv3d.commands import bench
from tconv3d.migrate.layer import resolve
from tconv3d.migrate.signature import parse_layer

PYTORCH = "nn.ConvTranspose3d(4, 6, (3, 2, 4), stride=(2, 1, 3), padding=(1, 0, 2), output_padding=1, groups=2)"
LAYERS = [
    PYTORCH.replace("output_padding=1", "output_padding=(1, 0, 1)"),
    "nn.ConvTranspose3d(2, 3, 3, dilation=2, output_padding=1, bias=False)",
    "nn.Conv3dTranspose(2, 3, 3, 2)",  # an odd crop: the extra sample goes at the back
    "nn.Conv3dTranspose(2, 3, 1, 3, pad_mode='valid', has_bias=True)",  # zeros behind the last tap
    "nn.Conv3dTranspose(2, 4, 4, 2, 'pad', (1, 0, 2, 1, 0, 3), group=2)",
]


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command gives its own process and the libraries in it a number of threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    before = tconv3d.get_num_threads(), torch.get_num_threads()
    yield
    tconv3d.set_num_threads(before[0])
    torch.set_num_threads(before[1])


def given(text: str, dtype: str = "float32") -> GivenLayer:
    layer = resolve(parse_layer(text), (2, 4 if "(4, 6" in text else 2, 4, 3, 5))
    sizes = layer.geometry, layer.batch, layer.arguments.in_channels, layer.arguments.out_channels
    return GivenLayer(text, *sizes, layer.bias, dtype)


@pytest.mark.parametrize("text", LAYERS)
def test_every_installed_engine_agrees_with_the_definition(text: str) -> None:
    """What is refused is what an engine lacks, with its own words; nobody is wrong."""
    names = [name for name in engines.FORWARD if not engines.missing_packages(name)]
    assert {"tconv3d", "tconv3d_live", "torch", "torch_cl", "onnxruntime", "mindspore"} <= set(names)
    rates = Rates(1e11, 1e10)
    (row,) = race.race(
        [given(text)], names, rates, threads=1, rounds=1, budget=1, train=False, judge=race.by_definition
    )
    assert row.wrong == []
    assert set(row.seconds) | set(row.refusals) == set(names)
    may_refuse = {"mindspore", "onnxruntime", "openvino"} if "dilation" in text else set()
    assert set(row.refusals) <= may_refuse, row.refusals


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(dtype: str) -> None:
    names = ["tconv3d", "tconv3d_live", "torch", "onnxruntime"]
    options: Any = {"threads": 1, "rounds": 1, "budget": 1, "train": False, "judge": race.by_definition}
    (row,) = race.race([given(LAYERS[2], dtype)], names, Rates(1e11, 1e10), **options)
    assert row.wrong == [] and set(row.seconds) == set(names[:3])
    assert row.refusals == {"onnxruntime": f"raced in float32 alone, not in {dtype}"}


@pytest.mark.parametrize("text", LAYERS)
def test_gradients_agree_with_torchs(text: str) -> None:
    options: Any = {"threads": 1, "rounds": 1, "budget": 1, "train": True}
    (row,) = race.race([given(text)], list(engines.TRAIN), Rates(1e11, 1e10), **options)
    assert row.wrong == [] and set(row.seconds) == set(engines.TRAIN)


def test_a_wrong_engine_is_seen_and_ends_in_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = engines.FORWARD["torch"]

    def wrong(*arguments: Any) -> engines.Call:
        return lambda: (right(*arguments)()[0] + np.float32(0.01),)

    def failing(*arguments: Any) -> engines.Call:
        raise OSError("out of order")

    monkeypatch.setitem(engines.FORWARD, "torch_cl", wrong)
    monkeypatch.setitem(engines.FORWARD, "mindspore", failing)
    names = "tconv3d,torch,torch_cl,mindspore"
    assert main(["bench", "--layer", LAYERS[1], "--input", "1,2,3,4,5", "--rounds", "1", "--engines", names]) == 1
    out = capsys.readouterr().out
    assert [line.split("│")[1].strip() for line in out.splitlines() if "WRONG" in line] == ["PyTorch, channels_last_3d"]
    assert "MindSpore refuses it: OSError: out of order" in out


def test_layers_of_both_contracts_as_table_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engines.find_spec
    monkeypatch.setattr(engines, "find_spec", lambda name: None if name == "openvino" else real(name))
    kept, picture = tmp_path / "bench.json", tmp_path / "roof.png"
    command = ["bench", "--input", "1,2,3,4,5", "--rounds", "1", "--threads", "1", "--json", str(kept)]
    assert main([*command, "--layer", LAYERS[1], "--layer", LAYERS[2], "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "OpenVINO is not raced: openvino is not installed" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    content = json.loads(kept.read_text())
    assert (content["threads"], content["not_installed"]) == (1, {"openvino": ["openvino"]})
    assert [layer["output"] for layer in content["layers"]] == [[1, 3, 8, 9, 10], [1, 3, 6, 8, 10]]
    for layer in content["layers"]:
        assert set(layer["seconds"]) >= {"tconv3d", "torch"}
        assert max(layer["errors"].values()) < 1e-5


MODEL = """
import torch

class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.ModuleList(torch.nn.ConvTranspose3d(4, 4, 2, stride=2) for _ in range(2))
        self.last = torch.nn.ConvTranspose3d(4, 1, 3, stride=2, padding=1, bias=False)

    def forward(self, x):
        y = self.up[1](self.up[0](x)[..., :2, :2, :2])
        return self.last(y, output_size=(8, 8, 7))

ready = Decoder()
def nothing():
    return torch.nn.ReLU()
"""


@pytest.mark.parametrize("name", ["Decoder", "ready"])
def test_the_layers_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Layers as they are called: the same ones with the same input once, with the size that the call asks for."""
    path, kept = tmp_path / "decoder.py", tmp_path / "bench.json"
    path.write_text(MODEL)
    command = ["bench", "--model", f"{path}:{name}", "--input", "1,4,2,2,2", "--rounds", "1", "--engines", "tconv3d"]
    assert main([*command, "--json", str(kept)]) == 0
    layers = json.loads(kept.read_text())["layers"]
    assert [layer["name"] for layer in layers] == ["up.0", "last"]
    assert [layer["output"] for layer in layers] == [[1, 4, 4, 4, 4], [1, 1, 8, 8, 7]]
    assert "all layers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name either layers"),
        (["--layer", LAYERS[1], "--model", "a.py:b"], "name either layers"),
        (["--layer", LAYERS[1], "--rounds", "0"], "--rounds is 0"),
        (["--layer", LAYERS[1], "--engines", "caffe"], "'caffe' is no engine known here"),
        (["--layer", LAYERS[1], "--threads", "0"], "outside 1 to 256"),
        (["--layer", "nn.ConvTranspose3d(5, 3, 3)"], "refuses this at the call"),
        (["--layer", "nn.ConvTranspose3d(2, 3, 3, dtype=torch.complex64)"], "complex64 is not raced"),
        (["--model", "missing.py:f"], "missing.py:f failed with FileNotFoundError"),
        (["--model", "tests_of_nothing:f"], "failed with ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_raced_ends_in_one_line_and_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--input", "1,2,3,4,5", *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_model_without_such_layers_or_with_another_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "decoder.py"
    path.write_text(MODEL)
    assert main(["bench", "--model", f"{path}:nothing", "--input", "1,4,2,2,2"]) == 2
    assert "there is nothing to race" in capsys.readouterr().err
    assert main(["bench", "--model", f"{path}:Decoder", "--input", "1,3,2,2,2"]) == 2
    assert "failed on (1, 3, 2, 2, 2) with RuntimeError" in capsys.readouterr().err


def test_the_command_imports_no_framework_before_it_is_asked() -> None:
    code = "import sys; import tconv3d.cli; sys.exit(bool({'torch', 'mindspore', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    assert bench.DTYPES == ("float16", "bfloat16", "float32", "float64")
