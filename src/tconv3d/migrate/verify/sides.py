# SPDX-License-Identifier: Apache-2.0
"""One side of a comparison: a layer written as a call, or a network built by a factory of the user's."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...functional import conv_transpose3d
from .. import RequestError
from ..checkpoint.rules import build
from ..equal import to_functional
from ..layer import Layer, resolve
from ..signature import SourceText, parse_layer

Array = NDArray[Any]

_SLICE = re.compile(r"\)\s*(\[[\s\d:.,-]*\])\s*$")  # what `explain` writes behind an equal call
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass
class LayerSide:
    """A layer call: its geometry is known, and its own framework runs it where that is installed."""

    text: str
    layer: Layer
    cut: tuple[Any, ...] = ()  # an index behind the call, () for none
    note: str = ""

    @property
    def framework(self) -> str:
        """'torch', 'mindspore', or 'tconv3d' for our NumPy layers."""
        if "tconv3d" in self.text.partition("(")[0]:
            return "tconv3d"
        name = "torch" if self.layer.call.is_pytorch else "mindspore"
        return name if importlib.util.find_spec(name) else "tconv3d"

    def run(self, x: Array, weight: Array, bias: Array | None) -> Array:
        """The output for these parameters; the framework's own exceptions come through."""
        y = {"torch": self._torch, "mindspore": self._mindspore, "tconv3d": self._ours}[self.framework](x, weight, bias)
        return y[self.cut] if self.cut else y

    def _torch(self, x: Array, weight: Array, bias: Array | None) -> Array:
        torch = importlib.import_module("torch")
        net = torch.nn.ConvTranspose3d(**self._arguments(torch))
        with torch.no_grad():
            net.weight.copy_(torch.tensor(weight))
            if bias is not None:
                net.bias.copy_(torch.tensor(bias))
            sizes = [] if self.layer.output_size is None else [self.layer.output_size]
            found: Array = net(torch.tensor(x).to(net.weight.dtype), *sizes).to(torch.float64).numpy()
        return found

    def _mindspore(self, x: Array, weight: Array, bias: Array | None) -> Array:
        mindspore = importlib.import_module("mindspore")
        net = mindspore.nn.Conv3dTranspose(**self._arguments(mindspore))
        dtype = net.weight.dtype
        net.weight.set_data(mindspore.Tensor(weight, dtype))
        if bias is not None:
            net.bias.set_data(mindspore.Tensor(bias, dtype))
        found: Array = net(mindspore.Tensor(x, dtype)).asnumpy().astype(np.float64)
        return found

    def _ours(self, x: Array, weight: Array, bias: Array | None) -> Array:
        dtype = {"float16": np.float16, "float64": np.float64}.get(self.layer.call.dtype, np.float32)
        values = [None if value is None else value.astype(dtype) for value in (x, weight, bias)]
        options: Any = to_functional(self.layer.geometry)
        found: Array = conv_transpose3d(*values, **options)  # type: ignore[arg-type]
        return found.astype(np.float64)

    def _arguments(self, framework: Any) -> dict[str, Any]:
        """The call's arguments; what is source text becomes a dtype or, since weights are given, nothing."""
        given = self.layer.call.arguments
        plain = {name: value for name, value in given.items() if not isinstance(value, SourceText)}
        if isinstance(given.get("dtype"), SourceText):
            plain["dtype"] = getattr(framework, self.layer.call.dtype)
        return plain


