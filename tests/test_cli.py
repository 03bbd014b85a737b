# SPDX-License-Identifier: Apache-2.0
"""The `tconv3d` command as a shell sees it: exit codes, streams, no traceback."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tconv3d.cli import main
from tconv3d.commands import _brain, info

LAYER = "nn.ConvTranspose3d(3, 32, 5, stride=3)"


def test_explain_prints_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", LAYER, "--input", "1,3,4,9,16"]) == 0
    out, err = capsys.readouterr()
    assert "(1, 32, 14, 29, 50)" in out
    assert err == ""


def test_explain_takes_an_output_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", LAYER, "--input", "3,4,9,16", "--output-size", "15,30,51"]) == 0
    assert "(32, 15, 30, 51)" in capsys.readouterr().out


@pytest.mark.parametrize("shape", ["1,3,x", "", "1,3,4,9,-16", "1 3 4 9 16", "16.0"])
def test_a_bad_shape_ends_in_one_line_and_code_2(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", LAYER, f"--input={shape}"]) == 2
    assert capsys.readouterr().err == f"tconv3d explain: error: {shape!r} is not a list of sizes such as 1,3,4,9,16\n"


@pytest.mark.parametrize("layer", ["nn.ConvTranspose3d(3, 32, k)", "hello", "nn.ConvTranspose3d(3, 32, 5, groups=2)"])
def test_a_bad_layer_ends_in_one_line_and_code_2(layer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", layer, "--input", "1,3,4,9,16"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tconv3d explain: error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["explain"],
        ["explain", LAYER],
        ["info", "--unknown"],
    ],
)
def test_bad_arguments_end_in_usage_and_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: tconv3d" in capsys.readouterr().err


def test_demo_passes_on_its_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[object] = []
    monkeypatch.setattr(_brain, "run", lambda path, output_dir: bool(seen.extend([path, output_dir])) or True)
    assert main(["demo", "--volume", "scan.nii", "--output-dir", str(tmp_path)]) == 0
    assert seen == [Path("scan.nii"), tmp_path]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [(MemoryError, 2, "tconv3d info: error: out of memory\n"), (KeyboardInterrupt, 130, "")],
)
def test_a_command_cut_short_shows_no_traceback(
    error: type[BaseException],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run() -> int:
        raise error

    monkeypatch.setattr(info, "run", run)
    assert main(["info"]) == code
    assert capsys.readouterr().err == message


def test_info_names_what_is_active_and_imports_no_framework() -> None:
    code = (
        "import sys; from tconv3d.commands import info; facts = info.facts();"
        "print(facts); sys.exit(bool({'torch', 'mindspore', 'scipy', 'nibabel', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(active)" in done.stdout and platform.python_version() in done.stdout


def test_info_prints_one_line_a_fact(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TCONV3D_NUM_THREADS", "1")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(info.facts())
    assert "TCONV3D_NUM_THREADS=1" in out


def test_module_runs_as_a_command_and_help_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tconv3d", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "explain", "info"))


def test_a_reader_that_stops_early_sees_no_traceback() -> None:
    command = [sys.executable, "-m", "tconv3d", "explain", LAYER, "--input", "1,3,4,9,16"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
