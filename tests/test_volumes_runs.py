# SPDX-License-Identifier: Apache-2.0
"""Runs that are cut short, resumed, starved of memory or disk: the right output, or none that passes for one."""

from __future__ import annotations

import errno
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

from tconv3d.cli import main
from tconv3d.volumes import plan
from tconv3d.volumes.formats import zarr_store
from tconv3d.volumes.journal import Journal

Run = Callable[..., subprocess.CompletedProcess[str]]
FORMATS = ["y.npy", "y.nii", "y.zarr", "y.nii.gz", "y.tif"]

# The command with small blocks. `limit` bytes is what a file may grow to.
COMMAND = """
import resource, signal, sys
limit, block, *arguments = sys.argv[1:]
if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
from tconv3d.cli import main
from tconv3d.volumes import plan
from tconv3d.volumes.formats import zarr_store
plan.LARGEST_BLOCK = zarr_store._RUN_CHUNK = int(block)
zarr_store._EDGE, zarr_store._SMALLEST_CHUNK = 16, 0
sys.exit(main(arguments))
"""


def command(*arguments: object, limit: int = 0, block: int = 20_000) -> list[str]:
    return [sys.executable, "-c", COMMAND, str(limit), str(block), *map(str, arguments)]


def run(*arguments: object, **how: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, **how), capture_output=True, text=True, timeout=120)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command above, for runs in this process."""
    monkeypatch.setattr(plan, "LARGEST_BLOCK", 20_000)
    monkeypatch.setattr(zarr_store, "_RUN_CHUNK", 20_000)
    monkeypatch.setattr(zarr_store, "_EDGE", 16)
    monkeypatch.setattr(zarr_store, "_SMALLEST_CHUNK", 0)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which saves its start."""

    def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run_here


def journal_of(target: Path) -> Path:
    partial = target.name.endswith((".gz", ".tif"))
    return target.with_name(target.name + (".partial.zarr" if partial else "") + ".tconv3d-journal")


def done_in(target: Path) -> int:
    """Blocks that the journal calls done; 0 without a journal."""
    try:
        return journal_of(target).read_bytes().partition(b"\n")[2].count(1)
    except FileNotFoundError:
        return 0


def content(path: Path) -> Any:
    """What other libraries read; an error where they find no whole output."""
    if path.suffix == ".zarr":
        array = zarr.open_array(str(path), mode="r")
        assert array.attrs["tconv3d"].startswith("complete")
        return array[:]
    if ".nii" in path.name:
        return np.asanyarray(nibabel.load(path).dataobj)
    return tifffile.imread(path) if path.suffix == ".tif" else np.load(path)


def computed(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    assert done.returncode == 0, done.stderr
    match = re.search(r"(\d+) of (\d+) blocks computed", done.stdout)
    assert match is not None
    return int(match[1]), int(match[2])


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((24, 40, 40)).astype("f4"))
    return path


