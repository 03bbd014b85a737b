# SPDX-License-Identifier: Apache-2.0
"""mindspore.ops.conv3d_transpose(...) -> F.conv_transpose3d(...); 'same' and 'valid' need the weight's shape."""

from __future__ import annotations

import libcst as cst

from .. import helpers, known
from ..arguments import Plan
from ..options import Left
from ..site import Site
from .mindspore_layer import _equal, _is_symmetric, _symmetric

PARAMETERS = ("inputs", "weight", "pad_mode", "padding", "stride", "dilation", "group", "output_padding")
_TARGET = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class MindSporeFunction:
    """One call of the function."""

    def apply(self, site: Site) -> cst.BaseExpression:
        """The new call. Raises Left where pad_mode is not known."""
        arguments = site.arguments(PARAMETERS)
        mode = str(arguments.require("pad_mode", "valid")).lower()
        if mode not in ("pad", "same", "valid"):
            raise Left(f"MindSpore refuses pad_mode={mode!r}")
        plan = Plan(arguments)
        plan.keep("inputs", "input" if mode == "pad" else "x")
        plan.keep("weight")
        plan.keep("stride")
        plan.keep("dilation")
        plan.keep("group", "groups")
        if mode != "pad":
            plan.put("pad_mode", repr(mode), instead_of=("pad_mode",))
            args = plan.args(("x", "weight", "pad_mode"))
            return site.updated.with_changes(func=cst.Name(site.needs.helper(helpers.FUNCTION)), args=args)
        tail = ""
        if _is_symmetric(arguments):
            plan.keep("padding", value=_symmetric(arguments))
            plan.keep("output_padding")
        else:
            equal = _equal(arguments, mode)
            plan.put("padding", repr(equal.geometry_arguments.get("padding", 0)), instead_of=("padding",))
            if extra := equal.geometry_arguments.get("output_padding"):
                plan.put("output_padding", repr(extra), instead_of=("output_padding",))
            tail = equal.slice_text
        name = site.needs.name(known.TORCH_FUNCTION)
        call = site.updated.with_changes(func=cst.parse_expression(name), args=plan.args(_TARGET))
        if not tail:
            return call
        sliced = cst.parse_expression(f"_{tail}")
        assert isinstance(sliced, cst.Subscript)
        return sliced.with_changes(value=call)
