# SPDX-License-Identifier: Apache-2.0
"""torch.nn.ConvTranspose3d(...) -> mindspore.nn.Conv3dTranspose(...): always pad_mode='pad', every default written."""

from __future__ import annotations

import math
from typing import Any

import libcst as cst

from ...signature import MINDSPORE_PARAMETERS, PYTORCH_PARAMETERS
from .. import known
from ..arguments import Arguments, Plan
from ..module import UNKNOWN
from ..options import Left
from ..site import Site
from . import dtypes
from .to_mindspore_sizes import padding, size, triple

_LARGEST_VOLUME, _LARGEST_DEPTH_STRIDE = 343, 256
ANNOUNCED_PARAMETERS = tuple(name for name in PYTORCH_PARAMETERS if name != "device")


class TorchLayer:
    """One constructor call."""

    def apply(self, site: Site) -> cst.Call:
        """The new call. Raises Left where MindSpore has no equal."""
        arguments = site.arguments(PYTORCH_PARAMETERS)
        _check_the_calls_of_its_result(site)
        _check_limits(site, arguments)
        plan = self._announced(site, arguments) if site.options.announced_target else self._current(site, arguments)
        order = ANNOUNCED_PARAMETERS if site.options.announced_target else MINDSPORE_PARAMETERS
        return finish(site, known.MINDSPORE_LAYER, plan.args(order))

    def _current(self, site: Site, arguments: Arguments) -> Plan:
        plan = self._common(site, arguments)
        plan.put("pad_mode", "'pad'")
        plan.keep("padding", value=padding(site, arguments))
        plan.keep("groups", "group")
        bias(plan, arguments, "has_bias")
        self._laws(site, arguments, plan)
        return plan

    def _announced(self, site: Site, arguments: Arguments) -> Plan:
        plan = self._common(site, arguments)
        plan.keep("padding", value=size(site, arguments, "padding"))
        plan.keep("groups")
        bias(plan, arguments, "bias")
        return plan

    def _common(self, site: Site, arguments: Arguments) -> Plan:
        plan = Plan(arguments)
        plan.keep("in_channels")
        plan.keep("out_channels")
        for name in ("kernel_size", "stride", "dilation", "output_padding"):
            plan.keep(name, value=size(site, arguments, name))
        check_padding_mode(site, arguments)
        drop_device(site, arguments)
        dtype = mindspore_dtype(arguments)
        if dtype and (site.options.target_takes_dtype or dtype != "float32"):
            if not site.options.target_takes_dtype:
                raise Left(f"dtype={dtype} cannot be asked for before MindSpore 2.2")
            plan.keep("dtype", value=site.needs.name(f"mindspore.{dtype}"))
        return plan

    def _laws(self, site: Site, arguments: Arguments, plan: Plan) -> None:
        """Write PyTorch's initial law out: None from 2.1 on, before that its definition."""
        has_bias = arguments.constant("bias", True) is UNKNOWN or bool(arguments.constant("bias", True))
        if site.options.target_takes_none:
            plan.put("weight_init", "None")
            if has_bias:
                plan.put("bias_init", "None")
            return
        law = site.needs.module("mindspore.common.initializer")
        plan.put("weight_init", f"{law}.HeUniform(5**0.5)")
        if has_bias:
            fan_in = arguments.require("out_channels") // arguments.require("groups", 1)
            fan_in *= math.prod(triple("kernel_size", arguments.require("kernel_size")))
            plan.put("bias_init", f"{law}.Uniform({1 / math.sqrt(fan_in)!r})")


def finish(site: Site, name: str, args: list[cst.Arg]) -> cst.Call:
    """The call with its new arguments, under the new name unless the callee is super() or an alias."""
    call = site.updated.with_changes(args=args)
    if site.is_super or site.module.is_alias(site.original.func) or _is_own_class(site):
        return call
    return call.with_changes(func=cst.parse_expression(site.needs.name(name)))


def _is_own_class(site: Site) -> bool:
    return isinstance(site.original.func, cst.Name) and site.original.func.value in site.module.classes


def bias(plan: Plan, arguments: Arguments, new_name: str) -> None:
    """PyTorch tests bias for its truth, MindSpore wants a bool; the default is written out."""
    value = arguments.constant("bias", True)
    node = arguments.node("bias")
    if node is None:
        plan.put(new_name, "True")
    elif value is not UNKNOWN:
        plan.keep("bias", new_name, None if isinstance(value, bool) else repr(bool(value)))
    elif arguments.module.is_bool(node):
        plan.keep("bias", new_name)
    else:
        plan.keep("bias", new_name, cst.Call(cst.Name("bool"), [cst.Arg(arguments.new("bias"))]))


def check_padding_mode(site: Site, arguments: Arguments) -> None:
    """PyTorch accepts 'zeros' alone, so code that runs has nothing else."""
    value = arguments.constant("padding_mode", "zeros")
    if value is UNKNOWN:
        site.warn(f"padding_mode={arguments.text('padding_mode')} dropped: PyTorch accepts 'zeros' alone here")
    elif value != "zeros":
        raise Left(f"padding_mode={value!r} is refused by PyTorch")


def drop_device(site: Site, arguments: Arguments) -> None:
    """MindSpore's layers have no device."""
    if arguments.constant("device") is not None:
        site.warn(f"device={arguments.text('device')} dropped: MindSpore chooses the device for the whole process")


def mindspore_dtype(arguments: Arguments) -> str | None:
    """The dtype's name; Left for one that MindSpore refuses at the call."""
    dtype = dtypes.of_argument(arguments, "torch")
    if dtype is not None and dtype not in dtypes.MINDSPORE_COMPUTES:
        raise Left(f"dtype={arguments.text('dtype')}: MindSpore computes float16 and float32 alone here")
    return dtype


def _check_the_calls_of_its_result(site: Site) -> None:
    name = site.module.result_name(site.place)
    call = site.module.sized_calls.get(name or "")
    if call is not None:
        raise Left(f"{name} is called with an output size in line {site.module.line(call)}, which MindSpore lacks")


def _check_limits(site: Site, arguments: Arguments) -> None:
    known_sizes: dict[str, Any] = {name: _entries(arguments, name) for name in ("kernel_size", "stride", "dilation")}
    kernel, stride, dilation = known_sizes.values()
    if dilation is None and "dilation" in arguments:
        site.warn(f"dilation={arguments.text('dilation')}: MindSpore refuses a depth dilation other than 1")
    if dilation and dilation[0] != 1:
        raise Left(f"MindSpore refuses a depth dilation other than 1, here {dilation[0]}; --use tconv3d computes it")
    if kernel and math.prod(kernel) > _LARGEST_VOLUME:
        raise Left(f"MindSpore refuses kernels of more than {_LARGEST_VOLUME} taps, here {math.prod(kernel)}")
    if stride and stride[0] > _LARGEST_DEPTH_STRIDE:
        raise Left(f"MindSpore refuses a depth stride above {_LARGEST_DEPTH_STRIDE}, here {stride[0]}")
    extra = _entries(arguments, "output_padding")
    if extra and stride and any(e >= s for e, s in zip(extra, stride, strict=True)):
        raise Left(f"MindSpore refuses output_padding={extra} with stride {stride} on CPU; --use tconv3d computes it")
    if not site.options.target_takes_none and arguments.constant("groups", 1) != 1:
        raise Left("MindSpore before 2.1 takes group=1 alone")


def _entries(arguments: Arguments, name: str) -> tuple[int, ...] | None:
    value = arguments.constant(name, 0 if name == "output_padding" else 1)
    return None if value is UNKNOWN else triple(name, value)
