# SPDX-License-Identifier: Apache-2.0
"""The PyTorch face: PyTorch's own layer and every recorded row as judges, derivatives twice, and frozen weights."""

from __future__ import annotations

import builtins
import copy
import gc
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from test_corpus import ROWS, TOLERANCE, assert_law, assert_matches, decode, drawn, dtype_of
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as torch_functional
from torch.utils.checkpoint import checkpoint
from torch_support import pair

import tconv3d
import tconv3d.torch as face
from tconv3d import _engine
from tconv3d.torch import _aten, _calls
from tconv3d.torch import frozen as freezing

CHANNELS_LAST = torch.channels_last_3d
ENGINE_DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.fixture
def no_aten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a call reaches PyTorch's own operator, forward or backward."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the call reached PyTorch's operator")

    monkeypatch.setattr(torch_functional, "conv_transpose3d", refuse)
    monkeypatch.setattr(_aten, "_backward", refuse)


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a call reaches the engine."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the call reached the engine")

    for name in ("forward", "input_grad", "weight_grad"):
        monkeypatch.setattr(_calls.Call, name, refuse)


def torch_rows(kind: str) -> list[Any]:
    return [pytest.param(row, id=row["id"]) for row in ROWS if row["kind"] == kind and row["framework"] == "torch"]


def torch_decode(value: Any) -> Any:
    return getattr(torch, value["dtype"]) if isinstance(value, dict) and "dtype" in value else decode(value)


def make_layer(row: dict[str, Any]) -> face.ConvTranspose3d:
    arguments = {name: torch_decode(value) for name, value in row["ctor"].items()}
    if row["kind"] == "ok":
        arguments["dtype"] = getattr(torch, row["dtype"])
    return face.ConvTranspose3d(**arguments)


def to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@pytest.mark.parametrize("row", torch_rows("ok"))
def test_outputs_and_gradients_of_the_corpus(row: dict[str, Any]) -> None:
    layer, rng, dtype = make_layer(row), np.random.default_rng(row["seed"]), dtype_of(row["dtype"])
    x = to_torch(drawn(rng, row["x_shape"], dtype)).requires_grad_()
    with torch.no_grad():
        layer.weight.copy_(to_torch(drawn(rng, layer.weight.shape, dtype)))
        if layer.bias is not None:
            layer.bias.copy_(to_torch(drawn(rng, layer.bias.shape, dtype)))
    grad_output = to_torch(drawn(rng, row["y_shape"], dtype))

    y = layer(x, **{name: torch_decode(value) for name, value in row["call"].items()})
    y.backward(grad_output)

    assert (list(y.shape), y.dtype) == (row["y_shape"], x.dtype)
    results = {"y": y, "gx": x.grad, "gw": layer.weight.grad, "gb": None if layer.bias is None else layer.bias.grad}
    for name, result in results.items():
        assert (result is None) == (name not in row), name
        if result is not None:
            assert_matches(to_numpy(result), row[name], TOLERANCE[row["dtype"]])


@pytest.mark.parametrize("row", torch_rows("error"))
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_errors_of_the_corpus(row: dict[str, Any]) -> None:
    x = torch.ones(row["x_shape"], dtype=getattr(torch, row["dtype"]))
    error = getattr(builtins, row["error"])
    if row["stage"] == "ctor":
        with pytest.raises(error):
            make_layer(row)
        return
    layer = make_layer(row)
    with pytest.raises(error) as caught:
        layer(x, **{name: torch_decode(value) for name, value in row["call"].items()})
    assert type(caught.value) is error


@pytest.mark.parametrize("row", torch_rows("init"))
def test_initial_laws_of_the_corpus(row: dict[str, Any]) -> None:
    layer = make_layer(row)
    for name in ("weight", "bias"):
        if name in row:
            assert_law(getattr(layer, name).detach().double().numpy(), row[name])


