# SPDX-License-Identifier: Apache-2.0
"""What a fresh layer starts from under each contract, and how to ask PyTorch for one of MindSpore's laws."""

from __future__ import annotations

import math

from .layer import Layer
from .signature import SourceText

_COPY = "The random streams never agree: for equal values copy weight and bias, their layout is the same in both."
# MindSpore's strings (lower case, without '_') as torch.nn.init calls. 'variancescaling' draws a uniform law,
# whatever its name says, and 'truncatednormal' cuts at +-2, not at 2 sigma.
_TORCH_INIT: dict[str, tuple[str, dict[str, str]]] = {
    "normal": ("normal_", {"std": "0.01"}),
    "truncatednormal": ("trunc_normal_", {"std": "0.01", "a": "-2", "b": "2"}),
    "uniform": ("uniform_", {"a": "-0.07", "b": "0.07"}),
    "heuniform": ("kaiming_uniform_", {}),
    "henormal": ("kaiming_normal_", {}),
    "xavieruniform": ("xavier_uniform_", {}),
    "xaviernormal": ("xavier_normal_", {}),
    "variancescaling": ("kaiming_uniform_", {"a": "1"}),
    "one": ("ones_", {}),
    "ones": ("ones_", {}),
    "zero": ("zeros_", {}),
    "zeros": ("zeros_", {}),
    "dirac": ("dirac_", {}),
    "orthogonal": ("orthogonal_", {}),
}


def from_pytorch(layer: Layer) -> str:
    """What changes for a fresh layer when a PyTorch call is written for MindSpore."""
    return (
        f"Fresh values: PyTorch draws {_drawn(layer)} from {_default_law(layer)}; so does MindSpore from 2.1 on, while"
        " earlier releases, and tconv3d.Conv3dTranspose unless told None, draw weights from Normal(0.01) and start the"
        f" bias at zero. {_COPY}"
    )


def from_mindspore(layer: Layer) -> str:
    """What changes for a fresh layer when a MindSpore call is written for PyTorch."""
    names = ("weight", "bias") if layer.bias else ("weight",)
    laws = " ".join(_law(layer, name) for name in names)
    drawn = f"PyTorch has no weight_init and draws {_drawn(layer)} from {_default_law(layer)}."
    return f"Fresh values: {drawn} {laws} {_COPY}"


def _drawn(layer: Layer) -> str:
    return "weight and bias" if layer.bias else "the weight"


def _default_law(layer: Layer) -> str:
    fan_in = math.prod(layer.arguments.weight_shape[1:])
    return f"U(+-{1 / math.sqrt(fan_in):.4g})"


def _law(layer: Layer, name: str) -> str:
    argument = f"{name}_init"
    page_default = {"weight": "normal", "bias": "zeros"}[name]
    if argument not in layer.call.arguments:
        return (
            f"{argument} is not written: MindSpore from 2.1 on has PyTorch's law; earlier releases and tconv3d have"
            f" {page_default!r} ({_torch_call(page_default, name)})."
        )
    value = layer.call.arguments[argument]
    if value is None:
        return f"{argument}=None is PyTorch's law."
    if isinstance(value, SourceText):
        return f"Apply {argument}={value} to net.{name} yourself."
    return f"{argument}={value!r} is {_torch_call(value, name)}."


def torch_law(law: str | float) -> tuple[str, dict[str, str]]:
    """The function of torch.nn.init, with its keywords, that draws as a name or a number does in MindSpore.

    KeyError for a name that MindSpore does not know.

    >>> torch_law("Normal")
    ('normal_', {'std': '0.01'})
    """
    if isinstance(law, str):
        return _TORCH_INIT[law.lower().replace("_", "")]
    return "constant_", {"val": repr(float(law))}


def _torch_call(law: object, name: str) -> str:
    if not isinstance(law, str):
        return f"torch.nn.init.constant_(net.{name}, {law!r})"
    function, keywords = torch_law(law)
    words = "".join(f", {key}={value}" for key, value in keywords.items())
    return f"torch.nn.init.{function}(net.{name}{words})"
