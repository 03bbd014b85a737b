# SPDX-License-Identifier: Apache-2.0
"""One transformation, one class: each has `apply(site)`, which returns the new expression or raises Left."""

from __future__ import annotations

from typing import Protocol

import libcst as cst

from .. import known
from ..options import Options
from ..site import Site
from .convolution import MindSporeConvolution, TorchConvolution
from .mindspore_function import MindSporeFunction
from .mindspore_layer import MindSporeLayer
from .surroundings import TO_MINDSPORE, TO_TORCH, Same
from .tconv3d_layer import MindSporeContract, TorchContract
from .torch_cropped import TorchCropped
from .torch_function import TorchFunction
from .torch_layer import TorchLayer
from .torch_lazy import TorchLazyLayer
from .torch_same_function import TorchSameFunction


class Transformation(Protocol):
    """What rewrites one call."""

    def apply(self, site: Site) -> cst.BaseExpression: ...


_TORCH: dict[str, Transformation] = {
    **TO_MINDSPORE,
    **{f"torch.nn.Conv{rank}d": TorchConvolution(rank) for rank in (1, 2, 3)},
    known.TORCH_LAYER: TorchLayer(),
    known.TORCH_LAZY: TorchLazyLayer(),
    known.TORCH_FUNCTION: TorchFunction(),
    known.TORCH_CROPPED: TorchCropped(),
    known.TORCH_SAME_FUNCTION: TorchSameFunction(),
}
_MINDSPORE: dict[str, Transformation] = {
    **TO_TORCH,
    **{f"mindspore.nn.Conv{rank}d": MindSporeConvolution(rank) for rank in (1, 2, 3)},
    known.MINDSPORE_LAYER: MindSporeLayer(),
    known.MINDSPORE_FUNCTION: MindSporeFunction(),
}
_TARGETS = {
    known.TORCH_LAYER: known.MINDSPORE_LAYER,
    known.TORCH_CROPPED: known.MINDSPORE_LAYER,
    known.MINDSPORE_LAYER: known.TORCH_LAYER,
    "mindspore.Tensor": "torch.Tensor",  # the type; what makes one is torch.tensor
}
_OUR_TARGETS = {
    known.TORCH_LAYER: "tconv3d.mindspore.ConvTranspose3d",
    known.MINDSPORE_LAYER: "tconv3d.torch.Conv3dTranspose",
    "mindspore.Tensor": "torch.Tensor",
}
LAYERS = (known.TORCH_LAYER, known.TORCH_CROPPED, known.MINDSPORE_LAYER)


def rules(options: Options) -> dict[str, Transformation]:
    """Every rule of this direction, by the canonical name of what is called."""
    found = dict(_TORCH if options.to == "mindspore" else _MINDSPORE)
    if options.use == "tconv3d":
        found |= {known.TORCH_LAYER: TorchContract(), known.MINDSPORE_LAYER: MindSporeContract()}
    return found


def class_target(name: str, options: Options) -> str | None:
    """The class that stands for this one where no call is made: a base, an annotation, isinstance."""
    targets = _OUR_TARGETS if options.use == "tconv3d" else _TARGETS
    if name in targets:
        return targets[name]
    rule = rules(options).get(name)
    return getattr(rule, "target", None) or _convolution_target(name)


def is_same(name: str, options: Options) -> bool:
    """Whether the two differ in nothing but their names, so that it may be passed on."""
    return isinstance(rules(options).get(name), Same)


def has_rule(name: str) -> bool:
    """Whether either direction rewrites this name."""
    return name in _TORCH or name in _MINDSPORE


def _convolution_target(name: str) -> str | None:
    framework, _, rest = name.partition(".")
    other = {"torch": "mindspore", "mindspore": "torch"}.get(framework)
    return f"{other}.{rest}" if other and rest in {f"nn.Conv{rank}d" for rank in (1, 2, 3)} else None