@pytest.mark.parametrize("dtype", ENGINE_DTYPES)
@pytest.mark.usefixtures("no_aten")
def test_the_engine_computes_plain_calls(dtype: str) -> None:
    layer = face.ConvTranspose3d(2, 3, 3, stride=2, dtype=getattr(torch, dtype))
    x = torch.ones(1, 2, 3, 3, 3, dtype=layer.weight.dtype, requires_grad=True)
    for each in (x, x[0], x.detach().transpose(2, 4), x.detach().expand(4, -1, -1, -1, -1)):
        layer(each).sum().backward()
        face.functional.conv_transpose3d(each, layer.weight, layer.bias, 2)
    layer(x, output_size=[8, 8, 8])


def operands(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    shapes = (2, 4, 2, 3, 2), (4, 2, 3, 2, 3), (4,)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


GEOMETRY = ((2, 1, 2), (1, 0, 1), (1, 0, 0), 2, (1, 2, 1))


def functional(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return face.functional.conv_transpose3d(x, weight, bias, *GEOMETRY)


def test_both_orders_of_derivatives() -> None:
    assert gradcheck(functional, operands(), check_batched_grad=True)
    assert gradgradcheck(functional, operands(), check_batched_grad=True)


def test_derivatives_of_unbatched_input() -> None:
    x, weight, bias = operands()
    assert gradcheck(functional, (x[0].detach().requires_grad_(), weight, bias))
    assert gradgradcheck(functional, (x[0].detach().requires_grad_(), weight, bias))


@pytest.mark.parametrize("asked", list(product([False, True], repeat=3)))
def test_only_the_asked_gradients(asked: tuple[bool, ...]) -> None:
    grads = []
    for function in (face.functional.conv_transpose3d, torch_functional.conv_transpose3d):
        torch.manual_seed(3)
        leaves = [leaf.detach().requires_grad_(wanted) for leaf, wanted in zip(operands(), asked, strict=True)]
        y = function(*leaves, *GEOMETRY)
        assert y.requires_grad == any(asked)
        if any(asked):
            y.square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for ours, theirs in zip(*grads, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)])
def test_gradient_penalty(asked: tuple[int, ...]) -> None:
    """A second backward through some of the operands only, as in a gradient penalty."""
    results = []
    for function in (face.functional.conv_transpose3d, torch_functional.conv_transpose3d):
        torch.manual_seed(3)
        leaves = [leaf.detach().requires_grad_(i in asked) for i, leaf in enumerate(operands())]
        wanted = [leaves[i] for i in asked]
        first = torch.autograd.grad(function(*leaves, *GEOMETRY).pow(3).sum(), wanted, create_graph=True)
        results.append(torch.autograd.grad(sum(grad.square().sum() for grad in first), wanted))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_fixed_weight_does_not_hold_the_input() -> None:
    x, weight, _ = operands()
    held: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.shape) or t, lambda t: t):
        functional(x, weight.detach())
    assert held == [weight.shape]


def test_outputs_may_be_changed_in_place() -> None:
    for dtype, size in product(ENGINE_DTYPES, (3, 48)):  # small memory, and a pooled mebibyte
        layer, other = pair(1, 8, 2, stride=2, dtype=getattr(torch, dtype))
        x = torch.randn(1, 1, size, size, size).to(layer.weight.dtype)
        for each in (x, x[0]):
            results = []
            for module in (layer, other):
                module.zero_grad()
                y = module(each)
                y.relu_()
                y.sum().backward()
                results.append(y.detach())
            torch.testing.assert_close(*results, rtol=0.05, atol=0.05)


