# SPDX-License-Identifier: Apache-2.0
"""_conv3d_transpose(...), which an earlier migration wrote, back to mindspore.ops.conv3d_transpose(...)."""

from __future__ import annotations

import libcst as cst

from .. import known
from ..arguments import Plan
from ..site import Site

_PARAMETERS = ("x", "weight", "pad_mode", "stride", "dilation", "groups")


class TorchSameFunction:
    """One call of the helper."""

    def apply(self, site: Site) -> cst.Call:
        """The call that the helper stands for."""
        arguments = site.arguments(_PARAMETERS)
        plan = Plan(arguments)
        for name, new in zip(_PARAMETERS, ("inputs", "weight", "pad_mode", "stride", "dilation", "group"), strict=True):
            plan.keep(name, new)
        func = cst.parse_expression(site.needs.name(known.MINDSPORE_FUNCTION))
        return site.updated.with_changes(func=func, args=plan.args(("inputs", "weight", "pad_mode")))
