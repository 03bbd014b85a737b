# SPDX-License-Identifier: Apache-2.0
"""--use tconv3d: the layer keeps its own contract and runs on the other framework, so its arguments stay."""

from __future__ import annotations

import libcst as cst

from ...signature import MINDSPORE_PARAMETERS, PYTORCH_PARAMETERS
from ..arguments import Plan
from ..options import Left
from ..site import Site
from . import dtypes
from .mindspore_layer import is_announced
from .torch_layer import drop_device, finish


class TorchContract:
    """torch.nn.ConvTranspose3d(...) -> tconv3d.mindspore.ConvTranspose3d(...)."""

    def apply(self, site: Site) -> cst.Call:
        """The same arguments under the new name; the default of bias is written out, since MindSpore's is another."""
        arguments = site.arguments(PYTORCH_PARAMETERS)
        plan = Plan(arguments)
        for name in PYTORCH_PARAMETERS[:-2]:
            plan.keep(name)
        if "bias" not in arguments:
            plan.put("bias", "True")
        drop_device(site, arguments)
        if dtype := dtypes.of_argument(arguments, "torch"):
            plan.keep("dtype", value=site.needs.name(f"mindspore.{dtype}"))
        return finish(site, "tconv3d.mindspore.ConvTranspose3d", plan.args(PYTORCH_PARAMETERS))


class MindSporeContract:
    """mindspore.nn.Conv3dTranspose(...) -> tconv3d.torch.Conv3dTranspose(...)."""

    def apply(self, site: Site) -> cst.Call:
        """The same arguments under the new name; initial laws that are left out are written out, defaults differ."""
        if is_announced(site):
            raise Left("tconv3d.torch.Conv3dTranspose has the signature of MindSpore 2.10, not the announced one")
        arguments = site.arguments(MINDSPORE_PARAMETERS)
        plan = Plan(arguments)
        for name in MINDSPORE_PARAMETERS[:-1]:
            plan.keep(name)
        defaults = {"pad_mode": "'same'", "has_bias": "False"}
        if site.options.source_defaults_to_none:
            defaults |= {"weight_init": "None"}
            defaults |= {"bias_init": "None"} if arguments.constant("has_bias", False) is not False else {}
        for name, text in defaults.items():
            if name not in arguments:
                plan.put(name, text)
        if dtype := dtypes.of_argument(arguments, "mindspore"):
            plan.keep("dtype", value=site.needs.name(f"torch.{dtype}"))
        return finish(site, "tconv3d.torch.Conv3dTranspose", plan.args(MINDSPORE_PARAMETERS))
