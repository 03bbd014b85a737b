# SPDX-License-Identifier: Apache-2.0
"""The PyTorch face in several threads and processes."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_support import Decoder, decoders

import tconv3d.torch as face


@pytest.mark.parametrize("is_frozen", [False, True])
def test_three_threads_call_one_module_while_a_fourth_trains(is_frozen: bool) -> None:
    mine, other = decoders()
    if is_frozen:
        face.freeze(mine)
    inputs = [torch.randn(1, 3, 4 + i % 3, 5, 4) for i in range(12)]
    expected = [other(x).detach() for x in inputs]
    failures: list[str] = []

    def call(indices: list[int]) -> None:
        with torch.no_grad():
            for _, i in itertools.product(range(10), indices):
                if not torch.allclose(mine(inputs[i]), expected[i], rtol=1e-4, atol=1e-5):
                    failures.append(f"input {i}")

    trained, reference = decoders()
    optimizers = [torch.optim.SGD(module.parameters(), lr=1e-3) for module in (trained, reference)]

    def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for x in inputs * 3:
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()

    threads = [threading.Thread(target=call, args=(list(range(i, 12, 3)),), daemon=True) for i in range(3)]
    threads.append(threading.Thread(target=train, args=(trained, optimizers[0]), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    train(reference, optimizers[1])
    torch.testing.assert_close(list(trained.parameters()), list(reference.parameters()), rtol=1e-4, atol=1e-5)


class Upsampled(torch.utils.data.Dataset):
    """Items that a layer computes in the worker."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.layer(torch.full((2, 4, 4, 4), float(index)))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one processor
def test_forked_workers_after_the_parent_used_the_layer() -> None:
    layer = face.ConvTranspose3d(2, 3, 3, stride=2)
    dataset = Upsampled(layer)
    expected = torch.stack([dataset[i] for i in range(6)])
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=6, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    (items,) = list(loader)
    assert torch.equal(items, expected)


def train_in_parallel(rank: int, rendezvous: str, queue: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        grads = []
        for module in parallel_modules():
            parallel = torch.nn.parallel.DistributedDataParallel(module)
            parallel(parallel_input()[rank : rank + 1]).square().sum().backward()
            grads.append([parameter.grad.numpy() for parameter in module.parameters()])
        queue.put((rank, grads))
    finally:
        torch.distributed.destroy_process_group()


def parallel_input() -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 4 * 4 * 4).view(2, 3, 4, 4, 4)


def parallel_modules() -> tuple[Decoder, Decoder]:
    torch.manual_seed(1)
    return decoders()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=train_in_parallel, args=(rank, str(tmp_path / "rendezvous"), queue), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    module = parallel_modules()[1]
    module(parallel_input()).square().sum().backward()
    expected = [parameter.grad.numpy() / 2 for parameter in module.parameters()]
    for rank, kind in itertools.product(range(2), range(2)):
        for grad_, other in zip(results[rank][kind], expected, strict=True):
            np.testing.assert_allclose(grad_, other, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_computes_without_the_team_of_its_parent() -> None:
    """PyTorch's threads, which the engine shares, do not exist in a child; waiting for them would never end."""
    layer = face.ConvTranspose3d(32, 32, 3, stride=2).requires_grad_(False)
    x = torch.randn(1, 32, 16, 16, 16)
    expected = layer(x)
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: send.send_bytes(layer(x).numpy().tobytes()))
    child.start()
    try:
        assert receive.poll(60), "the child hangs"
        assert receive.recv_bytes() == expected.numpy().tobytes()
    finally:
        child.kill()
        child.join()
