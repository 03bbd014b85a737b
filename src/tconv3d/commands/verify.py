# SPDX-License-Identifier: Apache-2.0
"""`tconv3d verify`: two layers or two networks on the same inputs; or the comparison page, statement by statement."""

from __future__ import annotations

import json
from pathlib import Path

from ..migrate import page, table
from ..migrate.checkpoint.rules import load
from ..migrate.probes import Frameworks
from ..migrate.signature import parse_shape
from ..migrate.verify import report
from ..migrate.verify.compare import verify
from . import CommandError


def run(
    a: str | None, b: str | None, inputs: list[str], seed: int, rules: Path | None, json_file: Path | None,
    html: Path | None,
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
        raise CommandError(
            f"verify needs {str(error.name).partition('.')[0]}: pip install 'tconv3d[migrate]'"
        ) from None
    for path, text in ((json_file, report.as_json), (html, report.as_html)):
        if path is not None:
            _write(path, text(found))
    return 0 if found.equal else 1


def run_page(json_file: Path | None, markdown: Path | None) -> int:
    """Re-prove the comparison page and every known difference on the installed frameworks, and print both.

    Returns 0 where every difference of the table holds for them, 1 where one does not.
    """
    frameworks = Frameworks()
    statements, differences = page.proved(frameworks), table.probed(frameworks)
    print(page.as_table(statements, frameworks.versions))
    gone = [row for row, holds, _ in differences if not holds]
    print(f"{len(differences)} differences of the two layers are probed, {len(differences) - len(gone)} hold")
    for row in gone:
        print(f"  no longer: {row.number} {row.topic}: {row.sentence}")
    if json_file is not None:
        rows = [
            {
                "number": r.number,
                "topic": r.topic,
                "difference": r.sentence,
                "on_page": r.on_page,
                "holds": h,
                "seen": e,
            }
            for r, h, e in differences
        ]
        said = [{"place": s.place, "text": s.text, "verdict": v, "seen": e} for s, v, e in statements]
        content = {"versions": frameworks.versions, "page": said, "differences": rows}
        _write(json_file, json.dumps(content, indent=2, ensure_ascii=False))
    if markdown is not None:
        _write(markdown, table.as_markdown(frameworks))
    return 1 if gone else 0


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"wrote {path}")
