# SPDX-License-Identifier: Apache-2.0
"""_CroppedConvTranspose3d(...), which an earlier migration wrote, back to mindspore.nn.Conv3dTranspose(...)."""

from __future__ import annotations

from typing import Any

import libcst as cst

from ....contracts import mindspore as contract
from ....geometry import Geometry
from ...equal import pad_modes
from ...signature import MINDSPORE_PARAMETERS, PYTORCH_PARAMETERS
from .. import known
from ..arguments import Arguments, Plan
from ..site import Site
from .dtypes import of_argument
from .to_mindspore_sizes import triple
from .torch_layer import bias, finish

_INPUT = 100  # any size does: the windows do not depend on it


class TorchCropped:
    """One constructor call; both sides of each axis are known, so MindSpore's six numbers say the same."""

    def apply(self, site: Site) -> cst.Call:
        """The new call: 'same' where that is what the sides amount to, else 'pad'. Left for sides not known."""
        arguments = site.arguments((*PYTORCH_PARAMETERS, "drop_front", "drop_back"))
        plan = Plan(arguments)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation"):
            plan.keep(name)
        sides = _sides(arguments)
        if _is_same(arguments, sides):
            plan.put("pad_mode", "'same'", instead_of=("padding",))
        else:
            plan.put("pad_mode", "'pad'")
            plan.put("padding", repr(sides), instead_of=("padding",))
            plan.keep("output_padding")
        plan.keep("groups", "group")
        bias(plan, arguments, "has_bias")
        plan.put("weight_init", "None")
        if arguments.constant("bias", True) is not False:
            plan.put("bias_init", "None")
        if dtype := of_argument(arguments, "torch"):
            plan.keep("dtype", value=site.needs.name(f"mindspore.{dtype}"))
        call = finish(site, known.MINDSPORE_LAYER, plan.args(MINDSPORE_PARAMETERS))
        if site.is_super:
            return call
        return call.with_changes(func=cst.parse_expression(site.needs.name(known.MINDSPORE_LAYER)))


def _sides(arguments: Arguments) -> tuple[int, ...]:
    padding, front, back = (triple(n, arguments.require(n, 0)) for n in ("padding", "drop_front", "drop_back"))
    return tuple(side for p, f, b in zip(padding, front, back, strict=True) for side in (p + f, p + b))


def _is_same(arguments: Arguments, sides: tuple[int, ...]) -> bool:
    sizes: dict[str, Any] = {name: arguments.constant(name, 1) for name in ("kernel_size", "stride", "dilation")}
    extra = arguments.constant("output_padding", 0)
    try:
        layer = contract.layer_arguments(1, 1, pad_mode="pad", padding=sides, output_padding=extra, **sizes)
        geometry: Geometry = layer.geometry((1, 1, *(_INPUT,) * 3))
    except (TypeError, ValueError, RuntimeError):
        return False
    return "same" in pad_modes(geometry)
