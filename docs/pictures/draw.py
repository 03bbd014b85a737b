# SPDX-License-Identifier: Apache-2.0
"""The pictures of the documentation, drawn from the library's own geometry: `python docs/pictures/draw.py` writes them.

An axis is drawn as three rows: inputs on top; the uncropped signal `full` below them, one cell a sample, with a line
from every input to every cell that one of its taps reaches; and the number of lines that meet in each output.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tconv3d.contracts import mindspore, pytorch
from tconv3d.geometry import Geometry

CELL, MARGIN, LABEL = 30, 14, 92  # pixels: a sample, the border, the words on the left
TITLE, INPUTS, FULL, COUNTS, HEIGHT = 18, 38, 128, 172, 196  # pixels from the top of one axis
PHASES = ("#3f6fd8", "#d9822b", "#2b9a66", "#a350c4")
CUT, ZERO, INK, PAPER = "#e3e6ea", "#ffffff", "#1c2733", "#ffffff"

Piece = str


def write(folder: Path) -> None:
    """Write every picture into a folder."""
    for name, content in pictures().items():
        (folder / f"{name}.svg").write_text(content, encoding="utf-8")


def pictures() -> dict[str, str]:
    """The text of each picture by its name."""
    spread = torch_line(3, stride=2)
    same_size = torch_line(5, stride=3, padding=2, output_padding=2), mindspore_line(5, stride=3)
    true_equal = torch_line(5, stride=3, padding=1)
    extended = torch_line(3, stride=2, padding=1), torch_line(3, stride=2, padding=1, output_padding=1)
    holes = torch_line(2, stride=3), mindspore_line(2, stride=3, pad_mode="valid")
    return {
        "spread": stack([("kernel 3, stride 2: each input reaches three samples, two apart from the next", spread)]),
        "trap": stack(
            [
                ("PyTorch, kernel 5, stride 3, padding=2, output_padding=2: two cut in front", same_size[0]),
                ("MindSpore, the same with pad_mode='same': one cut in front", same_size[1]),
                ("PyTorch, padding=1, output_padding=0: the true equal", true_equal),
            ]
        ),
        "output-padding": stack(
            [
                ("kernel 3, stride 2, padding=1", extended[0]),
                ("the same with output_padding=1: one sample fewer is cut at the back", extended[1]),
            ]
        ),
        "holes": stack(
            [
                ("PyTorch, kernel 2, stride 3: every third sample has no input", holes[0]),
                ("MindSpore, pad_mode='valid': one more such sample at the back", holes[1]),
            ]
        ),
        "dilation": stack(
            [
                (
                    "kernel 3, stride 2, dilation 2: stride and dilation share the factor 2",
                    torch_line(3, stride=2, dilation=2),
                )
            ]
        ),
        "overlap": planes(
            [
                ("kernel 3, stride 2: a checkerboard", 3),
                ("kernel 4, stride 2: even", 4),
                ("kernel 2, stride 2: even", 2),
            ]
        ),
    }


def torch_line(kernel: int, **arguments: int) -> Geometry:
    """Four samples along each axis, under PyTorch's contract."""
    return pytorch.layer_arguments(1, 1, kernel, **arguments).geometry((1, 1, 4, 4, 4))


def mindspore_line(kernel: int, **arguments: object) -> Geometry:
    """Four samples along each axis, under MindSpore's."""
    return mindspore.layer_arguments(1, 1, kernel, **arguments).geometry((1, 1, 4, 4, 4))


def stack(rows: list[tuple[str, Geometry]]) -> str:
    """One axis below the other, aligned on the first sample of `full`."""
    cells = max(max(g.full_size[2], g.crop_front[2] + g.output_size[2]) for _, g in rows)
    body = [piece for number, (title, g) in enumerate(rows) for piece in line(g, title, MARGIN + number * HEIGHT)]
    return svg(LABEL + cells * CELL + 2 * MARGIN, len(rows) * HEIGHT + 2 * MARGIN, body)


