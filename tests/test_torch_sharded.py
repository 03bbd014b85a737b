# SPDX-License-Identifier: Apache-2.0
"""One volume over two or three processes of a gloo group: the bits of the whole, and its gradients."""

from __future__ import annotations

import multiprocessing
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributed as dist

import tconv3d
from tconv3d.torch import sharded

# Shape and weight of the whole, arguments, axis, thickness of the slabs.
Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], int, tuple[int, ...]]
CASES: dict[str, Case] = {
    "two_tap": ((2, 64, 12, 10, 12), (64, 32, 4, 4, 4), {"stride": 2, "padding": 1}, -3, (7, 5)),
    "two_tap_height": ((1, 64, 10, 13, 12), (64, 64, 4, 4, 4), {"stride": 2, "padding": 1}, -2, (4, 9)),
    "dilated": ((6, 5, 4, 9), (6, 3, 3, 2, 3), {"stride": (3, 1, 2), "dilation": (1, 2, 3), "groups": 2}, -1, (1, 8)),
    "long_kernel": ((1, 3, 6, 4, 4), (3, 2, 7, 3, 3), {"padding": 2, "dilation": (2, 1, 1)}, -3, (1, 5)),
    "short_kernel": ((1, 3, 6, 4, 4), (3, 2, 1, 2, 2), {"stride": 4, "output_padding": 3}, -3, (3, 3)),
    "three": ((1, 64, 11, 9, 10), (64, 32, 4, 4, 4), {"stride": 2, "padding": 1}, -3, (5, 1, 5)),
    "halo_of_two_neighbors": (
        (3, 5, 4, 4),
        (3, 2, 7, 3, 3),
        {"padding": (6, 1, 1), "dilation": (2, 1, 1)},
        -3,
        (1, 1, 3),
    ),
    "cropped_away": ((1, 2, 5, 4, 4), (2, 2, 3, 3, 3), {"padding": (3, 1, 1), "stride": 1}, -3, (4, 1)),
}


def whole_of(case: Case, dtype: torch.dtype) -> list[Tensor]:
    shape, weight_shape, arguments, _, _ = case
    generator = torch.Generator().manual_seed(5)
    sizes = (shape, weight_shape, (weight_shape[1] * arguments.get("groups", 1),))
    real = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    if dtype.is_complex:
        real = [r + 1j * torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in real]
    return [r.to(dtype).requires_grad_() for r in real]


def slabs(case: Case, tensor: Tensor) -> list[Tensor]:
    return list(tensor.split(case[4], case[3]))


def run_case(pair: dist.ProcessGroup, name: str, dtype: torch.dtype) -> list[Tensor]:
    """Forward and backward of one process; the loss is any function of the output whose gradient is not constant."""
    case = CASES[name]
    group = pair if len(case[4]) == 2 else None
    rank = dist.get_rank(group)
    if rank < 0:
        return []
    x, weight, bias = whole_of(case, dtype)
    mine = slabs(case, x.detach())[rank].clone().requires_grad_()
    y = sharded.conv_transpose3d(mine, weight, bias, **case[2], axis=case[3], group=group)
    y.backward(torch.sin(y.detach()))
    return [t.detach() for t in (y, mine.grad, weight.grad, bias.grad)]


def refuse(rank: int) -> None:
    x, weight = torch.ones(1, 2, 3, 4 + rank, 4), torch.ones(2, 2, 3, 3, 3)
    with pytest.raises(RuntimeError, match="they must agree on every axis but -3"):
        sharded.conv_transpose3d(x, weight)
    with pytest.raises(ValueError, match="axis is 2"):
        sharded.conv_transpose3d(x, weight, axis=2)
    with pytest.raises(RuntimeError, match="the device is 'meta'"):
        sharded.conv_transpose3d(x.to("meta"), weight)
    with pytest.raises(RuntimeError, match="dtype"):
        sharded.conv_transpose3d(x, weight.double())
    with pytest.raises(RuntimeError, match="stride"):
        sharded.conv_transpose3d(x, weight, stride=0, axis=-2)


DTYPES = {
    "two_tap": [torch.float32, torch.bfloat16],
    "dilated": [torch.float32, torch.float64, torch.complex64],
    "long_kernel": [torch.float32, torch.float16],
}
WORLD = 3
RUNS = [(name, dtype) for name in CASES for dtype in DTYPES.get(name, [torch.float32])]


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    pair = dist.new_group([1, 2])  # ranks of the group are not those of the world
    refuse(rank)
    torch.save([run_case(pair, *run) for run in RUNS], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[Tensor]]]:
    """Of each process and every run: output, and gradients of input, weight and bias."""
    folder = tmp_path_factory.mktemp("gloo")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=process, args=(rank, str(folder))) for rank in range(WORLD)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
        one.kill()
    assert [one.exitcode for one in processes] == [0] * WORLD
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("run", range(len(RUNS)), ids=[f"{name}-{dtype}" for name, dtype in RUNS])
def test_the_processes_give_the_whole(run: int, results: list[list[list[Tensor]]]) -> None:
    (name, dtype), axis = RUNS[run], CASES[RUNS[run][0]][3]
    parts = [of_process[run] for of_process in results if of_process[run]]
    output, input_grad = (torch.cat([part[i] for part in parts], axis) for i in range(2))
    whole = whole_of(CASES[name], dtype)
    y = tconv3d.conv_transpose3d(*map(as_array, whole), **CASES[name][2])
    assert as_array(output).tobytes() == y.tobytes()

    # PyTorch's own gradients of the whole, in double precision for the same gradient of the output.
    wide = [t.detach().to(torch.complex128 if dtype.is_complex else torch.float64).requires_grad_() for t in whole]
    grad_output = torch.sin(output).to(wide[0].dtype)
    torch.nn.functional.conv_transpose3d(*wide, **CASES[name][2]).backward(grad_output)
    got = [input_grad, *parts[0][2:]]
    tolerance = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 1e-12}.get(dtype, 1e-5)
    for mine, expected in zip(got, (t.grad for t in wide), strict=True):
        assert mine.dtype == dtype
        scale = expected.abs().max().item()
        torch.testing.assert_close(mine.to(expected.dtype), expected, rtol=0, atol=tolerance * scale)
    for other in parts[1:]:
        assert all(map(torch.equal, parts[0][2:], other[2:]))


def as_array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
