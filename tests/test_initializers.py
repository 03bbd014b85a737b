# SPDX-License-Identifier: Apache-2.0
"""The laws themselves. Random ones are held against their distribution function by a Kolmogorov-Smirnov test whose
chance of a false alarm is 1e-6 for each law; the seeds are fixed, so an alarm never comes and goes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tconv3d
from tconv3d import initializers as init

FALSE_ALARM = 1e-6
SHAPE = (8, 12, 5, 5, 5)  # fan_in 1500, fan_out 1000, 12000 elements
FLOAT = np.dtype(np.float32)

vectorised_erf = np.vectorize(math.erf)


def uniform(bound: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.clip((x / bound + 1) / 2, 0, 1)


def normal(sigma: float, mean: float = 0.0) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: (1 + vectorised_erf((x - mean) / (sigma * 2**0.5))) / 2


def truncated(sigma: float, low: float, high: float) -> Callable[[np.ndarray], np.ndarray]:
    whole = normal(sigma)
    below, above = whole(np.array(low)), whole(np.array(high))
    return lambda x: (whole(np.clip(x, low, high)) - below) / (above - below)


def draw(law: init.Initializer, shape: tuple[int, ...] = SHAPE, dtype: Any = FLOAT) -> np.ndarray:
    return law(shape, np.dtype(dtype), init.generator())


def assert_follows(values: np.ndarray, distribution: Callable[[np.ndarray], np.ndarray]) -> None:
    """Kolmogorov-Smirnov: the largest distance of the empirical distribution, by Massart's bound."""
    ordered = np.sort(values.astype(np.float64).ravel())
    expected, steps = distribution(ordered), np.arange(ordered.size + 1) / ordered.size
    distance = max((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    assert distance <= math.sqrt(math.log(2 / FALSE_ALARM) / (2 * ordered.size))


LAWS = [
    (init.Normal(), normal(0.01)),
    (init.Normal(0.5, 2.0), normal(0.5, 2.0)),
    (init.TruncatedNormal(), normal(0.01)),
    (init.TruncatedNormal(1.0, a=-0.5, b=1.5), truncated(1.0, -0.5, 1.5)),
    (init.Uniform(), uniform(0.07)),
    (init.HeUniform(), uniform(math.sqrt(6 / 1500))),
    (init.HeUniform(math.sqrt(5)), uniform(1 / math.sqrt(1500))),
    (init.HeUniform(mode="fan_out", nonlinearity="relu"), uniform(math.sqrt(6 / 1000))),
    (init.HeNormal(), normal(math.sqrt(2 / 1500))),
    (init.XavierUniform(), uniform(math.sqrt(6 / 2500))),
    (init.XavierNormal(gain=2), normal(2 * math.sqrt(2 / 2500))),
    (init.VarianceScaling(), uniform(math.sqrt(3 / 1500))),
    (init.VarianceScaling(2.0, "fan_avg", "untruncated_normal"), normal(math.sqrt(2 / 1250))),
]


@pytest.mark.parametrize(("law", "distribution"), LAWS, ids=lambda value: repr(value)[:40])
def test_random_laws(law: init.Initializer, distribution: Callable[[np.ndarray], np.ndarray]) -> None:
    assert_follows(draw(law), distribution)


def test_the_test_has_power() -> None:
    with pytest.raises(AssertionError):
        assert_follows(draw(init.Normal()), normal(0.0115))
    with pytest.raises(AssertionError):
        assert_follows(draw(init.HeUniform()), uniform(math.sqrt(6 / 1000)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_real_dtypes(dtype: Any) -> None:
    values = draw(init.Uniform(1.0), dtype=dtype)
    assert values.dtype == dtype
    assert abs(values.astype(float)).max() <= 1
    assert_follows(values, uniform(1.0))


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_parts_follow_the_law_independently(dtype: Any) -> None:
    values = draw(init.HeUniform(math.sqrt(5)), dtype=dtype)
    assert values.dtype == dtype
    for part in (values.real, values.imag):
        assert_follows(part, uniform(1 / math.sqrt(1500)))
    assert abs(np.corrcoef(values.real.ravel(), values.imag.ravel())[0, 1]) < 5 / values.size**0.5
    assert (draw(init.One(), (2,), dtype) == 1).all()


def test_dirac() -> None:
    values = draw(init.Dirac(), (3, 2, 3, 4, 1))
    assert values.sum() == 2
    assert values[0, 0, 1, 2, 0] == values[1, 1, 1, 2, 0] == 1
    grouped = draw(init.Dirac(groups=2), (4, 2, 3, 3, 3))
    assert grouped.sum() == 4
    assert grouped[2, 0, 1, 1, 1] == grouped[3, 1, 1, 1, 1] == 1
    for bad in (lambda: draw(init.Dirac(), (3, 2)), lambda: draw(init.Dirac(groups=2), (3, 2, 1))):
        with pytest.raises(ValueError, match="Dirac"):
            bad()


@pytest.mark.parametrize("shape", [(4, 2, 3, 3, 3), (40, 2, 1, 2, 2)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    flat = draw(init.Orthogonal(gain=2.0), shape, np.float64).reshape(shape[0], -1)
    gram = flat @ flat.T if shape[0] < flat.shape[1] else flat.T @ flat
    assert np.allclose(gram, 4 * np.eye(min(flat.shape)))


def phases_of(y: np.ndarray, stride: tuple[int, int, int]) -> np.ndarray:
    """The blocks of one stride each: shape (..., blocks, samples of a block)."""
    (d, h, w), (sd, sh, sw) = (size // step for size, step in zip(y.shape[-3:], stride, strict=True)), stride
    blocks = y.reshape(-1, d, sd, h, sh, w, sw).transpose(0, 1, 3, 5, 2, 4, 6)
    return blocks.reshape(*blocks.shape[:4], -1)


@pytest.mark.parametrize(("kernel", "stride"), [((4, 4, 4), 2), ((6, 2, 3), (3, 2, 1)), ((2, 2, 2), (2, 2, 2))])
def test_icnr_starts_as_nearest_neighbor_upsampling(kernel: tuple[int, ...], stride: Any) -> None:
    steps = (stride,) * 3 if isinstance(stride, int) else stride
    x = np.random.standard_normal((1, 3, 4, 5, 6))
    weight = draw(init.ICNR(stride), (3, 2, *kernel), np.float64)
    y = tconv3d.conv_transpose3d(x, weight, stride=stride)
    blocks = phases_of(y, steps)
    assert np.ptp(blocks, axis=-1).max() <= 1e-13 * abs(y).max()
    # And what each block repeats is the small convolution that the law drew.
    small = weight[:, :, :: steps[0], :: steps[1], :: steps[2]]
    np.testing.assert_allclose(blocks[..., 0].reshape(-1), tconv3d.conv_transpose3d(x, small).reshape(-1), atol=1e-13)
    # Random taps do show the pattern.
    random = draw(init.HeNormal(), weight.shape, np.float64)
    assert np.ptp(phases_of(tconv3d.conv_transpose3d(x, random, stride=stride), steps), axis=-1).max() > 0.1


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((4, 4, 4), 2, 1), ((3, 3, 3), 2, 1), ((6, 5, 1), (3, 3, 1), (0, 0, 0)), ((5, 8, 9), (2, 4, 3), 0)],
)
def test_linear_leaves_no_pattern_on_a_constant(kernel: tuple[int, ...], stride: Any, padding: Any) -> None:
    x = np.full((1, 2, 6, 6, 6), 5.0)
    weight = draw(init.Linear(stride), (2, 2, *kernel), np.float64)
    y = tconv3d.conv_transpose3d(x, weight, stride=stride, padding=padding)[0, :]
    steps = (stride,) * 3 if isinstance(stride, int) else stride
    inner = tuple(slice(k, size - k) for k, size in zip(kernel, y.shape[1:], strict=True))
    np.testing.assert_allclose(y[(slice(None), *inner)], 5, rtol=1e-14)
    # Taps that are all equal do show it wherever the kernel is no multiple of the stride.
    flat = tconv3d.conv_transpose3d(x, np.ones_like(weight), stride=stride, padding=padding)[0][(slice(None), *inner)]
    assert (np.ptp(flat) == 0) == all(k % s == 0 for k, s in zip(kernel, steps, strict=True))


def test_linear_interpolates_as_scipy_does() -> None:
    from scipy import ndimage

    x = np.random.standard_normal((1, 1, 5, 6, 7))
    weight = draw(init.Linear((2, 3, 2)), (1, 1, 4, 5, 4), np.float64)
    y = tconv3d.conv_transpose3d(x, weight, stride=(2, 3, 2), padding=(1, 1, 1))[0, 0]
    zoomed = ndimage.zoom(x[0, 0], (2, 3, 2), order=1, grid_mode=True, mode="nearest")
    inner = (slice(2, -2), slice(3, -3), slice(2, -2))
    np.testing.assert_allclose(y[inner], zoomed[inner], atol=1e-13)


def test_linear_and_icnr_take_the_law_of_the_channels() -> None:
    grouped = draw(init.Linear(2, init.Dirac(groups=3)), (3, 1, 4, 4, 4))
    assert np.array_equal(grouped[0], grouped[2]) and grouped.any()
    mixed = draw(init.Linear(2, init.HeUniform()), (3, 5, 4, 4, 4))
    assert np.unique(mixed[:, :, 1, 1, 1]).size == 15
    assert (draw(init.ICNR(2, init.One()), (1, 1, 2, 2, 2)) == 1).all()
    assert draw(init.Linear(2), (1, 1, 4, 4, 4), np.complex64).imag.max() == 0
    assert draw(init.ICNR(2), (1, 1, 4, 4, 4), np.complex64).imag.max() != 0


@pytest.mark.parametrize(
    ("law", "shape", "message"),
    [
        (init.ICNR(2), (1, 1, 3, 4, 4), "must be a multiple of the stride"),
        (init.Linear(2), (1, 1, 4, 4, 2), "at least 2 stride - 1"),
        (init.ICNR(2), (4,), "must have 5 axes"),
        (init.Linear(0), (1, 1, 4, 4, 4), "the stride of Linear is 0"),
        (init.Linear((2, 2)), (1, 1, 4, 4, 4), r"the stride of Linear is \(2, 2\)"),
    ],
)
def test_linear_and_icnr_refuse_what_they_cannot_hold(
    law: init.Initializer, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        draw(law, shape)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("normal", init.Normal()),
        ("TruncatedNormal", init.TruncatedNormal()),
        ("UNIFORM", init.Uniform()),
        ("HE_UNIFORM", init.HeUniform()),
        ("heuniform", init.HeUniform()),
        ("he_normal", init.HeNormal()),
        ("XavierUniform", init.XavierUniform()),
        ("xavier_normal", init.XavierNormal()),
        ("One", init.One()),
        ("ones", init.One()),
        ("Zeros", init.Zero()),
        ("dirac", init.Dirac()),
        ("orthogonal", init.Orthogonal()),
        ("variancescaling", init.VarianceScaling()),
        (2, init.Constant(2.0)),
        (True, init.Constant(1.0)),
        (np.float32(0.5), init.Constant(0.5)),
        (init.Normal(3), init.Normal(3)),
    ],
)
def test_resolve(name: Any, law: init.Initializer) -> None:
    assert init.resolve(name) == law


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((name, ValueError) for name in ("foo", "truncated_normal", "constant", "variance_scaling", "identity", "")),
        *((value, TypeError) for value in ("sparse", 1j, np.complex64(1), [1], None, init.Normal, b"normal")),
    ],
)
def test_resolve_refusals(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        init.resolve(value)


def test_not_a_number_is_a_constant() -> None:
    assert np.isnan(draw(init.resolve(float("nan")), (2,))).all()


def test_given_arrays_are_copied_and_keep_their_dtype() -> None:
    source = np.arange(8, dtype=">f8").reshape(2, 4)[:, ::2]
    result = draw(init.resolve(source), (2, 2))
    assert result.dtype == np.float64 and result.dtype.isnative and result.flags.c_contiguous
    assert (result == source).all() and not np.shares_memory(result, source)
    with pytest.raises(ValueError, match="shape"):
        draw(init.resolve(source), (2, 3))


@pytest.mark.parametrize("name", ["he_uniform", "he_normal", "xavier_uniform", "xavier_normal", "orthogonal", "dirac"])
def test_laws_of_a_fan_refuse_a_bias(name: str) -> None:
    with pytest.raises(ValueError, match="shape"):
        draw(init.resolve(name), (4,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: draw(init.TruncatedNormal(a=1, b=-1)),
        lambda: draw(init.TruncatedNormal(0.01, a=1, b=2)),
        lambda: draw(init.TruncatedNormal(0.0, a=1, b=2)),
        lambda: draw(init.HeNormal(mode="fan")),
        lambda: draw(init.HeNormal(nonlinearity="gelu")),
        lambda: init.VarianceScaling(scale=0),
        lambda: init.VarianceScaling(distribution="normal"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        make()


def test_the_global_seed_repeats_a_run_and_each_tensor_differs() -> None:
    np.random.seed(7)
    first = [draw(init.Normal()) for _ in range(2)]
    np.random.seed(7)
    again = [draw(init.Normal()) for _ in range(2)]
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert not (first[0] == first[1]).any()


def test_empty_tensors_are_filled_without_a_fuss() -> None:
    for law, _ in LAWS:
        assert draw(law, (2, 0, 3, 3, 3)).shape == (2, 0, 3, 3, 3)


def test_laws_are_pickled() -> None:
    for law in [law for law, _ in LAWS] + [init.ICNR(2), init.Linear((1, 2, 3), init.One())]:
        assert pickle.loads(pickle.dumps(law)) == law
