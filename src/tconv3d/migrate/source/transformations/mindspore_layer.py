# SPDX-License-Identifier: Apache-2.0
"""mindspore.nn.Conv3dTranspose(...) -> torch.nn.ConvTranspose3d(...), with a crop where padding cannot do it."""

from __future__ import annotations

from typing import Any

import libcst as cst

from ....contracts import mindspore as contract
from ...equal import EqualCall, to_pytorch
from ...signature import MINDSPORE_PARAMETERS, PYTORCH_PARAMETERS
from .. import helpers, known
from ..arguments import Arguments, Plan
from ..module import UNKNOWN
from ..options import Left
from ..site import Site
from . import dtypes, laws
from .torch_layer import ANNOUNCED_PARAMETERS, bias, finish

_ONLY_CURRENT = {"pad_mode", "group", "has_bias", "weight_init", "bias_init", "data_format"}
_ONLY_ANNOUNCED = {"groups", "bias", "padding_mode"}
_NO_DROP = (0, 0, 0)
# Any kernel and input do where only the sides that padding cuts matter; these leave an output.
_ANY_KERNEL, _ANY_INPUT = 1001, 10_000


class MindSporeLayer:
    """One constructor call, of the signature that every release so far has or of the announced one."""

    def apply(self, site: Site) -> cst.Call:
        """The new call. Raises Left where the crop is not known without running the code."""
        if is_announced(site):
            return self._announced(site)
        arguments = site.arguments(MINDSPORE_PARAMETERS)
        if arguments.require("data_format", "NCDHW") != "NCDHW":
            raise Left("MindSpore refuses every data_format but 'NCDHW'")
        plan = Plan(arguments)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation"):
            plan.keep(name)
        drops = self._crop(site, arguments, plan)
        plan.keep("group", "groups")
        plan.keep("has_bias", "bias")
        if "has_bias" not in arguments:
            plan.put("bias", "False")
        _dtype(site, arguments, plan)
        return self._finish(site, arguments, plan, drops)

    def _announced(self, site: Site) -> cst.Call:
        arguments = site.arguments(ANNOUNCED_PARAMETERS)
        plan = Plan(arguments)
        for name in ANNOUNCED_PARAMETERS:
            if name not in ("bias", "dtype"):
                plan.keep(name)
        bias(plan, arguments, "bias")
        _dtype(site, arguments, plan)
        return finish(site, known.TORCH_LAYER, plan.args(PYTORCH_PARAMETERS))

    def _crop(self, site: Site, arguments: Arguments, plan: Plan) -> dict[str, str]:
        """Plan padding and output_padding; return the arguments of the helper that crops, if it is needed."""
        mode = arguments.require("pad_mode", "same")
        mode = mode.lower() if isinstance(mode, str) else mode
        if mode == "pad" and _is_symmetric(arguments):
            plan.keep("padding", value=_symmetric(arguments))
            plan.keep("output_padding")
            return {}
        equal = _equal(arguments, mode)
        values = equal.geometry_arguments
        plan.put("padding", repr(values.get("padding", 0)), instead_of=("padding", "pad_mode"))
        if "output_padding" in values:
            plan.put("output_padding", repr(values["output_padding"]), instead_of=("output_padding",))
        drops = {"drop_front": equal.drop_front, "drop_back": equal.drop_back}
        return {name: repr(value) for name, value in drops.items() if value != _NO_DROP}

    def _finish(self, site: Site, arguments: Arguments, plan: Plan, drops: dict[str, str]) -> cst.Call:
        weight = laws.torch_function(site, arguments, "weight_init", "normal")
        has_bias = arguments.constant("has_bias", False)
        fill_bias = None if has_bias is False else laws.torch_function(site, arguments, "bias_init", "zeros")
        if site.is_super and (weight or fill_bias):
            raise Left("weight_init and bias_init have no place in a subclass of ConvTranspose3d; set them afterwards")
        for name, value in drops.items():
            plan.put(name, value)
        if drops:
            site.warn("PyTorch's padding is symmetric: what it cannot cut is cropped behind the layer")
        call = finish(site, known.TORCH_LAYER, plan.args(PYTORCH_PARAMETERS))
        if drops and site.module.is_alias(site.original.func):
            raise Left("an alias of the layer cannot crop; write the class's own name")
        owner = site.module.owner(site.place)
        if drops and site.is_super and owner is not None:
            site.needs.cropped_classes.add(owner)
        elif drops:
            call = call.with_changes(func=cst.Name(site.needs.helper(helpers.CROPPED)))
        if weight or fill_bias:
            law = {"weight": weight, "bias": fill_bias}
            keywords = [cst.Arg(cst.parse_expression(f), keyword=cst.Name(w), equal=_BARE) for w, f in law.items() if f]
            call = cst.Call(cst.Name(site.needs.helper(helpers.INITIALISED)), [cst.Arg(call), *keywords])
        return call


