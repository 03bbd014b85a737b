# SPDX-License-Identifier: Apache-2.0
"""torch.nn.LazyConvTranspose3d(...): MindSpore has no lazy layers."""

from __future__ import annotations

from dataclasses import replace

import libcst as cst

from ..module import UNKNOWN
from ..options import Left
from ..site import Site
from .torch_layer import TorchLayer

_OUT_CHANNELS = {"out_channels", "num_features", "num_channels"}


class TorchLazyLayer:
    """One constructor call; rewritten where the layer before it in an nn.Sequential says how many channels come in."""

    def apply(self, site: Site) -> cst.Call:
        """The new call. Raises Left where the input channels are seen at the first call only."""
        channels = _channels_before(site)
        if channels is None:
            raise Left("in_channels of a lazy layer is not known without running the code, and MindSpore needs it")
        first = cst.Arg(cst.parse_expression(channels), keyword=cst.Name("in_channels"), equal=cst.AssignEqual(*_BARE))
        if any(arg.keyword is None for arg in site.original.args):
            first = first.with_changes(keyword=None, equal=cst.MaybeSentinel.DEFAULT)
        original = site.original.with_changes(args=[first, *site.original.args])
        updated = site.updated.with_changes(args=[first, *site.updated.args])
        return TorchLayer().apply(replace(site, original=original, updated=updated, anchor=site.original))


_BARE = (cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))


def _channels_before(site: Site) -> str | None:
    """The text of the output channels of the layer in front, if this is an element of an nn.Sequential call."""
    arg = site.module.parent(site.original)
    around = site.module.parent(arg) if arg is not None else None
    if not isinstance(around, cst.Call) or site.module.resolve(around.func) != "torch.nn.Sequential":
        return None
    index = next(i for i, each in enumerate(around.args) if each.value is site.original)
    for before in reversed(around.args[:index]):
        if not isinstance(before.value, cst.Call):
            return None
        name = (site.module.resolve(before.value.func) or "").rpartition(".")[2]
        if name.startswith(("Conv", "LazyConv")):
            return _argument(site, before.value, 0 if name.startswith("Lazy") else 1)
        if not name.startswith(("BatchNorm", "InstanceNorm", "ReLU", "LeakyReLU", "GELU", "ELU", "SiLU", "Dropout")):
            return None
    return None


def _argument(site: Site, call: cst.Call, position: int) -> str | None:
    for index, arg in enumerate(call.args):
        if arg.star:
            return None
        if (arg.keyword and arg.keyword.value in _OUT_CHANNELS) or (not arg.keyword and index == position):
            value = site.module.constant(arg.value)
            return None if value is UNKNOWN else repr(value)
    return None