def line(g: Geometry, title: str, top: int) -> Iterator[Piece]:
    """One axis of a geometry, its width."""
    size, stride, out, front = g.input_size[2], g.stride[2], g.output_size[2], g.crop_front[2]
    middle = (g.effective_kernel[2] - 1) / 2
    yield text(MARGIN, top + TITLE - 4, title, "font-weight='bold'")
    for y, word in ((INPUTS + 15, "input"), (FULL + 15, "full"), (COUNTS, "overlap")):
        yield text(MARGIN, top + y, word)
    for output in range(-front, max(g.full_size[2] - front, out)):
        color = PHASES[(output + front) % stride % len(PHASES)]
        for sample, _ in g.sources(2, output):
            yield stroke(sample * stride + middle, output + front, top, color, 0 <= output < out)
    for sample in range(size):
        yield box(sample * stride + middle, top + INPUTS, str(sample), "#ffffff")
    for position in range(max(g.full_size[2], front + out)):
        output = position - front
        kept, reached = 0 <= output < out, len(g.sources(2, output))
        fill = (PHASES[position % stride % len(PHASES)] if reached else ZERO) if kept else CUT
        yield box(position, top + FULL, str(output) if kept else "x", fill, dashed=kept and not reached)
        if kept:
            yield text(x(position) + CELL / 2, top + COUNTS, str(reached), "text-anchor='middle'")


def planes(cases: list[tuple[str, int]]) -> str:
    """The overlap in a plane, as shades, one square an output."""
    square, body, left = 17, [], MARGIN
    for title, kernel in cases:
        g = torch_line(kernel, stride=2)
        counts = [len(g.sources(2, output)) for output in range(g.output_size[2])]
        body.append(text(left, MARGIN + TITLE - 4, title, "font-weight='bold'"))
        for row, down in enumerate(counts):
            for column, across in enumerate(counts):
                y, here = MARGIN + TITLE + 8 + row * square, left + column * square
                shade = ("#ffffff", "#dbe6fb", "#8fb0f0", "#5c88e2", "#2a54b0")[down * across]
                body.append(
                    f"<rect x='{here}' y='{y}' width='{square}' height='{square}' fill='{shade}' stroke='#b5bdc9'/>"
                )
                ink = "#ffffff" if down * across == 4 else INK
                place = f"text-anchor='middle' fill='{ink}' font-size='10'"
                body.append(text(here + square / 2, y + square - 5, str(down * across), place))
        left += 240
    return svg(left - 20, 10 * square + TITLE + 2 * MARGIN, body)


def x(position: float) -> float:
    """The left edge of a sample of `full`."""
    return MARGIN + LABEL + position * CELL


def stroke(start: float, stop: float, top: int, color: str, kept: bool) -> Piece:
    look = f"stroke='{color}' stroke-width='1.6'" if kept else "stroke='#b5bdc9' stroke-dasharray='3 3'"
    points = (x(start) + CELL / 2, top + INPUTS + 22, x(stop) + CELL / 2, top + FULL)
    return "<line x1='{:g}' y1='{:g}' x2='{:g}' y2='{:g}' ".format(*points) + f"{look}/>"


def box(position: float, y: float, word: str, fill: str, dashed: bool = False) -> Piece:
    left, dash = x(position), " stroke-dasharray='3 3'" if dashed else ""
    ink = "#ffffff" if fill in PHASES else INK
    return (
        f"<rect x='{left + 2:g}' y='{y:g}' width='{CELL - 4}' height='22' rx='4' fill='{fill}' stroke='#6b7683'{dash}/>"
        + text(left + CELL / 2, y + 15, word, f"text-anchor='middle' fill='{ink}'")
    )


def text(left: float, y: float, words: str, more: str = "") -> Piece:
    more = more if "fill=" in more else f"{more} fill='{INK}'"
    return f"<text x='{left:g}' y='{y:g}' {more.strip()}>{words}</text>"


def svg(width: float, height: float, body: list[Piece]) -> str:
    """The whole picture, on paper of its own, since pages are dark or light."""
    size = f"viewBox='0 0 {width:g} {height:g}' width='{width:g}' height='{height:g}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size}"
    paper = f"<rect width='100%' height='100%' rx='8' fill='{PAPER}'/>"
    return "\n".join([f"{head} font-family='sans-serif' font-size='12'>", paper, *body, "</svg>", ""])


if __name__ == "__main__":
    write(Path(__file__).parent)
