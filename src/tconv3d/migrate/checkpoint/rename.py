# SPDX-License-Identifier: Apache-2.0
"""Which layer a group of keys belongs to, and what its keys are called in the other framework."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .. import RequestError
from .rules import COUNTER, ONE_AXIS, Rules
from .tensors import Tensor

_CONVOLUTION_RANKS = (3, 4, 5)


@dataclass
class Renamed:
    """The tensors under their new names, and what a person should know about it."""

    tensors: list[Tensor] = field(default_factory=list)
    renamed: int = 0
    notes: list[str] = field(default_factory=list)


class _Ambiguous(Exception):
    """The keys fit several layers, whose names are the arguments."""


def rename(tensors: list[Tensor], source: str, target: str, rules: Rules) -> Renamed:
    """Rename every tensor from `source`'s words to `target`'s. RequestError where the keys alone cannot tell."""
    result = Renamed()
    tensors = list(_prepared(tensors, rules, result))
    _check_names(tensors)
    if source == target:
        result.tensors = tensors
        return result
    groups: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        path, _, leaf = tensor.name.rpartition(".")
        groups.setdefault(path, {})[leaf] = tensor
    evidence = _Evidence(tensors)
    unclear: list[str] = []
    for path, leaves in groups.items():
        try:
            _rename_group(path, leaves, source, rules, evidence, result)
        except _Ambiguous as candidates:
            shapes = ", ".join(f"{leaf} {tensor.shape}" for leaf, tensor in leaves.items())
            unclear.append(f"  {path or '(the top)'} ({shapes}): {' or '.join(candidates.args)}")
    if unclear:
        lines = "\n".join(unclear)
        raise RequestError(f"the keys alone do not say which layer stands at\n{lines}\nsay it with --model or --rules")
    _check_names(result.tensors)
    return result


def _prepared(tensors: list[Tensor], rules: Rules, result: Renamed) -> Iterator[Tensor]:
    """The tensors after the user's own patterns."""
    for tensor in tensors:
        if any(pattern.fullmatch(tensor.name) for pattern in rules.drop):
            result.notes.append(f"{tensor.name}: left out, as the rules say")
            continue
        for pattern, new in rules.keys:
            if pattern.fullmatch(tensor.name):
                tensor = replace(tensor, name=pattern.sub(new, tensor.name))
                result.renamed += 1
                break
        yield tensor


def _rename_group(
    path: str, leaves: dict[str, Tensor], source: str, rules: Rules, evidence: _Evidence, result: Renamed
) -> None:
    is_torch = source == "torch"
    identify = _torch_layer if is_torch else _mindspore_layer
    inner = path.removesuffix("bn2d").removesuffix(".") if _is_wrapped(path, leaves, is_torch) else path
    layer = rules.layer_at(inner) or identify(path, leaves, evidence)
    words = rules.layers.get(layer or "", {})
    if not is_torch:
        words = {theirs.rpartition(".")[2]: ours for ours, theirs in words.items()}
        words |= _standalone_names(leaves)
        path = inner
    for leaf, tensor in leaves.items():
        if is_torch and leaf == COUNTER and "running_mean" in leaves:
            result.notes.append(f"{tensor.name}: left out, MindSpore counts no batches")
            continue
        new = words.get(leaf)
        if new is None:
            result.notes.append(f"{tensor.name} {tensor.shape}: unknown, copied under its own name")
            result.tensors.append(tensor)
            continue
        name = f"{path}.{new}" if path else new
        result.renamed += name != tensor.name
        result.tensors.append(_reshaped(replace(tensor, name=name), layer, new, is_torch))
    if layer and layer.startswith("BatchNorm"):
        _note_batch_norm(path, layer, leaves, is_torch, rules, inner, result)


