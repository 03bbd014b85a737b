# SPDX-License-Identifier: Apache-2.0
"""PyTorch's sizes as MindSpore takes them: an int or a tuple, padding one number a side."""

from __future__ import annotations

from typing import Any

import libcst as cst

from .. import helpers
from ..arguments import Arguments
from ..module import UNKNOWN
from ..options import Left
from ..site import Site

_SIMPLE = (cst.Name, cst.Integer, cst.Attribute)


def size(site: Site, arguments: Arguments, name: str, rank: int = 3) -> cst.BaseExpression | str | None:
    """The new expression of kernel_size, stride, dilation or output_padding; None keeps the old one."""
    node, value = arguments.node(name), arguments.constant(name)
    if node is None:
        return None
    if value is not UNKNOWN:
        return _known_size(arguments, name, value, node, rank)
    if isinstance(node, cst.Tuple) or arguments.module.is_int(node) or _makes_a_tuple(node):
        return None
    if isinstance(node, cst.List):
        return _as_tuple(arguments.new(name))
    return _call(site.needs.helper(helpers.SIZES), arguments.new(name))


def padding(site: Site, arguments: Arguments, rank: int = 3) -> cst.BaseExpression | str | None:
    """The new expression of padding; None keeps the old one."""
    node, value = arguments.node("padding"), arguments.constant("padding")
    if node is None:
        return None
    if value is not UNKNOWN:
        entries = triple("padding", value, rank)
        if len(set(entries)) == 1:
            return None if type(value) is int else repr(entries[0])
        return repr(tuple(side for entry in entries for side in (entry, entry)))
    if arguments.module.is_int(node):
        return None
    if isinstance(node, (cst.Tuple, cst.List)) and all(isinstance(e.value, _SIMPLE) for e in node.elements):
        new = arguments.new("padding")
        assert isinstance(new, (cst.Tuple, cst.List))
        texts = [arguments.module.code(element.value) for element in new.elements]
        return f"({', '.join(side for text in texts for side in (text, text))})"
    return _call(site.needs.helper(helpers.SIDES), arguments.new("padding"))


def triple(name: str, value: Any, rank: int = 3) -> tuple[int, ...]:
    """The numbers per axis of a known size; Left where PyTorch would refuse it."""
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(entries) == 1:
        entries *= rank
    if isinstance(value, str) or len(entries) != rank or not all(isinstance(entry, int) for entry in entries):
        raise Left(f"{name}={value!r} is refused by PyTorch")
    return tuple(int(entry) for entry in entries)


def _known_size(
    arguments: Arguments, name: str, value: Any, node: cst.BaseExpression, rank: int
) -> cst.BaseExpression | str | None:
    entries = triple(name, value, rank)
    if type(value) is bool or (isinstance(value, (tuple, list)) and len(value) == 1):
        return repr(entries[0])
    if isinstance(value, list):
        return _as_tuple(arguments.new(name)) if isinstance(node, cst.List) else f"tuple({arguments.text(name)})"
    return None


def _as_tuple(node: cst.BaseExpression) -> cst.BaseExpression:
    assert isinstance(node, cst.List)
    return cst.Tuple(node.elements, lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _makes_a_tuple(node: cst.BaseExpression) -> bool:
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == "tuple"


def _call(function: str, argument: cst.BaseExpression) -> cst.Call:
    return cst.Call(cst.Name(function), [cst.Arg(argument)])
