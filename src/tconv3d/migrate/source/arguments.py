# SPDX-License-Identifier: Apache-2.0
"""The arguments of one call: bound to parameter names, then written back with the formatting that they had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import libcst as cst

from . import helpers
from .module import UNKNOWN, Module
from .options import Left


@dataclass(frozen=True)
class Argument:
    """One argument before and after what it holds was rewritten; `original` is the node that Module knows."""

    original: cst.Arg
    updated: cst.Arg
    position: int


class Arguments:
    """A call's arguments by parameter name. Left is raised for what cannot be bound without running the code."""

    def __init__(
        self, module: Module, original: cst.Call, updated: cst.Call, parameters: Sequence[str], skip: int = 0
    ) -> None:
        self.module = module
        self.original, self.updated = original, updated
        self.skipped = list(updated.args[:skip])
        self.by_name: dict[str, Argument] = {}
        pairs = list(zip(original.args, updated.args, strict=True))[skip:]
        for position, (old, new) in enumerate(pairs):
            name = self._name(old, position, parameters)
            if name in self.by_name:
                raise Left(f"argument {name!r} is given twice")
            self.by_name[name] = Argument(old, new, position if old.keyword is None else -1)

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def node(self, name: str) -> cst.BaseExpression | None:
        """The expression as it stood before; None where the argument is not given."""
        return self.by_name[name].original.value if name in self.by_name else None

    def inner(self, name: str) -> cst.BaseExpression | None:
        """The expression without the helper that an earlier migration put around it."""
        node = self.node(name)
        return node.args[0].value if _is_helped(node) else node  # type: ignore[union-attr]

    def new(self, name: str) -> cst.BaseExpression:
        """The expression with everything inside it rewritten."""
        value = self.by_name[name].updated.value
        return value.args[0].value if _is_helped(value) else value  # type: ignore[attr-defined]

    def constant(self, name: str, default: Any = None) -> Any:
        """The value where it is known, `default` where the argument is not given, else UNKNOWN."""
        node = self.node(name)
        return default if node is None else self.module.constant(node)

    def require(self, name: str, default: Any = None) -> Any:
        """The value; Left where it is not known."""
        value = self.constant(name, default)
        if value is UNKNOWN:
            raise Left(f"{name}={self.text(name)} is not known without running the code")
        return value

    def text(self, name: str) -> str:
        """The argument's source text on one line."""
        node = self.inner(name)
        return "" if node is None else " ".join(self.module.code(node).split())

    def _name(self, arg: cst.Arg, position: int, parameters: Sequence[str]) -> str:
        if arg.star:
            raise Left(f"{arg.star}{self.module.code(arg.value)} is not known without running the code")
        if arg.keyword is not None:
            if arg.keyword.value not in parameters:
                raise Left(f"argument {arg.keyword.value!r} is not one of this call's")
            return arg.keyword.value
        if position >= len(parameters):
            raise Left(f"more than {len(parameters)} arguments")
        return parameters[position]


class Plan:
    """What becomes of each argument: kept under a name, given a new value, or dropped; and what is added."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._kept: dict[str, tuple[str, cst.BaseExpression]] = {}
        self._added: list[tuple[str, cst.BaseExpression]] = []

    def keep(self, name: str, new_name: str | None = None, value: cst.BaseExpression | str | None = None) -> None:
        """Write the argument `name`, if given, as `new_name` with `value` (default: its own, rewritten)."""
        if name in self._arguments:
            expression = self._arguments.new(name) if value is None else _expression(value)
            self._kept[name] = (new_name or name, expression)

    def put(self, name: str, value: cst.BaseExpression | str, instead_of: Sequence[str] = ()) -> None:
        """Write `name=value` where the first given one of `instead_of` stood, else behind everything."""
        for old in instead_of:
            if old in self._arguments and old not in self._kept:
                self._kept[old] = (name, _expression(value))
                return
        self._added.append((name, _expression(value)))

    def args(self, positional: Sequence[str]) -> list[cst.Arg]:
        """The new arguments; those that stay at their place among `positional`, the target's order, stay without a"
        " keyword."""
        given = sorted(self._arguments.by_name.items(), key=lambda item: _order(self._arguments, item[1]))
        result = list(self._arguments.skipped)
        unbroken = True
        for name, argument in given:
            if name not in self._kept:
                unbroken = False
                _hand_over_comment(argument.updated, result)
                continue
            new_name, value = self._kept[name]
            place = argument.position
            unbroken = unbroken and 0 <= place < len(positional) and positional[place] == new_name
            result.append(_arg(argument.updated, new_name, value, positional=unbroken))
        return _with_commas(self._arguments.updated, [*result, *(_keyword(*added) for added in self._added)])


