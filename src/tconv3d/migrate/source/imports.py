# SPDX-License-Identifier: Apache-2.0
"""Settle what a rewritten file imports: drop what nothing uses any more, add what the new code needs, and helpers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import libcst as cst
from libcst.metadata import GlobalScope, ImportAssignment, MetadataWrapper, ScopeProvider

from . import helpers
from .site import Needs, placeholder

Statement = Any  # what a module's body holds; LibCST names no type for it

# module -> (import statement with {} for the name, preferred name, name where that is taken)
_STATEMENTS = {
    "mindspore": ("import mindspore{}", "mindspore", "ms"),
    "mindspore.nn": ("from mindspore import nn{}", "nn", "ms_nn"),
    "mindspore.ops": ("from mindspore import ops{}", "ops", "ms_ops"),
    "mindspore.common.initializer": ("from mindspore.common import initializer{}", "initializer", "ms_initializer"),
    "torch": ("import torch{}", "torch", "pt"),
    "torch.nn": ("from torch import nn{}", "nn", "torch_nn"),
    "torch.nn.functional": ("from torch.nn import functional{}", "F", "torch_F"),
    "torch.nn.init": ("from torch.nn import init{}", "init", "torch_init"),
    "functools": ("import functools{}", "functools", "functools_"),
    "tconv3d.mindspore": ("from tconv3d import mindspore{}", "tconv3d_mindspore", "tconv3d_ms"),
    "tconv3d.torch": ("from tconv3d import torch{}", "tconv3d_torch", "tconv3d_pt"),
}
_HELPER_MODULES = {
    helpers.CROPPED: ("torch.nn", helpers.NN),
    helpers.FUNCTION: ("torch.nn.functional", helpers.F),
}


def settle(code: str, source: str, needs: Needs) -> str:
    """The final text of the rewritten `code`, in which modules are placeholders still."""
    for helper in needs.helpers & set(_HELPER_MODULES):
        needs.modules.add(_HELPER_MODULES[helper][0])
    tree = cst.parse_module(code)
    tree, place = _without(tree, _unused(tree, source))
    names, statements = _names(tree, sorted(needs.modules))
    body: list[Statement] = list(tree.body)
    body[place:place] = [cst.parse_statement(statement) for statement in statements]
    body = _with_helpers(body, needs.helpers, names)
    code = tree.with_changes(body=body).code
    for module, name in names.items():
        code = code.replace(placeholder(module), name)
    return code


def _unused(tree: cst.Module, source: str) -> set[tuple[str, str]]:
    """(module, bound name) of every import of the source framework that nothing refers to."""
    wrapper = MetadataWrapper(tree)
    found: dict[tuple[str, str], bool] = {}
    for scope in set(wrapper.resolve(ScopeProvider).values()):
        for assignment in scope.assignments if scope else ():
            if isinstance(assignment, ImportAssignment):
                for key in _imported(assignment.node):
                    if key[0].partition(".")[0] == source and _binds(key, assignment.name):
                        found[key] = found.get(key, False) or bool(assignment.references)
    return {key for key, used in found.items() if not used}


def _imported(node: cst.CSTNode) -> list[tuple[str, str]]:
    """(full dotted name, bound name) of every alias of an import statement."""
    if isinstance(node, cst.Import):
        return [(_dotted(a.name), _bound(a) or _dotted(a.name)) for a in node.names]
    if isinstance(node, cst.ImportFrom) and node.module is not None and not isinstance(node.names, cst.ImportStar):
        module = "." * len(node.relative) + _dotted(node.module)
        return [(f"{module}.{_dotted(a.name)}", _bound(a) or _dotted(a.name)) for a in node.names]
    return []


def _binds(key: tuple[str, str], name: str) -> bool:
    return key[1] == name or key[1].partition(".")[0] == name


def _bound(alias: cst.ImportAlias) -> str | None:
    return alias.asname.name.value if alias.asname and isinstance(alias.asname.name, cst.Name) else None


def _dotted(node: cst.CSTNode) -> str:
    if isinstance(node, cst.Attribute):
        return f"{_dotted(node.value)}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else ""


def _without(tree: cst.Module, unused: set[tuple[str, str]]) -> tuple[cst.Module, int]:
    """The module without these imports, and the index in its body where new ones belong."""
    remover = _Remover(unused)
    body: list[Statement] = []
    place, last_import, carried = None, 0, list[cst.EmptyLine]()
    for statement in tree.body:
        new = statement.visit(remover)
        if not isinstance(new, (cst.SimpleStatementLine, cst.BaseCompoundStatement)):
            place = len(body) if place is None else place
            carried += [line for line in getattr(statement, "leading_lines", ()) if line.comment]
            continue
        if carried and hasattr(new, "leading_lines"):
            new = new.with_changes(leading_lines=[*carried, *new.leading_lines])
            carried = []
        if new is not statement and _is_import(statement):
            place = len(body) if place is None else place
        body.append(new)
        if _is_import(new) or _is_docstring(new, len(body)):
            last_import = len(body)
    tree = tree.with_changes(body=body)
    if carried:
        tree = tree.with_changes(footer=[*carried, *tree.footer])
    return tree, last_import if place is None else place


class _Remover(cst.CSTTransformer):
    def __init__(self, unused: set[tuple[str, str]]) -> None:
        super().__init__()
        self._unused = unused

    def leave_Import(self, original_node: cst.Import, updated_node: cst.Import) -> cst.Import | cst.RemovalSentinel:
        return self._kept(updated_node)  # type: ignore[return-value]

    def leave_ImportFrom(
        self, original_node: cst.ImportFrom, updated_node: cst.ImportFrom
    ) -> cst.ImportFrom | cst.RemovalSentinel:
        return self._kept(updated_node)  # type: ignore[return-value]

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.RemovalSentinel:
        return updated_node if updated_node.body else cst.RemoveFromParent()

    def _kept(self, node: cst.Import | cst.ImportFrom) -> cst.BaseSmallStatement | cst.RemovalSentinel:
        keys = _imported(node)
        gone = {index for index, key in enumerate(keys) if key in self._unused}
        if not gone:
            return node
        if len(gone) == len(keys):
            return cst.RemoveFromParent()
        assert not isinstance(node.names, cst.ImportStar)
        kept = [alias for index, alias in enumerate(node.names) if index not in gone]
        closing = node.names[-1].comma if isinstance(node, cst.ImportFrom) and node.lpar else cst.MaybeSentinel.DEFAULT
        return node.with_changes(names=[*kept[:-1], kept[-1].with_changes(comma=closing)])


def _is_import(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.SimpleStatementLine) and any(
        isinstance(s, (cst.Import, cst.ImportFrom)) for s in node.body
    )


def _is_docstring(node: cst.CSTNode, position: int) -> bool:
    if position != 1 or not isinstance(node, cst.SimpleStatementLine) or not isinstance(node.body[0], cst.Expr):
        return False
    return isinstance(node.body[0].value, (cst.SimpleString, cst.ConcatenatedString))


def _names(tree: cst.Module, modules: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The local name of every needed module, and the statements that import those which are not imported yet."""
    wrapper = MetadataWrapper(tree)
    scopes = set(wrapper.resolve(ScopeProvider).values())
    existing: dict[str, str] = {}
    for scope in scopes:
        if isinstance(scope, GlobalScope):
            for assignment in scope.assignments:
                if isinstance(assignment, ImportAssignment):
                    existing |= dict(_imported(assignment.node))
    reader = _Names()
    tree.visit(reader)
    names, statements = {}, []
    for module in modules:
        if module in existing:
            names[module] = existing[module]
            continue
        statement, preferred, fallback = _STATEMENTS[module]
        name = preferred if preferred not in reader.names else fallback
        last = statement.format("").split()[-1]
        names[module] = name
        reader.names.add(name)
        statements.append(statement.format("" if name == last else f" as {name}"))
    return names, statements


