# SPDX-License-Identifier: Apache-2.0
"""Every code block of the README and of the documentation's pages is run, and every output that they show is compared.

The blocks of a page run in its order, in one empty folder. Python blocks share their names. What is expected stands in
a `text` block right below a `python` block (an exception as its last line, `ValueError: ...`), and below each `$` line
of a `console` block; `...` stands for anything there. `sh` blocks must succeed. A line that ends in a comment
`# not run by the tests: REASON`, which readers see too, is left out.
"""

from __future__ import annotations

import ast
import doctest
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import tconv3d

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
LANGUAGES = {"python", "sh", "console", "text", ""}  # the last: a tree or a formula, nothing to run
LEFT_OUT = re.compile(r"^(?P<code>.*?)\s*# not run by the tests: (?P<reason>\S.*)$")
SAME = doctest.OutputChecker()

# Runs the steps of one page: [kind, code] to [what was printed, exit code or null].
CHILD = """
import contextlib, io, json, subprocess, sys, traceback
names = {"__name__": "__main__"}
for kind, code in json.load(open(sys.argv[1])):
    if kind == "python":
        printed, failed = io.StringIO(), 0
        with contextlib.redirect_stdout(printed):
            try:
                exec(code, names)
            except Exception as error:
                failed = traceback.format_exc()
                print("".join(traceback.format_exception_only(type(error), error)).rstrip())
        print(json.dumps([printed.getvalue(), failed]))
    else:
        run = subprocess.run(["bash", "-euo", "pipefail", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        print(json.dumps([run.stdout.decode(), run.returncode]))
"""


@dataclass
class Step:
    """Something to run: `wanted` is what it must print, None where anything will do."""

    line: int
    kind: str
    code: str
    wanted: str | None = None


def blocks(page: Path) -> Iterator[tuple[int, str, str]]:
    """The fenced blocks of a page: line, language, text."""
    fence, start, language, held = "", 0, "", []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        found = re.match(r"(```+)\s*(\S*)", line)
        if fence and found and found[1] == fence and not found[2]:
            yield start, language, "\n".join(held) + "\n"
            fence = ""
        elif fence:
            held.append(line)
        elif found:
            (fence, language), start, held = found.groups(), number, []
    assert not fence, f"{page.name}:{start}: the block has no end"


def steps(page: Path) -> list[Step]:
    """What a page asks to run, each with what it shows as its output."""
    found: list[Step] = []
    last = ""
    for line, language, text in blocks(page):
        assert language in LANGUAGES, f"{page.name}:{line}: nobody runs {language!r}"
        if language == "python":
            found.append(Step(line, "python", kept(text)))
        elif language == "sh":
            found.append(Step(line, "sh", kept(text)))
        elif language == "console":
            found += console(line, text)
        elif language == "text":
            assert last == "python", f"{page.name}:{line}: an output without a block above that makes it"
            found[-1].wanted = text
        last = language
    return found


def kept(text: str) -> str:
    """The lines that are run; the others stay as empty ones, so that line numbers hold."""
    return "".join("\n" if LEFT_OUT.match(line) else line + "\n" for line in text.splitlines())


def console(line: int, text: str) -> Iterator[Step]:
    for number, part in enumerate(re.split(r"(?m)^\$ ", text)[1:]):
        command, _, output = part.partition("\n")
        while command.endswith("\\"):
            more, _, output = output.partition("\n")
            command += "\n" + more
        if not LEFT_OUT.match(command):
            yield Step(line + number, "console", command, output)


def run(page: Path, folder: Path) -> list[str]:
    """Run a page in a folder; a line for everything that went wrong."""
    wanted = steps(page)
    (folder / "steps.json").write_text(json.dumps([[step.kind, step.code] for step in wanted]), encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, "steps.json"], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    results = [json.loads(line) for line in child.stdout.splitlines() if line.startswith('["')]
    assert len(results) == len(wanted), child.stdout + child.stderr
    return [
        f"{page.name}:{step.line}: {problem}"
        for step, (printed, failed) in zip(wanted, results, strict=True)
        if (problem := wrong(step, printed, failed))
    ]


def wrong(step: Step, printed: str, failed: int | str) -> str:
    """What is wrong with a step, or nothing. An error is right where it is what the page shows."""
    if step.wanted is None:
        return f"failed:\n{printed}{failed}" if failed else ""
    if SAME.check_output(step.wanted, printed, doctest.ELLIPSIS):
        return ""
    return f"printed\n{printed}\nwhere the page has\n{step.wanted}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_and_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    assert not (problems := run(page, tmp_path)), "\n".join(problems)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```python\nassert 1 == 2\n```\n", "AssertionError"),
        ("```python\nprint(1)\n```\n\n```text\n2\n```\n", "where the page has"),
        ("```python\nint('x')\n```\n\n```text\nValueError: something else\n```\n", "where the page has"),
        ("```sh\nfalse\ntrue\n```\n", "failed"),
        ("```console\n$ echo one\none\n$ echo two\nthree\n```\n", "printed\ntwo"),
    ],
)
def test_a_wrong_block_is_found(text: str, problem: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    (found,) = run(page, tmp_path)
    assert problem in found


def test_right_blocks_and_those_left_out_pass(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n\n```python\nprint(x)\nint('y')\n```\n\n```text\n1\nValueError: ...'y'\n```\n"
        "```sh\nfalse  # not run by the tests: it fails\necho ok > made\n```\n```console\n$ cat made\nok\n```\n",
        encoding="utf-8",
    )
    assert run(page, tmp_path) == []


def test_the_pictures_are_what_the_geometry_draws(tmp_path: Path) -> None:
    folder = DOCS / "pictures"
    program = f"import sys; sys.path.insert(0, {str(folder)!r}); import draw, pathlib; draw.write(pathlib.Path('.'))"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    drawn = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.svg")}
    used = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"pictures/{name}" in used for name in drawn)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    """Pages are read without the site too; links inside of it, with their anchors, are the site's own test."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    local = [link.partition("#")[0] for link in links if not link.startswith(("http://", "https://", "#"))]
    assert not [link for link in local if link and not (page.parent / link).exists()]


# What the page of messages leaves out: a piece of each, and why nobody needs to look it up.
NOT_ON_THE_PAGE = {
    "the shapes of the operands": "a graph's operator was called with other shapes than it was resolved for",
    "the largest index of the output": "the count of the elements is refused first",
    "this version of ": "it is for faces of later versions",
    " needs ": "it says what to install",
    "tconv3d.dask needs dask with its arrays (": "it says what to install",
}


def messages() -> Iterator[tuple[str, list[str]]]:
    """Where the library raises an error of its own, and the constant pieces of its message."""
    root = Path(tconv3d.__file__).parent
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if place.parts[0] in ("bench", "commands", "migrate", "volumes", "cli.py"):
            continue  # what the command says is a sentence of its own; some of each kind are on the page
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "describe":
                yield f"{place}:{node.lineno}", [piece for part in node.args for piece in constant_pieces(part)]
            elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                yield f"{place}:{node.lineno}", [piece for part in node.exc.args for piece in constant_pieces(part)]


def constant_pieces(node: ast.expr) -> list[str]:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def test_every_message_is_on_the_page_of_messages() -> None:
    page = " ".join((DOCS / "troubleshooting.md").read_text(encoding="utf-8").split())
    missing = {}
    for place, pieces in messages():
        told = [piece for piece in pieces if len(piece) > 5 and piece.strip() not in page]
        if told and not any(piece in NOT_ON_THE_PAGE for piece in pieces):
            missing[place] = told
    assert missing == {}
