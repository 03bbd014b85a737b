# SPDX-License-Identifier: Apache-2.0
"""What a call costs beside its arithmetic: microseconds for an input of one sample, a kernel of one tap.

    python benchmarks/overhead.py [--threads 1] [--calls 2000] [--rounds 15]

Each round times every entry in turn; the figure is the smallest mean of a round, since on shared machines everything
above it is somebody else's work. The median stands behind it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch

import tconv3d
import tconv3d.torch as face

Entry = Callable[[], object]


def entries() -> dict[str, dict[str, Entry]]:
    """What is timed, by the state of autograd."""
    x = torch.ones(1, 1, 1, 1, 1)
    ours, theirs = face.ConvTranspose3d(1, 1, 1), torch.nn.ConvTranspose3d(1, 1, 1)
    array, weight, bias = x.numpy(), ours.weight.detach().numpy(), ours.bias.detach().numpy()
    aten, function = torch.nn.functional.conv_transpose3d, face.functional.conv_transpose3d
    calls: dict[str, Entry] = {
        "aten": lambda: aten(x, theirs.weight, theirs.bias),
        "torch.nn.ConvTranspose3d": lambda: theirs(x),
        "tconv3d.torch.functional.conv_transpose3d": lambda: function(x, ours.weight, ours.bias),
        "tconv3d.torch.ConvTranspose3d": lambda: ours(x),
    }
    return {
        "without gradients": {
            "tconv3d.conv_transpose3d": lambda: tconv3d.conv_transpose3d(array, weight, bias),
            **calls,
        },
        "with gradients, forward": calls,
        "forward, sum and backward": {
            "torch.nn.ConvTranspose3d": lambda: theirs(x).sum().backward(),
            "tconv3d.torch.ConvTranspose3d": lambda: ours(x).sum().backward(),
        },
    }


def microseconds(entry: Entry, calls: int) -> float:
    """Return the mean time of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        entry()
    return (time.perf_counter() - start) / calls * 1e6


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tconv3d.set_num_threads(arguments.threads)
    print(f"numpy {np.__version__}, torch {torch.__version__}, threads {arguments.threads}; us, smallest (median)")
    for state, timed in entries().items():
        times: dict[str, list[float]] = {name: [] for name in timed}
        with torch.set_grad_enabled(state != "without gradients"):
            for _ in range(arguments.rounds):
                for name, entry in timed.items():
                    times[name].append(microseconds(entry, arguments.calls))
        print(state)
        for name, figures in times.items():
            print(f"  {name:<44} {min(figures):7.2f} ({median(figures):.2f})")


if __name__ == "__main__":
    main()
