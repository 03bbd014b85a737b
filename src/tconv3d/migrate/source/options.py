# SPDX-License-Identifier: Apache-2.0
"""What a migration is asked for, and what it has to say afterwards."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .. import RequestError

ANNOUNCED = "announced"  # the signature that MindSpore 2.10 announces for later releases: PyTorch's names
_CURRENT = (2, 10)
# First releases of MindSpore in which these hold.
_NONE_IS_A_LAW, _HAS_DTYPE = (2, 1), (2, 2)
_TORCH_HAS_DTYPE = (1, 9)


class Left(Exception):
    """This place cannot be rewritten truthfully; the text is the one-line reason. The code stays as it is."""


@dataclass(frozen=True)
class Options:
    """`to` is 'torch' or 'mindspore'; `use` 'framework' or 'tconv3d'.

    The versions are those of the framework that the code is written for now and afterwards: numbers such as '2.0', or
    'announced' for MindSpore's signature with PyTorch's names. None stands for the releases that this was written on.
    """

    to: str
    target_version: str | None = None
    source_version: str | None = None
    use: str = "framework"

    def __post_init__(self) -> None:
        _parse(self.target_version)
        _parse(self.source_version)

    @property
    def source(self) -> str:
        """The framework that the code is written for now."""
        return "torch" if self.to == "mindspore" else "mindspore"

    @property
    def announced_target(self) -> bool:
        """Whether the code is to be written for the announced signature."""
        return self.target_version == ANNOUNCED

    @property
    def announced_source(self) -> bool:
        """Whether a call that could be of either signature is of the announced one."""
        return self.source_version == ANNOUNCED

    @property
    def target_takes_none(self) -> bool:
        """Whether None is the default law of the target's initialisers; before, it was refused."""
        return _parse(self.target_version) >= _NONE_IS_A_LAW

    @property
    def target_takes_dtype(self) -> bool:
        """Whether the target's layer has a dtype argument."""
        return _parse(self.target_version) >= _HAS_DTYPE

    @property
    def torch_takes_dtype(self) -> bool:
        """Whether PyTorch's layers have a dtype argument, which they have from 1.9 on."""
        return self.target_version is None or _parse(self.target_version) >= _TORCH_HAS_DTYPE

    @property
    def source_defaults_to_none(self) -> bool:
        """Whether a source without weight_init means PyTorch's law; before 2.1 it meant 'normal' and 'zeros'."""
        return _parse(self.source_version) >= _NONE_IS_A_LAW


@dataclass(frozen=True)
class Note:
    """One line of the report: `kind` is 'rewritten', 'warning' or 'left'."""

    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Result:
    """The new text of one file and what was done to get there."""

    text: str
    notes: list[Note] = field(default_factory=list)

    @property
    def left(self) -> int:
        """How many places stayed as they were although they belong to the other framework."""
        return sum(note.kind == "left" for note in self.notes)

    @property
    def rewritten(self) -> int:
        """How many places were rewritten."""
        return sum(note.kind == "rewritten" for note in self.notes)


def _parse(version: str | None) -> tuple[int, ...]:
    if version is None or version == ANNOUNCED:
        return _CURRENT
    if not re.fullmatch(r"\d+(\.\d+)*[a-z0-9.+-]*", version):
        raise RequestError(f"{version!r} is no version: write numbers such as 2.10, or {ANNOUNCED!r}")
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])
