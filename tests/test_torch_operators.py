# SPDX-License-Identifier: Apache-2.0
"""The library operators by themselves: their promises to PyTorch, their derivatives, vmap, other devices."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap
from torch_support import CHANNELS_LAST

import tconv3d.torch as face
from tconv3d.torch import _library

OPERATORS = {op._schema.name.partition("::")[2]: op for op in _library.OPERATORS}


def operator_samples(dtype: torch.dtype = torch.float64) -> list[tuple[str, tuple[Any, ...]]]:
    """Calls of each operator: both contracts' crops, groups, dilation, an empty batch, channels_last_3d."""
    samples: list[tuple[str, tuple[Any, ...]]] = []
    sizes = [
        ([2, 2, 2], [1, 1, 1], [1, 1, 1], [0, 1, 1], 1),
        ([2, 1, 3], [1, 2, 1], [1, 0, 0], [2, 1, -1], 2),
        ([1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0], 4),
    ]
    for (stride, dilation, front, back, groups), batch in itertools.product(sizes, (2, 0)):
        x = torch.randn(batch, 4, 3, 4, 2, dtype=dtype)
        w, b = torch.randn(4, 2, 3, 2, 2, dtype=dtype), torch.randn(2 * groups, dtype=dtype)
        geometry = stride, dilation, front
        y = OPERATORS["conv_transpose3d"](x, w, b, *geometry, back, groups)
        samples += [
            ("conv_transpose3d", (x, w, b, *geometry, back, groups)),
            ("conv_transpose3d", (x.to(memory_format=CHANNELS_LAST), w, None, *geometry, back, groups)),
            ("conv_transpose3d_input_grad", (y, w, [3, 4, 2], *geometry, groups)),
            ("conv_transpose3d_input_grad", (y.to(memory_format=CHANNELS_LAST), w, [3, 4, 2], *geometry, groups)),
            ("conv_transpose3d_weight_grad", (x, y, [3, 2, 2], *geometry, groups)),
        ]
    return samples


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    for name, arguments in operator_samples(dtype):
        tensors = [a.requires_grad_() if isinstance(a, Tensor) and a.shape[0] else a for a in arguments]
        tools = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if dtype == torch.float64:
            tools.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(OPERATORS[name], tuple(tensors), test_utils=tools)


def mapped(name: str, arguments: tuple[Any, ...], function: Any = None) -> tuple[Any, tuple[Tensor, ...]]:
    """The operator as a function of its tensors alone, and these."""
    tensors = tuple(a for a in arguments if isinstance(a, Tensor))
    rest = arguments[len(tensors) :]
    function = function or OPERATORS[name]
    return lambda *leaves: function(*leaves, *rest), tensors