def test_changing_a_saved_operand_is_found() -> None:
    x, weight, _ = operands()
    y = functional(x, weight)
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("size", [3, 40])  # small memory, and the pool of output buffers
@pytest.mark.parametrize("dtype", ENGINE_DTYPES)
def test_memory_format_goes_through(dtype: str, size: int) -> None:
    layer = face.ConvTranspose3d(3, 5, 3, stride=2, dtype=getattr(torch, dtype))
    x = torch.randn(2, 3, size, size, size + 1).to(layer.weight.dtype)
    plain = layer(x)
    assert plain.is_contiguous()
    x = x.to(memory_format=CHANNELS_LAST).requires_grad_()
    y = layer(x)
    assert y.is_contiguous(memory_format=CHANNELS_LAST)
    assert torch.equal(y, plain)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.is_contiguous(memory_format=CHANNELS_LAST)
    assert layer.weight.grad is not None
    layer.to(memory_format=CHANNELS_LAST)
    assert torch.equal(layer(x), plain)
    layer.zero_grad()
    layer(x).sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()


def test_one_channel_keeps_the_memory_format() -> None:
    layer = face.ConvTranspose3d(1, 2, 2)
    x = torch.randn(2, 1, 3, 4, 5)
    assert layer(x).is_contiguous()
    assert layer(x.to(memory_format=CHANNELS_LAST)).is_contiguous(memory_format=CHANNELS_LAST)
    assert layer(torch.randn(1, 1, 1, 1, 1)).is_contiguous()


def test_strides_that_no_copy_removed() -> None:
    layer, other = pair(2, 3, 2, stride=2)
    x = torch.randn(4, 4, 5, 6, 7)
    views = [x[::2, 1:3], x[:2, ::2].transpose(2, 4), x[:1, :2].expand(3, -1, -1, -1, -1), x[:, :2].flip(3)]
    for view in views:
        torch.testing.assert_close(layer(view), other(view))
    weight = torch.randn(3, 2, 2, 2, 2).transpose(0, 1)
    bias = torch.randn(6)[::2]
    ours = face.functional.conv_transpose3d(views[0], weight, bias)
    torch.testing.assert_close(ours, torch_functional.conv_transpose3d(views[0], weight, bias))
    torch.testing.assert_close(layer(view, output_size=layer(view).shape), other(view))


