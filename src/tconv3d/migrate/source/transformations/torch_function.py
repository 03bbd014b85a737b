# SPDX-License-Identifier: Apache-2.0
"""F.conv_transpose3d(...) -> mindspore.ops.conv3d_transpose(...), the bias added behind it."""

from __future__ import annotations

import libcst as cst

from .. import helpers, known
from ..arguments import Plan
from ..module import UNKNOWN
from ..options import Left
from ..site import Site
from .to_mindspore_sizes import padding, size, triple

PARAMETERS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class TorchFunction:
    """One call of the function."""

    def apply(self, site: Site) -> cst.Call:
        """The new call. Raises Left for groups, which ops.conv3d_transpose gets wrong for some weights."""
        arguments = site.arguments(PARAMETERS)
        if arguments.constant("groups", 1) != 1:
            raise Left("ops.conv3d_transpose refuses some grouped weights; use a layer, or --use tconv3d")
        dilation = arguments.constant("dilation", 1)
        if dilation is not UNKNOWN and triple("dilation", dilation)[0] != 1:
            raise Left("MindSpore refuses a depth dilation other than 1; --use tconv3d computes it")
        plan = Plan(arguments)
        plan.keep("input", "inputs")
        plan.keep("weight")
        for name in ("stride", "output_padding", "dilation"):
            plan.keep(name, value=size(site, arguments, name))
        plan.keep("padding", value=padding(site, arguments))
        plan.put("pad_mode", "'pad'")
        call = site.updated.with_changes(
            func=cst.parse_expression(site.needs.name(known.MINDSPORE_FUNCTION)), args=plan.args(("inputs", "weight"))
        )
        if arguments.constant("bias") is None:
            return call
        return cst.Call(cst.Name(site.needs.helper(helpers.ADD_BIAS)), [cst.Arg(call), cst.Arg(arguments.new("bias"))])
