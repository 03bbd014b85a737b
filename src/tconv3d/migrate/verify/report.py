# SPDX-License-Identifier: Apache-2.0
"""A report for a terminal, for a program and for a browser."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from html import escape

from .compare import Report, Row

_WIDTH, _HEIGHT = 260, 70
_MOST_BARS = 128
_TERMINAL = 160  # characters
_COLUMNS = ("layer", "shape", "verdict", "largest difference", "allowed", "place", "cause")

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1c2733}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;border-bottom:1px solid #d5dce3;text-align:left}
.equal{color:#0a7a3d;font-weight:600}.different{color:#b3261e;font-weight:600}code{background:#f2f5f8;padding:0 .2rem}
figure{display:inline-block;margin:.4rem 1rem .4rem 0}figcaption{font-size:12px;color:#5a6875}
"""


def as_json(report: Report) -> str:
    """Everything, as JSON; infinite differences are the text 'inf', since JSON has no such number."""
    return json.dumps(_finite(asdict(report) | {"equal": report.equal}), indent=2)


def as_table(report: Report) -> str:
    """A table for a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=_TERMINAL)
    table = Table(*_COLUMNS)
    for row in report.rows:
        table.add_row(*map(_plain, _cells(row)))
    with console.capture() as capture:
        console.print(table)
    return "\n".join([f"A  {report.a}", f"B  {report.b}", capture.get().rstrip(), *(f"  {n}" for n in report.notes)])


def as_html(report: Report) -> str:
    """One page without links, scripts or files beside it; a picture per axis for every pair that differs."""
    head = "".join(
        f"<th>{name}</th>" for name in ("layer", "shape", "verdict", "difference", "allowed", "place", "cause")
    )
    body = "".join(_html_row(row) for row in report.rows)
    pictures = "".join(_pictures(row) for row in report.rows if row.profiles)
    verdict = _verdict(report.equal)
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>tconv3d verify</title>'
        f"<style>{_STYLE}</style></head><body><h1>{verdict}</h1>"
        f"<p>A <code>{escape(report.a)}</code><br>B <code>{escape(report.b)}</code></p>"
        f"<table><tr>{head}</tr>{body}</table><ul>{notes}</ul>{pictures}</body></html>\n"
    )


def _cells(row: Row) -> list[str]:
    shapes = " / ".join(dict.fromkeys(str(shape) for shape in row.shapes))
    numbers = ["", ""] if row.difference is None else [f"{row.difference:.3g}", f"{row.tolerance:.3g}"]
    place = str(row.place) if row.difference else ""
    return [row.name, shapes, "equal" if row.equal else "DIFFERENT", *numbers, place, row.cause]


def _plain(text: str) -> str:
    """Rich reads square brackets as markup."""
    return text.replace("[", r"\[")


def _html_row(row: Row) -> str:
    name, shapes, _, *rest = map(escape, _cells(row))
    cells = "".join(f"<td>{text}</td>" for text in rest)
    return f"<tr><td>{name}</td><td>{shapes}</td><td>{_verdict(row.equal)}</td>{cells}</tr>"


def _verdict(equal: bool) -> str:
    return '<span class="equal">equal</span>' if equal else '<span class="different">different</span>'


def _pictures(row: Row) -> str:
    """The largest difference at each position of each axis, as bars over the allowed one."""
    axes = "".join(
        f"<figure>{_bars(values, row.tolerance)}<figcaption>{escape(axis)}, {len(values)} positions, largest"
        f" {max(values, default=0):.3g}</figcaption></figure>"
        for axis, values in row.profiles.items()
    )
    return f"<h3>{escape(row.name)}: difference along each axis</h3>{axes}"


def _bars(values: list[float], tolerance: float) -> str:
    step = max(1, math.ceil(len(values) / _MOST_BARS))
    heights = [max(values[i : i + step]) for i in range(0, len(values), step)]
    top = max([value for value in heights if math.isfinite(value)] + [tolerance, 1e-300])
    width = _WIDTH / max(1, len(heights))
    bars = "".join(
        f'<rect x="{i * width:.2f}" y="{_HEIGHT - h:.2f}" width="{max(0.5, width - 1):.2f}" height="{h:.2f}"'
        f' fill="{"#b3261e" if value > tolerance else "#4a90c2"}"/>'
        for i, value in enumerate(heights)
        for h in (_HEIGHT * min(1.0, value / top),)
    )
    line = _HEIGHT - _HEIGHT * min(1.0, tolerance / top)
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="difference">{bars}<line x1="0" x2="{_WIDTH}"'
        f' y1="{line:.2f}" y2="{line:.2f}" stroke="#0a7a3d" stroke-dasharray="4 3"/></svg>'
    )


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
