# SPDX-License-Identifier: Apache-2.0
"""`tconv3d demo`: both examples of the official comparison page under both contracts, then a real volume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..layers import Conv3dTranspose, ConvTranspose3d
from . import _brain

_INPUT_SHAPE = (1, 3, 4, 9, 16)
_WEIGHT_SHAPE = (3, 32, 5, 5, 5)
_COMMON = {"kernel_size": 5, "stride": 3}
_SAMPLES_SHOWN = 6

Array = NDArray[Any]


def run(volume: Path | None, output_dir: Path) -> int:
    """Print the page's examples, then upsample `volume` (default: nibabel's own brain) and write it to `output_dir`.

    Returns 0, or 1 where a result is not what it must be.
    """
    x, weight = random_data()
    first, second = example_1(x, weight), example_2(x, weight)
    print(first.text, second.text, sep="\n\n", end="\n\n")
    brain_is_right = _brain.run(volume, output_dir)
    return 0 if first.as_expected and second.as_expected and brain_is_right else 1


@dataclass(frozen=True)
class Result:
    """What to print, and whether equal and different came out as the contracts say."""

    text: str
    as_expected: bool


def example_1(x: Array, weight: Array) -> Result:
    """The page's first pair: equal shapes, different values; then the call that is truly equal."""
    page = _call(ConvTranspose3d, padding=2, output_padding=2, bias=False)
    same = _call(Conv3dTranspose, pad_mode="same")
    equal = _call(ConvTranspose3d, padding=1, bias=False)
    ones = [call.output(np.ones_like(x), np.ones_like(weight)) for call in (page, same)]
    y_page, y_same, y_equal = (call.output(x, weight) for call in (page, same, equal))
    lines = [
        "Example 1: output size = input size * stride",
        *_compare(page, y_page, same, y_same),
        "  The shapes agree, the values do not: PyTorch's padding=2 cuts two samples in front, 'same' cuts one, so one"
        " is the",
        "  other shifted. All-ones data, as on the page, hide it: there the sums are"
        f" {ones[0].sum():,.0f} and {ones[1].sum():,.0f}.",
        f"  The true equal of 'same' here is {equal.text}",
        f"    largest difference {_largest(y_equal - y_same):.3g}",
    ]
    return Result("\n".join(lines), not _close(y_page, y_same) and _close(y_equal, y_same))


def example_2(x: Array, weight: Array) -> Result:
    """The page's second pair, nothing cropped: equal in shape and values."""
    page = _call(ConvTranspose3d, bias=False)
    valid = _call(Conv3dTranspose, pad_mode="valid")
    y_page, y_valid = page.output(x, weight), valid.output(x, weight)
    lines = [
        "Example 2: nothing is cropped",
        *_compare(page, y_page, valid, y_valid),
        "  Equal, because the kernel (5) is not smaller than the stride (3); else 'valid' appends zeros.",
    ]
    return Result("\n".join(lines), _close(y_page, y_valid))


@dataclass(frozen=True)
class _Call:
    layer: type[ConvTranspose3d] | type[Conv3dTranspose]
    arguments: dict[str, Any]

    @property
    def text(self) -> str:
        keywords = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.layer.__name__}(3, 32, {keywords})"

    def output(self, x: Array, weight: Array) -> Array:
        net = self.layer(*_WEIGHT_SHAPE[:2], **self.arguments)
        net.weight = weight
        return net(x)


def _call(layer: type[ConvTranspose3d] | type[Conv3dTranspose], **arguments: object) -> _Call:
    return _Call(layer, _COMMON | arguments)


def random_data() -> tuple[Array, Array]:
    """Input (1, 3, 4, 9, 16) and weight (3, 32, 5, 5, 5) of the page's shapes, the same on every run."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(_INPUT_SHAPE, np.float32), rng.standard_normal(_WEIGHT_SHAPE, np.float32)


def _compare(pytorch: _Call, a: Array, mindspore: _Call, b: Array) -> list[str]:
    difference = a - b
    rows = {"PyTorch": a, "MindSpore": b, "difference": difference}
    unequal = np.count_nonzero(difference)
    return [
        f"  PyTorch    {pytorch.text}",
        f"             shape {a.shape}  sum {a.sum(dtype=np.float64):.6g}",
        f"  MindSpore  {mindspore.text}",
        f"             shape {b.shape}  sum {b.sum(dtype=np.float64):.6g}",
        f"  on random data {unequal:,} of {b.size:,} samples differ, by {_largest(difference):.3g} at most; the largest"
        f" output is {_largest(b):.3g}",
        f"  first {_SAMPLES_SHOWN} samples along the width:",
        *(f"    {name:<11}{_first_samples(values)}" for name, values in rows.items()),
    ]


def _first_samples(y: Array) -> str:
    return " ".join(f"{value:8.3f}" for value in y[0, 0, 0, 0, :_SAMPLES_SHOWN])


def _largest(y: Array) -> float:
    return float(np.abs(y).max())


def _close(a: Array, b: Array) -> bool:
    return _largest(a - b) <= 1e-5 * _largest(b)
