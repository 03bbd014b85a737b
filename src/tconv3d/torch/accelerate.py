# SPDX-License-Identifier: Apache-2.0
"""The transposed convolutions of a finished model exchanged in place, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch.nn import Module, parameter
from torch.nn.utils import parametrize

from ..errors import describe
from . import _ops
from ._calls import DTYPES
from .layers import ConvTranspose3d, LazyConvTranspose3d

_Original, _LazyOriginal = torch.nn.ConvTranspose3d, torch.nn.LazyConvTranspose3d


@dataclass(frozen=True)
class Row:
    """What became of one module.

    ``module`` is its path in the model, ``kind`` its class, ``geometry`` its arguments. ``plan`` says what runs it,
    ``why_not`` is empty for an accelerated module and else the reason why it was left as it is.

    >>> Row("up", "ConvTranspose3d", "2, 4, kernel_size=(3, 3, 3)", "PyTorch", "it is scripted").accelerated
    False
    """

    module: str
    kind: str
    geometry: str
    plan: str
    why_not: str = ""

    @property
    def accelerated(self) -> bool:
        """Whether the engine runs this module from now on."""
        return not self.why_not


@dataclass(frozen=True)
class Report:
    """The result of `accelerate`: a row for each transposed 3-D convolution of the model, in the model's order.

    >>> print(accelerate(torch.nn.Sequential(torch.nn.ConvTranspose3d(2, 4, 3, stride=2))))
    1 of 1 transposed 3-D convolutions accelerated
      0  ConvTranspose3d(2, 4, kernel_size=(3, 3, 3), stride=(2, 2, 2))
         engine, float32: 8 phases of 1 to 8 taps, 27 in all
    """

    rows: tuple[Row, ...]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def accelerated(self) -> tuple[Row, ...]:
        """The rows of the modules that the engine runs."""
        return tuple(row for row in self.rows if row.accelerated)

    @property
    def skipped(self) -> tuple[Row, ...]:
        """The rows of the modules that were left as they are, each with its ``why_not``."""
        return tuple(row for row in self.rows if not row.accelerated)

    def __str__(self) -> str:
        lines = [f"{len(self.accelerated)} of {len(self.rows)} transposed 3-D convolutions accelerated"]
        width = max((len(row.module) for row in self.rows), default=0)
        for row in self.rows:
            lines.append(f"  {row.module:<{width}}  {row.kind}({row.geometry})")
            lines.append(f"  {'':<{width}}  {row.plan}{': ' if row.why_not else ''}{row.why_not}")
        return "\n".join(lines)


def accelerate(model: Module) -> Report:
    """Let this library's engine run each ``torch.nn.ConvTranspose3d`` inside of a model, itself included; a report.

    Modules change their class in place and nothing else: parameters, buffers, hooks, state_dict, the references that
    optimizers hold, training mode, weight_norm and other parametrizations stay. Subclasses keep their own methods as
    long as they left ``forward`` alone. What cannot be exchanged is left as it is, and the report says why: scripted
    and quantized modules, a ``forward`` of their own. Modules on devices and with dtypes that the engine lacks are
    exchanged too and run by PyTorch's operator until they move. Only modules are found: a model that calls
    torch.nn.functional.conv_transpose3d itself needs this library's function in its code.

    `restore` undoes it. Do that before a whole model is pickled for someone who has not got this library: pickles name
    the classes. A state_dict needs nothing.

    Raises
        TypeError: model is no torch.nn.Module.

    >>> model = torch.nn.Sequential(torch.nn.ConvTranspose3d(2, 4, 3), torch.nn.ReLU())
    >>> [row.module for row in accelerate(model).accelerated], type(model[0]).__module__
    (['0'], 'tconv3d.torch.layers')
    """
    rows = []
    for name, module in _modules_of("accelerate", model):
        if isinstance(module, _Original):
            why_not = "" if isinstance(module, ConvTranspose3d) else _obstacle(module)
            if not why_not and not isinstance(module, ConvTranspose3d):
                module.__class__ = _accelerated_class(type(module))
            rows.append(_row(name, module, why_not))
        elif _is_a_relative(module):
            rows.append(Row(name, _kind(module), "", "left as it is", "it is no torch.nn.ConvTranspose3d any more"))
    return Report(tuple(rows))


def restore(model: Module) -> Module:
    """Give the transposed convolutions of a model back to PyTorch; frozen weights are thawed. Returns the model.

    Layers that were made with this library's class become ``torch.nn.ConvTranspose3d`` as well.

    Raises
        TypeError: model is no torch.nn.Module.

    >>> model = torch.nn.Sequential(torch.nn.ConvTranspose3d(2, 4, 3))
    >>> report = accelerate(model)
    >>> type(restore(model)[0])
    <class 'torch.nn.modules.conv.ConvTranspose3d'>
    """
    for _, module in _modules_of("restore", model):
        if isinstance(module, ConvTranspose3d):
            module._thaw()
            module.__dict__.pop("_calls", None)
            module.__class__ = _original_class(type(module))
    return model


def _modules_of(verb: str, model: Any) -> Iterator[tuple[str, Module]]:
    if not isinstance(model, Module):
        raise TypeError(describe(f"{verb}: model", type(model), "it must be a torch.nn.Module", "pass the model"))
    return iter(list(model.named_modules()))


def _obstacle(module: Module) -> str:
    """Why a module cannot be exchanged, or nothing."""
    if "forward" in module.__dict__:
        return "its forward was replaced on the object"
    for method in ("forward", "_output_padding"):
        if getattr(type(module), method) is not getattr(_Original, method):
            return f"its class {type(module).__qualname__} has a {method} of its own"
    return ""


def _is_a_relative(module: Module) -> bool:
    """Whether this was a ConvTranspose3d before PyTorch rewrote it: scripted, or quantized."""
    rewritten = isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith("torch.")
    return rewritten and _kind(module) in ("ConvTranspose3d", "LazyConvTranspose3d")


def _kind(module: Module) -> str:
    return getattr(module, "original_name", None) or type(module).__name__


# Classes. A parametrized module has a class of its own with one base, which `remove_parametrizations` goes back to; so
# the base is exchanged. A user's subclass stays a base, behind ours, so that isinstance and `super` keep working.


def _accelerated_class(cls: type[Module]) -> type[Module]:
    if cls is _Original:
        return ConvTranspose3d
    if cls is _LazyOriginal:
        return LazyConvTranspose3d
    if _is_parametrized(cls):
        return _rebased(cls, _accelerated_class(cls.__bases__[0]))
    return _exchanged_class(cls)


@cache
def _exchanged_class(cls: type[Module]) -> type[Module]:
    members: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    if issubclass(cls, _LazyOriginal):
        members["cls_to_become"] = _accelerated_class(cls.cls_to_become)
    return type(cls.__name__, (_Exchanged, cls), members)


def _original_class(cls: type[Module]) -> type[Module]:
    if cls is ConvTranspose3d:
        return _Original
    if cls is LazyConvTranspose3d:
        return _LazyOriginal
    if _is_parametrized(cls):
        return _rebased(cls, _original_class(cls.__bases__[0]))
    return cls.__bases__[1] if cls.__bases__[0] is _Exchanged else cls


def _is_parametrized(cls: type[Module]) -> bool:
    return cls.__name__.startswith("Parametrized") and len(cls.__bases__) == 1 and "__getstate__" in cls.__dict__


def _rebased(cls: type[Module], base: type[Module]) -> type[Module]:
    members = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (base,), members)


class _Exchanged(ConvTranspose3d):
    """Our part of a class made for a user's subclass. No name finds that class, so a pickle names the subclass."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (_original_class(type(self)),), self.__getstate__()


