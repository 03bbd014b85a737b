# SPDX-License-Identifier: Apache-2.0
"""`tconv3d migrate`: source of one framework rewritten for the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from . import CommandError

try:
    from rich.console import Console
    from rich.progress import Progress

    from ..migrate.source import Options
    from ..migrate.source.files import FileResult, find, migrate_files, write
except ModuleNotFoundError as _error:  # told when the command runs, not when the program starts
    _missing: str | None = str(_error.name).partition(".")[0]
else:
    _missing = None

_PROGRESS_FROM = 20  # files


def run(
    path: Path, to: str, target_version: str | None, source_version: str | None, use: str, write_files: bool,
    backup: bool, show_diff: bool,
) -> int:  # fmt: skip
    """Migrate `path`; print the difference, or write the files, then the report on stderr.

    Returns 0 where everything was rewritten, 1 where something was left or a file could not be read.
    """
    if _missing is not None:
        raise CommandError(f"migrate needs {_missing}: pip install 'tconv3d[migrate]'")
    options = Options(to, target_version, source_version, use)
    paths = find(path)
    results = _with_progress(paths, options)
    for result in results:
        if result.changed and (show_diff or not write_files):
            print(result.diff(), end="")
    if write_files:
        _write(results, backup)
    _report(results, path, write_files)
    return 1 if any(result.error or _left(result) for result in results) else 0


def _write(results: list[FileResult], backup: bool) -> None:
    for result in results:
        if result.changed:
            try:
                write(result, backup)
            except OSError as error:
                raise CommandError(f"cannot write {result.path}: {error.strerror or error}") from None


def _with_progress(paths: list[Path], options: Options) -> list[FileResult]:
    if len(paths) < _PROGRESS_FROM or not sys.stderr.isatty():
        return migrate_files(paths, options)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("migrating", total=len(paths))
        tell: Callable[[int], None] = lambda done: bar.update(task, completed=done)  # noqa: E731
        return migrate_files(paths, options, progress=tell)


def _report(results: list[FileResult], path: Path, written: bool) -> None:
    """What was left and why, one line each, then one line of counts."""
    for result in results:
        if result.error:
            print(f"{result.path}: {result.error}", file=sys.stderr)
        for note in result.notes:
            if note.kind != "rewritten":
                print(f"{result.path}:{note.line}: {note.kind}: {note.text}", file=sys.stderr)
    changed = sum(result.changed for result in results)
    rewritten = sum(note.kind == "rewritten" for result in results for note in result.notes)
    left, unread = sum(map(_left, results)), sum(bool(result.error) for result in results)
    verb = "written" if written else "to change (--write does it)"
    print(
        f"{path}: {len(results)} files read, {changed} {verb}, {rewritten} places rewritten, {left} left"
        + (f", {unread} files unreadable" if unread else ""),
        file=sys.stderr,
    )


def _left(result: FileResult) -> int:
    return sum(note.kind == "left" for note in result.notes)
