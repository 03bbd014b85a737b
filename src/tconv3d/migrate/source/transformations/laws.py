# SPDX-License-Identifier: Apache-2.0
"""MindSpore's weight_init and bias_init as functions of torch.nn.init."""

from __future__ import annotations

import libcst as cst

from ...initial_weights import torch_law
from ..arguments import Arguments
from ..module import UNKNOWN
from ..options import Left
from ..site import Site

# mindspore.common.initializer classes -> (torch.nn.init function, {argument: its name there}, positional order).
_CLASSES: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "Normal": ("normal_", {"sigma": "std", "mean": "mean"}, ("sigma", "mean")),
    "TruncatedNormal": (
        "trunc_normal_", {"sigma": "std", "mean": "mean", "a": "a", "b": "b"}, ("sigma", "mean", "a", "b"),
    ),
    "HeUniform": (
        "kaiming_uniform_", {"negative_slope": "a", "mode": "mode", "nonlinearity": "nonlinearity"},
        ("negative_slope", "mode", "nonlinearity"),
    ),
    "HeNormal": (
        "kaiming_normal_", {"negative_slope": "a", "mode": "mode", "nonlinearity": "nonlinearity"},
        ("negative_slope", "mode", "nonlinearity"),
    ),
    "XavierUniform": ("xavier_uniform_", {"gain": "gain"}, ("gain",)),
    "XavierNormal": ("xavier_normal_", {"gain": "gain"}, ("gain",)),
    "Constant": ("constant_", {"value": "val"}, ("value",)),
    "One": ("ones_", {}, ()),
    "Zero": ("zeros_", {}, ()),
    "Dirac": ("dirac_", {"groups": "groups"}, ("groups",)),
    "Orthogonal": ("orthogonal_", {"gain": "gain"}, ("gain",)),
}  # fmt: skip
# Where the other framework's defaults differ, they are written out.
_DEFAULTS = {"Normal": {"std": "0.01"}, "TruncatedNormal": {"std": "0.01", "a": "-2.0", "b": "2.0"}}


def torch_function(site: Site, arguments: Arguments, name: str, page_default: str) -> str | None:
    """A callable's text that fills a parameter as argument `name` says; None for PyTorch's own law."""
    if name not in arguments:
        return None if site.options.source_defaults_to_none else _of_value(site, page_default)
    node = arguments.node(name)
    value = arguments.constant(name)
    if value is not UNKNOWN:
        return None if value is None else _of_value(site, value)
    if isinstance(node, cst.Call):
        return _of_class(site, node)
    raise Left(f"{name}={arguments.text(name)} is no law that is known without running the code")


def _of_value(site: Site, value: object) -> str:
    if not isinstance(value, (str, bool, int, float)):
        raise Left(f"the initial law {value!r} is refused by MindSpore")
    try:
        function, keywords = torch_law(value)
    except KeyError:
        raise Left(f"the initial law {value!r} is unknown") from None
    return _partial(site, function, keywords)


def _of_class(site: Site, call: cst.Call) -> str:
    name = site.module.resolve(call.func) or ""
    short = name.rpartition(".")[2]
    text = " ".join(site.module.code(call).split())
    if not name.startswith("mindspore.common.initializer.") or short not in _CLASSES | {"Uniform": ()}:
        raise Left(f"the initial law {text} is not known without running the code")
    if short == "Uniform":
        scale = site.module.code(call.args[0].value) if call.args else "0.07"
        return _partial(site, "uniform_", {"a": f"-({scale})" if not scale[0].isdigit() else f"-{scale}", "b": scale})
    function, names, order = _CLASSES[short]
    keywords = dict(_DEFAULTS.get(short, {}))
    for position, arg in enumerate(call.args):
        word = arg.keyword.value if arg.keyword else order[position] if position < len(order) else "?"
        if arg.star or word not in names:
            raise Left(f"the initial law {text} is not known without running the code")
        keywords[names[word]] = site.module.code(arg.value)
    return _partial(site, function, keywords)


def _partial(site: Site, function: str, keywords: dict[str, str]) -> str:
    target = site.needs.name(f"torch.nn.init.{function}")
    if not keywords:
        return target
    words = ", ".join(f"{name}={value}" for name, value in keywords.items())
    return f"{site.needs.name('functools.partial')}({target}, {words})"
