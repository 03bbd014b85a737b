# SPDX-License-Identifier: Apache-2.0
"""The NumPy functions at their edges: what they take, what they refuse, and that a refusal writes nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tconv3d
from tconv3d import AllocationTooLarge, _core, functional, reference
from tconv3d.contracts import pytorch

RNG = np.random.default_rng(5)
X = RNG.standard_normal((2, 4, 3, 4, 5))
W = RNG.standard_normal((4, 3, 3, 2, 3))
B = RNG.standard_normal(6)
GEOMETRY = {"stride": (2, 1, 2), "padding": 1, "output_padding": (1, 0, 0), "groups": 2, "dilation": (1, 2, 1)}
RESOLVED = pytorch.functional_geometry(X.shape, W.shape, B.shape, **GEOMETRY)
EXPECTED = reference.forward(X, W, B, RESOLVED)
GRAD = RNG.standard_normal(EXPECTED.shape)

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.complex64, np.complex128]


def forward(x: Any = X, w: Any = W, b: Any = B, **options: Any) -> np.ndarray:
    return tconv3d.conv_transpose3d(x, w, b, **{**GEOMETRY, **options})


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-12) -> bool:
    return a.shape == b.shape and bool(np.abs(a - b).max(initial=0) <= tolerance * max(1, np.abs(b).max(initial=0)))


# ------------------------------------------------------------------------------------------ what is taken


def test_the_three_functions_agree_with_the_reference() -> None:
    assert close(forward(), EXPECTED)
    gx = tconv3d.conv_transpose3d_input_grad(GRAD, W, X.shape, **GEOMETRY)
    assert close(gx, reference.input_grad(GRAD, W, RESOLVED))
    gw = tconv3d.conv_transpose3d_weight_grad(X, GRAD, W.shape, **GEOMETRY)
    assert close(gw, reference.weight_grad(X, GRAD, RESOLVED))


def test_positional_order_is_pytorchs() -> None:
    ordered = [GEOMETRY[name] for name in ("stride", "padding", "output_padding", "groups", "dilation")]
    assert close(tconv3d.conv_transpose3d(X, W, B, *ordered), EXPECTED)
    assert close(
        tconv3d.conv_transpose3d_input_grad(GRAD, W, X.shape, *ordered), reference.input_grad(GRAD, W, RESOLVED)
    )


def test_without_batch() -> None:
    assert close(forward(X[1]), EXPECTED[1])
    gx = tconv3d.conv_transpose3d_input_grad(GRAD[1], W, X.shape[1:], **GEOMETRY)
    assert close(gx, reference.input_grad(GRAD[1:], W, RESOLVED)[0])
    gw = tconv3d.conv_transpose3d_weight_grad(X[1], GRAD[1], W.shape, **GEOMETRY)
    assert close(gw, reference.weight_grad(X[1:], GRAD[1:], RESOLVED))


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_have_the_operands_dtype(dtype: Any) -> None:
    x, w, gy = X.astype(dtype), W.astype(dtype), GRAD.astype(dtype)
    assert forward(x, w, B.astype(dtype)).dtype == dtype
    assert tconv3d.conv_transpose3d_input_grad(gy, w, X.shape, **GEOMETRY).dtype == dtype
    assert tconv3d.conv_transpose3d_weight_grad(x, gy, W.shape, **GEOMETRY).dtype == dtype


def test_complex_gradients_conjugate_the_other_factor() -> None:
    x, w, gy = X + 1j * X[::-1], W - 2j * W, GRAD * (1 + 1j)
    gx = tconv3d.conv_transpose3d_input_grad(gy, w, X.shape, **GEOMETRY)
    assert close(gx, (1 + 1j) * (1 + 2j) * reference.input_grad(GRAD, W, RESOLVED))
    gw = tconv3d.conv_transpose3d_weight_grad(x, gy, W.shape, **GEOMETRY)
    expected = reference.weight_grad(X, GRAD, RESOLVED) - 1j * reference.weight_grad(X[::-1], GRAD, RESOLVED)
    assert close(gw, (1 + 1j) * expected)


def unaligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + 1, np.uint8)[1:]
    view = raw.view(array.dtype).reshape(array.shape)
    view[...] = array
    assert not view.flags.aligned
    return view


def odd_strides(array: np.ndarray) -> np.ndarray:
    """A field of records whose size is no multiple of the field's own, with the field aligned."""
    records = np.zeros(array.shape, np.dtype([("value", array.dtype), ("rest", np.float64)], align=True))
    records["value"] = array
    return records["value"]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "channels last": lambda a: np.ascontiguousarray(np.moveaxis(a, 1, -1)).transpose(0, 4, 1, 2, 3),
    "Fortran": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[:, ::-1, ::-1, :, ::-1])[:, ::-1, ::-1, :, ::-1],
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "order by name": lambda a: a.view(a.dtype.newbyteorder("<" if sys.byteorder == "little" else ">")),
    "unaligned": unaligned,
    "record field": odd_strides,
    "subclass": lambda a: a.view(type("Sub", (np.ndarray,), {})),
}


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits(layout: str, dtype: Any) -> None:
    change = LAYOUTS[layout]
    x, w, b, gy = (a.astype(dtype) for a in (X, W, B, GRAD))
    odd_x, odd_w, odd_gy = change(x), change(w), change(gy)
    odd_b = change(b.reshape(1, -1, 1, 1, 1)).reshape(-1)
    for array in (odd_x, odd_w, odd_b, odd_gy):
        array.flags.writeable = False
    result = forward(odd_x, odd_w, odd_b)
    assert type(result) is np.ndarray and result.dtype.isnative
    assert np.array_equal(result, forward(x, w, b))
    assert np.array_equal(
        tconv3d.conv_transpose3d_input_grad(odd_gy, odd_w, X.shape, **GEOMETRY),
        tconv3d.conv_transpose3d_input_grad(gy, w, X.shape, **GEOMETRY),
    )
    assert np.array_equal(
        tconv3d.conv_transpose3d_weight_grad(odd_x, odd_gy, W.shape, **GEOMETRY),
        tconv3d.conv_transpose3d_weight_grad(x, gy, W.shape, **GEOMETRY),
    )


