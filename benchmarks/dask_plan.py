# SPDX-License-Identifier: Apache-2.0
"""What a plan of tconv3d.dask costs: processor seconds to build and to optimize, tasks and bytes, by blocks.

    python benchmarks/dask_plan.py [--blocks 1000,10000,100000] [--edge 64]

k4 s2 p1: each block takes in its own chunk and the edges of its 26 neighbors, the most that a layer of a network asks
for; k2 s2 takes in one chunk. What `dask.optimize` takes, which every computation pays for any graph, stands beside it.
"""

from __future__ import annotations

import argparse
import gc
import pickle
import time

import dask
import dask.array as da
import numpy as np

import tconv3d.dask


def plan(blocks: int, edge: int, kernel: int) -> None:
    """Time one plan and print its line."""
    per_axis = round(blocks ** (1 / 3))
    size = per_axis * edge
    x = da.zeros((1, size, size, size), chunks=(1, edge, edge, edge), dtype=np.float32)
    weight = np.ones((1, 1, kernel, kernel, kernel), np.float32)
    gc.collect()
    start = time.process_time()
    y = tconv3d.dask.conv_transpose3d(x, weight, stride=2, padding=(kernel - 2) // 2)
    built = time.process_time()
    (optimized,) = dask.optimize(y)
    done = time.process_time()
    tasks = dict(optimized.__dask_graph__())
    count = y.npartitions
    assert count == per_axis**3
    assert len(tasks) <= 3 * count + 2
    size = np.mean([len(pickle.dumps(task)) for task in list(tasks.values())[-200:]])
    for what, seconds in (("plan", built - start), ("dask.optimize", done - built)):
        print(f"k{kernel} s2 {count:7d} blocks  {what:14s} {seconds:7.2f} s {seconds / count * 1e6:6.1f} us a block")
    print(f"{'':22s}{len(tasks) / count:.2f} tasks a block, {size:.0f} bytes a task")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", default="1000,10000,100000")
    parser.add_argument("--edge", type=int, default=64, help="samples of a chunk of the input, per axis")
    arguments = parser.parse_args()
    for kernel in (2, 4):
        for blocks in map(int, arguments.blocks.split(",")):
            plan(blocks, arguments.edge, kernel)


if __name__ == "__main__":
    main()
