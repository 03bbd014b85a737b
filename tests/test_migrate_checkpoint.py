# SPDX-License-Identifier: Apache-2.0
"""`tconv3d convert` without a framework: .ckpt and .safetensors, renames, damaged and hostile files, fuzzing."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tconv3d.cli import main
from tconv3d.migrate import RequestError
from tconv3d.migrate.checkpoint import ckpt, files, tensors
from tconv3d.migrate.checkpoint.convert import convert
from tconv3d.migrate.checkpoint.tensors import DamagedFile, Tensor

Arrays = dict[str, Any]


def entries(arrays: Arrays) -> list[Tensor]:
    """Tensors of NumPy arrays; a (dtype, array) pair gives bytes another name, such as bfloat16."""
    found = []
    for name, value in arrays.items():
        dtype, array = value if isinstance(value, tuple) else (value.dtype.name, value)
        data = array.tobytes()
        pieces = [data[i : i + 1000] for i in range(0, len(data), 1000)]
        found.append(Tensor(name, dtype, array.shape, lambda pieces=pieces: iter(pieces)))
    return found


def content(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = files.read(path).tensors
    return {t.name: (t.dtype, t.shape, b"".join(t.chunks())) for t in found}


def expected(arrays: Arrays) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {t.name: (t.dtype, t.shape, b"".join(t.chunks())) for t in entries(arrays)}


def save(path: Path, arrays: Arrays, framework: str = "torch") -> Path:
    files.write(path, entries(arrays), framework)
    return path


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


EVERYTHING: Arrays = {
    "half": weights(3, 5).astype(np.float16),
    "single": weights(300, 7),
    "double": weights(2, 2).astype(np.float64),
    "brain": ("bfloat16", np.arange(6, dtype=np.uint16).reshape(2, 3)),
    "whole": np.arange(-3, 3),
    "flag": np.array([True, False]),
    "scalar": np.array(3.5, np.float32),
    "one": np.array([3.5], np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "ünïcode.key": np.arange(3, dtype=np.uint8),
}


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_type_and_shape_survives(suffix: str, tmp_path: Path) -> None:
    assert content(save(tmp_path / f"x{suffix}", EVERYTHING)) == expected(EVERYTHING)


def test_safetensors_are_what_the_library_reads(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    arrays = {"a.weight": weights(2, 3), "b": np.arange(5, dtype=np.int8), "s": np.array(1.0)}
    found = load_file(save(tmp_path / "x.safetensors", arrays, "mindspore"))
    assert all(
        np.array_equal(found[name], value) and found[name].dtype == value.dtype for name, value in arrays.items()
    )
    with safe_open(tmp_path / "x.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "ms"}
    save_file(arrays, tmp_path / "y.safetensors", metadata={"format": "pt"})
    assert content(tmp_path / "y.safetensors") == expected(arrays)
    assert files.read(tmp_path / "y.safetensors").framework == "torch"


def test_a_tensor_split_over_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckpt, "_SLICE", 1234)
    path = save(tmp_path / "x.ckpt", EVERYTHING)
    assert path.read_bytes().count(b"single") == -(-300 * 7 * 4 // 1234)
    assert content(path) == expected(EVERYTHING)


def test_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ckpt", EVERYTHING)
    data = path.read_bytes()
    path.write_bytes(data + b"crc_num" + zlib.crc32(data).to_bytes(10, "big"))
    assert content(path) == expected(EVERYTHING)
    path.write_bytes(data + b"crc_num" + (zlib.crc32(data) ^ 1).to_bytes(10, "big"))
    with pytest.raises(DamagedFile, match="the checksum is"):
        files.read(path)


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    """64 MiB go through, and memory never holds much more than one chunk of 8 MiB."""
    path = tmp_path / "x.safetensors"
    chunk = bytes(2**20)
    files.write(path, [Tensor("w", "float32", (16, 2**20), lambda: (chunk for _ in range(64)))], "torch")
    tracemalloc.start()
    convert(path, tmp_path / "x.ckpt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "x.ckpt").stat().st_size > 64 * 2**20 > 3 * peak


# Renames.

TORCH_NET: Arrays = {
    "enc.conv.weight": weights(4, 1, 3, 3, 3), "enc.conv.bias": weights(4),
    "enc.bn.weight": weights(4), "enc.bn.bias": weights(4), "enc.bn.running_mean": weights(4),
    "enc.bn.running_var": weights(4), "enc.bn.num_batches_tracked": np.array(7),
    "norm.weight": weights(4), "norm.bias": weights(4),
    "up.weight": weights(4, 2, 2, 2, 2), "up.bias": weights(2),
    "head.weight": weights(5, 4), "head.bias": weights(5),
    "position": weights(1, 4, 2),
}  # fmt: skip
MINDSPORE_NAMES = [
    "enc.conv.weight", "enc.conv.bias", "enc.bn.bn2d.gamma", "enc.bn.bn2d.beta", "enc.bn.bn2d.moving_mean",
    "enc.bn.bn2d.moving_variance", "norm.gamma", "norm.beta", "up.weight", "up.bias", "head.weight", "head.bias",
    "position",
]  # fmt: skip


def test_names_of_a_network(tmp_path: Path) -> None:
    done = convert(save(tmp_path / "x.safetensors", TORCH_NET), tmp_path / "x.ckpt")
    assert sorted(content(tmp_path / "x.ckpt")) == sorted(MINDSPORE_NAMES)
    assert (done.source, done.target, done.renamed) == ("torch", "mindspore", 6)
    assert "enc.bn.num_batches_tracked: left out, MindSpore counts no batches" in done.notes
    assert "position (1, 4, 2): unknown, copied under its own name" in done.notes
    done = convert(tmp_path / "x.ckpt", tmp_path / "y.safetensors", to="torch")
    back = content(tmp_path / "y.safetensors")
    assert back == expected(TORCH_NET | {"enc.bn.num_batches_tracked": np.array(0)})
    assert "enc.bn.num_batches_tracked: added as 0, PyTorch counts batches" in done.notes


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_rank_of_the_convolutions_decides_the_batch_norm(rank: int, tmp_path: Path) -> None:
    net = {"c.weight": weights(4, 2, *(3,) * rank), "n.weight": weights(4), "n.running_mean": weights(4)}
    convert(save(tmp_path / "x.safetensors", net), tmp_path / "x.ckpt")
    found = content(tmp_path / "x.ckpt")
    assert ("n.bn2d.gamma" in found, "n.gamma" in found) == (rank == 3, rank != 3)
    assert found["c.weight"][1] == ((4, 2, 1, 3) if rank == 1 else net["c.weight"].shape)
    if rank != 1:  # a kernel over one axis needs a word of the user
        convert(tmp_path / "x.ckpt", tmp_path / "y.safetensors", to="torch")
        assert set(net) <= set(content(tmp_path / "y.safetensors"))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"a.weight": weights(7, 3)}, "a (weight (7, 3)): Embedding or Linear without bias"),
        ({"a.weight": weights(7)}, "a (weight (7,)): PReLU or LayerNorm without bias or InstanceNorm3d"),
        ({"a.running_mean": weights(2), "b.weight": weights(2, 2, 3), "c.weight": weights(2, 2, 3, 3, 3)},
         "BatchNorm3d or BatchNorm2d or BatchNorm1d"),
    ],
)  # fmt: skip
def test_keys_that_cannot_tell_name_the_candidates(net: Arrays, message: str, tmp_path: Path) -> None:
    source = save(tmp_path / "x.safetensors", net)
    with pytest.raises(RequestError, match="say it with --model or --rules") as caught:
        convert(source, tmp_path / "x.ckpt")
    assert message in str(caught.value)
    assert not (tmp_path / "x.ckpt").exists()


def test_rules_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = {
        "module.table.weight": weights(7, 3), "module.act.weight": weights(3), "module.own.scale": weights(2),
        "module.flat.weight": weights(5, 3), "optimizer.step": weights(1),
    }  # fmt: skip
    rules = tmp_path / "rules.json"
    rules.write_text(
        json.dumps(
            {
                "layers": {"Own": {"scale": "gamma"}},
                "modules": {"table": "Embedding", "a.t": "PReLU", "own": "Own", "flat": "Dense"},
                "keys": {r"module\.(.*)": r"\1"},
                "drop": [r"optimizer\..*"],
            }
        )
    )
    source = save(tmp_path / "x.safetensors", net)
    assert main(["convert", str(source), str(tmp_path / "x.ckpt"), "--rules", str(rules)]) == 0
    assert sorted(content(tmp_path / "x.ckpt")) == ["act.w", "flat.weight", "own.gamma", "table.embedding_table"]
    assert "optimizer.step: left out, as the rules say" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "[]", "{", '{"modules": {"a": "Nothing"}}', '{"other": 1}', '{"drop": ["("]}'])
def test_bad_rule_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(text)
    source = save(tmp_path / "x.safetensors", {"a": weights(1)})
    with pytest.raises(RequestError, match="is no rule file"):
        convert(source, tmp_path / "x.ckpt", rules_file=tmp_path / "rules.json")


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"keys": {"[ab]": "c"}}')
    source = save(tmp_path / "x.safetensors", {"a": weights(1), "b": weights(1)})
    with pytest.raises(RequestError, match="two tensors would be called 'c'"):
        convert(source, tmp_path / "x.ckpt", rules_file=tmp_path / "r.json")


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    source = save(tmp_path / "x.safetensors", TORCH_NET)
    with pytest.raises(RequestError, match="say --to torch or mindspore"):
        convert(source, tmp_path / "y.safetensors")
    with pytest.raises(RequestError, match="has the names of mindspore, not of torch"):
        convert(source, tmp_path / "y.ckpt", to="torch")
    with pytest.raises(RequestError, match="has no suffix known here"):
        convert(source, tmp_path / "y.h5")
    with pytest.raises(RequestError, match="is not a file"):
        convert(tmp_path / "missing.ckpt", tmp_path / "y.safetensors", to="torch")
    with pytest.raises(RequestError, match="cannot write to"):
        convert(source, tmp_path / "no" / "y.ckpt")


# Hostile and damaged files: a clear error, nothing written.


def header(text: str | bytes, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return (len(data) if length is None else length).to_bytes(8, "little") + data


VALUE = b"\x0a\x0f\x0a\x01a\x12\x0a\x08\x01\x12\x02??\x1a\x02xy"
HOSTILE: dict[str, tuple[str, bytes]] = {
    "empty": ("x.ckpt", b""),
    "text": ("x.ckpt", b"hello, this is no checkpoint"),
    "a picture": ("x.ckpt", b"\x89PNG\r\n\x1a\n" + bytes(50)),
    "10 GB in a record": ("x.ckpt", b"\x0a\xff\xff\xff\xff\x2f" + bytes(100)),
    "2^63 in a record": ("x.ckpt", b"\x0a" + b"\xff" * 9 + b"\x01"),
    "10 GB in a tensor": ("x.ckpt", b"\x0a\x20\x0a\x01a\x12\x1b\x12\x07Float32\x1a\xff\xff\xff\xff\x2f" + bytes(30)),
    "an endless number": ("x.ckpt", b"\x0a" + b"\xff" * 30),
    "a billion elements": ("x.ckpt", b"\x0a\x18\x0a\x01a\x12\x13\x08\x80\x94\xeb\xdc\x03\x12\x07Float32\x1a\x02xy"),
    "a negative axis": ("x.ckpt", b"\x0a\x1d\x0a\x01a\x12\x18\x08" + b"\xff" * 9 + b"\x01\x12\x07Float32\x1a\x02xy"),
    "an unknown type": ("x.ckpt", VALUE),
    "another field": ("x.ckpt", b"\x0a\x02\x28\x01"),
    "a map parameter": ("x.ckpt", b"\x0a\x05\x0a\x01a\x1a\x00"),
    "10 GB of header": ("x.safetensors", header("{}", 10 * 2**30) + bytes(100)),
    "2^63 of header": ("x.safetensors", header("{}", 2**63) + bytes(100)),
    "no JSON": ("x.safetensors", header("{'a': 1}")),
    "a list": ("x.safetensors", header("[1, 2]")),
    "deep JSON": ("x.safetensors", header("[" * 100_000)),
    "a name twice": ("x.safetensors", header('{"a":{},"a":{}}')),
    "10 GB in a safetensor": (
        "x.safetensors", header('{"a":{"dtype":"F32","shape":[2684354560],"data_offsets":[0,10737418240]}}') + bytes(8),
    ),
    "an overlap": (
        "x.safetensors",
        header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],'
               '"data_offsets":[4,12]}}') + bytes(12),
    ),
    "backwards": ("x.safetensors", header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}') + bytes(4)),
    "a shape that does not fit": (
        "x.safetensors", header('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,4]}}') + bytes(4),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, data = HOSTILE[case]
    (tmp_path / name).write_bytes(data)
    for target in ("out.ckpt", "out.safetensors"):
        assert main(["convert", str(tmp_path / name), str(tmp_path / target), "--to", "mindspore"]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"tconv3d convert: error: {tmp_path / name}") and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_truncation_is_noticed(suffix: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"x{suffix}", {"a.weight": weights(2, 3), "b": np.arange(4)})
    data = path.read_bytes()
    whole = {len(data)}
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            found = content(path)
        except DamagedFile:
            continue
        whole.add(length)
        assert found.keys() <= {"a.weight", "b"}  # a .ckpt that ends between two records is one
    assert len(whole) <= (2 if suffix == ".ckpt" else 1)


def test_names_never_become_paths(tmp_path: Path) -> None:
    """A tensor may be called what it likes: names stay inside the file."""
    inside = tmp_path / "inside"
    inside.mkdir()
    source = save(inside / "x.safetensors", {"../../evil": weights(1), "/abs/evil": weights(2)})
    convert(source, inside / "x.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert sorted(content(inside / "x.ckpt")) == ["../../evil", "/abs/evil"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    old = save(tmp_path / "x.ckpt", {"old": weights(1)})
    before = old.read_bytes()
    source = save(tmp_path / "x.safetensors", {"c": ("complex64", weights(2, 2))} | {"a.weight": weights(3)})
    with pytest.raises(RequestError):
        convert(source, old)
    assert old.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["x.ckpt", "x.safetensors"]


# Fuzzing: whatever the bytes are, a reader answers with tensors that fit into the file, or with RequestError.


def ask(path: Path, data: bytes, kind: Callable[[Path], Any]) -> None:
    path.write_bytes(data)
    try:
        kind(path)
        for tensor in files.read(path).tensors:
            assert sum(map(len, tensor.chunks())) == tensor.nbytes <= len(data)
    except RequestError:
        pass


MUTATION = st.tuples(st.integers(0, 400), st.binary(min_size=0, max_size=12), st.integers(0, 12))
FUZZ = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.binary(max_size=300), mutations=st.lists(MUTATION, max_size=4))
@example(data=VALUE, mutations=[])
def test_fuzz_ckpt(tmp_path: Path, data: bytes, mutations: list[tuple[int, bytes, int]]) -> None:
    good = tmp_path / "good.ckpt"
    if not good.exists():
        save(good, EVERYTHING)
    ask(tmp_path / "x.ckpt", data, ckpt.read)
    ask(tmp_path / "x.ckpt", mutated(good.read_bytes()[:600] + good.read_bytes()[-400:], mutations), ckpt.read)
    ask(tmp_path / "x.ckpt", mutated(good.read_bytes(), mutations), ckpt.read)


@FUZZ
@given(data=st.binary(max_size=300), mutations=st.lists(MUTATION, max_size=4))
def test_fuzz_safetensors(tmp_path: Path, data: bytes, mutations: list[tuple[int, bytes, int]]) -> None:
    good = tmp_path / "good.safetensors"
    if not good.exists():
        save(good, EVERYTHING)
    for each in (data, header(data), mutated(good.read_bytes(), mutations)):
        ask(tmp_path / "x.safetensors", each, files.read)


@FUZZ
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["F32", "BF16", [0, 4]]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    )
)
def test_fuzz_safetensors_headers(tmp_path: Path, value: object) -> None:
    for each in (value, {"a": value}, {"a": {"dtype": "F32", "shape": value, "data_offsets": [0, 4]}}):
        ask(tmp_path / "x.safetensors", header(json.dumps(each)) + bytes(4), files.read)


def mutated(data: bytes, mutations: list[tuple[int, bytes, int]]) -> bytes:
    for position, insert, delete in mutations:
        data = data[:position] + insert + data[position + delete :]
    return data


def test_limits_are_what_the_readers_use() -> None:
    with pytest.raises(DamagedFile, match="cannot have 3 bytes"):
        tensors.check(Path("x"), "a", "float32", (1,), 3)