@pytest.fixture(scope="module")
def whole(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The outputs of runs that nothing disturbed, as one block."""
    folder = tmp_path_factory.mktemp("whole")
    for name in FORMATS:
        assert main(["upsample", str(volume), str(folder / name), "--scale", "2"]) == 0
    return {name: content(folder / name) for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_a_killed_run_is_resumed_and_only_what_is_missing_is_computed(
    name: str, volume: Path, whole: dict[str, Any], tmp_path: Path, kills: int, here: Run
) -> None:
    rng = random.Random(name)
    for _ in range(kills):
        target = tmp_path / name
        call = ("upsample", volume, target, "--scale", 2)
        for _attempt in range(20):  # a run that ended before its kill proves nothing
            process = subprocess.Popen(command(*call), stdout=subprocess.DEVNULL)
            until = rng.randint(0, 50)
            while process.poll() is None and done_in(target) < until:
                time.sleep(0.0005)
            time.sleep(rng.random() * 0.003)
            process.kill()
            if process.wait() == -signal.SIGKILL and journal_of(target).exists():
                break
            clear(tmp_path)
        with pytest.raises((OSError, ValueError, AssertionError, nibabel.filebasedimages.ImageFileError)):
            content(target)  # half an output is no output
        before = done_in(target)
        refused = here(*call)
        assert refused.returncode == 2 and "--resume goes on with it" in refused.stderr
        now, blocks = computed(here(*call, "--resume"))
        assert now == blocks - before and blocks > 60
        np.testing.assert_array_equal(content(target), whole[name])
        again = here(*call, "--resume")
        assert "complete already" in again.stdout and again.returncode == 0
        left = {target.name, f"{target.name}.tconv3d"} if name == "y.npy" else {target.name}
        assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")} == left
        clear(tmp_path)


def clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


# Ctrl-C right after the fifth block. The blocks in flight are noted a second later: until then even a busy machine has
# told the main thread, so that no run is over before its interrupt.
INTERRUPTED = """
import os, signal, threading, time
from tconv3d.volumes.journal import Journal
mark, marked, lock = Journal.mark, [], threading.Lock()
def mark_and_interrupt(journal, index):
    with lock:
        mark(journal, index)
        marked.append(index)
        if len(marked) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
Journal.mark = mark_and_interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with SIGINT ignored
"""


@pytest.mark.parametrize("name", ["y.npy", "y.nii.gz"])
def test_ctrl_c_leaves_an_output_that_can_be_resumed(
    name: str, volume: Path, whole: dict[str, Any], tmp_path: Path, here: Run
) -> None:
    target = tmp_path / name
    call = ("upsample", volume, target, "--scale", 2)
    python, option, program, *arguments = command(*call)
    interrupted = [python, option, INTERRUPTED + program, *arguments]
    ended = subprocess.run(interrupted, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 130 and "Traceback" not in ended.stderr
    before = done_in(target)
    assert before >= 5
    now, blocks = computed(here(*call, "--resume"))
    assert now == blocks - before
    np.testing.assert_array_equal(content(target), whole[name])


def test_resume_starts_fresh_where_nothing_is(volume: Path, whole: dict[str, Any], tmp_path: Path, here: Run) -> None:
    now, blocks = computed(here("upsample", volume, tmp_path / "y.npy", "--scale", 2, "--resume"))
    assert now == blocks
    np.testing.assert_array_equal(content(tmp_path / "y.npy"), whole["y.npy"])


@pytest.fixture
def interrupted(volume: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An input and its unfinished output."""
    source, target = tmp_path / "x.npy", tmp_path / "y.npy"
    shutil.copy(volume, source)
    process = subprocess.Popen(command("upsample", source, target, "--scale", 2), stdout=subprocess.DEVNULL)
    while done_in(target) < 3:
        time.sleep(0.001)
    process.kill()
    process.wait()
    return source, target


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_another_configuration_is_refused(interrupted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, target = interrupted
    before = done_in(target)
    call = ["upsample", source, target, "--resume"]
    assert "kernel was 'linear' and is now 'cubic'" in refusal(capsys, *call, "--scale", 2, "--kernel", "cubic")
    assert "output was" in refusal(capsys, *call, "--scale", 3)
    assert "output was" in refusal(capsys, *call, "--scale", 2, "--dtype", "float64")
    os.utime(source, (1, 1))
    assert "input was" in refusal(capsys, *call, "--scale", 2)
    assert done_in(target) == before


def test_what_is_there_is_not_overwritten_unless_asked(
    interrupted: tuple[Path, Path], whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = interrupted
    assert main(["upsample", str(source), str(target), "--scale", "2", "--overwrite"]) == 0
    np.testing.assert_array_equal(content(target), whole["y.npy"])
    assert "exists" in refusal(capsys, "upsample", source, target, "--scale", 2)
    assert "another configuration" in refusal(capsys, "upsample", source, target, "--scale", 3, "--resume")
    target.write_bytes(b"mine")
    assert "not begun by this command" in refusal(capsys, "upsample", source, target, "--scale", 2, "--resume")
    assert target.read_bytes() == b"mine"
    folder = target.with_suffix(".zarr")
    folder.mkdir()
    assert "no zarr store" in refusal(capsys, "upsample", source, folder, "--scale", 2, "--overwrite")
    for place in (source, source.parent / "." / "x.npy", target.parent / "none" / "y.npy"):
        refusal(capsys, "upsample", source, place, "--scale", 2, "--overwrite")


def test_an_unfinished_output_that_was_removed_is_begun_again(
    interrupted: tuple[Path, Path], whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = interrupted
    target.write_bytes(b"mine")
    assert "not what the earlier run left" in refusal(capsys, "upsample", source, target, "--scale", 2, "--resume")
    assert target.read_bytes() == b"mine"
    target.unlink()
    capsys.readouterr()
    assert main(["upsample", str(source), str(target), "--scale", "2", "--resume"]) == 0
    assert "of an earlier run" not in capsys.readouterr().out
    np.testing.assert_array_equal(content(target), whole["y.npy"])


def test_a_damaged_journal_is_not_trusted(
    interrupted: tuple[Path, Path], whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = interrupted
    journal_of(target).write_bytes(journal_of(target).read_bytes()[:-1])
    assert "damaged" in refusal(capsys, "upsample", source, target, "--scale", 2, "--resume")
    assert main(["upsample", str(source), str(target), "--scale", "2", "--overwrite"]) == 0
    np.testing.assert_array_equal(content(target), whole["y.npy"])


def test_two_runs_do_not_write_one_output(interrupted: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    source, target = interrupted
    first = Journal(journal_of(target))
    try:
        for option in ("--resume", "--overwrite"):
            assert "another run is writing" in refusal(capsys, "upsample", source, target, "--scale", 2, option)
    finally:
        first.close()


@pytest.mark.parametrize("name", FORMATS)
def test_a_disk_that_is_full_halfway_ends_in_one_line_and_is_resumed(
    name: str, volume: Path, whole: dict[str, Any], tmp_path: Path, here: Run
) -> None:
    target = tmp_path / name
    call = ("upsample", volume, target, "--scale", 2)
    limit = 3000 if name == "y.zarr" else 300_000
    full = run(*call, limit=limit)
    assert full.returncode == 2 and full.stderr.count("\n") == 1, full.stderr
    assert f"{name} cannot be written: " in full.stderr and "run again with --resume" in full.stderr
    with pytest.raises((OSError, ValueError, AssertionError, nibabel.filebasedimages.ImageFileError)):
        content(target)
    assert computed(here(*call, "--resume"))[0] >= 0
    np.testing.assert_array_equal(content(target), whole[name])


def test_too_small_a_disk_is_told_before_anything_is_computed(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    message = refusal(capsys, "upsample", volume, tmp_path / "y.npy", "--scale", 2)
    assert "needs 1,228,928 bytes, but its disk has 1,000,000 left" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_corrupt_chunk_of_the_input_is_told_with_its_place(
    zarr_format: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "LARGEST_BLOCK", 20_000)
    data = np.random.default_rng(0).standard_normal((16, 16, 16)).astype("f4")
    zarr.create_array(str(tmp_path / "x.zarr"), data=data, chunks=(8, 8, 8), zarr_format=zarr_format)
    chunk = tmp_path / "x.zarr" / ("1.0.1" if zarr_format == 2 else "c/1/0/1")
    chunk.write_bytes(chunk.read_bytes()[:100])
    message = refusal(capsys, "upsample", tmp_path / "x.zarr", tmp_path / "y.zarr", "--scale", 2)
    assert "x.zarr cannot be read at [" in message and "y.zarr is not finished" in message and message.count("\n") == 1
    assert zarr.open_array(str(tmp_path / "y.zarr"), mode="r").attrs["tconv3d"].startswith("incomplete")
    assert "was not finished" in refusal(capsys, "upsample", tmp_path / "y.zarr", tmp_path / "z.zarr", "--scale", 2)


def test_an_input_that_changes_while_it_is_read_is_told(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "x.npy"
    shutil.copy(volume, source)
    mark = Journal.mark

    def touched(self: Journal, index: int) -> None:
        os.utime(source, (1, 1))
        mark(self, index)

    monkeypatch.setattr(Journal, "mark", touched)
    assert "changed while it was read" in refusal(capsys, "upsample", source, tmp_path / "y.npy", "--scale", 2)
    with pytest.raises(ValueError):
        np.load(tmp_path / "y.npy")


def test_the_block_is_on_the_disk_before_it_is_marked(
    volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the calls that reach the disk: file, fsync, then the byte of the journal."""
    events: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fsync", "pwritev", "pwrite")}

    def spy(name: str) -> Any:
        def call(handle: int, *rest: Any) -> Any:
            result = real[name](handle, *rest)
            events.append((name, Path(os.readlink(f"/proc/self/fd/{handle}")).name))
            return result

        return call

    for name in real:
        monkeypatch.setattr(os, name, spy(name))
    monkeypatch.setattr("tconv3d.volumes.streaming._WORKERS", 1)
    monkeypatch.setattr(plan, "LARGEST_BLOCK", 200_000)
    assert main(["upsample", str(volume), str(tmp_path / "y.npy"), "--scale", "2"]) == 0
    marks = [i for i, event in enumerate(events) if event == ("pwrite", "y.npy.tconv3d-journal")]
    assert len(marks) > 5
    for i in marks:
        assert events[i - 2 : i] == [("pwritev", "y.npy"), ("fsync", "y.npy")]
        assert events[i + 1] == ("fsync", "y.npy.tconv3d-journal")


MEASURED = """
import sys
from tconv3d.cli import main
code = main(sys.argv[1:])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
sys.exit(code)
"""


@pytest.mark.parametrize("name", ["y.npy", "y.zarr"])
def test_memory_stays_below_its_limit(name: str, tmp_path: Path) -> None:
    """The output is larger than what the process may hold."""
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (64, 256, 512))[...] = 1
    call = [sys.executable, "-c", MEASURED, "upsample", str(tmp_path / "x.npy"), str(tmp_path / name), "--scale", "2"]

    def limited(megabytes: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*call, "--memory", f"{megabytes}MB"], capture_output=True, text=True, timeout=120)

    least = int(re.findall(r"([\d,]+) MB are needed", limited(1).stderr)[0].replace(",", ""))
    too_low = limited(least - 20)
    assert too_low.returncode == 2 and "is too low" in too_low.stderr
    limit = least + 40
    done = limited(limit)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split()[-1]) * 1024
    assert 0.3 * limit * 10**6 < peak < limit * 10**6 < 256 * 2**20
    assert (content(tmp_path / name) == 1).all()


def test_a_resumed_run_keeps_its_blocks_and_refuses_too_low_a_limit(
    interrupted: tuple[Path, Path], whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = interrupted
    header, _, marks = journal_of(target).read_bytes().partition(b"\n")
    call = ["upsample", source, target, "--scale", "2", "--resume"]
    assert "the limit is 2 MB" in refusal(capsys, *call, "--memory", "2MB")
    assert main([*map(str, call), "--memory", "100GB"]) == 0
    assert json.loads(header)["blocks"] == len(marks)
    assert f"of {len(marks)} blocks" in capsys.readouterr().out
    np.testing.assert_array_equal(content(target), whole["y.npy"])


def test_a_bar_is_shown_on_a_terminal_alone(volume: Path, tmp_path: Path, here: Run) -> None:
    quiet = here("upsample", volume, tmp_path / "a.npy", "--scale", 2)
    assert quiet.stderr == "" and quiet.stdout.count("\n") == 1
    ours, theirs = pty.openpty()
    call = command("upsample", volume, tmp_path / "b.npy", "--scale", 2)
    process = subprocess.Popen(call, stderr=theirs, stdout=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError as error:  # Linux ends a closed terminal so
            assert error.errno == errno.EIO
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0
    os.close(ours)
    assert b"MB/s" in shown or b"kB/s" in shown
    assert re.search(rb"\d+:\d\d:\d\d", shown)


CLUSTER = """
import os, signal, sys, threading, time
from distributed import LocalCluster
from tconv3d.cli import main
from tconv3d.volumes import plan
from tconv3d.volumes.formats import zarr_store

plan.LARGEST_BLOCK = 20_000
zarr_store._EDGE, zarr_store._SMALLEST_CHUNK = 16, 0
source, journal, *targets = sys.argv[1:]


def kill(worker):
    while True:
        try:
            if open(journal, "rb").read().partition(b"\\n")[2].count(1) > 9:
                break
        except FileNotFoundError:
            pass
        time.sleep(0.001)
    os.kill(worker.process.pid, signal.SIGKILL)
    print("killed")


if __name__ == "__main__":
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        worker = next(iter(cluster.workers.values()))
        threading.Thread(target=kill, args=(worker,), daemon=True).start()
        for target in targets:
            assert main(["upsample", source, target, "--scale", "2", "--scheduler", cluster.scheduler_address]) == 0
"""


def test_a_cluster_gives_the_same_bits_and_survives_a_worker(
    volume: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    """Two worker processes, one of which is killed while it computes. In a process with warnings of its own."""
    program = tmp_path / "cluster.py"
    program.write_text(CLUSTER)
    targets = [tmp_path / "y.npy", tmp_path / "y.zarr"]
    call = [sys.executable, str(program), str(volume), str(journal_of(targets[0])), *map(str, targets)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout
    for target in targets:
        np.testing.assert_array_equal(content(target), whole[target.name])
