# SPDX-License-Identifier: Apache-2.0
"""The face for dask on a cluster of two processes: the same bits, fair threads, and workers that die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.scheduler import KilledWorker

import tconv3d
import tconv3d.dask
from tconv3d.dask import _tasks

ARGUMENTS = {"stride": 2, "padding": 1}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("workers")
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(folder)
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client
        # A cluster that closes while it starts a killed worker anew fails at times ("can only join a started process"),
        # so it closes once both are back.
        client.wait_for_workers(2, timeout=60)


def layer() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A layer for which the engine takes the two-tap method."""
    rng = np.random.default_rng(3)
    shapes = (1, 64, 12, 12, 12), (64, 32, 4, 4, 4), (32,)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_cluster_gives_the_same_bits(client: Client, prepared: bool) -> None:
    x, weight, bias = layer()
    whole = tconv3d.conv_transpose3d(x, weight, bias, **ARGUMENTS)
    given = tconv3d.prepare(weight, stride=2) if prepared else weight
    lazy = tconv3d.dask.conv_transpose3d(da.from_array(x, chunks=(1, 32, 5, 6, 12)), given, bias, **ARGUMENTS)
    np.testing.assert_array_equal(client.compute(lazy).result(timeout=120), whole)


def test_the_engine_keeps_to_the_threads_of_the_worker(client: Client) -> None:
    assert client.submit(_tasks._worker_threads, pure=False).result(timeout=60) == 1
    assert _tasks._worker_threads() == 0


def test_a_worker_that_is_killed_does_not_change_the_result(client: Client, tmp_path: Path) -> None:
    x, weight, bias = layer()
    died = tmp_path / "died"

    def die_once(block: np.ndarray) -> np.ndarray:
        try:
            died.touch(exist_ok=False)
        except FileExistsError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)
        return block

    source = da.from_array(x, chunks=(1, 64, 4, 4, 12)).map_blocks(die_once, meta=x[:0])
    lazy = tconv3d.dask.conv_transpose3d(source, weight, bias, **ARGUMENTS)
    result = client.compute(lazy).result(timeout=120)
    assert died.exists()
    np.testing.assert_array_equal(result, tconv3d.conv_transpose3d(x, weight, bias, **ARGUMENTS))


def test_workers_that_die_each_time_end_in_a_clear_error(client: Client) -> None:
    def die(block: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)
        return block

    x, weight, bias = layer()
    source = da.from_array(x, chunks=-1).map_blocks(die, meta=x[:0])
    with pytest.raises(KilledWorker, match="die"):
        client.compute(tconv3d.dask.conv_transpose3d(source, weight, bias, **ARGUMENTS)).result(timeout=120)
