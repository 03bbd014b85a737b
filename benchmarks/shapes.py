# SPDX-License-Identifier: Apache-2.0
"""Random layers that could stand in a real network: nobody tuned for them."""

from __future__ import annotations

import math

import numpy as np
from workloads import Workload

# kernel, stride, padding, output_padding of decoders in use: segmentation, stereo, GANs, patch embeddings.
_HABITS = (
    (2, 2, 0, 0),
    (3, 2, 1, 1),
    (4, 2, 1, 0),
    (3, 1, 1, 0),
    (5, 2, 2, 1),
    (4, 4, 0, 0),
    (6, 2, 2, 0),
    (3, 3, 0, 0),
    (5, 1, 2, 0),
    (8, 4, 2, 0),
    ((1, 2, 2), (1, 2, 2), 0, 0),
    ((3, 3, 3), (1, 2, 2), 1, (0, 1, 1)),
    ((1, 4, 4), (1, 2, 2), (0, 1, 1), 0),
    ((2, 4, 4), (2, 4, 4), 0, 0),
)
_COMMON = 5  # the first few are most of what is in use
_CHANNELS = (1, 2, 3, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 512)
_LEAST_WORK, _MOST_WORK = 1e7, 4e9  # multiply-adds
_MOST_BYTES = 256e6


def draw(count: int, seed: int = 0) -> list[Workload]:
    """Return `count` layers of at least ten million multiply-adds, the same for the same seed."""
    rng = np.random.default_rng(seed)
    layers: list[Workload] = []
    while len(layers) < count:
        layer = _draw_one(rng, f"shape_{len(layers):03d}")
        work = layer.flops(train=False) / 2
        if _LEAST_WORK <= work <= _MOST_WORK and layer.bytes(train=False) <= _MOST_BYTES:
            layers.append(layer)
    return layers


def _draw_one(rng: np.random.Generator, name: str) -> Workload:
    habit = _HABITS[rng.integers(_COMMON if rng.random() < 0.7 else len(_HABITS))]
    kernel, stride, padding, output_padding = ([n] * 3 if isinstance(n, int) else list(n) for n in habit)
    in_channels = int(rng.choice(_CHANNELS[3:]))
    out_channels = int(rng.choice([c for c in _CHANNELS if c <= in_channels]))
    groups = 1
    if rng.random() < 0.15:
        out_channels = in_channels
        groups = in_channels if rng.random() < 0.5 else math.gcd(in_channels, int(rng.choice([2, 4, 8])))
    side = int(rng.choice([4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 64]))
    spatial = [side] * 3 if rng.random() < 0.6 else [max(2, int(side * f)) for f in rng.choice([0.5, 0.75, 1, 2], 3)]
    dilation = [2, 2, 2] if rng.random() < 0.05 else [1, 1, 1]
    batch = int(rng.choice([1, 1, 1, 2, 4]))
    sizes = kernel, stride, padding, output_padding, dilation
    return Workload(
        name, in_channels, out_channels, *sizes, groups, spatial, batch, "drawn at random", "shapes.py", False
    )
