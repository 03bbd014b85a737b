# SPDX-License-Identifier: Apache-2.0
"""The layer of PyTorch on this library's engine, and the promise that lets it keep packed weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .. import _engine
from ..errors import describe
from . import _ops


class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d`` with another engine under ``forward``.

    Constructor, initial weights from a seed, state_dict, repr, attributes and errors are PyTorch's own, because they
    are inherited. Gradients of any order work. An input in the memory format channels_last_3d gives such an output.
    Outputs of a mebibyte and more lie in pooled memory, which cannot be resized in place.

    >>> ConvTranspose3d(2, 4, 3, stride=2)(torch.ones(1, 2, 5, 5, 5)).shape
    torch.Size([1, 4, 11, 11, 11])
    """

    _arguments: _ops.Arguments | None = None
    _frozen: _Frozen | None = None

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """Return the transposed convolution of (N, C, D, H, W) or (C, D, H, W); ``output_size`` as in PyTorch."""
        if not torch.compiler.is_compiling() and self.padding_mode == "zeros" and isinstance(self.padding, tuple):
            try:
                weight, bias = self._parameters["weight"], self._parameters["bias"]
            except KeyError:  # computed anew on each call, so no parameter
                weight, bias = self.weight, self.bias
            panels = None if self._frozen is None else self._frozen.panels_of(weight)
            result = _ops.conv_transpose3d(self._call_arguments(input, output_size), input, weight, bias, panels)
            if result is not None:
                return result
        return super().forward(input, output_size)

    def _call_arguments(self, input: Tensor, output_size: Sequence[int] | None) -> _ops.Arguments:
        """Return what the attributes say, resolved again only if one of them was assigned since the last call."""
        if output_size is not None:
            extra = self._output_padding(
                input, output_size, self.stride, self.padding, self.kernel_size, 3, self.dilation
            )
            return _ops.Arguments(self.stride, self.padding, extra, self.groups, self.dilation)
        kept = self._arguments
        if (
            kept is None
            or kept.stride is not self.stride
            or kept.padding is not self.padding
            or kept.output_padding is not self.output_padding
            or kept.groups is not self.groups
            or kept.dilation is not self.dilation
        ):
            kept = _ops.Arguments(self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            self._arguments = kept
        return kept

    def train(self, mode: bool = True) -> ConvTranspose3d:
        """Set the training mode; RuntimeError for a frozen layer, whose weights are not to change."""
        if mode and self._frozen is not None:
            raise RuntimeError(
                describe("the layer", self, "it is frozen and training changes weights", "thaw it or its model first")
            )
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> ConvTranspose3d:
        """Thaw: behind this are .to(), .double(), .share_memory() and all others that exchange the parameters."""
        self._thaw()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Thaw: load_state_dict calls this for each layer of a model."""
        self._thaw()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to this object alone: copies and pickles are thawed and resolve their own calls."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_arguments", "_frozen")}

    def _thaw(self) -> None:
        _frozen_layers.discard(self)
        self.__dict__.pop("_frozen", None)


class _Frozen:
    """The packed forms of one weight, and what can be seen of that weight without reading it."""

    __slots__ = ("_address", "_panels", "_version", "_weight")

    def __init__(self, weight: Parameter) -> None:
        self._weight = weight
        self._address, self._version = weight.data_ptr(), _version(weight)
        self._panels = _engine.PackedPanels()

    def panels_of(self, weight: Tensor) -> Any:
        """Return the packed forms, or None if the weight was seen to be another one or to have changed."""
        same = weight is self._weight and weight.data_ptr() == self._address and _version(weight) == self._version
        return self._panels if same else None


def freeze(module: Module) -> Module:
    """Promise that the weights do not change until `thaw`, so that the layers may keep them packed. Returns the module.

    Freezes each ConvTranspose3d of this library inside ``module``, itself included, and puts these layers into
    evaluation mode; ``train()`` then raises RuntimeError. The first call for a size packs the weights, later ones find
    them packed. Each layout that the sizes lead to takes about the memory of the weights, 16-bit ones as float32.

    Thawed by `thaw`, ``load_state_dict``, ``.to()`` and its kin, and by a step of an optimizer that holds the weight.
    Other writes to the parameter are seen by PyTorch's version counter, and the packed forms are no longer used. What
    NOTHING sees are writes past it, through ``weight.data`` or a NumPy view: they break the promise, and outputs mix
    old weights and new until the module is thawed or frozen again. Copies and pickles of a frozen module are thawed.

    Raises
        TypeError: module is no torch.nn.Module.
        ValueError: it holds no ConvTranspose3d of this library.
        RuntimeError: a weight is computed on each call (weight_norm, parametrize) and cannot be frozen.

    >>> layer = freeze(ConvTranspose3d(2, 4, 3))
    >>> layer.training
    False
    """
    layers = _layers_of("freeze", module)
    for layer in layers:
        if "weight" not in layer._parameters:
            rule = "it is computed on each call and cannot be kept packed"
            raise RuntimeError(describe("the weight", layer, rule, "remove its parametrization, then freeze"))
    _watch_optimizers()
    for layer in layers:
        layer.eval()
        layer._frozen = _Frozen(layer._parameters["weight"])
        _frozen_layers.add(layer)
    return module


def thaw(module: Module) -> Module:
    """Take back the promise of `freeze` and free the packed weights. Returns the module; its mode stays as it is.

    >>> thaw(freeze(ConvTranspose3d(2, 4, 3))).train().training
    True
    """
    for layer in _layers_of("thaw", module):
        layer._thaw()
    return module


_frozen_layers: weakref.WeakSet[ConvTranspose3d] = weakref.WeakSet()
_optimizers_are_watched = False


def _layers_of(verb: str, module: Module) -> list[ConvTranspose3d]:
    if not isinstance(module, Module):
        raise TypeError(describe(f"{verb}: module", type(module), "it must be a torch.nn.Module", "pass the model"))
    layers = [child for child in module.modules() if isinstance(child, ConvTranspose3d)]
    if not layers:
        rule = "it holds no tconv3d.torch.ConvTranspose3d"
        raise ValueError(describe(f"{verb}: module", type(module), rule, "build its layers with that class"))
    return layers


def _watch_optimizers() -> None:
    """Thaw after optimizer steps: some write through .data, which no version counter sees."""
    global _optimizers_are_watched
    if not _optimizers_are_watched:
        register_optimizer_step_post_hook(_thaw_stepped)
        _optimizers_are_watched = True


def _thaw_stepped(optimizer: Optimizer, *_: Any) -> None:
    if _frozen_layers:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for layer in list(_frozen_layers):
            if id(layer._parameters.get("weight")) in stepped:
                layer._thaw()


def _version(weight: Tensor) -> int:
    return -1 if weight.is_inference() else weight._version
