# SPDX-License-Identifier: Apache-2.0
"""`tconv3d verify`: two layers or two networks on the same inputs; or the comparison page, statement by statement."""

from __future__ import annotations

from pathlib import Path

from ..migrate.checkpoint.rules import load
from ..migrate.signature import parse_shape
from ..migrate.verify import report
from ..migrate.verify.compare import verify
from . import CommandError


def run(
    a: str | None, b: str | None, inputs: list[str], seed: int, rules: Path | None, json: Path | None, html: Path | None
) -> int:  # fmt: skip
    """Print the table and write what else is asked for. Returns 0 where the two are equal, 1 where they are not."""
    if a is None or b is None:
        raise CommandError("two sides are needed: layer calls, or factories such as pkg.mod:factory")
    if not inputs:
        raise CommandError("--input is needed, such as --input 1,3,4,9,16")
    found = verify(a, b, [parse_shape(shape) for shape in inputs], seed, load(rules))
    try:
        print(report.as_table(found))
    except ModuleNotFoundError as error:
        raise CommandError(f"verify needs {error.name}: pip install 'tconv3d[migrate]'") from None
    for path, text in ((json, report.as_json), (html, report.as_html)):
        if path is not None:
            _write(path, text(found))
    return 0 if found.equal else 1


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"wrote {path}")
