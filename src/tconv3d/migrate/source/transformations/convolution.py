# SPDX-License-Identifier: Apache-2.0
"""nn.Conv1d, Conv2d and Conv3d in both directions; MindSpore's defaults are pad_mode='same' and no bias."""

from __future__ import annotations

from dataclasses import dataclass

import libcst as cst

from ..arguments import Plan
from ..module import UNKNOWN
from ..options import Left
from ..site import Site
from .dtypes import of_argument
from .mindspore_layer import _is_symmetric, _symmetric
from .to_mindspore_sizes import padding, size
from .torch_layer import bias, drop_device, mindspore_dtype

_TORCH = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode",
    "device", "dtype",
)  # fmt: skip
_MINDSPORE = (
    "in_channels", "out_channels", "kernel_size", "stride", "pad_mode", "padding", "dilation", "group", "has_bias",
    "weight_init", "bias_init", "data_format", "dtype",
)  # fmt: skip


@dataclass(frozen=True)
class TorchConvolution:
    """torch.nn.ConvNd -> mindspore.nn.ConvNd."""

    rank: int

    def apply(self, site: Site) -> cst.Call:
        """The new call, always with pad_mode='pad' and has_bias."""
        arguments = site.arguments(_TORCH)
        mode = arguments.constant("padding")
        if arguments.require("padding_mode", "zeros") != "zeros":
            raise Left(f"padding_mode={arguments.text('padding_mode')} has no counterpart in MindSpore's convolution")
        drop_device(site, arguments)
        plan = Plan(arguments)
        plan.keep("in_channels")
        plan.keep("out_channels")
        for name in ("kernel_size", "stride", "dilation"):
            plan.keep(name, value=size(site, arguments, name, self.rank))
        if isinstance(mode, str):
            plan.keep("padding", "pad_mode")  # 'same' and 'valid' mean the same in both
        else:
            plan.put("pad_mode", "'pad'")
            plan.keep("padding", value=padding(site, arguments, self.rank))
        plan.keep("groups", "group")
        bias(plan, arguments, "has_bias")
        if dtype := mindspore_dtype(arguments):
            plan.keep("dtype", value=site.needs.name(f"mindspore.{dtype}"))
        if site.is_super:
            return site.updated.with_changes(args=plan.args(_MINDSPORE))
        func = cst.parse_expression(site.needs.name(f"mindspore.nn.Conv{self.rank}d"))
        return site.updated.with_changes(func=func, args=plan.args(_MINDSPORE))


@dataclass(frozen=True)
class MindSporeConvolution:
    """mindspore.nn.ConvNd -> torch.nn.ConvNd."""

    rank: int

    def apply(self, site: Site) -> cst.Call:
        """The new call; Left where 'same' depends on the input's size."""
        arguments = site.arguments(_MINDSPORE)
        for name in ("weight_init", "bias_init", "data_format"):
            if arguments.constant(name) not in (None, "NCDHW", "NCHW"):
                raise Left(f"{name}={arguments.text(name)} has no counterpart in PyTorch's convolution")
        mode = str(arguments.require("pad_mode", "same")).lower()
        plan = Plan(arguments)
        for name in ("in_channels", "out_channels", "kernel_size", "stride", "dilation"):
            plan.keep(name)
        if mode == "same":
            if arguments.constant("stride", 1) not in (1, (1,) * self.rank):
                raise Left("pad_mode='same' with a stride pads by the input's size, which PyTorch's layer does not")
            plan.put("padding", "'same'", instead_of=("pad_mode",))
        elif mode == "valid":
            plan.put("padding", "0", instead_of=("pad_mode",))
        elif arguments.constant("padding", 0) is UNKNOWN or not _is_symmetric(arguments):
            raise Left(f"padding={arguments.text('padding')} is not the same on both sides, as far as the code says")
        else:
            plan.keep("padding", value=_symmetric(arguments))
        plan.keep("group", "groups")
        plan.keep("has_bias", "bias")
        if "has_bias" not in arguments:
            plan.put("bias", "False")
        if dtype := of_argument(arguments, "mindspore"):
            plan.keep("dtype", value=site.needs.name(f"torch.{dtype}"))
        if site.is_super:
            return site.updated.with_changes(args=plan.args(_TORCH))
        func = cst.parse_expression(site.needs.name(f"torch.nn.Conv{self.rank}d"))
        return site.updated.with_changes(func=func, args=plan.args(_TORCH))
