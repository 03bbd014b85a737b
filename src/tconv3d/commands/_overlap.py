# SPDX-License-Identifier: Apache-2.0
"""How many kernels lie over each output, drawn as text, and why the number differs where it does.

The overlap of one output along an axis is the number of its sources; away from the border it is the number of taps of
the output's phase. In a plane or a volume the numbers of the axes multiply.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from ..geometry import Geometry

_AXES = ("depth", "height", "width")
_LONGEST = 24  # outputs of one axis that are drawn
_PLANE = 12  # rows of the plane; columns are those of its axis


def draw(geometry: Geometry) -> list[str]:
    """The overlap per axis with its cause, the plane of height and width, and what helps."""
    lines = ["Overlap: how many (input, tap) pairs reach each output"]
    for axis, name in enumerate(_AXES):
        lines += [f"  {name:<8}{_row(counts(geometry, axis))}", f"  {'':8}{cause(geometry, axis)}"]
    plane = [_row([down * across for across in counts(geometry, 2)]) for down in counts(geometry, 1)[:_PLANE]]
    more = ["  .."] if geometry.output_size[1] > _PLANE else []
    lines += ["  in the plane of height (down) and width (across), times those of the depth", *_aligned(plane), *more]
    return lines + _advice(geometry)


def counts(geometry: Geometry, axis: int) -> list[int]:
    """The overlap of the first outputs of an axis, one more than are drawn."""
    drawn = min(geometry.output_size[axis], _LONGEST + 1)
    return [len(geometry.sources(axis, output)) for output in range(drawn)]


def cause(geometry: Geometry, axis: int) -> str:
    """Why the overlap of an axis is even or uneven away from the border.

    >>> line = Geometry((4, 4, 4), (4, 3, 2), (2, 2, 3), (1, 1, 1), (0, 0, 0), (10, 9, 11), groups=1)
    >>> [cause(line, axis) for axis in range(2)]
    ['even: 2 for each output; kernel % stride = 4 % 2 = 0', 'uneven: 1 or 2; kernel % stride = 3 % 2 = 1']
    >>> cause(line, 2)
    'holes: kernel 2 is smaller than stride 3, so 1 of 3 outputs gets no input'
    """
    kernel, stride, dilation = (field[axis] for field in (geometry.kernel_size, geometry.stride, geometry.dilation))
    shared = gcd(stride, dilation)
    period = stride // shared  # of `stride` phases the taps reach this many, one after the other
    if shared == 1 and kernel >= stride:
        fewest, rest = divmod(kernel, stride)
        remainder = f"kernel % stride = {kernel} % {stride} = {rest}"
        return (
            f"uneven: {fewest} or {fewest + 1}; {remainder}" if rest else f"even: {fewest} for each output; {remainder}"
        )
    empty = stride - min(kernel, period)
    gets = f"{empty} of {stride} outputs {'gets' if empty == 1 else 'get'} no input"
    if kernel < period:
        return f"holes: kernel {kernel} is smaller than stride {stride}, so {gets}"
    return f"holes: stride {stride} and dilation {dilation} share the factor {shared}, so {gets}"


def _advice(geometry: Geometry) -> list[str]:
    """What to write in place of a call whose overlap is uneven; how to begin one whose overlap is even."""
    strides = geometry.stride
    if all(cause(geometry, axis).startswith("even") for axis in range(3)):
        if strides == (1, 1, 1):
            return ["  No stride, so nothing here makes a checkerboard."]
        return [
            "  Even. Random weights still give each phase numbers of its own at first;",
            f"  tconv3d.initializers.ICNR({_short(strides)}) starts without that pattern.",
        ]
    axes = list(zip(geometry.kernel_size, strides, strict=True))
    even, slope = [-(-kernel // stride) * stride for kernel, stride in axes], [2 * stride - 1 for stride in strides]
    return [
        "  A checkerboard: the outputs add up unequal numbers of terms.",
        f"  kernel_size={_short(even)}, dilation=1 is even, and tconv3d.initializers.ICNR({_short(strides)}) starts"
        " without a pattern there;",
        f"  so does Linear({_short(strides)}) with any kernel_size of {_short(slope)} or more.",
    ]


def _row(values: list[int]) -> str:
    shown = " ".join(map(str, values[:_LONGEST]))
    return f"{shown} .." if len(values) > _LONGEST else shown


def _aligned(rows: list[str]) -> list[str]:
    """The rows with the numbers in columns."""
    width = max((len(word) for row in rows for word in row.split()), default=1)
    return ["    " + " ".join(f"{word:>{width}}" for word in row.split()) for row in rows]


def _short(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else str(tuple(values))
