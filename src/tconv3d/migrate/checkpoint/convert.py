# SPDX-License-Identifier: Apache-2.0
"""One checkpoint file to another: format by suffix, names by framework, bytes as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import RequestError
from . import files
from .rename import rename
from .rules import add_model, load
from .tensors import Tensor

_SPEAKS = {"torch": "torch", "ckpt": "mindspore"}  # format -> whose names it always has
_TORCH_WORDS = {"running_mean", "running_var", "num_batches_tracked"}
_MINDSPORE_WORDS = {"gamma", "beta", "moving_mean", "moving_variance", "embedding_table"}


@dataclass(frozen=True)
class Conversion:
    """What was done: how many tensors and bytes, how many new names, and what a person should know."""

    source: str
    target: str
    tensors: int
    nbytes: int
    renamed: int
    notes: list[str]


def convert(
    source_file: Path,
    target_file: Path,
    to: str | None = None,
    rules_file: Path | None = None,
    model: str | None = None,
) -> Conversion:
    """Convert, or raise RequestError and write nothing.

    `to` is needed where the target's format does not say whose names it has. `model` names a factory, which is run.
    """
    kind = files.output_kind(target_file)
    target = _SPEAKS.get(kind, to)
    if target is None:
        raise RequestError(f"{target_file.name} can hold the names of either framework: say --to torch or mindspore")
    if to is not None and to != target:
        raise RequestError(f"a {target_file.suffix} file has the names of {target}, not of {to}")
    checkpoint = files.read(source_file)
    source = checkpoint.framework or _framework_of(checkpoint.tensors, target)
    rules = load(rules_file)
    if model is not None:
        add_model(rules, model)
    result = rename(checkpoint.tensors, source, target, rules)
    files.write(target_file, result.tensors, target)
    nbytes = sum(tensor.nbytes for tensor in result.tensors)
    notes = [*checkpoint.notes, *result.notes]
    return Conversion(source, target, len(result.tensors), nbytes, result.renamed, notes)


def _framework_of(tensors: list[Tensor], target: str) -> str:
    """Whose names a file without metadata has: told by the words that only one of the two uses, else the other's."""
    leaves = {tensor.name.rpartition(".")[2] for tensor in tensors}
    if leaves & _MINDSPORE_WORDS and not leaves & _TORCH_WORDS:
        return "mindspore"
    if leaves & _TORCH_WORDS:
        return "torch"
    return "torch" if target == "mindspore" else "mindspore"