def test_odd_addresses() -> None:
    """frombuffer makes tensors that do not lie on a multiple of their elements."""
    buffer = bytearray(np.random.randn(55).astype(np.float32).tobytes())
    x = torch.frombuffer(buffer, dtype=torch.float32, offset=3, count=54).nan_to_num(posinf=1, neginf=1).clamp(-9, 9)
    odd = torch.frombuffer(bytearray(3) + bytearray(x.numpy().tobytes()), dtype=torch.float32, offset=3)
    assert odd.data_ptr() % 4
    layer, other = pair(2, 3, 2)
    torch.testing.assert_close(layer(odd.view(1, 2, 3, 3, 3)), other(x.view(1, 2, 3, 3, 3)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("bias", [True, False])
def test_a_call_that_was_met_before_is_known(
    bias: bool, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, other = pair(4, 6, 2, bias=bias)
    x = torch.randn(2, 4, 5, 5, 5).contiguous(memory_format=memory_format)
    with torch.no_grad():
        layer(x)
        monkeypatch.delattr(_calls.Calls, "call")
        torch.testing.assert_close(layer(x), other(x))
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(AttributeError):
            layer(x)


class Named(Tensor):
    """A subclass that leaves everything to PyTorch."""


def unaligned(tensor: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(3) + bytearray(tensor.numpy().tobytes()), dtype=tensor.dtype, offset=3).view_as(
        tensor
    )


# Operands that are not what a call before found, though they may have its shape, strides and dtype.
ODD_OPERANDS: dict[str, Callable[[Tensor], Tensor]] = {
    "negated when read": lambda t: torch._neg_view(t),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape),
    "a view into zeros without memory": lambda t: torch._efficientzerotensor((2, *t.shape))[1],
    "of a subclass": lambda t: t.as_subclass(Named),
    "every other element": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "one element for all": lambda t: t.flatten()[:1].expand(t.shape),
    "unaligned": unaligned,
    "of another dtype": lambda t: t.double(),
    "sparse": lambda t: t.to_sparse(),
    "without data": lambda t: t.to("meta"),
    "one channel less": lambda t: t[:, :-1] if t.dim() > 1 else t[:-1],
    "larger": lambda t: torch.cat([t, t], -1),
}


@pytest.mark.parametrize("operand", [0, 1, 2], ids=["input", "weight", "bias"])
@pytest.mark.parametrize("odd", ODD_OPERANDS)
def test_a_call_that_was_met_before_is_not_taken_for_another(odd: str, operand: int) -> None:
    operands = torch.randn(2, 3, 4, 4, 4), torch.randn(3, 5, 2, 2, 2), torch.randn(5)
    for _ in range(2):
        face.functional.conv_transpose3d(*operands)
    changed = list(operands)
    changed[operand] = ODD_OPERANDS[odd](operands[operand])
    try:
        expected = torch_functional.conv_transpose3d(*changed)
    except (RuntimeError, NotImplementedError) as error:
        with pytest.raises(type(error)):
            face.functional.conv_transpose3d(*changed)
        return
    result = face.functional.conv_transpose3d(*changed)
    assert type(result) is type(expected) and result.device == expected.device
    if odd != "without data":
        torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        face.functional.conv_transpose3d(*operands), torch_functional.conv_transpose3d(*operands)
    )


@pytest.mark.usefixtures("no_engine")
def test_what_the_engine_lacks_goes_to_pytorch() -> None:
    x = torch.randn(1, 2, 3, 3, 3)
    for dtype in (torch.complex64, torch.complex128):
        layer, other = pair(2, 3, 2, dtype=dtype)
        assert torch.equal(layer(x.to(dtype)), other(x.to(dtype)))


def test_negative_views() -> None:
    layer, other = pair(2, 3, 2)
    x = torch.randn(1, 2, 3, 3, 3)
    negative = torch.complex(x, x).conj().imag
    assert negative.is_neg()
    torch.testing.assert_close(layer(negative), other(-x))


def test_empty_batches() -> None:
    layer, _ = pair(2, 3, 2)
    y = layer(torch.empty(0, 2, 3, 3, 3))
    y.sum().backward()
    assert y.shape == (0, 3, 4, 4, 4)
    assert not layer.weight.grad.any()


def test_outputs_larger_than_memory_are_refused() -> None:
    layer = face.ConvTranspose3d(1, 1, 1, stride=90_000)
    with pytest.raises(tconv3d.AllocationTooLarge, match=r"torch\.float32"):
        layer(torch.ones(1, 1, 20, 20, 20))


def test_checkpointing() -> None:
    ours, theirs = pair(2, 3, 2)
    grads = []
    for module in (ours, theirs):
        x = torch.ones(1, 2, 3, 3, 3, requires_grad=True)
        checkpoint(module, x, use_reentrant=False).square().sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(*grads)


def test_assigned_attributes_count() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    x = torch.randn(1, 2, 3, 3, 3)
    layer(x)
    values = {"stride": (1, 3, 1), "padding": (1, 0, 1), "dilation": (2, 1, 1), "output_padding": (0, 2, 0)}
    for name, value in values.items():
        setattr(layer, name, value)
        setattr(other, name, value)
        torch.testing.assert_close(layer(x), other(x))
    layer.stride = (1.0, 3.0, 1.0)
    with pytest.raises(TypeError):
        layer(x)
    layer.stride, layer.padding_mode = (1, 3, 1), "reflect"
    with pytest.raises(ValueError, match="zeros"):
        layer(x)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (dict(stride=2.0), TypeError), (dict(stride=(2.0, 2, 2)), TypeError), (dict(stride=True), TypeError),
        (dict(padding="same"), TypeError), (dict(padding=(1, 1, 1, 1, 1, 1)), RuntimeError),
        (dict(groups=True), TypeError), (dict(groups=0), RuntimeError), (dict(dilation=0), RuntimeError),
        (dict(output_padding=2), RuntimeError), (dict(stride=None), TypeError), (dict(bias=3), TypeError),
        (dict(bias=torch.ones(4)), RuntimeError), (dict(bias=torch.ones(3).double()), RuntimeError),
    ],
)  # fmt: skip
def test_the_function_refuses_as_pytorch_does(arguments: dict[str, Any], error: type[Exception]) -> None:
    x, weight = torch.ones(1, 2, 3, 3, 3), torch.ones(2, 3, 2, 2, 2)
    face.functional.conv_transpose3d(x, weight, stride=2)  # what equals 2 but is no int must not find this call again
    for function in (torch_functional.conv_transpose3d, face.functional.conv_transpose3d):
        with pytest.raises(error):
            function(x, weight, **arguments)