def test_broadcast_operands() -> None:
    x = np.broadcast_to(np.float32(2), (1, 2, 3, 3, 3))
    w = np.broadcast_to(np.float32(3), (2, 1, 2, 2, 2))
    y = tconv3d.conv_transpose3d(x, w, stride=2)
    assert y.shape == (1, 1, 6, 6, 6) and (y == 12).all()


def test_integers_are_added_up_exactly_and_wrap() -> None:
    x = np.array([2**53 + 1, 3], np.int64).reshape(1, 1, 1, 1, 2)
    w = np.array([1, -1], np.int64).reshape(1, 1, 1, 1, 2)
    y = tconv3d.conv_transpose3d(x, w, np.array([1], np.int64))
    assert y.dtype == np.int64 and y.ravel().tolist() == [2**53 + 2, 3 - 2**53, -2]
    assert np.array_equal(tconv3d.conv_transpose3d(x.astype(">i8"), w, np.array([1], np.int64)), y)
    assert tconv3d.conv_transpose3d(np.full_like(x, 2**62), w * 4).ravel()[0] == 0
    out = np.zeros_like(y)
    assert tconv3d.conv_transpose3d(x, w, out=out) is out and out.any()
    for call in (
        lambda: tconv3d.conv_transpose3d_input_grad(y, w, x.shape),
        lambda: tconv3d.conv_transpose3d_weight_grad(x, y, w.shape),
        lambda: tconv3d.prepare(w),
    ):
        with pytest.raises(NotImplementedError):
            call()


def test_extended_padding() -> None:
    full = forward(padding=0, output_padding=0)
    assert close(forward(padding=(1, 0, 0, 2, 1, 1), output_padding=0), full[:, :, 1:, :-2, 1:-1])
    # Effective kernel (3, 3, 3) at stride (2, 1, 2): crops of 1, 2, 1 in all, the odd ones at the back.
    assert close(forward(padding="same", output_padding=0), full[:, :, :-1, 1:-1, :-1])
    assert close(forward(padding="valid", output_padding=0), full)
    gx = tconv3d.conv_transpose3d_input_grad(full, W, X.shape, (2, 1, 2), "valid", 0, 2, (1, 2, 1))
    assert gx.shape == X.shape


def test_output_size_replaces_output_padding() -> None:
    shape = EXPECTED.shape
    for size in (shape, shape[2:], list(shape[2:]), np.array(shape[2:])):
        assert close(forward(output_size=size, output_padding=0), EXPECTED)
    gx = tconv3d.conv_transpose3d_input_grad(
        GRAD, W, X.shape, **{**GEOMETRY, "output_padding": 0}, output_size=shape[2:]
    )
    assert close(gx, reference.input_grad(GRAD, W, RESOLVED))


