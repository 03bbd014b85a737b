# SPDX-License-Identifier: Apache-2.0
"""torch.func and forward-mode derivatives of the public function."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch_support import operands, ours, pair, theirs


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_of_every_operand() -> None:
    x, weight, bias = operands()
    tangents = tuple(torch.randn_like(leaf) for leaf in (x, weight, bias))
    for asked in itertools.product([False, True], repeat=3):
        if not any(asked):
            continue

        def partial(function: Any, asked: Any = asked) -> Any:
            chosen = [i for i in range(3) if asked[i]]
            fixed = [x, weight, bias]

            def call(*leaves: Tensor) -> Tensor:
                full = list(fixed)
                for i, leaf in zip(chosen, leaves, strict=True):
                    full[i] = leaf
                return function(*full)

            return jvp(call, tuple(fixed[i] for i in chosen), tuple(tangents[i] for i in chosen))

        for mine, other in zip(partial(ours), partial(theirs), strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, of its first dual number
def test_dual_numbers() -> None:
    x, weight, bias = (leaf.detach() for leaf in operands())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        mine, other = (forward_ad.unpack_dual(function(dual, weight, bias)) for function in (ours, theirs))
        torch.testing.assert_close(mine.primal, other.primal)
        torch.testing.assert_close(mine.tangent, other.tangent)


def loss(function: Any, *leaves: Tensor) -> Tensor:
    return function(*leaves).pow(3).sum()


def stacked(*tensors: Tensor) -> Tensor:
    return torch.stack(tensors)


# Each maps the function and its operands to a result.
FUNC: dict[str, Callable[..., Any]] = {
    "grad": lambda f, x, w, b: grad(lambda *leaves: loss(f, *leaves), argnums=(0, 1, 2))(x, w, b),
    "grad of grad": lambda f, x, w, b: grad(
        lambda *a: sum(g.square().sum() for g in grad(lambda *c: loss(f, *c), argnums=(0, 1, 2))(*a)),
        argnums=(0, 1, 2),
    )(x, w, b),
    "vjp": lambda f, x, w, b: vjp(f, x, w, b)[1](torch.ones_like(f(x, w, b))),
    "jacrev": lambda f, x, w, b: jacrev(lambda c: f(x, w, c))(b),
    "jacfwd": lambda f, x, w, b: jacfwd(lambda v: f(x, v).sum((0, 2, 3, 4)))(w),
    "hessian": lambda f, x, w, b: hessian(lambda c: loss(f, x, w, c))(b),
    "hessian of the weight": lambda f, x, w, b: hessian(lambda v: loss(f, x, v))(w),
    "vmap of grad": lambda f, x, w, b: vmap(grad(lambda one, v: loss(f, one[None], v), argnums=1), (0, None))(x, w),
    "vmap of vmap": lambda f, x, w, b: vmap(vmap(f, (0, None)), (None, 0))(stacked(x, -x), stacked(w, 2 * w, -w)),
    "vmap of jvp": lambda f, x, w, b: vmap(lambda t: jvp(lambda z: f(z, w), (x,), (t,))[1])(stacked(x, -x)),
    "jvp of grad": lambda f, x, w, b: jvp(grad(lambda v: loss(f, x, v)), (w,), (torch.ones_like(w),)),
    "jvp of jvp": lambda f, x, w, b: jvp(
        lambda z: jvp(lambda v: f(z, v), (w,), (torch.ones_like(w),))[1], (x,), (torch.ones_like(x),)
    ),
    "grad of vmap": lambda f, x, w, b: grad(lambda v: vmap(f, (0, None))(stacked(x, -x), v).pow(2).sum())(w),
    "grad of jvp": lambda f, x, w, b: grad(lambda v: jvp(lambda z: f(z, v), (x,), (x,))[1].pow(2).sum())(w),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("transform", FUNC)
def test_torch_func(transform: str, engine_calls: list[str]) -> None:
    leaves = operands()
    expected = FUNC[transform](theirs, *leaves)
    assert not engine_calls
    torch.testing.assert_close(FUNC[transform](ours, *leaves), expected)
    assert engine_calls


def test_gradients_per_sample() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    x = torch.randn(4, 2, 3, 3, 3)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def per_sample(module: Any) -> Any:
        return vmap(
            grad(lambda p, one: functional_call(module, p, one[None]).square().sum()), in_dims=(None, 0)
        )(parameters, x)  # fmt: skip

    torch.testing.assert_close(per_sample(layer), per_sample(other))
