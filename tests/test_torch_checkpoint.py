# SPDX-License-Identifier: Apache-2.0
"""`tconv3d convert` on PyTorch's files: torch reads what is written, and hostile archives are refused unread."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tconv3d.cli import main
from tconv3d.migrate import RequestError
from tconv3d.migrate.checkpoint import files
from tconv3d.migrate.checkpoint.convert import convert
from tconv3d.migrate.checkpoint.tensors import DamagedFile

STATE = OrderedDict(
    a=torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    half=torch.arange(6).half().reshape(2, 3),
    brain=torch.arange(5).bfloat16(),
    transposed=torch.arange(6.0).reshape(2, 3).T,
    part=torch.arange(100.0)[10:20:2],
    conjugate=torch.tensor([1 + 2j]).conj(),
    scalar=torch.tensor(3),
    flag=torch.tensor([True, False]),
    empty=torch.zeros(0, 3),
    double=torch.zeros(2, dtype=torch.float64),
)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_reads_what_was_converted(mmap: bool, legacy: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    convert(tmp_path / "x.pth", tmp_path / "y.pt")
    found = torch.load(tmp_path / "y.pt", weights_only=True, mmap=mmap)
    assert list(found) == list(STATE)
    for name, value in STATE.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value.resolve_conj()), name
        assert found[name].data_ptr() % 8 == 0 or not mmap


def test_all_three_formats_and_back(tmp_path: Path) -> None:
    state = {name: value for name, value in STATE.items() if not value.is_complex()}
    torch.save(state, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.ckpt")
    convert(tmp_path / "b.ckpt", tmp_path / "c.safetensors", to="torch")
    convert(tmp_path / "c.safetensors", tmp_path / "d.pt")
    found = torch.load(tmp_path / "d.pt", weights_only=True)
    assert found.keys() == state.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in state.items())


def test_complex_has_no_word_in_ckpt(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.pth")
    with pytest.raises(RequestError, match=r"'conjugate' is complex64, which a .ckpt cannot hold"):
        convert(tmp_path / "a.pth", tmp_path / "b.ckpt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth"]


def test_a_nested_state_dict_is_found_and_the_rest_reported(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}, "optimizer": {"state": {}}}, tmp_path / "x.pth")
    done = convert(tmp_path / "x.pth", tmp_path / "y.ckpt")
    assert done.notes[:3] == [
        "state_dict: taken as the state dict", "epoch: left out, beside the state dict",
        "optimizer: left out, beside the state dict",
    ]  # fmt: skip
    torch.save({"a": torch.ones(2), "version": 3}, tmp_path / "x.pth")
    assert convert(tmp_path / "x.pth", tmp_path / "y.ckpt").notes[0] == "version: no tensor; left out"
    torch.save({"one": {"a": torch.ones(2)}, "two": {"b": torch.ones(2)}}, tmp_path / "x.pth")
    with pytest.raises(RequestError, match="several dicts of tensors"):
        convert(tmp_path / "x.pth", tmp_path / "z.ckpt")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.act, self.flat = nn.Embedding(7, 3), nn.PReLU(3), nn.Linear(3, 5, bias=False)
        self.one, self.batch = nn.ConvTranspose1d(3, 2, 4), nn.BatchNorm1d(2)
        self.up = nn.ConvTranspose3d(2, 2, 3)


def network() -> Network:
    return Network()


def test_a_model_decides_what_keys_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Network().state_dict()
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(RequestError, match=r"table .*: Embedding or Linear"):
        convert(tmp_path / "x.pth", tmp_path / "x.ckpt")
    (tmp_path / "own_network.py").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    model = "own_network:network"
    convert(tmp_path / "x.pth", tmp_path / "x.ckpt", model=model)
    found = {tensor.name: tensor.shape for tensor in files.read(tmp_path / "x.ckpt").tensors}
    assert {"table.embedding_table", "act.w", "flat.weight", "batch.gamma", "batch.moving_mean"} <= set(found)
    assert found["one.weight"] == (3, 2, 1, 4)
    convert(tmp_path / "x.ckpt", tmp_path / "y.pth", model=model)
    back = torch.load(tmp_path / "y.pth", weights_only=True)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    for wrong in ("own_network", "own_network:missing", "no_such_module:f", "own_network:pickle.dumps"):
        with pytest.raises(RequestError):
            convert(tmp_path / "x.pth", tmp_path / "z.ckpt", model=wrong)


# Hostile files.


class Attack:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trap}",)


def archive(path: Path, entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def damaged(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(path), str(tmp_path / "out.ckpt")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and sorted(tmp_path.iterdir()) == before and err.count("\n") == 1
    return err


@pytest.mark.parametrize("form", ["module", "archive", "legacy", "bare pickle"])
def test_code_is_never_run(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "x.pth"
    if form == "module":
        torch.save(nn.Linear(2, 2), path)
    elif form == "bare pickle":
        path.write_bytes(pickle.dumps({"a": Attack(trap)}))
    else:
        torch.save({"a": torch.ones(2), "b": Attack(trap)}, path, _use_new_zipfile_serialization=form == "archive")
    assert "cannot be read as weights alone" in damaged(path, tmp_path, capsys)
    assert not trap.exists()


def test_archives_that_torch_does_not_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = archive(tmp_path / "bomb.pth", {"a/data.pkl": b"x", "a/data/0": bytes(50 * 2**20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**20
    assert "packed entries" in damaged(bomb, tmp_path, capsys)
    for name in ("../../evil", "/etc/evil", "a/../../evil", "..\\evil", "c:/evil"):
        assert "leads out of the archive" in damaged(archive(tmp_path / "path.pth", {name: b"x"}), tmp_path, capsys)
    assert "cannot be read" in damaged(archive(tmp_path / "none.pth", {"a/b": b"x"}), tmp_path, capsys)


def test_damaged_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(dict(STATE), tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    for length in (4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "x.pth").write_bytes(data[:length])
        assert str(tmp_path / "x.pth") in damaged(tmp_path / "x.pth", tmp_path, capsys)


def test_a_tensor_larger_than_its_storage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four bytes that claim to be 10 GB by a stride of zero, or by a storage of which the file has none."""
    torch.save({"a": torch.ones(1).expand(10 * 2**28)}, tmp_path / "x.pth")
    assert "claims 10,737,418,240 bytes and has 4" in damaged(tmp_path / "x.pth", tmp_path, capsys)
    small, large = io.BytesIO(), b"\x8a\x05" + (10 * 2**30).to_bytes(5, "little")
    torch.save({"a": torch.ones(77)}, small)
    data = small.getvalue().replace(b"K\x4d", large, 1)
    with zipfile.ZipFile(small) as source:
        contents = {name: source.read(name) for name in source.namelist()}
    pickled = next(name for name in contents if name.endswith("data.pkl"))
    contents[pickled] = contents[pickled].replace(b"K\x4d", large)
    assert data and "cannot be read" in damaged(archive(tmp_path / "y.pth", contents), tmp_path, capsys)


def test_a_dict_that_holds_itself(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": torch.ones(2)}
    state["self"] = state
    torch.save(state, tmp_path / "x.pth")
    assert convert(tmp_path / "x.pth", tmp_path / "y.ckpt").notes[0] == "self: no tensor; left out"


def test_what_is_no_state_dict(tmp_path: Path) -> None:
    for value in (
        [torch.ones(2)],
        {},
        {"a": 1},
        torch.ones(2),
        {"a": torch.ones(2).to_sparse()},
        {1: torch.ones(1), "1": torch.ones(1)},
    ):
        torch.save(value, tmp_path / "x.pth")
        with pytest.raises(RequestError) as caught:
            convert(tmp_path / "x.pth", tmp_path / "y.ckpt")
        assert not isinstance(caught.value, DamagedFile), value
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pth"]
