# SPDX-License-Identifier: Apache-2.0
"""`tconv3d convert`: a checkpoint of one framework made one of the other."""

from __future__ import annotations

from pathlib import Path

from ..migrate.checkpoint.convert import Conversion, convert


def run(source: Path, target: Path, to: str | None, rules: Path | None, model: str | None) -> int:
    """Convert `source` into `target` and print what was done, one line for every key that a person should look at."""
    print(text(source, target, convert(source, target, to, rules, model)))
    return 0


def text(source: Path, target: Path, done: Conversion) -> str:
    """The report."""
    head = (
        f"{source} -> {target}: {done.tensors} tensors, {done.nbytes:,} bytes, {done.source} to {done.target},"
        f" {done.renamed} renamed"
    )
    return "\n".join([head, *(f"  {note}" for note in done.notes)])
