# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own samples, OpInfo and ModuleInfo of its test suite, against this library's function and layers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import tconv3d.torch as face

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what PyTorch's test suite imports warns of its own age
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import module_db
    from torch.testing._internal.common_nn import get_new_module_tests

OP = next(op for op in op_db if op.name == "nn.functional.conv_transpose3d")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.int64]
MODULES = {
    torch.nn.ConvTranspose3d: face.ConvTranspose3d,
    torch.nn.LazyConvTranspose3d: face.LazyConvTranspose3d,
}
INFOS = [info for info in module_db if info.module_cls in MODULES]
OLDER = [entry for entry in get_new_module_tests() if "ConvTranspose3d" in str(entry.get("module_name"))]


def leaves(sample: Any) -> tuple[torch.Tensor, ...]:
    tensors = [tensor for tensor in (sample.input, *sample.args) if isinstance(tensor, torch.Tensor)]
    return tuple(tensor.detach().clone().requires_grad_(sample.input.requires_grad) for tensor in tensors)


NARROW = (torch.float16, torch.bfloat16)


def assert_near(mine: torch.Tensor, other: torch.Tensor, rounding: float) -> None:
    """Equal to within ``rounding`` of the largest value."""
    assert mine.shape == other.shape
    torch.testing.assert_close(
        mine, other, rtol=0, atol=rounding * max(1, float(other.detach().abs().max())), check_dtype=False
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_of_the_operator(dtype: torch.dtype) -> None:
    grads = dtype != torch.int64
    samples = list(OP.sample_inputs("cpu", dtype, requires_grad=grads))
    assert len(samples) >= 10
    for sample in samples:
        results = []
        # PyTorch adds 16-bit numbers up in 16 bits; the judge is its result in 64.
        wide = torch.float64 if dtype in NARROW else dtype
        for function, work in ((OP.op, wide), (face.functional.conv_transpose3d, dtype)):
            operands = [leaf.to(work) for leaf in leaves(sample)]
            y = function(*operands, **sample.kwargs)
            grad = torch.linspace(-1, 1, y.numel()).view(y.shape).to(dtype).to(work)
            results.append([y, *(torch.autograd.grad(y, operands, grad) if grads else ())])
            assert all(result.dtype == work for result in results[-1])
        for mine, other in zip(results[1], results[0], strict=True):
            rounding = {torch.int64: 0, torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5)
            assert_near(mine, other, rounding)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivatives_of_the_samples(dtype: torch.dtype) -> None:
    for sample in OP.sample_inputs("cpu", dtype, requires_grad=True):

        def function(*operands: torch.Tensor, sample: Any = sample) -> torch.Tensor:
            return face.functional.conv_transpose3d(*operands, **sample.kwargs)

        assert gradcheck(function, leaves(sample), fast_mode=True)
        assert gradgradcheck(function, leaves(sample), fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, of its first dual number
def test_forward_mode_of_the_samples() -> None:
    for sample in OP.sample_inputs("cpu", torch.float64, requires_grad=True):

        def function(*operands: torch.Tensor, sample: Any = sample) -> torch.Tensor:
            return face.functional.conv_transpose3d(*operands, **sample.kwargs)

        checks = dict(check_forward_ad=True, check_backward_ad=False, check_batched_forward_grad=True)
        assert gradcheck(function, leaves(sample), fast_mode=True, **checks)


def test_bad_samples_are_refused_alike() -> None:
    refused = list(OP.error_inputs("cpu")) if OP.error_inputs_func else []
    for error in refused:
        with pytest.raises(error.error_type):
            sample = error.sample_input
            face.functional.conv_transpose3d(sample.input, *sample.args, **sample.kwargs)


def run_module(cls: Any, sample: Any, dtype: torch.dtype, state: Any = None) -> tuple[Any, list[torch.Tensor]]:
    torch.manual_seed(7)
    module = cls(*sample.constructor_input.args, **{"dtype": dtype, **sample.constructor_input.kwargs})
    y = module(*sample.forward_input.args, **sample.forward_input.kwargs)
    y.abs().square().sum().backward()
    return module, [y.detach(), *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("training", [False, True])
def test_samples_of_the_modules(info: Any, dtype: torch.dtype, training: bool) -> None:
    samples = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=training, training=training
    )  # fmt: skip
    for sample in samples:
        mine, ours = run_module(MODULES[info.module_cls], sample, dtype)
        other, theirs = run_module(info.module_cls, sample, dtype)
        assert repr(mine) == repr(other)
        for result, expected in zip(ours, theirs, strict=True):
            assert result.dtype == expected.dtype
            assert_near(result, expected, 1e-5)


def test_samples_of_the_older_suite() -> None:
    assert len(OLDER) == 2
    for entry in OLDER:
        results = []
        for cls in (face.ConvTranspose3d, torch.nn.ConvTranspose3d):
            torch.manual_seed(3)
            module, x = cls(*entry["constructor_args"]).double(), torch.randn(entry["input_size"]).double()
            results.append(module(x))
            assert gradcheck(module, x.requires_grad_())
        torch.testing.assert_close(*results)


def test_there_are_samples_of_both_modules() -> None:
    assert {info.module_cls for info in INFOS} == set(MODULES)