def _revive(cls: type[Module]) -> Module:
    made = _accelerated_class(cls)
    return made.__new__(made)


def _row(name: str, module: Module, why_not: str) -> Row:
    kind = type(module).__name__
    if why_not:
        return Row(name, kind, module.extra_repr(), "PyTorch", why_not)
    return Row(name, kind, module.extra_repr(), _plan(module))


def _plan(module: Module) -> str:
    weight = next(module.parameters(), None)
    if weight is None:
        return "engine, for weights that come at the call"
    if parameter.is_lazy(weight):
        return "engine, once the first input has come"
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"PyTorch's operator, as long as the weight is {dtype} on {weight.device.type}"
    computed = ", weight computed on each call" if parametrize.is_parametrized(module) else ""
    return f"engine, {dtype}{computed}{_phases(module)}"


def _phases(module: Module) -> str:
    """How many dense convolutions the strides split the layer into, and the taps that each of them sees.

    Nothing for sizes that PyTorch's constructor takes and its call refuses.
    """
    sizes = [_ops.triple(size) for size in (module.kernel_size, module.stride, module.dilation)]
    if None in sizes or min(map(min, sizes)) < 1:
        return ""
    fewest, most = 1, 1
    for kernel, stride, dilation in zip(*sizes, strict=True):
        taps = Counter(tap * dilation % stride for tap in range(kernel))
        fewest *= min(taps.values()) if len(taps) == stride else 0
        most *= max(taps.values())
    return f": {prod(sizes[1])} phases of {fewest} to {most} taps, {prod(sizes[0])} in all"
