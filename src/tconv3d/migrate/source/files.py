# SPDX-License-Identifier: Apache-2.0
"""Files and folders: read, migrated in parallel, written atomically and never outside of the given path."""

from __future__ import annotations

import contextlib
import difflib
import multiprocessing
import os
import stat
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from .. import RequestError
from . import Note, Options, migrate_text

LARGEST_FILE = 4 * 2**20  # bytes; larger ones are data that happens to end in .py
_PARALLEL_FROM = 8  # files; below, starting processes takes longer than they save
_SKIPPED = {"__pycache__", "node_modules", "site-packages"}
_BACKUP = ".orig"


@dataclass(frozen=True)
class FileResult:
    """One file before and after; `error` says why it could not be read, and then nothing else is set."""

    path: Path
    before: str = ""
    after: str = ""
    encoding: str = "utf-8"
    notes: list[Note] = field(default_factory=list)
    error: str = ""

    @property
    def changed(self) -> bool:
        """Whether anything was rewritten."""
        return self.before != self.after

    def diff(self) -> str:
        """The unified difference."""
        before, after = self.before.splitlines(keepends=True), self.after.splitlines(keepends=True)
        lines = difflib.unified_diff(before, after, f"a/{self.path.as_posix()}", f"b/{self.path.as_posix()}")
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def find(path: Path) -> list[Path]:
    """The Python files under `path`; links are not followed out of it. RequestError where there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RequestError(f"{path} is neither a file nor a folder")
    root = path.resolve()
    found = [Path(folder) / name for folder, names in _walk(path) for name in names if name.endswith(".py")]
    inside = [each for each in sorted(found) if each.is_file() and each.resolve().is_relative_to(root)]
    if not inside:
        raise RequestError(f"{path} holds no Python file")
    return inside


def migrate_files(
    paths: list[Path], options: Options, processes: int | None = None, progress: Callable[[int], None] = lambda _: None
) -> list[FileResult]:
    """Migrate every file, in the order given; `progress` is told how many are done. Nothing is written."""
    work = partial(migrate_file, options=options)
    count = min(processes or os.cpu_count() or 1, len(paths))
    if count == 1 or len(paths) < _PARALLEL_FROM:
        return _counted(map(work, paths), progress)
    # Not forked: a child of a process with a framework's threads in it may never return.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        return _counted(pool.map(work, paths, chunksize=4), progress)


def migrate_file(path: Path, options: Options) -> FileResult:
    """One file; whatever is wrong with it is told in the result."""
    try:
        before, encoding = _read(path)
        result = migrate_text(before, options)
    except RequestError as error:
        return FileResult(path, error=str(error))
    except OSError as error:
        return FileResult(path, error=error.strerror or str(error))
    return FileResult(path, before, result.text, encoding, result.notes)


def write(result: FileResult, backup: bool) -> None:
    """Put the new text in the file's place in one step, with its permissions; a link's target is what is replaced.

    With `backup` the old text stays beside it as FILE.orig; RequestError where that exists already.
    """
    path = result.path.resolve()
    if backup:
        _write_new(path.with_name(path.name + _BACKUP), result.before.encode(result.encoding))
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(result.after.encode(result.encoding))
        os.chmod(name, stat.S_IMODE(path.stat().st_mode))
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        yield folder, names


def _read(path: Path) -> tuple[str, str]:
    """The text with its line ends as they are, and its encoding as the file declares it."""
    if path.stat().st_size > LARGEST_FILE:
        raise RequestError(f"has {path.stat().st_size:,} bytes, more than the {LARGEST_FILE:,} that source may have")
    try:
        with path.open("rb") as file:
            encoding, _ = tokenize.detect_encoding(file.readline)
        return path.read_bytes().decode(encoding), encoding
    except (SyntaxError, UnicodeDecodeError) as error:
        raise RequestError(f"is not text that Python could read: {error}") from None


def _write_new(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError:
        raise RequestError(f"{path} exists already; move it away or leave --backup out") from None


def _counted(results: Iterator[FileResult], progress: Callable[[int], None]) -> list[FileResult]:
    done = []
    for result in results:
        done.append(result)
        progress(len(done))
    return done
