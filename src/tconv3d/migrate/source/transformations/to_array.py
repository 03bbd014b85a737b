# SPDX-License-Identifier: Apache-2.0
"""x.detach().numpy() <-> x.asnumpy(): the one method chain that only one framework has, so it needs no types."""

from __future__ import annotations

import libcst as cst

_ON_THE_WAY = ("detach", "cpu", "clone")


def rewritten(call: cst.Call, to: str) -> cst.Call | None:
    """The other framework's chain; None where the call is no such chain."""
    name = _method(call)
    if to == "torch" and name == "asnumpy":
        assert isinstance(call.func, cst.Attribute)
        return _called(_called(call.func.value, "detach"), "numpy")
    if to != "mindspore" or name != "numpy":
        return None
    assert isinstance(call.func, cst.Attribute)
    inner, detached = call.func.value, False
    while isinstance(inner, cst.Call) and _method(inner) in _ON_THE_WAY:
        detached = detached or _method(inner) == "detach"
        assert isinstance(inner.func, cst.Attribute)
        inner = inner.func.value
    return _called(inner, "asnumpy") if detached else None


def _method(call: cst.Call) -> str | None:
    return call.func.attr.value if isinstance(call.func, cst.Attribute) and not call.args else None


def _called(value: cst.BaseExpression, method: str) -> cst.Call:
    return cst.Call(cst.Attribute(value, cst.Name(method)))