def test_empty_batches() -> None:
    assert forward(X[:0]).shape == (0, *EXPECTED.shape[1:])
    assert tconv3d.conv_transpose3d_input_grad(GRAD[:0], W, (0, *X.shape[1:]), **GEOMETRY).shape == (0, *X.shape[1:])
    assert not tconv3d.conv_transpose3d_weight_grad(X[:0], GRAD[:0], W.shape, **GEOMETRY).any()
    assert tconv3d.conv_transpose3d(X[:0, :, :0], W, **GEOMETRY).shape[0] == 0


def test_nan_and_infinity_reach_their_outputs_alone() -> None:
    x = np.zeros((1, 1, 1, 1, 8), np.float32)
    x[..., 2], x[..., 6] = np.nan, np.inf
    y = tconv3d.conv_transpose3d(x, np.ones((1, 1, 1, 1, 1), np.float32), stride=(1, 1, 2)).ravel()
    assert np.flatnonzero(np.isnan(y)).tolist() == [4] and np.flatnonzero(np.isinf(y)).tolist() == [12]


# ------------------------------------------------------------------------------------------ prepared weights


def test_prepared_weights() -> None:
    prepared = tconv3d.prepare(W, (2, 1, 2), (1, 2, 1), 2)
    assert (prepared.shape, prepared.dtype, prepared.groups) == (W.shape, W.dtype, 2)
    assert (prepared.stride, prepared.dilation) == ((2, 1, 2), (1, 2, 1))
    assert np.array_equal(forward(w=prepared), forward())
    assert np.array_equal(forward(X[0], prepared), forward(X[0]))
    out = np.empty_like(EXPECTED)
    assert forward(w=prepared, out=out) is out and np.array_equal(out, forward())
    expected = tconv3d.conv_transpose3d_input_grad(GRAD, W, X.shape, **GEOMETRY)
    assert np.array_equal(tconv3d.conv_transpose3d_input_grad(GRAD, prepared, X.shape, **GEOMETRY), expected)


def test_prepared_weights_do_not_see_later_changes() -> None:
    weight = W.copy()
    prepared = tconv3d.prepare(weight, (2, 1, 2), (1, 2, 1), 2)
    weight[:] = 0
    assert np.array_equal(forward(w=prepared), forward())