@dataclass
class NetworkSide:
    """A torch module or a MindSpore cell that the user's factory built."""

    text: str
    model: Any
    captured: dict[str, Array] = field(default_factory=dict)

    @property
    def framework(self) -> str:
        """'torch' or 'mindspore'."""
        return "torch" if hasattr(self.model, "named_modules") else "mindspore"

    def run(self, inputs: list[Array]) -> list[Array]:
        """The outputs in evaluation; `captured` then has the output of every layer below, by its path."""
        return self._torch(inputs) if self.framework == "torch" else self._mindspore(inputs)

    def state(self) -> dict[str, Array]:
        """Every parameter and statistic by its name."""
        if self.framework == "torch":
            return {name: value.detach().cpu().numpy() for name, value in self.model.state_dict().items()}
        return {name: value.asnumpy() for name, value in self.model.parameters_dict().items()}

    def load(self, state: dict[str, Array]) -> list[str]:
        """Set parameters by name; return the names of this side that were not set."""
        own = self.model.state_dict() if self.framework == "torch" else self.model.parameters_dict()
        for name, value in state.items():
            if name not in own:
                raise RequestError(f"{self.text} has no parameter {name!r}; say with --rules what it is called")
            if tuple(own[name].shape) != value.shape:
                raise RequestError(f"{name!r} is {value.shape} on one side and {tuple(own[name].shape)} on the other")
            self._set(own[name], value)
        return [name for name in own if name not in state]

    def _set(self, parameter: Any, value: Array) -> None:
        if self.framework == "torch":
            torch = importlib.import_module("torch")
            with torch.no_grad():
                parameter.copy_(torch.tensor(value))
        else:
            mindspore = importlib.import_module("mindspore")
            parameter.set_data(mindspore.Tensor(value, parameter.dtype))

    def _torch(self, inputs: list[Array]) -> list[Array]:
        torch = importlib.import_module("torch")
        hooks = [
            module.register_forward_hook(self._keep(path, lambda y: y.detach().to(torch.float64).cpu().numpy()))
            for path, module in self.model.named_modules() if path
        ]  # fmt: skip
        try:
            with torch.no_grad():
                found = self.model.eval()(*map(torch.tensor, inputs))
        finally:
            for hook in hooks:
                hook.remove()
        return [y.to(torch.float64).cpu().numpy() for y in _flat(found)]

    def _mindspore(self, inputs: list[Array]) -> list[Array]:
        mindspore = importlib.import_module("mindspore")
        hooks = [
            cell.register_forward_hook(self._keep(path, lambda y: y.asnumpy().astype(np.float64)))
            for path, cell in self.model.cells_and_names() if path
        ]  # fmt: skip
        try:
            found = self.model.set_train(False)(*map(mindspore.Tensor, inputs))
        finally:
            for hook in hooks:
                hook.remove()
        return [y.asnumpy().astype(np.float64) for y in _flat(found)]

    def _keep(self, path: str, to_array: Any) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            if hasattr(output, "shape"):
                self.captured[path] = to_array(output)

        return hook


def make(text: str, input_shape: tuple[int, ...]) -> LayerSide | NetworkSide:
    """The side that a text means: `nn.ConvTranspose3d(...)` is read, `pkg.mod:factory` is imported and called."""
    if _REFERENCE.fullmatch(text.strip()):
        model = build(text.strip())
        if not hasattr(model, "named_modules") and not hasattr(model, "cells_and_names"):
            raise RequestError(f"{text} gives a {type(model).__name__}, neither a torch module nor a MindSpore cell")
        return NetworkSide(text.strip(), model)
    cut: tuple[Any, ...] = ()
    call = text.strip()
    if found := _SLICE.search(call):
        cut = _index(found[1])
        call = call[: found.start(1)].rstrip()
    return LayerSide(text.strip(), resolve(parse_layer(call), input_shape), cut)


def _index(text: str) -> tuple[Any, ...]:
    """`[..., :-1, 1:]` as an index, read and not run."""
    try:
        node = ast.parse(f"y{text}", mode="eval").body
        assert isinstance(node, ast.Subscript)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return tuple(_part(part) for part in parts)
    except (SyntaxError, ValueError, AssertionError):
        raise RequestError(f"{text!r} is no slice such as [..., :-1, :-1, :-1]") from None


def _part(node: ast.expr) -> Any:
    if isinstance(node, ast.Slice):
        ends = [None if end is None else ast.literal_eval(end) for end in (node.lower, node.upper)]
        return slice(*ends)
    return ast.literal_eval(node)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [part for each in value for part in _flat(each)]
    if isinstance(value, dict):
        return [part for each in value.values() for part in _flat(each)]
    return [value]