_BARE = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))


def is_announced(site: Site) -> bool:
    """Whether a call has the announced signature: told by its keywords, else by its fifth argument."""
    names = {arg.keyword.value for arg in site.original.args if arg.keyword}
    if names & _ONLY_ANNOUNCED or names & _ONLY_CURRENT:
        if names & _ONLY_ANNOUNCED and names & _ONLY_CURRENT:
            raise Left(f"{sorted(names & (_ONLY_ANNOUNCED | _ONLY_CURRENT))} mixes two signatures")
        return bool(names & _ONLY_ANNOUNCED)
    positional = [arg for arg in site.original.args[site.skip :] if arg.keyword is None]
    if len(positional) > 4:
        fifth = site.module.constant(positional[4].value)
        if fifth is UNKNOWN:
            raise Left("the fifth argument is pad_mode or padding, which is not known without running the code")
        return not isinstance(fifth, str)
    if "padding" in names or "output_padding" in names:
        # 'same', the default so far, refuses both; so this can only be the announced signature.
        site.warn("read as the announced signature: padding without pad_mode is refused by the other one")
        return True
    return site.options.announced_source


def _is_symmetric(arguments: Arguments) -> bool:
    """Whether the six sides, or the int, are known to be one number per axis."""
    value = arguments.constant("padding", 0)
    if value is UNKNOWN:
        node = arguments.node("padding")
        assert node is not None
        if isinstance(node, cst.Tuple) and len(node.elements) == 6:
            texts = [arguments.module.code(element.value) for element in node.elements]
            if texts[::2] == texts[1::2]:
                return True
        elif arguments.module.is_int(node) or arguments.inner("padding") is not node:
            return True
        raise Left(f"padding={arguments.text('padding')} is six sides or an int, not known without running the code")
    return not isinstance(value, tuple) or value[::2] == value[1::2]


def _symmetric(arguments: Arguments) -> cst.BaseExpression | str | None:
    node, value = arguments.node("padding"), arguments.constant("padding", 0)
    if isinstance(value, tuple):
        return repr(value[0] if len(set(value)) == 1 else value[::2])
    if value is UNKNOWN and isinstance(node, cst.Tuple):
        return f"({', '.join(arguments.module.code(element.value) for element in node.elements[::2])})"
    return None


def _equal(arguments: Arguments, mode: Any) -> EqualCall:
    """PyTorch's equal of a call whose crop depends on numbers; Left where one of them is not known."""
    group = 1  # channels do not matter to the crop
    names = ("stride", "dilation") if mode == "pad" else ("kernel_size", "stride", "dilation")
    values = {name: arguments.require(name, 1) for name in names}
    if mode == "pad":
        values["kernel_size"] = _ANY_KERNEL
    values |= {name: arguments.require(name, 0) for name in ("padding", "output_padding")}
    try:
        layer = contract.layer_arguments(group, group, pad_mode=mode, has_bias=False, **values)
        equal = to_pytorch(layer.geometry((1, group, *(_ANY_INPUT,) * 3)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise Left(f"MindSpore refuses this call: {error}") from None
    return equal


def _dtype(site: Site, arguments: Arguments, plan: Plan) -> None:
    dtype = dtypes.of_argument(arguments, "mindspore")
    if dtype and not site.options.torch_takes_dtype:
        if dtype != "float32":
            raise Left(f"dtype={dtype} cannot be asked for before PyTorch 1.9")
    elif dtype:
        plan.keep("dtype", value=site.needs.name(f"torch.{dtype}"))