def test_prepared_weights_insist_on_their_geometry() -> None:
    prepared = tconv3d.prepare(W, (2, 1, 2), (1, 2, 1), 2)
    for change in ({"stride": 2}, {"dilation": 1}, {"groups": 1, "b": None}):
        options = dict(change)
        with pytest.raises(ValueError, match="prepared"):
            forward(w=prepared, b=options.pop("b", B), **options)
    with pytest.raises(RuntimeError, match="dtype"):
        forward(X.astype(np.float32), prepared, B.astype(np.float32))
    other = tconv3d.prepare(W, 2, (1, 2, 1), 2)
    with pytest.raises(ValueError, match="prepared"):
        tconv3d.conv_transpose3d_input_grad(GRAD, other, X.shape, **GEOMETRY)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((W[0],), RuntimeError),
        ((W, 0), RuntimeError),
        ((W, 1, 1, 3), RuntimeError),
        ((W, 1.0), TypeError),
        (([1.0],), TypeError),
        ((W.astype(np.int8),), NotImplementedError),
        ((np.float32(1),), TypeError),
    ],
)
def test_prepare_refusals(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        tconv3d.prepare(*arguments)


# ------------------------------------------------------------------------------------------ operands refused


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize(
    "value",
    [[1.0], 1.0, "x", np.float64(1), memoryview(b"a"), np.ma.masked_array(X, X > 0)],
    ids=lambda v: type(v).__name__,
)
def test_operands_that_are_no_arrays(position: int, value: Any) -> None:
    operands = [X, W, B]
    operands[position] = value
    with pytest.raises(TypeError, match=("input", "weight", "bias")[position]):
        forward(*operands)


def test_tensors_are_told_their_face() -> None:
    foreign = type("Tensor", (), {"__module__": "torch"})()
    with pytest.raises(TypeError, match=r"tconv3d\.torch"):
        forward(foreign)


@pytest.mark.parametrize(
    ("dtypes", "error"),
    [
        (("f4", "f8", "f8"), RuntimeError),
        (("f8", "f4", "f8"), RuntimeError),
        (("f8", "f8", "f4"), RuntimeError),
        (("i8", "f8", "f8"), RuntimeError),
        (("c8", "f4", "f4"), RuntimeError),
        (("i4", "f8", "f8"), NotImplementedError),
        (("?", "?", "?"), NotImplementedError),
        (("u1", "u1", "u1"), NotImplementedError),
        (("O", "O", "O"), TypeError),
        (("S4", "S4", "S4"), TypeError),
    ],
)
def test_dtypes_refused(dtypes: tuple[str, str, str], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        forward(X.astype(dtypes[0]), W.astype(dtypes[1]), B.astype(dtypes[2]))
    assert type(caught.value) is error


def test_extended_precision_is_refused() -> None:
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(TypeError):
            forward(X.astype(np.longdouble), W.astype(np.longdouble), None)


BAD_NUMBERS = [float("nan"), float("inf"), -1, (1, -1, 1), (1, 1), (1,) * 7, "x", None, [[1]], True, 1j]
HUGE = [2**62, -(2**63), 2**70, (1, 2**70, 1)]
BAD_GROUPS = [float("nan"), -1, 0, 3, 5, 2**70, None, "1", (1,)]
BAD_OUTPUT_SIZES = [float("nan"), 3, (), (1,), (0, 0, 0), (-1,) * 3, (2**70,) * 3, (9.0,) * 3, "abc"]
HOSTILE = [
    *((name, value) for name in ("stride", "padding", "output_padding", "dilation") for value in BAD_NUMBERS + HUGE),
    *(("groups", value) for value in BAD_GROUPS),
    *(("output_size", value) for value in BAD_OUTPUT_SIZES),
    *[("padding", 0.5), ("stride", 0), ("dilation", (0, 1, 1)), ("stride", {}), ("padding", "Same")],
]


@pytest.mark.parametrize(("name", "value"), HOSTILE, ids=str)
def test_hostile_sizes_are_refused_and_write_nothing(name: str, value: Any) -> None:
    out = np.full(EXPECTED.shape, 7.0)
    with pytest.raises((RuntimeError, ValueError, TypeError)) as caught:
        forward(**{name: value}, out=out)
    assert type(caught.value) in (RuntimeError, ValueError, TypeError) and str(caught.value)
    assert (out == 7).all()


@pytest.mark.parametrize(
    "value", [float("nan"), 5, (), (2, 4, 3), (2, 4, 3, 4, -5), (2, 4, 3, 4, 5.0), (2, 3, 3, 4, 5), None]
)
def test_hostile_input_and_weight_sizes(value: Any) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        tconv3d.conv_transpose3d_input_grad(GRAD, W, value, **GEOMETRY)
    with pytest.raises((RuntimeError, TypeError)):
        tconv3d.conv_transpose3d_weight_grad(X, GRAD, value, **GEOMETRY)


def test_gradients_of_another_shape() -> None:
    for wrong in (GRAD[:1], GRAD[0], GRAD[:, :3], GRAD[..., :-1]):
        with pytest.raises(RuntimeError, match="shape of grad_output"):
            tconv3d.conv_transpose3d_input_grad(wrong, W, X.shape, **GEOMETRY)
        with pytest.raises(RuntimeError, match="shape of grad_output"):
            tconv3d.conv_transpose3d_weight_grad(X, wrong, W.shape, **GEOMETRY)


# ------------------------------------------------------------------------------------------ memory


def test_outputs_larger_than_memory_are_refused_before_allocating() -> None:
    x = np.ones((1, 1, 2, 2, 2), np.float32)
    w = np.ones((1, 1, 2, 2, 2), np.float32)
    with pytest.raises(AllocationTooLarge, match="bytes"):
        tconv3d.conv_transpose3d(x, w, stride=2**17)
    with pytest.raises(RuntimeError, match="64 bits"):
        tconv3d.conv_transpose3d(x, w, stride=2**30)
    gradient = np.broadcast_to(np.float32(1), (1, 1, 2**15, 2**15, 2**15))
    with pytest.raises(AllocationTooLarge):
        tconv3d.conv_transpose3d_input_grad(gradient, w[..., :1, :1, :1], gradient.shape)
    with pytest.raises(AllocationTooLarge):
        tconv3d.conv_transpose3d_weight_grad(x, gradient, (1, 1, *(2**15 - 1,) * 3))


def test_memory_limit_is_a_positive_number_of_bytes() -> None:
    assert 2**20 < functional.memory_limit() < 2**60


# ------------------------------------------------------------------------------------------ out


def test_out_is_written_and_returned() -> None:
    out = np.empty_like(EXPECTED)
    assert forward(out=out) is out and close(out, EXPECTED)
    unbatched = np.empty_like(EXPECTED[0])
    assert forward(X[0], out=unbatched) is unbatched and close(unbatched, EXPECTED[0])


@pytest.mark.parametrize("layout", ["channels last", "every second", "Fortran", "backwards", "unaligned"])
def test_out_of_any_layout(layout: str) -> None:
    out = LAYOUTS[layout](np.zeros_like(EXPECTED))
    if layout == "every second":
        whole = np.zeros((*EXPECTED.shape[:-1], 2 * EXPECTED.shape[-1]))
        out = whole[..., ::2]
    assert forward(out=out) is out and close(np.array(out), EXPECTED)
    if layout == "every second":
        assert not whole[..., 1::2].any()


def read_only() -> np.ndarray:
    out = np.full(EXPECTED.shape, 7.0)
    out.flags.writeable = False
    return out


def self_overlapping() -> np.ndarray:
    memory = np.full(EXPECTED.size, 7.0)
    strides = list(EXPECTED.strides)
    strides[0] = strides[1]
    return np.lib.stride_tricks.as_strided(memory, EXPECTED.shape, strides)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: np.full(EXPECTED.shape[1:], 7.0), ValueError),
        (lambda: np.full((3, *EXPECTED.shape[1:]), 7.0), ValueError),
        (lambda: np.full(EXPECTED.shape, 7, np.float32), TypeError),
        (lambda: np.full(EXPECTED.shape, 7, ">f8"), TypeError),
        (read_only, ValueError),
        (self_overlapping, ValueError),
        (lambda: np.ma.masked_array(np.full(EXPECTED.shape, 7.0)), TypeError),
        (lambda: [7.0], TypeError),
    ],
    ids=["rank", "batch", "dtype", "byte order", "read-only", "overlaps itself", "masked", "list"],
)
def test_out_refusals_write_nothing(make: Callable[[], Any], error: type[Exception]) -> None:
    out = make()
    with pytest.raises(error, match="out"):
        forward(out=out)
    assert (np.asarray(out) == 7).all()


