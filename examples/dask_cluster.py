# SPDX-License-Identifier: Apache-2.0
"""A volume upsampled block by block on a cluster of two processes on this machine: the bits of the whole.

python examples/dask_cluster.py
"""

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

import tconv3d
import tconv3d.dask
from tconv3d.initializers import Linear, generator


def main():
    # Stands for da.from_zarr("volume.zarr"): one channel of random blocks, each made when it is wanted.
    random = da.random.default_rng(0).random((1, 96, 96, 96), chunks=(1, 32, 32, 32), dtype=np.float32)
    weight = Linear(2)((1, 1, 4, 4, 4), np.dtype(np.float32), generator())

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        volume = client.persist(random)  # made once, on the workers
        lazy = tconv3d.dask.conv_transpose3d(volume, weight, stride=2, padding=1)  # nothing is computed yet
        print(f"{volume.shape} in {volume.npartitions} blocks -> {lazy.shape} in {lazy.npartitions} blocks")
        parts, whole = lazy.compute(), tconv3d.conv_transpose3d(volume.compute(), weight, stride=2, padding=1)
        # lazy.to_zarr("volume_x2.zarr") would write each block as it is done, and hold few of them at a time.
    assert np.array_equal(parts, whole)
    print(f"two processes and one call agree in all {whole.size:,} voxels, bit for bit")


if __name__ == "__main__":  # the workers are started from this file and must not start clusters of their own
    main()