def test_the_function_takes_what_pytorch_takes() -> None:
    x, weight = torch.randn(1, 4, 3, 3, 3), torch.randn(4, 3, 3, 3, 3)
    some_size = torch.Size([1, 2, 1])
    for arguments in ([2], [(2,), [1]], [2, 1, (1, 0, 1)], [[2, 1, 2], 1, 0, 2], [some_size, 0, 0, 1, [2, 1, 1]]):
        ours = face.functional.conv_transpose3d(x, weight, None, *arguments)
        torch.testing.assert_close(ours, torch_functional.conv_transpose3d(x, weight, None, *arguments))
    whole = torch.arange(8).view(1, 1, 2, 2, 2)
    ones = torch.ones(1, 1, 2, 2, 2, dtype=torch.int64)
    assert torch.equal(face.functional.conv_transpose3d(whole, ones), torch_functional.conv_transpose3d(whole, ones))


def test_it_is_pytorchs_layer_but_for_the_engine() -> None:
    torch.manual_seed(1)
    ours = face.ConvTranspose3d(4, 6, (3, 2, 1), stride=2, padding=1, output_padding=1, groups=2)
    torch.manual_seed(1)
    theirs = torch.nn.ConvTranspose3d(4, 6, (3, 2, 1), stride=2, padding=1, output_padding=1, groups=2)
    assert isinstance(ours, torch.nn.ConvTranspose3d)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    x = torch.randn(2, 4, 3, 3, 3)
    theirs.reset_parameters()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    ours.reset_parameters()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    torch.testing.assert_close(ours(x), theirs(x))


def test_weights_that_are_computed_on_each_call() -> None:
    ours, theirs = pair(2, 3, 2)
    for module in (ours, theirs):
        torch.nn.utils.parametrizations.weight_norm(module)
    x = torch.randn(1, 2, 3, 3, 3)
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x))
        with torch.no_grad():
            for module in (ours, theirs):
                module.parametrizations.weight.original0.mul_(2)
    with pytest.raises(RuntimeError, match="parametrization"):
        face.freeze(ours)


def test_pooled_outputs_are_not_shared() -> None:
    layer = face.ConvTranspose3d(1, 8, 2, stride=2)
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        first = layer(x)
        kept, copy_of_first = first[0, 3], first.clone()
        del first  # the view keeps the buffer
        others = [layer(x + i) for i in range(1, 4)]
        assert torch.equal(kept, copy_of_first[0, 3])
        assert len({other.data_ptr() for other in others}) == 3


def test_pooled_outputs_behave_as_tensors() -> None:
    layer = face.ConvTranspose3d(1, 8, 2, stride=2)
    with torch.no_grad():
        y = layer(torch.randn(1, 1, 32, 32, 32))
    assert torch.equal(copy.deepcopy(y), y)
    file = io.BytesIO()
    torch.save(y, file)
    file.seek(0)
    assert torch.equal(torch.load(file), y)
    before = y.clone()
    assert torch.equal(y.share_memory_(), before)


