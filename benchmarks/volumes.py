# SPDX-License-Identifier: Apache-2.0
"""`tconv3d apply` on a volume larger than memory: peak memory, rate, the rate in memory and the disk's own beside it.

    python benchmarks/volumes.py --folder /some/disk          16 GiB in (sparse), 4 GiB out, --memory 1GB
    python benchmarks/volumes.py --folder /some/disk --small  a sixteenth of it, to see that all works

The input is a .npy file of zeros that take no room, with random numbers in three places; the output there is compared
with the layer on that part alone. Everything is removed afterwards.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CHANNELS, COLUMNS, KERNEL, STRIDE, PADDING = 64, 2, 4, 2, 1  # a decoder's last layer: 64 -> 2, k4 s2
LAYER = ["--contract", "torch", "--stride", str(STRIDE), "--padding", str(PADDING)]
SIZE, SMALL = (256, 256, 1024), (64, 64, 1024)  # 16 GiB and 1 GiB of float32
MEMORY = "1GB"
WANTED = 0.6  # of the rate in memory
MARKED = 4  # depth of a part with random numbers

# What the child does, and then says about itself: a child's ru_maxrss counts what its parent held when it was made.
CHILD = """
import sys
from tconv3d.cli import main
code = main(sys.argv[1:])
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print("peak", int(line.split()[1]) * 1024)
sys.exit(code)
"""


def main() -> int:
    """Measure, print, return 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    size = SMALL if options.small else SIZE
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        return measure(Path(name), size)


def measure(folder: Path, size: tuple[int, ...]) -> int:
    """One run, in `folder`."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((CHANNELS, COLUMNS, KERNEL, KERNEL, KERNEL)).astype(np.float32)
    np.save(folder / "weight.npy", weight)
    starts = [0, size[0] // 2 - 1, size[0] - MARKED]
    make_input(folder / "in.npy", size, starts)
    write, read = write_rate(folder), read_rate(folder / "in.npy")
    begun = time.perf_counter()
    call = ["apply", "weight.npy", "in.npy", "out.npy", *LAYER, "--memory", MEMORY]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *call], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.perf_counter() - begun
    out_bytes = COLUMNS * STRIDE**3 * int(np.prod(size)) * 4
    peak = int(child.stdout.split()[-1])
    in_memory = rate_in_memory(weight, size)
    wrong = check(folder, weight, starts)
    rate = out_bytes / seconds
    # What the disk allows: it reads all of the input and writes all of the output, while the layer computes.
    in_bytes = (folder / "in.npy").stat().st_size
    allowed = out_bytes / max(out_bytes / in_memory, in_bytes / read + out_bytes / write)
    print(child.stdout.splitlines()[0])
    print(f"input {(folder / 'in.npy').stat().st_size / 2**30:.1f} GiB, output {out_bytes / 2**30:.1f} GiB")
    print(f"peak resident memory {peak / 1e6:.0f} MB of {MEMORY}")
    print(f"output per second: {rate / 1e6:.0f} MB streamed, {in_memory / 1e6:.0f} MB in memory")
    print(f"the disk alone: writes {write / 1e6:.0f} MB/s, reads the input at {read / 1e6:.0f} MB/s")
    print(f"share of the rate in memory {rate / in_memory:.2f}, of what the disk allows {rate / allowed:.2f}")
    print(f"places compared: {len(starts)}, wrong: {wrong}")
    return int(wrong > 0 or peak > 10**9 or rate < WANTED * allowed)


def make_input(path: Path, size: tuple[int, ...], starts: list[int]) -> None:
    """Zeros that take no room, and random numbers in `MARKED` planes from each start on."""
    array = np.lib.format.open_memmap(path, "w+", np.float32, (CHANNELS, *size))
    for number, start in enumerate(starts):
        for channel in range(CHANNELS):
            array[channel, start : start + MARKED] = marked(number, channel, size)
    array.flush()


def marked(number: int, channel: int, size: tuple[int, ...]) -> Any:
    """The random planes of a place and channel."""
    return np.random.default_rng((number, channel)).standard_normal((MARKED, *size[1:]), np.float32)


def write_rate(folder: Path) -> float:
    """Bytes a second written as the command writes: 64 MiB, fsync, again."""
    piece, count = np.random.default_rng(0).bytes(64 * 2**20), 16
    path = folder / "disk"
    begun = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for _ in range(count):
            file.write(piece)
            os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    return count * len(piece) / seconds


def read_rate(path: Path) -> float:
    """Bytes a second of the first 2 GiB of the input, most of which never were on the disk."""
    piece, total = bytearray(64 * 2**20), 0
    begun = time.perf_counter()
    with open(path, "rb", buffering=0) as file:
        while total < 2**31 and (got := file.readinto(piece)):
            total += got
    return total / (time.perf_counter() - begun)


def rate_in_memory(weight: Any, size: tuple[int, ...]) -> float:
    """Bytes of output a second of the same layer on the part of the volume that fits; median of five calls."""
    import tconv3d

    x = np.random.default_rng(0).standard_normal((1, CHANNELS, 16, *size[1:]), np.float32)
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        out = tconv3d.conv_transpose3d(x, weight, stride=STRIDE, padding=PADDING)
        seconds.append(time.perf_counter() - begun)
    return float(out.nbytes / np.median(seconds[1:]))


def check(folder: Path, weight: Any, starts: list[int]) -> int:
    """How many of the marked places differ from the layer on them alone, to the bit."""
    import tconv3d

    source, out = (np.load(folder / name, mmap_mode="r") for name in ("in.npy", "out.npy"))
    wrong = 0
    for start in starts:
        first, past = max(0, start - 2), min(source.shape[1], start + MARKED + 2)
        part = tconv3d.conv_transpose3d(
            np.ascontiguousarray(source[None, :, first:past]), weight, stride=STRIDE, padding=PADDING
        )
        # The cut itself changes one plane of output on either side, unless it is the volume's own border.
        low, high = 2 * STRIDE * (first > 0), part.shape[2] - 2 * STRIDE * (past < source.shape[1])
        there = out[:, first * STRIDE + low : first * STRIDE + high]
        wrong += not np.array_equal(there, part[0, :, low:high])
    return wrong


if __name__ == "__main__":
    sys.exit(main())
