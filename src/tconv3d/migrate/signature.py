# SPDX-License-Identifier: Apache-2.0
"""Reads the text of a layer call, in either spelling, without executing any of it.

The text is parsed with `ast`; only literals, tuples, lists and integer arithmetic such as `(5-1)//2` get a value. A
name or a call is kept as its source text where the layer takes one (`dtype=torch.float16`,
`weight_init=Normal(0.02)`) and is an error everywhere else.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from . import RequestError

# The parameters of both constructors in positional order.
PYTORCH_PARAMETERS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "bias", "dilation",
    "padding_mode", "device", "dtype",
)  # fmt: skip
MINDSPORE_PARAMETERS = (
    "in_channels", "out_channels", "kernel_size", "stride", "pad_mode", "padding", "dilation", "group",
    "output_padding", "has_bias", "weight_init", "bias_init", "data_format", "dtype",
)  # fmt: skip

_REQUIRED = ("in_channels", "out_channels", "kernel_size")
_TAKES_SOURCE_TEXT = ("device", "dtype", "weight_init", "bias_init")
_OTHER_SPELLING = {
    "groups": "group", "bias": "has_bias", "padding_mode": "pad_mode",
    "group": "groups", "has_bias": "bias", "pad_mode": "padding_mode",
}  # fmt: skip
_DTYPE_ALIASES = {
    "half": "float16", "float": "float32", "double": "float64", "cfloat": "complex64", "cdouble": "complex128",
}  # fmt: skip
# No power and no shift: a few characters of text must not be able to ask for gigabytes of digits.
_ARITHMETIC: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class SourceText:
    """A value that is not a literal and is never evaluated, such as `torch.float16`."""

    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class LayerCall:
    """One constructor call as written: `arguments` holds only what the text names, the first `positional` by"
    " position."""

    arguments: dict[str, Any] = field(default_factory=dict)
    positional: int = 0

    is_pytorch: ClassVar[bool] = False
    layer: ClassVar[str]
    parameters: ClassVar[tuple[str, ...]]

    @property
    def dtype(self) -> str:
        """The last word of the dtype argument, aliases resolved; float32, the default of both, where it is left out."""
        value = self.arguments.get("dtype")
        if value is None and (self.is_pytorch or "dtype" not in self.arguments):
            return "float32"
        name = value.text.rpartition(".")[2] if isinstance(value, SourceText) else repr(value)
        return _DTYPE_ALIASES.get(name, name)


class PyTorchCall(LayerCall):
    """A call of torch.nn.ConvTranspose3d."""

    is_pytorch = True
    layer = "ConvTranspose3d"
    parameters = PYTORCH_PARAMETERS


class MindSporeCall(LayerCall):
    """A call of mindspore.nn.Conv3dTranspose."""

    layer = "Conv3dTranspose"
    parameters = MINDSPORE_PARAMETERS


_CALLS: dict[str, type[LayerCall]] = {kind.layer: kind for kind in (PyTorchCall, MindSporeCall)}


def parse_layer(text: str) -> LayerCall:
    """Read `nn.ConvTranspose3d(...)` or `nn.Conv3dTranspose(...)`, with any prefix and an optional `name = ` before it.

    Raises RequestError where the text is no such call, names an argument the layer lacks, or needs to be executed.
    """
    try:
        return _parse_layer(text)
    except (RecursionError, MemoryError):
        raise RequestError("cannot read the layer call: it is nested too deeply") from None


def parse_shape(text: str) -> tuple[int, ...]:
    """Read `1,3,4,9,16`, brackets and spaces allowed. Raises RequestError for anything else."""
    try:
        sizes = tuple(int(part) for part in text.strip(" ()[]").rstrip(", ").split(","))
    except ValueError:
        sizes = (-1,)
    if min(sizes) < 0:
        raise RequestError(f"{text!r} is not a list of sizes such as 1,3,4,9,16")
    return sizes


def _parse_layer(text: str) -> LayerCall:
    call = _parse_call(text)
    callee = ast.unparse(call.func)
    kind = _CALLS.get(callee.rpartition(".")[2])
    if kind is None:
        raise RequestError(
            f"{callee!r} is not a layer known here: write nn.ConvTranspose3d(...) for PyTorch or"
            " nn.Conv3dTranspose(...) for MindSpore"
        )
    return kind(_bind(kind, call), len(call.args))


def _parse_call(text: str) -> ast.Call:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes and such: this is no source of ours
            body = ast.parse(text.strip().rstrip(",;")).body
    except SyntaxError as error:
        raise RequestError(f"cannot read {text!r} as a layer call: {error.msg}") from None
    except ValueError as error:  # a null byte
        raise RequestError(f"cannot read {text!r} as a layer call: {error}") from None
    if len(body) == 1 and isinstance(body[0], (ast.Expr, ast.Assign)) and isinstance(body[0].value, ast.Call):
        return body[0].value
    raise RequestError(f"{text!r} is not one layer call, such as nn.ConvTranspose3d(3, 32, 5, stride=3)")


def _bind(kind: type[LayerCall], call: ast.Call) -> dict[str, Any]:
    if len(call.args) > len(kind.parameters):
        raise RequestError(
            f"{kind.layer} takes {len(kind.parameters)} arguments at most, the text has {len(call.args)}"
        )
    pairs = [(name, node) for name, node in zip(kind.parameters, call.args, strict=False)]
    pairs += [(keyword.arg or "**", keyword.value) for keyword in call.keywords]
    arguments: dict[str, Any] = {}
    for name, node in pairs:
        if name not in kind.parameters:
            raise RequestError(_unknown_argument(kind, name))
        if name in arguments:
            raise RequestError(f"{kind.layer} got {name!r} twice")
        arguments[name] = _value(name, node)
    missing = [name for name in _REQUIRED if name not in arguments]
    if missing:
        raise RequestError(f"{kind.layer} needs {', '.join(missing)}")
    return arguments


def _unknown_argument(kind: type[LayerCall], name: str) -> str:
    if name == "**":
        return "'**' has no value without executing the text: write the arguments out"
    other = _OTHER_SPELLING.get(name)
    hint = f" (its name for this is {other!r})" if other in kind.parameters else ""
    return f"{kind.layer} has no argument {name!r}{hint}; it takes {', '.join(kind.parameters)}"


def _value(name: str, node: ast.expr) -> object:
    try:
        return literal(node)
    except ZeroDivisionError:
        raise RequestError(f"{name}={ast.unparse(node)} divides by zero") from None
    except NotLiteral as error:
        if name in _TAKES_SOURCE_TEXT and isinstance(node, (ast.Name, ast.Attribute, ast.Call)):
            return SourceText(ast.unparse(node))
        raise RequestError(
            f"{name}={ast.unparse(node)}: {error} has no value without executing it; write the number"
        ) from None


class NotLiteral(Exception):
    """The node needs an environment to have a value."""


def literal(node: ast.expr) -> object:
    """The value of a literal, a tuple or list of them, or arithmetic on them. Raises NotLiteral for anything else."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Tuple(elts=elements):
            return tuple(literal(element) for element in elements)
        case ast.List(elts=elements):
            return [literal(element) for element in elements]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            number = literal(operand)
            if isinstance(number, (int, float)):
                return -number if isinstance(sign, ast.USub) else +number
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            first, second = literal(left), literal(right)
            if isinstance(first, int) and isinstance(second, int):
                return _ARITHMETIC[type(op)](first, second)
    raise NotLiteral(f"`{ast.unparse(node)}`")