def _note_batch_norm(
    path: str, layer: str, leaves: dict[str, Tensor], is_torch: bool, rules: Rules, inner: str, result: Renamed
) -> None:
    if is_torch and rules.layer_at(inner) is None:
        result.notes.append(f"{path or '(the top)'}: taken for {layer}, by the rank of the convolutions")
    if not is_torch and any(leaf in leaves for leaf in ("moving_mean", "mean")):
        name = f"{path}.{COUNTER}" if path else COUNTER
        result.tensors.append(Tensor(name, "int64", (), lambda: iter([bytes(8)])))
        result.notes.append(f"{name}: added as 0, PyTorch counts batches")


def _reshaped(tensor: Tensor, layer: str | None, leaf: str, is_torch: bool) -> Tensor:
    """MindSpore's layers over one axis have a weight with one axis more, of length 1."""
    if layer not in ONE_AXIS or leaf != "weight":
        return tensor
    out, per_group, *kernel = tensor.shape
    return replace(tensor, shape=(out, per_group, 1, *kernel) if is_torch else (out, per_group, *kernel[1:]))


def _is_wrapped(path: str, leaves: dict[str, Tensor], is_torch: bool) -> bool:
    """MindSpore's BatchNorm3d keeps its parameters in a BatchNorm2d below itself."""
    named = path == "bn2d" or path.endswith(".bn2d")
    return not is_torch and named and ("gamma" in leaves or "moving_mean" in leaves)


def _standalone_names(leaves: dict[str, Tensor]) -> dict[str, str]:
    """A batch norm that is saved alone calls its statistics mean and variance."""
    return {"mean": "running_mean", "variance": "running_var"} if {"mean", "gamma"} <= set(leaves) else {}


class _Evidence:
    """What the other tensors say about the number of axes that the network works on."""

    def __init__(self, tensors: list[Tensor]) -> None:
        weights = [t.shape for t in tensors if t.name.rpartition(".")[2] == "weight"]
        self.ranks = {len(shape) for shape in weights if len(shape) in _CONVOLUTION_RANKS}
        self.has_2d_kernel = any(len(shape) == 4 and shape[2] > 1 for shape in weights)


def _torch_layer(path: str, leaves: dict[str, Tensor], evidence: _Evidence) -> str | None:
    weight, bias = leaves.get("weight"), leaves.get("bias")
    if "running_mean" in leaves:
        if 5 not in evidence.ranks:
            return "BatchNorm2d"  # and BatchNorm1d: the same names
        if evidence.ranks == {5}:
            return "BatchNorm3d"
        raise _Ambiguous("BatchNorm3d", "BatchNorm2d", "BatchNorm1d")
    if weight is None:
        return None
    if bias is not None and bias.shape == weight.shape:
        return "LayerNorm"  # and GroupNorm, InstanceNorm: the same names
    match len(weight.shape):
        case 1 if bias is None:
            raise _Ambiguous("PReLU", "LayerNorm without bias", "InstanceNorm3d or GroupNorm without bias")
        case 2 if bias is None:
            raise _Ambiguous("Embedding", "Linear without bias")
        case 2:
            return "Linear"
        case 3:
            return "Conv1d"
        case 4 | 5:
            return "Conv3d"  # and the others: the same names
    return None


def _mindspore_layer(path: str, leaves: dict[str, Tensor], evidence: _Evidence) -> str | None:
    weight = leaves.get("weight")
    if "gamma" in leaves or "moving_mean" in leaves:
        if _is_wrapped(path, leaves, is_torch=False):
            return "BatchNorm3d"
        return "BatchNorm2d" if {"moving_mean", "mean"} & set(leaves) else "GroupNorm"
    if "embedding_table" in leaves:
        return "Embedding"
    if set(leaves) == {"w"} and len(leaves["w"].shape) == 1:
        return "PReLU"
    if weight is None:
        return None
    if len(weight.shape) == 4 and weight.shape[2] == 1 and not evidence.has_2d_kernel:
        raise _Ambiguous("Conv1d", "Conv2d")
    return {2: "Linear", 4: "Conv2d", 5: "Conv3d"}.get(len(weight.shape))


def _check_names(tensors: list[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise RequestError(f"two tensors would be called {tensor.name!r}; rename one of them with --rules")
        seen.add(tensor.name)
