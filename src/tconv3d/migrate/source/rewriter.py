# SPDX-License-Identifier: Apache-2.0
"""One walk over a file that puts every place before its transformation, and keeps count of what stays."""

from __future__ import annotations

import libcst as cst

from . import helpers, known
from .module import Module
from .options import Left, Note, Options
from .site import Needs, Site
from .transformations import LAYERS, class_target, is_same, rules, to_array

_METHODS = {"torch": ("forward", "construct"), "mindspore": ("construct", "forward")}
_MODULES = {"torch": "torch.nn.", "mindspore": "mindspore.nn."}
# Attributes of the layer that a subclass may read and that the other framework calls or stores differently.
_OTHER_ATTRIBUTES = {
    "torch": {"groups", "padding", "padding_mode", "transposed", "_output_padding", "reset_parameters"},
    "mindspore": {"group", "padding", "pad_mode", "has_bias", "weight_init", "bias_init", "data_format", "bias_add"},
}
_MODULE_LIKE = {"torch": "torch", "mindspore": "mindspore"}


class Rewriter(cst.CSTTransformer):
    """Rewrites `module`; afterwards `notes` is the report, `needs` what the imports must provide."""

    def __init__(self, module: Module, options: Options, blocked: dict[cst.ClassDef, str]) -> None:
        super().__init__()
        self.module, self.options, self.blocked = module, options, blocked
        self.newly_blocked: dict[cst.ClassDef, str] = {}
        self.needs, self.notes = Needs(), list[Note]()
        self._rules = rules(options)
        self._old_method, self._new_method = _METHODS[options.source]
        self._before: dict[cst.Call, tuple[int, set[str], set[str]]] = {}  # the state when the walk entered a call
        self._partials: dict[cst.Call, str] = {}  # functools.partial(function, ...) -> the function's name
        self._seen: set[cst.CSTNode] = set()  # names that belong to something already dealt with

    # What is not looked into.

    def visit_Import(self, node: cst.Import) -> bool:
        return False

    def visit_ImportFrom(self, node: cst.ImportFrom) -> bool:
        return False

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:
        if self._is_helper(node):
            return False
        reason = self.blocked.get(node) or self._unlike_subclass(node)
        if reason:
            self._left(node, f"class {node.name.value}: {reason}")
            return False
        for base in node.bases:
            self._seen.add(base.value)
        return True

    def visit_Attribute(self, node: cst.Attribute) -> None:
        self._seen.add(node.value)
        self._seen.add(node.attr)

    def visit_Call(self, node: cst.Call) -> None:
        self._before[node] = (len(self.notes), set(self.needs.modules), set(self.needs.helpers))
        if self._callee(node) is not None:
            self._seen.add(node.func)
        elif self.module.resolve(node.func) == "functools.partial" and node.args:
            name = self.module.resolve(node.args[0].value) or ""
            if name.rpartition(".")[2].islower() and name in self._rules:
                self._partials[node] = name
                self._seen.add(node.args[0].value)

    def visit_Arg_keyword(self, node: cst.Arg) -> None:
        if node.keyword is not None:
            self._seen.add(node.keyword)

    # Calls.

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        name = self._callee(original_node)
        if name is None:
            array = to_array.rewritten(updated_node, self.options.to)
            if array is not None:
                self._rewritten(original_node, "the tensor's array")
                return array
            return self._partial(original_node, updated_node)
        rule = self._rules.get(name)
        if rule is None:
            if not self._is_a_law_of_a_layer(original_node, name):
                self._left(original_node, f"no rule for {name}")
            return updated_node
        if name == known.TORCH_LAZY:
            name = known.TORCH_LAYER
        tools = (self.module, self.options, self.needs, self.notes)
        site = Site(original_node, updated_node, *tools, skip=self._skip(original_node))
        try:
            self._check_alias(original_node.func)
            new = rule.apply(site)
        except Left as reason:
            self._forget(original_node)
            owner = self.module.owner(original_node)
            if site.is_super and owner is not None:
                self.newly_blocked[owner] = str(reason)
            self._left(original_node, str(reason))
            return original_node
        if not new.deep_equals(original_node):
            self._rewritten(original_node, name)
        around = self.module.parent(original_node)
        if isinstance(around, cst.Attribute) and name.startswith(_MODULES[self.options.source]) and not site.is_super:
            self._left(around, f".{around.attr.value} of the new layer: whether it has that is not known")
        return new

    def _forget(self, call: cst.Call) -> None:
        """Undo what was noted inside a call that stays as it was."""
        notes, self.needs.modules, self.needs.helpers = self._before[call]
        self.notes[notes:] = [note for note in self.notes[notes:] if note.kind == "left"]

    def _partial(self, old: cst.Call, new: cst.Call) -> cst.Call:
        """functools.partial of a function, whose keywords are rewritten as if it were called."""
        if old not in self._partials:
            return new
        tools = (self.module, self.options, self.needs, self.notes)
        try:
            made = self._rules[self._partials[old]].apply(Site(old, new, *tools, skip=1))
        except Left as reason:
            self._left(old, str(reason))
            return new
        assert isinstance(made, cst.Call)
        self._rewritten(old, self._partials[old])
        return new.with_changes(args=[cst.Arg(made.func, comma=made.args[0].comma), *made.args[1:]])

    def _callee(self, call: cst.Call) -> str | None:
        """The canonical name of what is constructed or called, if it is the source framework's and called by name,"
        " by super().__init__, or by a class of this file that adds no constructor of its own."""
        func = call.func
        if isinstance(func, cst.Attribute) and func.attr.value == "__init__":
            return self._super_init(call, func)
        if isinstance(func, cst.Name) and func.value in self.module.classes and self.module.resolve(func) is None:
            return self._constructor(self.module.classes[func.value])
        name = self.module.resolve(func)
        return name if name and self._is_source(name) else None

    def _is_a_law_of_a_layer(self, call: cst.Call, name: str) -> bool:
        """Whether this is weight_init=Normal(...) and such, which the layer's own rule reads."""
        argument = self.module.parent(call)
        around = self.module.parent(argument) if argument is not None else None
        is_law = name.startswith("mindspore.common.initializer.")
        return is_law and isinstance(around, cst.Call) and self._callee(around) in LAYERS

    def _super_init(self, call: cst.Call, func: cst.Attribute) -> str | None:
        value = func.value
        owner = self.module.owner(call)
        if isinstance(value, cst.Call) and isinstance(value.func, cst.Name) and value.func.value == "super" and owner:
            name = self._constructor(owner, skip_own=True)
        else:
            name = self.module.resolve(value)
        return name if name in LAYERS and self._is_source(name) else None

    def _constructor(self, definition: cst.ClassDef, skip_own: bool = False, depth: int = 20) -> str | None:
        """The framework's layer whose constructor runs when the class is called, if no other comes first."""
        own = any(isinstance(s, cst.FunctionDef) and s.name.value == "__init__" for s in definition.body.body)
        if (own and not skip_own) or not definition.bases or not depth:
            return None
        base = definition.bases[0].value
        name = self.module.resolve(base)
        if name:
            return name if name in LAYERS and self._is_source(name) else None
        above = self.module.classes.get(base.value) if isinstance(base, cst.Name) else None
        if above is not None and above in self.blocked:
            return None
        return self._constructor(above, depth=depth - 1) if above is not None else None

    def _skip(self, call: cst.Call) -> int:
        """1 for Base.__init__(self, ...), whose first argument is not the constructor's."""
        func = call.func
        if isinstance(func, cst.Attribute) and func.attr.value == "__init__":
            return int(not isinstance(func.value, cst.Call))
        return 0

    # Names that are not called.

    def leave_Attribute(self, original_node: cst.Attribute, updated_node: cst.Attribute) -> cst.BaseExpression:
        if original_node not in self._seen:
            replaced = self._reference(original_node)
            if replaced is not None:
                return replaced
        return self._method_call(original_node, updated_node)

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        if original_node in self._seen or self.module.is_alias(original_node):
            return updated_node
        return self._reference(original_node) or updated_node

    def _reference(self, node: cst.Attribute | cst.Name) -> cst.BaseExpression | None:
        name = self.module.resolve(node)
        if name is None or not self._is_source(name):
            return None
        target = class_target(name, self.options)
        if target and (is_same(name, self.options) or self._is_type_position(node) or self._is_clean_alias(node)):
            self._rewritten(node, name)
            return cst.parse_expression(self.needs.name(target))
        if isinstance(node, cst.Name) and name in _MODULE_LIKE.values():
            reason = f"the module {name} itself is passed on"
        elif target or name in self._rules:
            reason = f"{name} is passed on as a value: the calls that it ends in cannot be seen"
        else:
            reason = f"no rule for {name}"
        self._left(node, reason)
        return None

    def _is_type_position(self, node: cst.CSTNode) -> bool:
        """Whether the class stands in isinstance, in a comparison of types or in an annotation."""
        around = self.module.parent(node)
        while isinstance(
            around,
            (cst.Element, cst.Tuple, cst.BinaryOperation, cst.Subscript, cst.SubscriptElement, cst.Index, cst.Arg),
        ):
            around = self.module.parent(around)
        if isinstance(around, cst.Call) and isinstance(around.func, cst.Name):
            return around.func.value in ("isinstance", "issubclass")
        return isinstance(around, (cst.Annotation, cst.ComparisonTarget, cst.Comparison))

    def _is_clean_alias(self, node: cst.CSTNode) -> bool:
        """Whether the class is only given another name here, and that name is only called or tested."""
        assign = self.module.parent(node)
        if not isinstance(assign, cst.Assign) or len(assign.targets) != 1:
            return False
        target = assign.targets[0].target
        return isinstance(target, cst.Name) and self._only_called(target)

    def _only_called(self, target: cst.Name) -> bool:
        places = self.module.references(target)
        parents = [self.module.parent(place) for place in places]
        return all(
            (isinstance(around, cst.Call) and around.func is place)
            or isinstance(around, cst.Attribute)
            or self._is_type_position(place)
            for place, around in zip(places, parents, strict=True)
        )

    def _check_alias(self, func: cst.BaseExpression) -> None:
        if isinstance(func, cst.Name) and self.module.is_alias(func) and not self._only_called(func):
            raise Left(f"{func.value}, another name of the class, is also passed on as a value")

    # Classes and their methods.

    def leave_ClassDef(
        self, original_node: cst.ClassDef, updated_node: cst.ClassDef
    ) -> cst.ClassDef | cst.RemovalSentinel:
        if self._is_helper(original_node):
            return cst.RemoveFromParent()
        if original_node in self.blocked or self._unlike_subclass(original_node):
            return updated_node
        bases = []
        for old, new in zip(original_node.bases, updated_node.bases, strict=True):
            name = self.module.resolve(old.value)
            target = class_target(name, self.options) if name and self._is_source(name) else None
            if target:
                self._rewritten(old.value, name or "")
                new = new.with_changes(value=cst.parse_expression(self._base(original_node, target)))
            elif name and self._is_source(name):
                self._left(old.value, f"no rule for the base class {name}")
            bases.append(new)
        return updated_node.with_changes(bases=bases)

    def _is_helper(self, node: cst.ClassDef | cst.FunctionDef) -> bool:
        """Whether an earlier migration to PyTorch wrote this definition; nothing needs it in MindSpore."""
        wrote = node.name.value in (helpers.CROPPED, helpers.FUNCTION)
        return wrote and self.options.to == "mindspore" and self.options.use != "tconv3d"

    def _base(self, definition: cst.ClassDef, target: str) -> str:
        """The base's new name: the helper that crops where a constructor of the class asks for a crop."""
        if definition in self.needs.cropped_classes:
            return self.needs.helper(helpers.CROPPED)
        return self.needs.name(target)

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        return not self._is_helper(node)

    def leave_FunctionDef(
        self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef
    ) -> cst.FunctionDef | cst.RemovalSentinel:
        if self._is_helper(original_node):
            return cst.RemoveFromParent()
        owner = self.module.owner(original_node)
        if original_node.name.value != self._old_method or owner is None or not self._is_module(owner):
            return updated_node
        if original_node not in owner.body.body:
            return updated_node
        self._rewritten(original_node, self._old_method)
        return updated_node.with_changes(name=cst.Name(self._new_method))

    def _method_call(self, old: cst.Attribute, new: cst.Attribute) -> cst.Attribute:
        """self.forward and super().forward inside a module."""
        if old.attr.value != self._old_method:
            return new
        value = old.value
        is_super = isinstance(value, cst.Call) and isinstance(value.func, cst.Name) and value.func.value == "super"
        is_self = isinstance(value, cst.Name) and value.value == "self"
        owner = self.module.owner(old)
        if not (is_super or is_self) or owner is None or not self._is_module(owner):
            return new
        return new.with_changes(attr=cst.Name(self._new_method))

    def _is_module(self, definition: cst.ClassDef) -> bool:
        bases = self.module.bases(definition)
        return any(
            base.startswith(_MODULES[self.options.source]) and class_target(base, self.options) for base in bases
        )

    def _unlike_subclass(self, definition: cst.ClassDef) -> str | None:
        """Why a subclass of the layer itself cannot be rewritten, or None."""
        if not any(name in LAYERS and self._is_source(name) for name in self.module.bases(definition)):
            return None
        reader = _SelfReader()
        definition.body.visit(reader)
        used = sorted(reader.names & _OTHER_ATTRIBUTES[self.options.source])
        return f"it uses self.{used[0]}, which the other layer has under another name or form" if used else None

    # The report.

    def _is_source(self, name: str) -> bool:
        return name.partition(".")[0] == self.options.source

    def _left(self, node: cst.CSTNode, reason: str) -> None:
        self.notes.append(Note(self.module.line(node), "left", reason))

    def _rewritten(self, node: cst.CSTNode, name: str) -> None:
        self.notes.append(Note(self.module.line(node), "rewritten", name))


class _SelfReader(cst.CSTVisitor):
    """The names of every self.NAME."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit_Attribute(self, node: cst.Attribute) -> None:
        if isinstance(node.value, cst.Name) and node.value.value == "self":
            self.names.add(node.attr.value)
