# SPDX-License-Identifier: Apache-2.0
"""A whole network at once: MindSpore's layers onto this library's engine, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindspore import nn

from ..contracts import mindspore as mindspore_contract
from ..errors import describe
from . import _ops
from .layers import Conv3dTranspose


@dataclass(frozen=True)
class Report:
    """What `accelerate` did: the names of the layers it swapped, and those it left with the reason.

    >>> print(Report(("up1", "up2"), {"head": "a subclass"}))
    accelerated 2 of 3 transposed convolutions: up1, up2
    left head: a subclass
    """

    accelerated: tuple[str, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        count = len(self.accelerated)
        names = f": {', '.join(self.accelerated)}" if count else ""
        lines = [f"accelerated {count} of {count + len(self.left)} transposed convolutions{names}"]
        return "\n".join(lines + [f"left {name}: {reason}" for name, reason in self.left.items()])


def accelerate(cell: nn.Cell) -> Report:
    """Let every mindspore.nn.Conv3dTranspose inside ``cell``, itself included, run on this library's engine.

    The layers stay the objects that they were, with their parameters, names and weights, so optimizers, checkpoints and
    other references go on working; only their class changes, to `Conv3dTranspose`, a subclass. Left alone, with a
    reason in the report, are layers of a subclass of yours, whose ``construct`` may do something else. A network that
    GRAPH_MODE has compiled is compiled anew on its next call; a function under ms.jit that was called before keeps the
    graph that it has.

    Raises
        TypeError: cell is no mindspore.nn.Cell.

    >>> network = nn.SequentialCell(nn.Conv3dTranspose(4, 2, 2, 2), nn.ReLU())
    >>> print(accelerate(network))
    accelerated 1 of 1 transposed convolutions: 0
    >>> isinstance(network[0], Conv3dTranspose)
    True
    """
    accelerated, left = [], {}
    for name, layer in _layers("accelerate", cell):
        reason = _reason_to_leave(layer)
        if reason is None:
            _swap(layer)
            accelerated.append(name)
        elif reason:
            left[name] = reason
    if accelerated:
        _forget_graphs(cell)
    return Report(tuple(accelerated), left)


def restore(cell: nn.Cell) -> tuple[str, ...]:
    """Undo `accelerate`; return the names of the layers that are MindSpore's own again.

    Layers that were built as `Conv3dTranspose` stay what they are.

    >>> network = nn.SequentialCell(nn.Conv3dTranspose(4, 2, 2, 2), nn.ReLU())
    >>> accelerate(network).accelerated, restore(network)
    (('0',), ('0',))
    >>> type(network[0]) is nn.Conv3dTranspose
    True
    """
    restored = []
    for name, layer in _layers("restore", cell):
        if type(layer) is Conv3dTranspose and "_was_mindspores" in layer.__dict__:
            layer.__class__ = nn.Conv3dTranspose
            del layer._arguments, layer._was_mindspores
            restored.append(name)
    if restored:
        _forget_graphs(cell)
    return tuple(restored)


def _layers(verb: str, cell: Any) -> list[tuple[str, nn.Conv3dTranspose]]:
    if not isinstance(cell, nn.Cell):
        raise TypeError(describe(f"{verb}: cell", type(cell), "it must be a mindspore.nn.Cell", "pass the network"))
    found = [(name, child) for name, child in cell.cells_and_names() if isinstance(child, nn.Conv3dTranspose)]
    return [(name or type(child).__name__, child) for name, child in found]


def _reason_to_leave(layer: nn.Conv3dTranspose) -> str | None:
    """Return why a layer cannot be swapped, '' for one that is ours already, and None if it can."""
    if isinstance(layer, Conv3dTranspose):
        return ""
    if type(layer) is not nn.Conv3dTranspose:
        return f"{type(layer).__name__} is a subclass, whose construct may do something else"
    if not hasattr(layer, "pad_mode"):
        return "this MindSpore gives the layer PyTorch's arguments; build tconv3d.mindspore.ConvTranspose3d instead"
    if "construct" in layer.__dict__:
        return "its construct was replaced"
    return None


def _swap(layer: nn.Conv3dTranspose) -> None:
    arguments = mindspore_contract.layer_arguments(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.pad_mode,
        layer.padding,
        layer.dilation,
        layer.group,
        layer.output_padding,
        layer.has_bias,
        "zeros",
        "zeros",
        layer.data_format,
        _ops.dtype_name(layer.weight.dtype),
    )
    layer._arguments = _ops.Arguments(mindspore_contract, arguments)
    layer._was_mindspores = True  # tells `restore`
    layer.__class__ = Conv3dTranspose


def _forget_graphs(cell: nn.Cell) -> None:
    for _, child in cell.cells_and_names():
        child.compile_cache.clear()
