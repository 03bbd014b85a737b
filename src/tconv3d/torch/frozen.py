# SPDX-License-Identifier: Apache-2.0
"""The promise that weights do not change, which lets layers keep them packed."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from .. import _engine
from ..errors import describe


class Freezable(Module):
    """A layer with a parameter ``weight`` whose packed forms can be kept; thawed by whatever exchanges the weight."""

    _frozen = None  # a Frozen, on the object alone; without a type here, which torch.jit.script would try to read

    def panels(self, weight: Tensor) -> Any:
        """Return the packed forms of the weight if the layer is frozen and this is the frozen weight, else None."""
        frozen = self._frozen
        return None if frozen is None else frozen.panels_of(weight)

    def train(self, mode: bool = True) -> Freezable:
        """Set the training mode; RuntimeError for a frozen layer, whose weights are not to change."""
        if mode and self._frozen is not None:
            raise RuntimeError(
                describe("the layer", self, "it is frozen and training changes weights", "thaw it or its model first")
            )
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Freezable:
        """Thaw: behind this are .to(), .double(), .share_memory() and all others that exchange the parameters."""
        self._thaw()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Thaw: load_state_dict calls this for each layer of a model."""
        self._thaw()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> Any:
        """Leave out what belongs to this object alone: copies and pickles are thawed and resolve their own calls."""
        inherited = getattr(
            super(), "__getstate__", None
        )  # a user's subclass may have one; Python 3.10's object has not
        state = self.__dict__ if inherited is None else inherited()
        if not isinstance(state, dict):
            return state
        return {name: value for name, value in state.items() if name not in ("_calls", "_frozen")}

    def _thaw(self) -> None:
        _frozen_layers.discard(self)
        self.__dict__.pop("_frozen", None)


class Frozen:
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

    Freezes each layer of this library inside ``module``, itself included, and puts these layers into evaluation mode;
    ``train()`` then raises RuntimeError. The first call for a size packs the weights, later ones find them packed. Each
    layout that the sizes lead to takes about the memory of the weights, 16-bit ones as float32.

    Thawed by `thaw`, ``load_state_dict``, ``.to()`` and its kin, and by a step of an optimizer that holds the weight.
    Other writes to the parameter are seen by PyTorch's version counter, and the packed forms are no longer used. What
    NOTHING sees are writes past it, through ``weight.data`` or a NumPy view: they break the promise, and outputs mix
    old weights and new until the module is thawed or frozen again. Copies and pickles of a frozen module are thawed,
    and compiled or exported graphs hold the plain weight, which every call packs.

    Raises
        TypeError: module is no torch.nn.Module.
        ValueError: it holds no layer of this library.
        RuntimeError: a weight is computed on each call (weight_norm, parametrize) or not there yet (lazy layers).

    >>> from tconv3d.torch import ConvTranspose3d
    >>> freeze(ConvTranspose3d(2, 4, 3)).training
    False
    """
    layers = _layers_of("freeze", module)
    for layer in layers:
        if "weight" not in layer._parameters:
            rule = "it is computed on each call and cannot be kept packed"
            raise RuntimeError(describe("the weight", layer, rule, "remove its parametrization, then freeze"))
        if is_lazy(layer._parameters["weight"]):
            raise RuntimeError(describe("the weight", layer, "it has no shape yet", "call the model once, then freeze"))
    _watch_optimizers()
    for layer in layers:
        layer.eval()
        layer._frozen = Frozen(layer._parameters["weight"])
        _frozen_layers.add(layer)
    return module


def thaw(module: Module) -> Module:
    """Take back the promise of `freeze` and free the packed weights. Returns the module; its mode stays as it is.

    >>> from tconv3d.torch import ConvTranspose3d
    >>> thaw(freeze(ConvTranspose3d(2, 4, 3))).train().training
    True
    """
    for layer in _layers_of("thaw", module):
        layer._thaw()
    return module


_frozen_layers: weakref.WeakSet[Freezable] = weakref.WeakSet()
_optimizers_are_watched = False


def _layers_of(verb: str, module: Module) -> list[Freezable]:
    if not isinstance(module, Module):
        raise TypeError(describe(f"{verb}: module", type(module), "it must be a torch.nn.Module", "pass the model"))
    layers = [child for child in module.modules() if isinstance(child, Freezable)]
    if not layers:
        rule = "it holds no tconv3d.torch.ConvTranspose3d"
        raise ValueError(describe(f"{verb}: module", type(module), rule, "accelerate it, or build it with that class"))
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
