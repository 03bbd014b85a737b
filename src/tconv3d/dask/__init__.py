# SPDX-License-Identifier: Apache-2.0
"""The face for dask: arrays larger than memory, block by block, with the bits of the whole.

    import dask.array as da, tconv3d.dask
    volume = da.from_zarr("volume.zarr")                          # (C, D, H, W) or (N, C, D, H, W)
    up = tconv3d.dask.conv_transpose3d(volume, weight, stride=2, padding=1)
    up.to_zarr("up.zarr")

Nothing is computed before dask asks for it. The same array runs on threads, on processes and on a cluster of
`distributed`, and gives the same bits on each as `tconv3d.conv_transpose3d` of the whole (on machines with one
instruction set, see ``tconv3d info``).

Threads: blocks that run at once in a process share the engine's threads equally, so on dask's threads each block
has one, and the last blocks of a computation have several. On a worker of `distributed` the engine keeps to the
threads of that worker. ``TCONV3D_NUM_THREADS`` and `tconv3d.set_num_threads` set what is shared, as everywhere.
"""

from __future__ import annotations

try:
    import dask.array  # noqa: F401
except ImportError as error:
    raise ImportError(f"tconv3d.dask needs dask with its arrays ({error}); pip install 'tconv3d[dask]'") from error

from .functional import conv_transpose3d

__all__ = ["conv_transpose3d"]
