# SPDX-License-Identifier: Apache-2.0
"""The transposed convolutions that a PyTorch model runs on one input, found by running it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from ..bench.workload import GivenLayer
from ..contracts.pytorch import functional_geometry
from ..migrate.checkpoint.rules import build
from . import CommandError


def layers_of(reference: str, input_shape: tuple[int, ...]) -> list[GivenLayer]:
    """Run the model that `FILE.py:NAME` or `pkg.mod:NAME` names, and return the layers it called, equal ones once.

    The name is a module, or what makes one when it is called. Raises CommandError where that or the run fails.
    """
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError:
        raise CommandError("--model needs PyTorch: pip install 'tconv3d[torch]'") from None
    model = _model(reference)
    if not isinstance(model, torch.nn.Module):
        raise CommandError(f"{reference} gives a {type(model).__name__}, not a torch.nn.Module")
    seen: dict[Any, GivenLayer] = {}

    def note(path: str, module: Any, inputs: Any, output: Any) -> None:
        x = inputs[0]
        geometry = functional_geometry(
            x.shape, module.weight.shape, None, module.stride, module.padding, 0, module.groups, module.dilation,
            output_size=tuple(output.shape[-3:]),
        )  # fmt: skip
        batch = x.shape[0] if x.dim() == 5 else 1
        facts = geometry, batch, module.in_channels, module.out_channels, module.bias is not None
        seen.setdefault(facts, GivenLayer(path, *facts))

    _run(torch, reference, model, input_shape, note)
    if not seen:
        raise CommandError(f"{reference} ran no torch.nn.ConvTranspose3d on this input: there is nothing to race")
    return list(seen.values())


def _run(torch: Any, reference: str, model: Any, input_shape: tuple[int, ...], note: Any) -> None:
    kinds = torch.nn.ConvTranspose3d
    hooks = [
        module.register_forward_hook(lambda *call, path=path: note(path or "the model", *call))
        for path, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            model.eval()(torch.randn(input_shape))
    except CommandError:
        raise
    except Exception as error:  # it is the user's code: anything may come out
        raise CommandError(f"{reference} failed on {input_shape} with {type(error).__name__}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _model(reference: str) -> Any:
    path, _, name = reference.rpartition(":")
    if not path.endswith(".py"):
        return build(reference)
    try:
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        assert spec is not None and spec.loader is not None  # it ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)
        spec.loader.exec_module(module)
        found = getattr(module, name)
        return found if hasattr(found, "named_modules") and not isinstance(found, type) else found()
    except Exception as error:
        raise CommandError(f"{reference} failed with {type(error).__name__}: {error}") from error
