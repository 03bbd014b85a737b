# SPDX-License-Identifier: Apache-2.0
"""Volumes in files, convolved block by block under a memory limit, in runs that can be resumed.

    formats/       one file per format: what a volume in it is, how a part is read, how a part is written
    raw.py         arrays that lie in a file as they lie in memory; parts of them read and written
    placement.py   where the voxels of an output lie, from where those of the input lie
    kernels.py     interpolation as a transposed convolution
    layer.py       one layer on parts of a volume, with the bits that the whole would have
    integers.py    rounding and saturation
    scratch.py     memory that stays with a thread
    memory.py      sizes as people write them; what this process holds
    plan.py        blocks that fit into a memory limit
    journal.py     which blocks are done, on disk in the right order
    streaming.py   one run from files to files

A volume's axes are leading axes (images, times, channels), then depth, height and width, whatever their order in the
file. A box is a (start, stop) per axis.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import RequestError

Box = tuple[tuple[int, int], ...]


def needed(name: str) -> Any:
    """The module, which comes with the extra `volumes`; RequestError with what to install where it is missing.

    >>> needed("math").floor(1.5)
    1
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != name.partition(".")[0]:
            raise
        package = name.partition(".")[0]
        raise RequestError(f"this needs {package}: pip install 'tconv3d[volumes]'") from None


def shape_of(box: Box) -> tuple[int, ...]:
    """Return how many samples a box has along each axis.

    >>> shape_of(((2, 5), (0, 4)))
    (3, 4)
    """
    return tuple(stop - start for start, stop in box)


def slices_of(box: Box) -> tuple[slice, ...]:
    """Return the box as an index.

    >>> slices_of(((2, 5),))
    (slice(2, 5, None),)
    """
    return tuple(slice(start, stop) for start, stop in box)