def test_inference_mode() -> None:
    layer, other = pair(1, 8, 2, stride=2)
    for size in (3, 32):
        x = torch.randn(1, 1, size, size, size)
        with torch.inference_mode():
            y = layer(x)
            assert y.is_inference()
            torch.testing.assert_close(y, other(x))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_pytorchs_thread_count_and_the_same_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    real = _calls._threads
    monkeypatch.setattr(_calls, "_threads", lambda: counts.append(real()) or counts[-1])
    monkeypatch.setattr(_engine, "_threads_were_named", False)
    layer, x = face.ConvTranspose3d(8, 8, 3), torch.randn(1, 8, 9, 9, 9)
    expected = layer(x)
    before, ours = torch.get_num_threads(), tconv3d.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(layer(x), expected)
        tconv3d.set_num_threads(5)
        assert torch.equal(layer(x), expected)
    finally:
        torch.set_num_threads(before)
        tconv3d.set_num_threads(ours)
    assert counts == [before, threads, 0]


def test_several_python_threads_train_one_layer() -> None:
    ours, theirs = pair(3, 4, 3, stride=2)
    inputs = [torch.randn(1, 3, 4 + i % 3, 5, 6) for i in range(24)]

    def step(x: torch.Tensor) -> list[torch.Tensor]:
        leaf = x.clone().requires_grad_()
        return list(torch.autograd.grad(ours(leaf).square().sum(), [leaf, *ours.parameters()]))

    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(step, inputs))
    for x, grads in zip(inputs, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(step(x)[:2], grads[:2], strict=True))
        leaf = x.clone().requires_grad_()
        expected = torch.autograd.grad(theirs(leaf).square().sum(), [leaf, *theirs.parameters()])
        torch.testing.assert_close(grads, list(expected), rtol=1e-4, atol=1e-3)


@pytest.fixture
def frozen() -> Iterator[face.ConvTranspose3d]:
    layer = face.ConvTranspose3d(8, 8, 3, stride=2)
    with torch.no_grad():
        yield face.freeze(layer)


X = torch.linspace(-1, 1, 2 * 8 * 4**3).view(2, 8, 4, 4, 4)


def live(layer: face.ConvTranspose3d, x: torch.Tensor = X) -> torch.Tensor:
    return face.functional.conv_transpose3d(x, layer.weight, layer.bias, layer.stride)


def test_frozen_outputs_have_the_same_bits(frozen: face.ConvTranspose3d) -> None:
    x = torch.randn(1, 8, 7, 2, 9)
    for each in (X, X, x, X[0], x.to(memory_format=CHANNELS_LAST)):
        assert torch.equal(frozen(each), live(frozen, each))
    leaf = X.clone().requires_grad_()
    with torch.enable_grad():
        frozen(leaf).sum().backward()
    assert leaf.grad is not None
    assert frozen.weight.grad is not None


def test_frozen_weights_are_packed_once(frozen: face.ConvTranspose3d) -> None:
    """A write that nothing sees shows that the packed weights are in use. This is the promise that a user must keep."""
    expected = frozen(X)
    frozen.weight.data.zero_()
    assert torch.equal(frozen(X), expected)
    face.freeze(frozen)
    assert torch.equal(frozen(X), live(frozen))
    frozen.weight.data.fill_(1)
    face.thaw(frozen)
    assert torch.equal(frozen(X), live(frozen))


def optimizer_step(layer: face.ConvTranspose3d) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.SGD(layer.parameters(), lr=1.0).step()


