# SPDX-License-Identifier: Apache-2.0
"""One parsed file: what a name stands for, which constants are known, where a call's result goes. Nothing is run."""

from __future__ import annotations

import ast
from typing import Any

import libcst as cst
from libcst.metadata import (
    Assignment,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    QualifiedNameProvider,
    QualifiedNameSource,
    ScopeProvider,
)

from ..signature import NotLiteral, literal
from . import helpers, known
from .parse import parse

UNKNOWN = object()
_DEPTH = 40  # of names that stand for names; beyond it nobody can read the file either


class Module:
    """Read-only knowledge about the tree in `wrapper`; every node passed in must come from `wrapper.module`."""

    def __init__(self, text: str) -> None:
        self.wrapper = MetadataWrapper(parse(text), unsafe_skip_copy=True)
        providers = (ScopeProvider, QualifiedNameProvider, ParentNodeProvider, PositionProvider)
        found: list[Any] = [self.wrapper.resolve(provider) for provider in providers]
        self._scopes, self._names, self._parents, self._positions = found
        survey = _Survey()
        self.tree.visit(survey)
        self._values, self.sized_calls = survey.values, survey.sized_calls
        self._results, self.classes, self.functions = survey.results, survey.classes, survey.functions
        self._stars = survey.stars

    @property
    def tree(self) -> cst.Module:
        """The module as it was read."""
        return self.wrapper.module

    def line(self, node: cst.CSTNode) -> int:
        """Where the node starts, counted from 1."""
        return int(self._positions[node].start.line)

    def parent(self, node: cst.CSTNode) -> cst.CSTNode | None:
        """The node around this one."""
        around: cst.CSTNode | None = self._parents.get(node)
        return around

    def code(self, node: cst.CSTNode) -> str:
        """The node's text."""
        return self.tree.code_for_node(node)

    def resolve(self, node: cst.CSTNode, depth: int = _DEPTH) -> str | None:
        """The canonical dotted name of what an expression stands for, through imports and aliases; None if unclear.

        >>> module = Module("from torch import nn as N\\nUp = N.modules.ConvTranspose3d\\nUp(1, 2, 3)")
        >>> module.resolve(module.tree.body[2].body[0].value.func)
        'torch.nn.ConvTranspose3d'
        """
        if depth and isinstance(node, cst.Attribute):
            base = self.resolve(node.value, depth - 1)
            return known.canonical(f"{base}.{node.attr.value}") if base else None
        if not depth or not isinstance(node, cst.Name):
            return None
        found: Any = self._names.get(node) or ()
        names = list(found() if callable(found) else found)  # computed when first asked for
        imported = {known.canonical(name.name) for name in names if name.source is QualifiedNameSource.IMPORT}
        if len(imported) == 1 and len(names) == 1:
            return imported.pop()
        if node.value == helpers.CROPPED and node.value in self.classes:
            return known.TORCH_CROPPED
        if node.value == helpers.FUNCTION and node.value in self.functions:
            return known.TORCH_SAME_FUNCTION
        if not names or all(name.source is QualifiedNameSource.BUILTIN for name in names):
            return self._starred(node.value)
        value = self._single_value(node)
        return None if value is None else self.resolve(value, depth - 1)

    def is_alias(self, node: cst.CSTNode) -> bool:
        """Whether the name was given in this file by an assignment and not by an import."""
        return isinstance(node, cst.Name) and self._single_value(node) is not None

    def constant(self, node: cst.CSTNode) -> Any:
        """The value of a literal, of arithmetic on literals, or of a name that is only ever assigned one; or UNKNOWN.

        >>> module = Module("k = 5\\nf((k - 1) // 2)")
        >>> module.constant(module.tree.body[1].body[0].value.args[0].value)
        2
        """
        try:
            return literal(self._substituted(node, _DEPTH))
        except (NotLiteral, SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
            return UNKNOWN

    def is_int(self, node: cst.CSTNode) -> bool:
        """Whether the value is certainly an integer, though maybe not known: a constant, arithmetic, an annotation."""
        if isinstance(node, cst.BinaryOperation):
            if isinstance(node.operator, (cst.FloorDivide, cst.Modulo, cst.Subtract)):
                return self.is_int(node.left) or self.is_int(node.right)
            return self.is_int(node.left) and self.is_int(node.right)
        return type(self.constant(node)) is int or self._annotation(node) == "int"

    def is_bool(self, node: cst.CSTNode) -> bool:
        """Whether the value is certainly a bool."""
        if isinstance(node, (cst.Comparison, cst.UnaryOperation)):
            return isinstance(node, cst.Comparison) or isinstance(node.operator, cst.Not)
        return isinstance(self.constant(node), bool) or self._annotation(node) == "bool"

    def result_name(self, call: cst.Call) -> str | None:
        """'self.up' for the call in `self.up = ...`; None where the result goes elsewhere."""
        return self._results.get(call)

    def references(self, node: cst.Name) -> list[cst.CSTNode]:
        """Every place that reads the name which `node`, the target of an assignment, is given here."""
        found = self._assignments(node)
        return [access.node for assignment in found for access in assignment.references]

    def owner(self, node: cst.CSTNode) -> cst.ClassDef | None:
        """The class whose body holds the node, if any."""
        current = self.parent(node)
        while current is not None and not isinstance(current, cst.ClassDef):
            current = self.parent(current)
        return current

    def bases(self, definition: cst.ClassDef, depth: int = _DEPTH) -> set[str]:
        """The canonical names of every class of a framework above this one, through classes of the same file."""
        found: set[str] = set()
        for base in definition.bases:
            name = self.resolve(base.value)
            if name:
                found.add(name)
            elif depth and isinstance(base.value, cst.Name) and base.value.value in self.classes:
                found |= self.bases(self.classes[base.value.value], depth - 1)
        return found

    def _starred(self, name: str) -> str | None:
        matches = {full for star in self._stars if known.knows(full := known.canonical(f"{star}.{name}"))}
        return matches.pop() if len(matches) == 1 else None

    def _assignments(self, node: cst.Name) -> list[Assignment]:
        scope: Any = self._scopes.get(node)
        return [] if scope is None else [each for each in scope[node.value] if isinstance(each, Assignment)]

    def _single_value(self, node: cst.Name) -> cst.BaseExpression | None:
        """What the name is assigned, if that happens exactly once and plainly."""
        found = self._assignments(node)
        return self._values.get(found[0].node) if len(found) == 1 else None

    def _annotation(self, node: cst.CSTNode) -> str:
        found = self._assignments(node) if isinstance(node, cst.Name) else []
        if len(found) == 1 and isinstance(found[0].node, cst.Param) and found[0].node.annotation:
            return self.code(found[0].node.annotation.annotation)
        return ""

    def _substituted(self, node: cst.CSTNode, depth: int) -> ast.expr:
        """The expression as `ast`, with every name that has one plain value replaced by it."""
        if not depth:
            raise NotLiteral("a name that stands for itself")
        if isinstance(node, cst.Name):
            value = self._single_value(node)
            if value is not None:
                return self._substituted(value, depth - 1)
        if isinstance(node, cst.BinaryOperation):
            tree = ast.parse(f"0 {self.code(node.operator).strip()} 0", mode="eval").body
            assert isinstance(tree, ast.BinOp)
            tree.left, tree.right = self._substituted(node.left, depth - 1), self._substituted(node.right, depth - 1)
            return tree
        if isinstance(node, (cst.Tuple, cst.List)):
            elements = [self._substituted(element.value, depth - 1) for element in node.elements if _plain(element)]
            if len(elements) != len(node.elements):
                raise NotLiteral("a starred element")
            return ast.Tuple(elements, ast.Load()) if isinstance(node, cst.Tuple) else ast.List(elements, ast.Load())
        return ast.parse(self.code(node).strip(), mode="eval").body


class _Survey(cst.CSTVisitor):
    """One walk that gathers what the questions above need."""

    def __init__(self) -> None:
        self.values: dict[cst.CSTNode, cst.BaseExpression] = {}
        self.results: dict[cst.Call, str] = {}
        self.sized_calls: dict[str, cst.Call] = {}  # 'self.up' -> a call of it with an output size
        self.classes: dict[str, cst.ClassDef] = {}
        self.functions: set[str] = set()
        self.stars: list[str] = []

    def visit_Assign(self, node: cst.Assign) -> None:
        if len(node.targets) == 1:
            self._assign(node.targets[0].target, node.value)

    def visit_AnnAssign(self, node: cst.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)

    def _assign(self, target: cst.BaseExpression, value: cst.BaseExpression) -> None:
        if isinstance(target, cst.Name):
            self.values[target] = value
        if isinstance(value, cst.Call) and (name := _dotted(target)):
            self.results[value] = name

    def visit_Call(self, node: cst.Call) -> None:
        sized = any(arg.keyword is not None and arg.keyword.value == "output_size" for arg in node.args)
        positional = sum(arg.keyword is None and not arg.star for arg in node.args)
        name = _dotted(node.func)
        if name and (sized or positional == 2):
            self.sized_calls.setdefault(name, node)

    def visit_ClassDef(self, node: cst.ClassDef) -> None:
        self.classes[node.name.value] = node

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        self.functions.add(node.name.value)

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        if isinstance(node.names, cst.ImportStar) and node.module is not None and not node.relative:
            self.stars.append(_dotted(node.module) or "")


def _dotted(node: cst.CSTNode) -> str | None:
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        base = _dotted(node.value)
        return f"{base}.{node.attr.value}" if base else None
    return None


def _plain(element: cst.BaseElement) -> bool:
    return isinstance(element, cst.Element)
