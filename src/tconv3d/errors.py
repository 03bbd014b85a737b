# SPDX-License-Identifier: Apache-2.0
"""The wording of every refusal, and the exception classes that Python lacks."""

from __future__ import annotations


class AllocationTooLarge(MemoryError, RuntimeError):
    """The result would not fit into this machine's memory; raised before anything is allocated.

    It is a ``MemoryError`` by nature and a ``RuntimeError`` as well, because code that was written for PyTorch
    catches the latter when an allocation fails.

    >>> issubclass(AllocationTooLarge, MemoryError)
    True
    """


class RequestError(Exception):
    """What was asked for cannot be done; the text says why and the way out. Commands print it and end with code 2.

    >>> str(RequestError("a.nii is not a file"))
    'a.nii is not a file'
    """


def describe(what: str, value: object, rule: str, way_out: str) -> str:
    """Return the text of an error message: what failed, its value, the rule, and a way out.

    >>> describe("stride", (2, 0, 2), "every entry must be at least 1", "use 1 for an axis that keeps its size")
    'stride is (2, 0, 2), but every entry must be at least 1; use 1 for an axis that keeps its size'
    """
    return f"{what} is {value!r}, but {rule}; {way_out}"
