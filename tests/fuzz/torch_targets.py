# SPDX-License-Identifier: Apache-2.0
"""The PyTorch face against PyTorch itself: where it answers, the same numbers; where it refuses, the same exception."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from random import Random
from typing import Any

import answers
import hostile
import torch
from targets import Call, Wrong, call_text, replayable, shapes, spoil

import tconv3d.torch as face

# Sizes that PyTorch itself may not survive are ours alone to judge.
_LARGEST_FOR_BOTH = 2**16
_DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.int64]


def relaid(rng: Random, tensor: torch.Tensor) -> torch.Tensor:
    """The same values in another layout."""
    kind = rng.randrange(7)
    if kind == 1 and tensor.ndim == 5:
        return tensor.contiguous(memory_format=torch.channels_last_3d)
    if kind == 2:
        order = rng.sample(range(tensor.ndim), tensor.ndim)
        return tensor.permute(order).contiguous().permute([order.index(axis) for axis in range(tensor.ndim)])
    if kind == 3:
        return torch.stack([tensor, tensor + 1], -1)[..., 0]
    if kind == 4:
        return tensor.narrow(0, 0, 1).expand(tensor.shape) if len(tensor) else tensor
    if kind == 5 and tensor.is_floating_point():
        return tensor.clone().requires_grad_()
    if kind == 6 and tensor.is_complex():
        return tensor.conj()
    return tensor


def operand(rng: Random, right: torch.Tensor) -> Any:
    """Something in place of a right tensor."""
    shape = list(right.shape)
    shape[rng.randrange(len(shape))] = rng.choice([0, 1, 2, 7])
    wrong = [
        torch.ones(shape, dtype=right.dtype),
        right[None],
        right.sum(0),
        right.reshape(-1),
        torch.tensor(1.0),
        None,
    ]
    wrong += [right.tolist(), 3, "x", right.to_sparse()]
    if not right.is_complex():
        wrong += [right.to(rng.choice(_DTYPES)), right.to(torch.int8), right.bool()]
    if right.is_floating_point():
        wrong += [torch.nn.Parameter(right.detach())]
    return rng.choice(wrong)


def function(rng: Random) -> Call:
    """tconv3d.torch.functional.conv_transpose3d."""
    given, x_shape, w_shape, outputs = shapes(rng)
    dtype = rng.choice(_DTYPES)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return relaid(rng, torch.from_numpy(hostile.integers(rng, shape, "float64")).to(dtype))

    given |= {"input": draw(x_shape), "weight": draw(w_shape)}
    if rng.random() < 0.5:
        given["bias"] = draw((outputs,))
    spoiled = _spoil(rng, given)
    text = call_text("torch.functional.conv_transpose3d", given)
    passed = replayable(given)

    def judge(ours: Any) -> None:
        if _is_large(passed):
            _judge_alone(ours)
            return
        _judge_beside(ours, lambda: torch.nn.functional.conv_transpose3d(*_positional(passed)), passed)

    return Call(text, lambda: _outcome(lambda: face.functional.conv_transpose3d(**passed)), judge, spoiled)


def _spoil(rng: Random, given: dict[str, Any]) -> bool:
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    if tensors and rng.random() < 0.3:
        name = rng.choice(sorted(tensors))
        given[name] = operand(rng, tensors[name])
        return True
    sizes = {name: value for name, value in given.items() if name not in tensors}
    spoiled = spoil(rng, sizes, ())
    given.update(sizes)
    return spoiled


def layer(rng: Random) -> Call:
    """tconv3d.torch.ConvTranspose3d beside torch.nn.ConvTranspose3d with the same arguments and the same seed."""
    given, x_shape, w_shape, outputs = shapes(rng)
    given = {"in_channels": w_shape[0], "out_channels": outputs, "kernel_size": w_shape[2:], **given}
    spoiled = spoil(rng, given, ())
    x = relaid(rng, torch.from_numpy(hostile.integers(rng, x_shape, "float32")))
    text = call_text("torch.ConvTranspose3d", given) + f" of {tuple(x.shape)}"

    given = replayable(given)

    def answer(kind: type) -> Any:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zero-element parameters
            return kind(**given)(x)

    def judge(ours: Any) -> None:
        if _is_large(given):
            _judge_alone(ours)
        else:
            _judge_beside(ours, lambda: answer(torch.nn.ConvTranspose3d), {})

    return Call(text, lambda: _outcome(lambda: answer(face.ConvTranspose3d)), judge, spoiled)


def _is_large(given: dict[str, Any]) -> bool:
    def large(value: Any) -> bool:
        if isinstance(value, (tuple, list, set, dict, range)):
            return any(map(large, value))
        return isinstance(value, (int, float)) and not abs(value) <= _LARGEST_FOR_BOTH

    return any(large(value) for value in given.values() if not isinstance(value, torch.Tensor))


def _judge_alone(ours: Any) -> None:
    if isinstance(ours, Exception) and not isinstance(ours, (TypeError, ValueError, RuntimeError, MemoryError)):
        raise Wrong(f"{type(ours).__name__}: {ours}")


def _outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the exception that it raises."""
    try:
        return call()
    except Exception as error:
        return error


