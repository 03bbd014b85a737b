# SPDX-License-Identifier: Apache-2.0
"""The parameters of each layer in both frameworks, and what a user adds to that table."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import RequestError

_NORM = {"weight": "gamma", "bias": "beta"}
_RUNNING = {"running_mean": "moving_mean", "running_var": "moving_variance"}
_SAME = {"weight": "weight", "bias": "bias"}

# layer -> {name in PyTorch: name in MindSpore}, both below the layer's own path.
LAYERS: dict[str, dict[str, str]] = {
    **{f"{name}{rank}d": _SAME for name in ("Conv", "ConvTranspose") for rank in (1, 2, 3)},
    "Linear": _SAME,
    "BatchNorm1d": _NORM | _RUNNING,
    "BatchNorm2d": _NORM | _RUNNING,
    "BatchNorm3d": {ours: f"bn2d.{theirs}" for ours, theirs in (_NORM | _RUNNING).items()},
    **{f"InstanceNorm{rank}d": _NORM | _RUNNING for rank in (1, 2, 3)},
    "GroupNorm": _NORM,
    "LayerNorm": _NORM,
    "PReLU": {"weight": "w"},
    "Embedding": {"weight": "embedding_table"},
}
# MindSpore's own names of the same layers.
ALIASES = {"Dense": "Linear", **{f"Conv{rank}dTranspose": f"ConvTranspose{rank}d" for rank in (1, 2, 3)}}
# A layer over one axis keeps its weight with an axis of length 1 in front of the kernel.
ONE_AXIS = ("Conv1d", "ConvTranspose1d")
COUNTER = "num_batches_tracked"  # of PyTorch's batch norms; MindSpore counts nothing


@dataclass
class Rules:
    """The table above with a user's additions. Patterns match whole paths (`fullmatch`)."""

    layers: dict[str, dict[str, str]] = field(default_factory=lambda: dict(LAYERS))
    modules: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    keys: list[tuple[re.Pattern[str], str]] = field(default_factory=list)
    drop: list[re.Pattern[str]] = field(default_factory=list)
    by_path: dict[str, str] = field(default_factory=dict)  # from a model: the layer at each path

    def layer_at(self, path: str) -> str | None:
        """What a model or a pattern says about the layer at this path; patterns win."""
        for pattern, layer in self.modules:
            if pattern.fullmatch(path):
                return layer
        return self.by_path.get(path)


def load(path: Path | None) -> Rules:
    """The built-in rules and those of a JSON file:

    {"layers": {"ScaleNorm": {"scale": "gamma"}},   PyTorch's name of each parameter: MindSpore's
     "modules": {"decoder\\\\.act\\\\d+": "PReLU"},      which layer stands at the paths that match
     "keys": {"module\\\\.(.*)": "\\\\1"},             source keys renamed before anything else
     "drop": ["optimizer\\\\..*"]}                   source keys left out, and reported
    """
    rules = Rules()
    if path is None:
        return rules
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        unknown = set(content) - {"layers", "modules", "keys", "drop"}
        if unknown:
            raise ValueError(f"unknown entries {sorted(unknown)}")
        rules.layers |= {
            str(name): {str(a): str(b) for a, b in m.items()} for name, m in content.get("layers", {}).items()
        }
        rules.modules = [(re.compile(p), known(rules, str(layer))) for p, layer in content.get("modules", {}).items()]
        rules.keys = [(re.compile(p), str(to)) for p, to in content.get("keys", {}).items()]
        rules.drop = [re.compile(p) for p in content.get("drop", [])]
    except (OSError, ValueError, TypeError, AttributeError, re.error) as error:
        raise RequestError(f"{path} is no rule file: {error}") from None
    return rules


def known(rules: Rules, layer: str) -> str:
    """The layer's name in the table; ValueError for one that is not there."""
    layer = ALIASES.get(layer, layer)
    if layer not in rules.layers:
        raise ValueError(f"no layer {layer!r}; known are {', '.join(rules.layers)}")
    return layer


def add_model(rules: Rules, reference: str) -> None:
    """Build the model that `pkg.mod:factory` names and note which layer stands at each path. This runs that code."""
    model = build(reference)
    if not hasattr(model, "named_modules") and not hasattr(model, "cells_and_names"):
        raise RequestError(f"{reference} gives a {type(model).__name__}, neither a torch module nor a MindSpore cell")
    rules.by_path |= layers_of(model, rules.layers)


def layers_of(model: Any, layers: dict[str, dict[str, str]]) -> dict[str, str]:
    """The layer of the table at each path of a torch module or a MindSpore cell."""
    pairs = model.named_modules() if hasattr(model, "named_modules") else model.cells_and_names()
    found = {}
    for path, module in pairs:
        names = [ALIASES.get(kind.__name__, kind.__name__) for kind in type(module).__mro__]
        layer = next((name for name in names if name in layers), None)
        # What MindSpore's BatchNorm3d keeps its parameters in is no layer of its own.
        if layer is not None and not (path == "bn2d" or path.endswith(".bn2d")):
            found[path] = layer
    return found


def build(reference: str) -> Any:
    """What `pkg.mod:factory` gives when called without arguments; modules of the current folder are found."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise RequestError(f"{reference!r} does not name a factory: write pkg.mod:factory")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        factory: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
        return factory()
    except Exception as error:  # it is the user's code: anything may come out
        raise RequestError(f"{reference} failed with {type(error).__name__}: {error}") from error
