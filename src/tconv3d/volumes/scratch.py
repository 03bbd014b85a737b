# SPDX-License-Identifier: Apache-2.0
"""Memory that stays with a thread from block to block: fresh pages cost more than the arithmetic of many a layer."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_held = threading.local()


def scratch(purpose: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return an array with anything in it. The thread's next call for the same purpose uses its memory again.

    >>> scratch("example", (2, 3), np.dtype("int16")).shape
    (2, 3)
    """
    wanted = prod(shape) * dtype.itemsize
    held = getattr(_held, purpose, None)
    if held is None or held.nbytes < wanted:
        setattr(_held, purpose, None)
        del held
        held = np.empty(wanted, np.uint8)
        setattr(_held, purpose, held)
    return held[:wanted].view(dtype).reshape(shape)