@pytest.mark.parametrize("index", [0, 2, 4, 10, 12, 14, 20, 22, 24])  # one of each operator, for each geometry
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, of its first dual number
def test_derivatives_of_the_operators(index: int) -> None:
    name, arguments = operator_samples()[index]
    function, tensors = mapped(name, arguments)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
    checks = dict(check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradcheck(function, leaves, check_batched_forward_grad=True, **checks)
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operators_without_the_engine_agree(device: str) -> None:
    """What other devices run, on this one; and what meta tensors make of it."""
    for name, arguments in operator_samples():
        expected = OPERATORS[name](*arguments)
        if device == "cpu" and arguments[0].shape[0]:
            function = getattr(face._aten, name.removeprefix("conv_transpose3d_"))
            torch.testing.assert_close(function(*arguments), expected)
        moved = [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
        result = OPERATORS[name](*moved)
        assert (result.shape, result.stride(), result.device.type) == (expected.shape, expected.stride(), device)


@pytest.mark.parametrize("asked", [a for a in itertools.product([None, 0, 1], repeat=3) if a != (None,) * 3])
def test_vmap_over_every_choice_of_operands(asked: tuple[int | None, ...]) -> None:
    """Against a loop: every operator, every axis, groups too."""
    for name, arguments in operator_samples()[:5] + operator_samples()[10:15]:
        function, tensors = mapped(name, arguments)
        dims = asked[: len(tensors)]
        if all(dim is None for dim in dims):
            continue
        batched = [
            tensor if dim is None else torch.stack([tensor, 2 * tensor, tensor.flip(-1)], dim)
            for tensor, dim in zip(tensors, dims, strict=True)
        ]
        singles = [
            function(*(t if dim is None else t.select(dim, i) for t, dim in zip(batched, dims, strict=True)))
            for i in range(3)
        ]
        torch.testing.assert_close(vmap(function, in_dims=dims)(*batched), torch.stack(singles))


ONE, NONE = [1, 1, 1], [0, 0, 0]
BAD_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("conv_transpose3d", ((1, 2, 3, 3), (2, 3, 2, 2, 2), None, ONE, ONE, NONE, NONE, 1)),
    ("conv_transpose3d", ((1, 3, 3, 3, 3), (2, 3, 2, 2, 2), None, ONE, ONE, NONE, NONE, 1)),
    ("conv_transpose3d", ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), (4,), ONE, ONE, NONE, NONE, 1)),
    ("conv_transpose3d", ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), None, [1, 0, 1], ONE, NONE, NONE, 1)),
    ("conv_transpose3d", ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), None, ONE, ONE, [0, -1, 0], NONE, 1)),
    ("conv_transpose3d", ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), None, ONE, ONE, NONE, [0, 9, 0], 1)),
    ("conv_transpose3d", ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), None, ONE, ONE, NONE, NONE, 0)),
    ("conv_transpose3d", ((1, 2, 3, 3, 3), (2, 3, 2, 2, 2), None, [1, 1], ONE, NONE, NONE, 1)),
    ("conv_transpose3d_input_grad", ((1, 4, 4, 4, 4), (2, 3, 2, 2, 2), [3, 3, 3], ONE, ONE, NONE, 1)),
    ("conv_transpose3d_input_grad", ((1, 3, 4, 4, 4), (2, 3, 2, 2, 2), [3, 3, -3], ONE, ONE, NONE, 1)),
    ("conv_transpose3d_weight_grad", ((2, 2, 3, 3, 3), (1, 3, 4, 4, 4), [2, 2, 2], ONE, ONE, NONE, 1)),
    ("conv_transpose3d_weight_grad", ((1, 2, 3, 3, 3), (1, 3, 4, 4, 4), [2, 2, 2], ONE, ONE, NONE, 2)),
    ("conv_transpose3d_weight_grad", ((1, 2, 3, 3, 3), (1, 3, 4, 4, 4), [2, 0, 2], ONE, ONE, NONE, 1)),
]


@pytest.mark.parametrize("index", range(len(BAD_CALLS)))
def test_what_does_not_fit_is_refused_before_the_engine_sees_it(index: int, engine_calls: list[str]) -> None:
    name, arguments = BAD_CALLS[index]
    for device in ("cpu", "meta"):
        tensors = [torch.ones(a, device=device) if isinstance(a, tuple) else a for a in arguments]
        with pytest.raises(RuntimeError, match=r"must|need|may be negative"):
            OPERATORS[name](*tensors)
    assert not engine_calls


def test_operands_of_two_dtypes_are_refused() -> None:
    for name, arguments in operator_samples()[:5]:
        with pytest.raises(RuntimeError, match=r"convert one|must be"):
            OPERATORS[name](arguments[0].float(), *arguments[1:])


@pytest.mark.parametrize(("in_channels", "out_channels"), [(0, 3), (3, 0), (0, 0)])
def test_no_channels(in_channels: int, out_channels: int) -> None:
    """Sums of nothing are zero, and results without elements are just that: nothing divides by the channels."""
    x, w = torch.ones(1, in_channels, 2, 2, 2), torch.ones(in_channels, out_channels, 2, 2, 2)
    geometry = [2, 2, 2], [1, 1, 1], [0, 0, 0]
    y = OPERATORS["conv_transpose3d"](x, w, None, *geometry, [0, 0, 0], 1)
    torch.testing.assert_close(y, torch.zeros(1, out_channels, 4, 4, 4))
    gx = OPERATORS["conv_transpose3d_input_grad"](torch.ones_like(y), w, [2, 2, 2], *geometry, 1)
    torch.testing.assert_close(gx, torch.zeros_like(x))
    gw = OPERATORS["conv_transpose3d_weight_grad"](x, torch.ones_like(y), [2, 2, 2], *geometry, 1)
    torch.testing.assert_close(gw, torch.zeros_like(w))
