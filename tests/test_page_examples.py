# SPDX-License-Identifier: Apache-2.0
"""Both examples of the official comparison page, spelled in NumPy under both contracts, values and all.

The page fills input and weight with ones. Then an output is 3 channels times the number of taps that reach it, which
can be counted by hand on one axis: kernel 5 at stride 3 puts taps {0, 3} or {1, 4} on two of three samples and tap 2
alone on the third, fewer at the ends. ``full_counts`` is that list before any crop.
"""

from __future__ import annotations

import numpy as np
import pytest

from tconv3d import Conv3dTranspose, ConvTranspose3d, reference
from tconv3d.contracts import mindspore, pytorch

K, S = 5, 3
X = np.ones([1, 3, 4, 9, 16], np.float32)
EXAMPLE_1, EXAMPLE_2 = (1, 32, 12, 27, 48), (1, 32, 14, 29, 50)


def full_counts(size: int) -> np.ndarray:
    """Taps per sample of the uncropped axis: 1 1 1 | 2 2 1 | ... | 2 2 1 | 1 1."""
    return np.array([1, 1, 1] + [2, 2, 1] * (size - 1) + [1, 1])


def all_ones(front: int, sizes: tuple[int, ...]) -> np.ndarray:
    """The output for ones, from the counts of the three axes with ``front`` samples cropped."""
    d, h, w = (full_counts(n)[front : front + out] for n, out in zip(X.shape[2:], sizes, strict=True))
    return np.broadcast_to(3.0 * d[:, None, None] * h[:, None] * w, (1, 32, *sizes))


def pytorch_layer(**options: int) -> ConvTranspose3d:
    net = ConvTranspose3d(3, 32, kernel_size=K, stride=S, bias=False, **options)
    net.weight = np.ones((3, 32, K, K, K), np.float32)
    return net


def mindspore_layer(pad_mode: str) -> Conv3dTranspose:
    return Conv3dTranspose(3, 32, kernel_size=K, stride=S, weight_init="ones", pad_mode=pad_mode)


def test_the_counts_are_right() -> None:
    assert full_counts(4).tolist() == [1, 1, 1, 2, 2, 1, 2, 2, 1, 2, 2, 1, 1, 1]
    assert full_counts(4).sum() == 4 * K


def test_example_1_pytorch() -> None:
    output = pytorch_layer(padding=(K - 1) // 2, output_padding=S - 1)(X)
    assert output.shape == EXAMPLE_1
    assert np.array_equal(output, all_ones(2, EXAMPLE_1[2:]))
    assert output[0, 0, :, 4, 7].tolist() == [3 * 4 * n for n in (1, 2, 2, 1, 2, 2, 1, 2, 2, 1, 1, 1)]


def test_example_1_mindspore() -> None:
    output = mindspore_layer("same")(X)
    assert output.shape == EXAMPLE_1
    assert np.array_equal(output, all_ones(1, EXAMPLE_1[2:]))
    assert output[0, 0, :, 5, 8].tolist() == [3 * 4 * n for n in (1, 1, 2, 2, 1, 2, 2, 1, 2, 2, 1, 1)]


def test_example_1_hides_its_difference_in_the_sums() -> None:
    """Each contract drops two ends with one tap each: 5 S - 2 remain per axis."""
    ours = pytorch_layer(padding=2, output_padding=2)(X)
    theirs = mindspore_layer("same")(X)
    assert ours.sum(dtype=float) == theirs.sum(dtype=float) == 32 * 3 * (5 * 4 - 2) * (5 * 9 - 2) * (5 * 16 - 2)
    assert not np.array_equal(ours, theirs)


@pytest.mark.parametrize("layer", [pytorch_layer, lambda: mindspore_layer("valid")], ids=["pytorch", "mindspore"])
def test_example_2(layer) -> None:
    output = layer()(X)
    assert output.shape == EXAMPLE_2
    assert np.array_equal(output, all_ones(0, EXAMPLE_2[2:]))
    assert output.sum(dtype=float) == 32 * 3 * (5 * 4) * (5 * 9) * (5 * 16)


def random_pair(ours: ConvTranspose3d, theirs: Conv3dTranspose) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(11)
    x = rng.standard_normal(X.shape, np.float32)
    ours.weight = theirs.weight = rng.standard_normal((3, 32, K, K, K), np.float32)
    return ours(x), theirs(x)


def test_example_1_differs_on_random_data() -> None:
    ours, theirs = random_pair(pytorch_layer(padding=2, output_padding=2), mindspore_layer("same"))
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() > np.abs(theirs).max() / 2
    # The page's pair is the same signal, one sample apart along each axis.
    assert np.allclose(ours[..., :-1, :-1, :-1], theirs[..., 1:, 1:, 1:], atol=1e-5)


def test_the_true_equal_of_example_1_is_padding_1() -> None:
    ours, theirs = random_pair(pytorch_layer(padding=1, output_padding=0), mindspore_layer("same"))
    assert np.array_equal(ours, theirs)


def test_example_2_agrees_on_random_data() -> None:
    ours, theirs = random_pair(pytorch_layer(), mindspore_layer("valid"))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    "geometry",
    [
        pytorch.layer_arguments(3, 32, K, S, padding=2, output_padding=2).geometry(X.shape),
        mindspore.layer_arguments(3, 32, K, S).geometry(X.shape),
        mindspore.layer_arguments(3, 32, K, S, pad_mode="valid").geometry(X.shape),
    ],
    ids=["example 1 pytorch", "example 1 mindspore", "example 2"],
)
def test_the_reference_agrees_with_the_counts(geometry) -> None:
    weight = np.ones((3, 32, K, K, K))
    assert np.array_equal(
        reference.forward(X, weight, None, geometry), all_ones(geometry.crop_front[0], geometry.output_size)
    )
