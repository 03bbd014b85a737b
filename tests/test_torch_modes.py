# SPDX-License-Identifier: Apache-2.0
"""The PyTorch face under autocast, counters, fake tensors, determinism, subclasses and modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.utils.flop_counter import FlopCounterMode
from torch_support import CHANNELS_LAST, decoders, pair

import tconv3d.torch as face


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_autocast_as_pytorch_does(lower: torch.dtype, engine_calls: list[str]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer, other = pair(2, 3, 3, stride=2, dtype=dtype)
        x = torch.randn(2, 2, 3, 4, 5, dtype=dtype, requires_grad=True)
        grads = []
        for module in (layer, other):
            module.zero_grad()
            with torch.autocast("cpu", dtype=lower):
                y = module(x)
            y.float().square().sum().backward()
            grads.append((y, *(p.grad for p in module.parameters())))
        for mine, expected in zip(*grads, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0.05, atol=0.2)
    assert engine_calls


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["eager", "compiled", "mapped"])
def test_autocast_through_several_layers(how: str, engine_calls: list[str]) -> None:
    """From the second layer on, inputs are in the lower precision and weights are not."""
    mine, other = decoders()
    x = torch.randn(2, 3, 4, 5, 6)
    module: Callable[[Tensor], Tensor] = {
        "eager": lambda x: mine(x),
        "compiled": torch.compile(mine, fullgraph=True, backend="aot_eager"),
        "mapped": lambda x: vmap(mine)(x[None])[0],
    }[how]
    cropped = face.Conv3dTranspose(2, 2, 4, has_bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y, expected = module(x), other(x)
        z = cropped(y)
    assert y.dtype == z.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(z.float(), cropped(y.float()), rtol=0.05, atol=0.02)
    assert engine_calls[:3] == ["forward"] * 3


def test_output_sizes_are_resolved_once() -> None:
    layer = face.ConvTranspose3d(2, 3, 3, stride=2)
    x = torch.randn(1, 2, 3, 3, 3)
    before = face.functional._kept_calls.cache_info().misses
    for _ in range(3):
        layer(x, output_size=[8, 7, 8])
    assert face.functional._kept_calls.cache_info().misses <= before + 1


def test_autocast_of_a_frozen_layer() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    face.freeze(layer)
    x = torch.randn(2, 2, 3, 4, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), other(x), rtol=0.02, atol=0.02)
    assert torch.equal(layer(x), face.functional.conv_transpose3d(x, layer.weight, layer.bias, 2))


def test_the_flop_counter_counts_as_for_pytorch() -> None:
    for arguments in ((4, 6, 3, 2, 1, 1), (4, 6, (3, 2, 1), 1, 0, 0, 2)):
        counts = []
        for module in pair(*arguments):
            with FlopCounterMode(display=False) as counter:
                module(torch.randn(2, 4, 3, 4, 5, requires_grad=True)).sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


def test_fake_and_meta_tensors() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for memory_format in (torch.contiguous_format, CHANNELS_LAST):
            x = mode.from_tensor(torch.randn(2, 2, 3, 4, 5).to(memory_format=memory_format))
            y = layer(x)
            assert y.shape == other(x).shape
            assert y.is_contiguous(memory_format=memory_format)
        with pytest.raises(RuntimeError, match="channels"):
            layer(mode.from_tensor(torch.randn(2, 3, 3, 4, 5)))
    layer, other = layer.to("meta"), other.to("meta")
    x = torch.empty(2, 2, 3, 4, 5, device="meta")
    for each in (x, x[0]):
        y = layer(each)
        assert (y.is_meta, y.shape) == (True, other(each).shape)
        y.sum().backward()
    with torch.device("meta"):
        assert face.Conv3dTranspose(2, 3, 4)(torch.empty(1, 2, 3, 3, 3)).shape == (1, 3, 3, 3, 3)


@pytest.mark.cuda
def test_cuda_goes_to_pytorchs_operator() -> None:
    layer, other = (module.cuda() for module in pair(4, 6, 3, 2, 1, 1, 2))
    x = torch.randn(2, 4, 3, 4, 5, device="cuda", requires_grad=True)
    for module in (layer, other):
        module.zero_grad()
        module(x).square().sum().backward()
    torch.testing.assert_close(layer(x), other(x))
    torch.testing.assert_close([p.grad for p in layer.parameters()], [p.grad for p in other.parameters()])
    cropped = face.Conv3dTranspose(4, 6, 4)
    expected = cropped(x.detach().cpu())
    torch.testing.assert_close(cropped.cuda()(x).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_deterministic_algorithms() -> None:
    layer, other = pair(4, 4, 3, stride=2)
    x = torch.randn(3, 4, 5, 5, 5)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(3):
            layer.zero_grad()
            y = layer(x)
            y.square().sum().backward()
            runs.append([y.detach(), layer.weight.grad, layer.bias.grad])
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
        torch.testing.assert_close(layer(x), other(x))
    finally:
        torch.use_deterministic_algorithms(False)


class Loud(torch.Tensor):
    """A subclass that leaves everything to PyTorch."""


class Wrapped(torch.Tensor):
    """A subclass that sees each call, as MONAI's MetaTensor does."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Loud, Wrapped])
def test_subclasses_keep_their_type_and_reach_the_engine(kind: type[Tensor], engine_calls: list[str]) -> None:
    layer, other = pair(2, 3, 2)
    x = torch.randn(1, 2, 3, 3, 3).as_subclass(kind)
    for result in (layer(x), face.functional.conv_transpose3d(x, layer.weight, layer.bias)):
        assert type(result) is kind
        torch.testing.assert_close(result.as_subclass(Tensor), other(x).as_subclass(Tensor))
    cropped = face.Conv3dTranspose(2, 3, 4)
    assert type(cropped(x)) is kind
    face.freeze(layer)
    expected = layer(x)
    layer.weight.data.zero_()  # unseen by design: the packed weights are in use
    assert torch.equal(layer(x).as_subclass(Tensor), expected.as_subclass(Tensor))
    assert len(engine_calls) == 5


def test_default_devices_keep_the_engine(engine_calls: list[str]) -> None:
    layer, other = pair(2, 3, 2)
    x = torch.randn(1, 2, 3, 3, 3)
    with torch.device("cpu"):
        torch.testing.assert_close(layer(x), other(x))
    assert engine_calls
    with torch.device("meta"):
        layer(x).sum().backward()
    assert not layer.weight.grad.is_meta


def test_dispatch_modes_see_one_operator() -> None:
    seen = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    layer, other = pair(2, 3, 2)
    x = torch.randn(1, 2, 3, 3, 3)
    with Recorder(), torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y, other(x))
    assert seen == ["tconv3d.conv_transpose3d.default"]