class _Names(cst.CSTVisitor):
    """Every identifier of a file that is not an attribute."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Name(self, node: cst.Name) -> None:
        self.names.add(node.value)

    def visit_Attribute_attr(self, node: cst.Attribute) -> None:
        self.names.discard(node.attr.value)


def _with_helpers(body: list[Statement], wanted: set[str], names: dict[str, str]) -> list[Statement]:
    """The body with the definitions of `wanted` behind the last import, unless it has them already."""
    defined = {s.name.value for s in body if isinstance(s, (cst.FunctionDef, cst.ClassDef))}
    words = {"nn": names.get("torch.nn", ""), "F": names.get("torch.nn.functional", ""), "ops": ""}
    texts = [helpers.TEXTS[name] for name in helpers.TEXTS if name in wanted - defined]
    if not texts:
        return body
    added: list[Statement] = []
    for text in texts:
        for key, value in words.items():
            text = text.replace(f"{{{key}}}", value)
        statement = cst.parse_statement(text.strip("\n"))
        added.append(statement.with_changes(leading_lines=[cst.EmptyLine(indent=False)] * 2))
    at = max((i + 1 for i, s in enumerate(body) if _is_import(s)), default=_is_docstring_first(body))
    rest = list(body[at:])
    if rest:
        lines = [line for line in rest[0].leading_lines if line.comment] if hasattr(rest[0], "leading_lines") else []
        rest[0] = rest[0].with_changes(leading_lines=[cst.EmptyLine(indent=False)] * 2 + lines)
    return [*body[:at], *added, *rest]


def _is_docstring_first(body: Sequence[cst.CSTNode]) -> int:
    return int(bool(body) and _is_docstring(body[0], 1))