def _positional(given: dict[str, Any]) -> list[Any]:
    """By position, as PyTorch documents sizes: by keyword a bool is an internal error there.

    Tensors are C-contiguous: PyTorch 2.13 gives wrong numbers for some weights with their channels last and groups.
    """
    defaults = {"bias": None, "stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    operands = [given["input"], given["weight"], given.get("bias")]
    sizes = [given.get(name, value) for name, value in list(defaults.items())[1:]]
    return [*map(_contiguous, operands), *sizes]


def _contiguous(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return value
    return value.detach().clone(memory_format=torch.contiguous_format).requires_grad_(value.requires_grad)


def _judge_beside(ours: Any, call: Callable[[], Any], given: dict[str, Any]) -> None:
    theirs = _outcome(call)
    if isinstance(theirs, TypeError) and not isinstance(ours, TypeError) and given:
        # Any iterable of integers is a size here; PyTorch's function takes tuples and lists, its layer any.
        names = ("stride", "padding", "output_padding", "dilation")
        plain = {name: answers.triple(given[name]) for name in names if name in given}
        theirs = _outcome(lambda: torch.nn.functional.conv_transpose3d(*_positional({**given, **plain})))
    if not isinstance(theirs, Exception):
        _judge_tensor(ours, theirs)
    elif "INTERNAL ASSERT" in str(theirs):  # a fault of PyTorch's own, which says nothing about the call
        return
    elif not isinstance(ours, Exception):
        raise Wrong(f"answered where PyTorch raises {type(theirs).__name__}: {str(theirs)[:100]}")
    elif not isinstance(ours, type(theirs)):
        raise Wrong(f"{type(ours).__name__} ({str(ours)[:90]}) where PyTorch raises {type(theirs).__name__}: {theirs}")


def _judge_tensor(ours: Any, theirs: torch.Tensor) -> None:
    if isinstance(ours, Exception):
        raise Wrong(f"{type(ours).__name__}: {ours}")
    if (ours.shape, ours.dtype, ours.device) != (theirs.shape, theirs.dtype, theirs.device):
        raise Wrong(f"{ours.shape} {ours.dtype} where PyTorch gives {theirs.shape} {theirs.dtype}")
    tolerance = 1e-2 if ours.dtype.itemsize == 2 else 1e-5
    if ours.device.type != "meta" and not torch.allclose(ours, theirs, rtol=tolerance, atol=1e-4):
        raise Wrong(f"off by {(ours - theirs).abs().max()}")
    if ours.requires_grad != theirs.requires_grad:
        raise Wrong(f"requires_grad is {ours.requires_grad}")


TORCH = [function, function, layer]
