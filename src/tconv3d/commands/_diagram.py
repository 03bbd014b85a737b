# SPDX-License-Identifier: Apache-2.0
"""The crop of one axis as a line of text.

`full` is the whole sum before the crop, (S-1)*stride + E samples for input size S and effective kernel E. The output is
a window of it: samples are cut in front and at the back, and where the window reaches past the end zeros are appended.
"""

from __future__ import annotations

from dataclasses import dataclass

CUT, KEPT, ZERO = "x", "#", "0"
LEGEND = f"{CUT} cut from `full`   {KEPT} kept   {ZERO} zero appended"
_LONGEST_RUN = 20


@dataclass(frozen=True)
class Crop:
    """Sample counts of one axis: cut_front + kept + cut_back = full size, kept + appended = output size."""

    cut_front: int
    kept: int
    cut_back: int
    appended: int


def crop(full_size: int, crop_front: int, output_size: int) -> Crop:
    """Split one axis into what is cut, kept and appended.

    >>> crop(full_size=14, crop_front=1, output_size=12)
    Crop(cut_front=1, kept=12, cut_back=1, appended=0)
    >>> crop(full_size=9, crop_front=0, output_size=12)
    Crop(cut_front=0, kept=9, cut_back=0, appended=3)
    """
    start = min(crop_front, full_size)
    stop = max(start, min(full_size, crop_front + output_size))
    kept = stop - start
    return Crop(start, kept, full_size - stop, output_size - kept)


def draw(axis: Crop) -> str:
    """The axis as characters of LEGEND, one a sample; a run longer than 20 is shortened in its middle.

    >>> draw(Crop(cut_front=2, kept=5, cut_back=1, appended=0))
    'xx#####x'
    >>> draw(Crop(cut_front=0, kept=100, cut_back=0, appended=2))
    '#########..#########00'
    """
    runs = ((CUT, axis.cut_front), (KEPT, axis.kept), (CUT, axis.cut_back), (ZERO, axis.appended))
    return "".join(_run(character, length) for character, length in runs)


def describe(axis: Crop) -> str:
    """The axis in words, such as '14 samples, 1 cut in front, 1 cut at the back -> 12'."""
    parts = [f"{axis.cut_front + axis.kept + axis.cut_back} samples"]
    parts += [f"{axis.cut_front} cut in front"] if axis.cut_front else []
    parts += [f"{axis.cut_back} cut at the back"] if axis.cut_back else []
    parts += [f"{axis.appended} zero{'s' * (axis.appended > 1)} appended"] if axis.appended else []
    return f"{', '.join(parts)} -> {axis.kept + axis.appended}"


def _run(character: str, length: int) -> str:
    if length <= _LONGEST_RUN:
        return character * length
    end = character * (_LONGEST_RUN // 2 - 1)
    return f"{end}..{end}"
