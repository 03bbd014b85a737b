# SPDX-License-Identifier: Apache-2.0
"""Sizes of memory as people write them, and what this process holds."""

from __future__ import annotations

import os
import re
import sys

from ..errors import RequestError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse(text: str) -> int:
    """Return the bytes that a text such as 512MB (10^6 each) or 1.5GiB (2^30 each) names.

    >>> parse("512MB"), parse("1.5 GiB"), parse("4096")
    (512000000, 1610612736, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", text.lower())
    if match is None:
        raise RequestError(f"{text!r} is no size of memory; write it like 512MB or 1.5GiB")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def readable(count: int) -> str:
    """Return a number of bytes for people, in units of 10^6.

    >>> readable(123_456_789)
    '124 MB'
    """
    return f"{-(-count // 10**6):,} MB"


def held() -> int:
    """Return the resident bytes of this process now."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource  # not on every system

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