@pytest.mark.parametrize("operand", ["x", "w", "b"])
def test_out_that_shares_memory_with_an_operand(operand: str) -> None:
    memory = np.full(EXPECTED.size + 2, 7.0)
    out = memory[: EXPECTED.size].reshape(EXPECTED.shape)
    source = {"x": X, "w": W, "b": B}[operand]
    start = EXPECTED.size + 2 - source.size
    shared = memory[start:].reshape(source.shape)
    with pytest.raises(ValueError, match="shares memory"):
        forward(**{operand: shared}, out=out)
    assert (memory == 7).all()


def test_interleaved_out_and_operand_share_nothing() -> None:
    memory = np.zeros((1, 1, 4, 4, 8))
    x, out = memory[..., ::2], memory[..., 1::2]
    x[...] = RNG.standard_normal(x.shape)
    assert tconv3d.conv_transpose3d(x, np.full((1, 1, 1, 1, 1), 2.0), out=out) is out
    assert np.array_equal(out, 2 * x)


def test_empty_out() -> None:
    out = np.empty((0, *EXPECTED.shape[1:]))
    assert forward(X[:0], out=out) is out


def test_empty_arrays_may_lie_anywhere() -> None:
    empty, nothing = unaligned(np.zeros((1, *X.shape[1:])))[:0], unaligned(np.zeros((1, *EXPECTED.shape[1:])))[:0]
    assert forward(empty).shape == nothing.shape
    assert forward(empty, out=nothing) is nothing
    assert tconv3d.conv_transpose3d_input_grad(nothing, W, empty.shape, **GEOMETRY).shape == empty.shape
    assert not tconv3d.conv_transpose3d_weight_grad(empty, nothing, W.shape, **GEOMETRY).any()


@pytest.mark.parametrize("operand", ["weight", "bias"])
def test_one_operand_alone_may_need_a_copy(operand: str) -> None:
    w, b = (unaligned(W), B) if operand == "weight" else (W, unaligned(B))
    np.testing.assert_array_equal(forward(X, w, b), forward())


@pytest.mark.parametrize("unfit", ["unaligned", "big endian", "integers", "a list", "odd strides", "read-only"])
def test_the_extension_refuses_what_it_cannot_address(unfit: str) -> None:
    x, w, y = (np.ones((1, 1, 1, 1, 3), np.float32) for _ in range(3))
    records = np.ones((1, 1, 1, 1, 3), np.dtype([("x", np.float32), ("y", np.uint8)]))
    unfit_x: object = {
        "unaligned": unaligned(x),
        "big endian": x.astype(">f4"),
        "integers": x.astype(np.int32),
        "a list": x.tolist(),
        "odd strides": records["x"],
        "read-only": x,
    }[unfit]
    y.flags.writeable = unfit != "read-only"
    with pytest.raises(_core.Unaddressable, match="the engine takes NumPy arrays"):
        _core.forward(unfit_x, w[..., :1], None, y, (1, 1, 1), (1, 1, 1), (0, 0, 0), 1)
    np.testing.assert_array_equal(y, 1)
