# SPDX-License-Identifier: Apache-2.0
"""A dtype argument in the other framework's words."""

from __future__ import annotations

import libcst as cst

from ..arguments import Arguments
from ..options import Left

_ALIASES = {
    "half": "float16", "float": "float32", "single": "float32", "double": "float64", "cfloat": "complex64",
    "cdouble": "complex128", "long": "int64", "int": "int32", "short": "int16",
}  # fmt: skip
NAMES = {
    "float16", "float32", "float64", "bfloat16", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8",
    "bool",
}  # fmt: skip
MINDSPORE_COMPUTES = ("float16", "float32")


def short_name(framework: str, name: str | None) -> str | None:
    """'float16' of torch.half, mindspore.float16 and such; None for anything else."""
    if name is None or not name.startswith(f"{framework}."):
        return None
    last = name.removeprefix(f"{framework}.")
    last = _ALIASES.get(last, last)
    return last if last in NAMES else None


def of_argument(arguments: Arguments, framework: str) -> str | None:
    """The dtype given to a layer; None where none is. Left where the code does not say which."""
    node = arguments.node("dtype")
    if node is None or (isinstance(node, cst.Name) and node.value == "None"):
        return None
    name = short_name(framework, arguments.module.resolve(node))
    if name is None:
        raise Left(f"dtype={arguments.text('dtype')} is not known without running the code")
    return name