class DataOptimizer(torch.optim.Optimizer):
    """Writes past the version counter, as older optimizers do."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(1)


def exchange(layer: face.ConvTranspose3d) -> None:
    layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight))


def data_exchange(layer: face.ConvTranspose3d) -> None:
    layer.weight.data = torch.randn_like(layer.weight)


CHANGES: list[Callable[[face.ConvTranspose3d], Any]] = [
    lambda layer: layer.load_state_dict(face.ConvTranspose3d(8, 8, 3).state_dict()),
    lambda layer: layer.load_state_dict(face.ConvTranspose3d(8, 8, 3).state_dict(), assign=True),
    lambda layer: layer.to(torch.bfloat16).to(torch.float32),
    optimizer_step,
    lambda layer: DataOptimizer(layer.parameters()).step(),
    exchange,
    data_exchange,
    lambda layer: layer.weight.mul_(2),
    lambda layer: layer.reset_parameters(),
    lambda layer: torch.nn.utils.vector_to_parameters(torch.randn(8 * 8 * 27 + 8), layer.parameters()),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_end_the_frozen_state(frozen: face.ConvTranspose3d, change: Callable[[Any], Any]) -> None:
    before = frozen(X)
    change(frozen)
    assert torch.equal(frozen(X), live(frozen))
    assert not torch.equal(frozen(X), before)


def test_another_optimizer_does_not_thaw(frozen: face.ConvTranspose3d) -> None:
    optimizer_step(face.ConvTranspose3d(8, 8, 3))
    assert frozen._frozen is not None


def test_training_mode_refuses_frozen_weights(frozen: face.ConvTranspose3d) -> None:
    assert not frozen.training
    model = torch.nn.Sequential(frozen)
    with pytest.raises(RuntimeError, match="thaw"):
        model.train()
    model.eval()
    assert face.thaw(model) is model
    assert model.train()[0].training


def test_swapped_weights_are_seen_and_the_frozen_ones_stay(frozen: face.ConvTranspose3d) -> None:
    expected = frozen(X)
    other = {name: torch.randn_like(value) for name, value in frozen.named_parameters()}
    swapped = torch.func.functional_call(frozen, other, X)
    assert torch.equal(swapped, face.functional.conv_transpose3d(X, other["weight"], other["bias"], 2))
    assert torch.equal(frozen(X), expected)


def test_copies_are_thawed(frozen: face.ConvTranspose3d) -> None:
    expected = frozen(X)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for other in (copy.deepcopy(frozen), torch.load(file, weights_only=False)):
        assert torch.equal(other(X), expected)
        other.train()
        other.weight.data.zero_()
        assert torch.equal(other(X), live(other))
    assert torch.equal(frozen(X), expected)


def test_containers_freeze_what_they_hold() -> None:
    model = torch.nn.Sequential(face.ConvTranspose3d(8, 8, 2), torch.nn.Sequential(face.ConvTranspose3d(8, 4, 2)))
    model.append(torch.nn.BatchNorm3d(4))
    assert face.freeze(model) is model
    assert [module.training for module in (model[0], model[1][0], model[2])] == [False, False, True]
    with pytest.raises(ValueError, match=r"tconv3d\.torch\.ConvTranspose3d"):
        face.freeze(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="list"):
        face.freeze([model])


def test_inference_weights_can_be_frozen() -> None:
    with torch.inference_mode():
        layer = face.freeze(face.ConvTranspose3d(2, 3, 2))
        x = torch.randn(1, 2, 3, 3, 3)
        assert torch.equal(layer(x), live(layer, x))


def test_frozen_layers_die() -> None:
    before = len(freezing._frozen_layers)
    face.freeze(face.ConvTranspose3d(1, 1, 1))
    gc.collect()
    assert len(freezing._frozen_layers) == before


def test_a_frozen_layer_whose_stride_is_reassigned() -> None:
    # Two chunks of channels: the packed layouts of the two strides hold the same weights in another order.
    layer = tconv3d.torch.ConvTranspose3d(512, 1, 2, stride=(1, 2, 2), bias=False).eval()
    tconv3d.torch.freeze(layer)
    x = torch.randn(1, 512, 16, 16, 64)
    with torch.no_grad():
        layer(x)
        layer.stride = (2, 2, 2)
        expected = torch.nn.functional.conv_transpose3d(x, layer.weight, stride=2)
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