def _is_helped(node: cst.BaseExpression | None) -> bool:
    named = isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and len(node.args) == 1
    return named and node.func.value in (helpers.SIZES, helpers.SIDES)  # type: ignore[union-attr]


def _order(arguments: Arguments, argument: Argument) -> int:
    return list(arguments.original.args).index(argument.original)


def _arg(old: cst.Arg, name: str, value: cst.BaseExpression, positional: bool) -> cst.Arg:
    if positional:
        return old.with_changes(value=value)
    if old.keyword is not None:
        return old.with_changes(keyword=cst.Name(name), value=value)
    return _keyword(name, value).with_changes(comma=old.comma, whitespace_after_arg=old.whitespace_after_arg)


def _keyword(name: str, value: cst.BaseExpression) -> cst.Arg:
    bare = cst.SimpleWhitespace("")
    return cst.Arg(value, keyword=cst.Name(name), equal=cst.AssignEqual(bare, bare))


def _expression(value: cst.BaseExpression | str) -> cst.BaseExpression:
    return cst.parse_expression(value) if isinstance(value, str) else value


def _hand_over_comment(dropped: cst.Arg, kept: list[cst.Arg]) -> None:
    """A comment behind an argument that goes moves behind the one before it, if that has none."""
    if kept and _has_comment(dropped) and not _has_comment(kept[-1]):
        kept[-1] = kept[-1].with_changes(comma=dropped.comma)


def _has_comment(arg: cst.Arg) -> bool:
    space = arg.comma.whitespace_after if isinstance(arg.comma, cst.Comma) else None
    if not isinstance(space, cst.ParenthesizedWhitespace):
        return False
    return space.first_line.comment is not None or any(line.comment for line in space.empty_lines)


def _with_commas(call: cst.Call, args: list[cst.Arg]) -> list[cst.Arg]:
    """The list with the separators that the call had: one argument a line stays one argument a line."""
    if not args or not call.args:
        return args
    last, before_args = call.args[-1].comma, call.whitespace_before_args
    between: Any = cst.MaybeSentinel.DEFAULT
    if len(call.args) > 1 and isinstance(call.args[0].comma, cst.Comma):
        space = call.args[0].comma.whitespace_after
        if isinstance(space, cst.ParenthesizedWhitespace):
            bare = space.with_changes(first_line=cst.TrailingWhitespace(), empty_lines=[])
            between = cst.Comma(whitespace_after=bare)
    elif isinstance(before_args, cst.ParenthesizedWhitespace):
        between = cst.Comma(whitespace_after=before_args)
    fixed = []
    for index, arg in enumerate(args):
        closes = arg.comma is last and last is not cst.MaybeSentinel.DEFAULT
        if index == len(args) - 1:
            # Whatever stood before the closing bracket stands there again.
            fixed.append(arg.with_changes(comma=last if not _has_comment(arg) or closes else arg.comma))
        elif closes or not isinstance(arg.comma, cst.Comma):
            fixed.append(arg.with_changes(comma=between))
        else:
            fixed.append(arg)
    return fixed
