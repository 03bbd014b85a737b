# SPDX-License-Identifier: Apache-2.0
"""One place in the code that a transformation works on, and what it may ask for there."""

from __future__ import annotations

from dataclasses import dataclass, field

import libcst as cst

from .arguments import Arguments
from .module import Module
from .options import Note, Options


@dataclass
class Needs:
    """What the new code refers to: dotted names of modules, and helpers by name."""

    modules: set[str] = field(default_factory=set)
    helpers: set[str] = field(default_factory=set)
    cropped_classes: set[cst.ClassDef] = field(default_factory=set)  # subclasses whose constructor asks for a crop

    def module(self, name: str) -> str:
        """A placeholder that stands for the module until the file's imports are settled."""
        self.modules.add(name)
        return placeholder(name)

    def name(self, dotted: str) -> str:
        """The text that refers to `dotted`, such as 'mindspore.nn.Conv3d', once its module is imported."""
        module, _, last = dotted.rpartition(".")
        return f"{self.module(module)}.{last}"

    def helper(self, name: str) -> str:
        """The helper's own name; its definition is added to the file."""
        self.helpers.add(name)
        return name


@dataclass
class Site:
    """A call: as it was, as it is with its arguments rewritten, and the means to write the new one."""

    original: cst.Call
    updated: cst.Call
    module: Module
    options: Options
    needs: Needs
    notes: list[Note]
    skip: int = 0  # leading arguments that are not the callee's, such as self in Base.__init__(self, ...)
    anchor: cst.Call | None = None  # the call in the file, where `original` has arguments that the file has not

    def arguments(self, parameters: tuple[str, ...]) -> Arguments:
        """Bind the arguments; raises Left where that needs the code to run."""
        return Arguments(self.module, self.original, self.updated, parameters, self.skip)

    def warn(self, text: str) -> None:
        """Add a line to the report that does not count as left."""
        self.notes.append(Note(self.module.line(self.place), "warning", text))

    @property
    def place(self) -> cst.Call:
        """The call that the file has."""
        return self.anchor or self.original

    @property
    def is_super(self) -> bool:
        """Whether this is `super().__init__(...)` or `Base.__init__(self, ...)` in a subclass."""
        return isinstance(self.original.func, cst.Attribute) and self.original.func.attr.value == "__init__"


def placeholder(module: str) -> str:
    """An identifier that no file uses by chance."""
    return f"_tconv3d_placeholder_{module.replace('.', '__')}_x"
