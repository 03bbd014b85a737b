# SPDX-License-Identifier: Apache-2.0
"""Both contracts on shapes alone: what the corpus does not hold, and how the two relate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tconv3d.contracts import mindspore, pytorch
from tconv3d.geometry import Geometry
from tconv3d.initializers import HeUniform, Normal, Uniform, Zero

INPUT, WEIGHT = (1, 2, 3, 4, 5), (2, 4, 3, 3, 3)


def functional(
    input_shape: Any = INPUT, weight_shape: Any = WEIGHT, bias_shape: Any = None, **options: Any
) -> Geometry:
    arguments = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1, **options}
    return pytorch.functional_geometry(input_shape, weight_shape, bias_shape, **arguments)


# ---------------------------------------------------------------------------------------------- PyTorch


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"stride": True}, TypeError),
        ({"stride": (True, 1, 1)}, TypeError),
        ({"stride": None}, TypeError),
        ({"stride": "2"}, TypeError),
        ({"stride": float("nan")}, TypeError),
        ({"stride": (1, 2.0, 1)}, TypeError),
        ({"stride": ()}, RuntimeError),
        ({"stride": (1, 1)}, RuntimeError),
        ({"stride": 0}, RuntimeError),
        ({"stride": 2**70}, RuntimeError),
        ({"stride": 2**62}, RuntimeError),
        ({"dilation": 0}, RuntimeError),
        ({"dilation": 2**62}, RuntimeError),
        ({"dilation": np.float32(1)}, TypeError),
        ({"padding": -1}, RuntimeError),
        ({"padding": False}, TypeError),
        ({"padding": 2**63}, RuntimeError),
        ({"padding": (0,) * 6}, RuntimeError),
        ({"padding": "same"}, TypeError),
        ({"output_padding": -1}, RuntimeError),
        ({"output_padding": 1}, RuntimeError),
        ({"output_padding": (0,) * 6}, RuntimeError),
        ({"groups": 0}, RuntimeError),
        ({"groups": -1}, RuntimeError),
        ({"groups": 3}, RuntimeError),
        ({"groups": 1.0}, TypeError),
        ({"groups": True}, TypeError),
        ({"groups": None}, TypeError),
        ({"bias_shape": (3,)}, RuntimeError),
        ({"bias_shape": (4, 1)}, RuntimeError),
        ({"bias_shape": ()}, RuntimeError),
        ({"input_shape": (3, 3, 3)}, RuntimeError),
        ({"input_shape": (1, 1, 2, 3, 3, 3)}, RuntimeError),
        ({"input_shape": (1, 3, 3, 3, 3)}, RuntimeError),
        ({"input_shape": (1, 2, 3, 0, 3)}, RuntimeError),
        ({"input_shape": (0, 2, 0, 1, 1), "weight_shape": (2, 4, 1, 1, 1), "stride": 2}, RuntimeError),
        ({"weight_shape": (2, 4, 3, 3)}, RuntimeError),
        ({"weight_shape": (2, 4, 3, 0, 3)}, RuntimeError),
        ({"weight_shape": (0, 4, 3, 3, 3), "input_shape": (1, 0, 3, 3, 3)}, RuntimeError),
        ({"output_size": 7}, TypeError),
        ({"output_size": "777"}, TypeError),
        ({"output_size": (5.0, 6, 7)}, TypeError),
        ({"output_size": iter([5, 6, 7])}, TypeError),
        ({"output_size": (5, 6)}, ValueError),
        ({"output_size": (4, 5, 6, 7)}, ValueError),
        ({"output_size": (5, 6, 8)}, ValueError),
        ({"output_size": (2**70, 6, 7)}, ValueError),
    ],
)
def test_functional_refusals(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        functional(**options)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("options", "output_size"),
    [
        ({}, (5, 6, 7)),
        ({"stride": np.int64(2)}, (7, 9, 11)),
        ({"stride": [2, 1, 2]}, (7, 6, 11)),
        ({"stride": (2,)}, (7, 9, 11)),
        ({"stride": np.array([2, 1, 2])}, (7, 6, 11)),
        ({"stride": (1, True, 1)}, (5, 6, 7)),
        ({"dilation": 2, "output_padding": 1}, (8, 9, 10)),
        ({"stride": 2, "padding": 1, "output_size": [6, 8, 10]}, (6, 8, 10)),
        ({"stride": 2, "padding": 1, "output_size": np.array([6, 8, 10])}, (6, 8, 10)),
        ({"stride": 2, "padding": 1, "output_size": ("any", None, 6, 8, 10)}, (6, 8, 10)),
        ({"input_shape": INPUT[1:], "output_size": (99, 5, 6, 7)}, (5, 6, 7)),
        ({"input_shape": (0, 2, 0, 3, 3)}, (2, 5, 5)),
        ({"input_shape": (0, 2, 2, 2, 2), "weight_shape": (2, 4, 1, 1, 1), "padding": 1}, (0, 0, 0)),
    ],
)
def test_functional_output_sizes(options: dict[str, Any], output_size: tuple[int, ...]) -> None:
    assert functional(**options).output_size == output_size


def test_equal_keys_of_other_types_are_not_confused_by_the_cache() -> None:
    functional(stride=1, groups=1, padding=0)
    for name in ("stride", "groups", "padding"):
        with pytest.raises(TypeError):
            functional(**{name: 1.0})
        with pytest.raises(TypeError):
            functional(**{name: True})


def test_extended_padding() -> None:
    six = functional(padding=(0, 1, 2, 0, 1, 1), extended_padding=True)
    assert (six.crop_front, six.crop_back, six.output_size) == ((0, 2, 1), (1, 0, 1), (4, 4, 5))
    assert functional(padding="same", stride=2, extended_padding=True).output_size == (6, 8, 10)
    assert functional(padding="valid", stride=2, extended_padding=True).output_size == (7, 9, 11)
    for bad, error in [
        ({"padding": "SAME"}, TypeError),
        ({"padding": (0, 0, 0, 0, 0, -1)}, RuntimeError),
        ({"padding": "same", "stride": 2, "output_padding": 1}, RuntimeError),
        ({"padding": "valid", "output_size": (5, 6, 7)}, RuntimeError),
    ]:
        with pytest.raises(error):
            functional(extended_padding=True, **bad)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"in_channels": True}, TypeError),
        ({"out_channels": True}, TypeError),
        ({"in_channels": 2.0}, TypeError),
        ({"in_channels": "2"}, TypeError),
        ({"in_channels": None}, TypeError),
        ({"kernel_size": (3, 3, 3.0)}, TypeError),
        ({"kernel_size": "333"}, TypeError),
        ({"kernel_size": float("nan")}, TypeError),
        ({"groups": "1"}, TypeError),
        ({"groups": 2.0}, TypeError),
        ({"groups": -1}, ValueError),
        ({"in_channels": 3, "groups": 2}, ValueError),
        ({"padding_mode": "ZEROS", "in_channels": "nonsense"}, ValueError),
        ({"in_channels": 2**40, "out_channels": 2**40}, RuntimeError),
        ({"kernel_size": (3, -1, 3)}, RuntimeError),
    ],
)
def test_pytorch_constructor_refusals(change: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"in_channels": 2, "out_channels": 4, "kernel_size": 3, **change}
    with pytest.raises(error) as caught:
        pytorch.layer_arguments(**arguments)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "2, 4, kernel_size=(3, 3, 3), stride=(1, 1, 1)"),
        ({"padding": "same"}, "2, 4, kernel_size=(3, 3, 3), stride=(1, 1, 1), padding=('s', 'a', 'm', 'e')"),
        (
            {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2, "bias": 0, "dilation": 2},
            "2, 4, kernel_size=(3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1), dilation=(2, 2, 2), "
            "output_padding=(1, 1, 1), groups=2, bias=False",
        ),
    ],
)
def test_pytorch_repr(options: dict[str, Any], text: str) -> None:
    assert pytorch.layer_arguments(2, 4, 3, **options).repr_arguments() == text


def test_pytorch_keeps_sizes_unchecked_until_the_call() -> None:
    arguments = pytorch.layer_arguments(2, 4, [3, 3], stride=1.5, padding=iter([1, 2]), bias="yes")
    assert (arguments.kernel_size, arguments.stride, arguments.padding) == ((3, 3), (1.5,) * 3, (1, 2))
    assert arguments.bias is True
    assert pytorch.layer_arguments(2, 4, True).kernel_size == (1, 1, 1)


def test_pytorch_laws_use_the_output_channels() -> None:
    weight, bias = pytorch.layer_arguments(16, 32, 3, groups=4).initializers()
    assert weight == HeUniform(5**0.5)
    assert bias == Uniform(1 / (8 * 27) ** 0.5)
    assert pytorch.layer_arguments(2, 0, 3).initializers()[1] == Zero()


@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "uint8", "float8_e4m3fn"])
def test_pytorch_dtypes_without_a_convolution(dtype: str) -> None:
    for weight in ("float32", dtype):
        with pytest.raises(NotImplementedError):
            pytorch.check_dtypes(dtype, weight)


def test_pytorch_dtypes() -> None:
    for dtype in (*pytorch.DTYPES, "int64"):
        pytorch.check_dtypes(dtype, dtype, dtype)
    for mixed in [("float64", "float32"), ("float32", "float32", "float64"), ("int64", "float32"), ("float32", "int8")]:
        with pytest.raises(RuntimeError):
            pytorch.check_dtypes(*mixed)
    for foreign in ("object", "str96", "datetime64[s]", "float128"):
        with pytest.raises(TypeError):
            pytorch.check_dtypes(foreign, foreign)


# -------------------------------------------------------------------------------------------- MindSpore


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"in_channels": np.int64(2)}, TypeError),
        ({"in_channels": True}, TypeError),
        ({"out_channels": 0}, ValueError),
        ({"kernel_size": np.int64(3)}, TypeError),
        ({"kernel_size": True}, TypeError),
        ({"kernel_size": (3, 3, True)}, ValueError),
        ({"kernel_size": (3, 3, 3.0)}, ValueError),
        ({"kernel_size": (1, 1, 3, 3, 3)}, ValueError),
        ({"stride": 1.0}, TypeError),
        ({"dilation": None}, TypeError),
        ({"dilation": 0}, ValueError),
        ({"pad_mode": "full"}, ValueError),
        ({"pad_mode": 1}, TypeError),
        ({"padding": 1.0, "pad_mode": "pad"}, TypeError),
        ({"padding": (0, 0, 0, 0, 0, 1.0), "pad_mode": "pad"}, TypeError),
        ({"padding": (0, 0, 0, 0, 0, 1), "pad_mode": "valid"}, ValueError),
        ({"group": 0}, ValueError),
        ({"group": 1.0}, TypeError),
        ({"has_bias": 1}, TypeError),
        ({"data_format": "ncdhw"}, ValueError),
        ({"dtype": None}, ValueError),
        ({"weight_init": "kaiming_uniform"}, ValueError),
        ({"weight_init": HeUniform}, TypeError),
        ({"weight_init": 1j}, TypeError),
        ({"bias_init": "foo", "has_bias": True}, ValueError),
        ({"in_channels": 2**40, "out_channels": 2**40}, ValueError),
    ],
)
def test_mindspore_constructor_refusals(change: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"in_channels": 2, "out_channels": 4, "kernel_size": 3, **change}
    with pytest.raises(error) as caught:
        mindspore.layer_arguments(**arguments)
    assert type(caught.value) is error


def test_mindspore_accepts_what_looks_odd() -> None:
    arguments = mindspore.layer_arguments(2, 4, 3, pad_mode="SAME", bias_init="foo", padding=(0,) * 6)
    assert (arguments.pad_mode, arguments.padding, arguments.bias_init) == ("SAME", (0,) * 6, "foo")
    assert arguments.geometry((1, 2, 0, 3, 3)).output_size == (0, 3, 3)


def test_mindspore_call_refusals() -> None:
    arguments = mindspore.layer_arguments(2, 4, 1, pad_mode="pad", padding=1)
    assert arguments.geometry((1, 2, 2, 2, 2)).output_size == (0, 0, 0)
    with pytest.raises(RuntimeError):
        arguments.geometry((1, 2, 1, 1, 1))
    for shape in [(2, 2, 2, 2), (1, 3, 2, 2, 2)]:
        with pytest.raises(ValueError, match="shape of the input"):
            arguments.geometry(shape)
    with pytest.raises(ValueError, match="64 bits"):
        mindspore.layer_arguments(2, 4, 3, stride=2**62).geometry(INPUT)


def test_mindspore_none_means_the_newer_law() -> None:
    arguments = mindspore.layer_arguments(16, 32, 3, weight_init=None, bias_init=None, has_bias=True)
    assert arguments.initializers() == (HeUniform(5**0.5), Uniform(1 / (32 * 27) ** 0.5))
    page = mindspore.layer_arguments(16, 32, 3, has_bias=True)
    assert page.initializers() == (Normal(), Zero())
    assert mindspore.layer_arguments(2, 4, 3, bias_init=None).bias_init is None


def test_mindspore_repr() -> None:
    assert mindspore.layer_arguments(2, 4, 3, has_bias=True, output_padding=0).repr_arguments() == (
        "input_channels=2, output_channels=4, kernel_size=(3, 3, 3), stride=(1, 1, 1), pad_mode=same, padding=0, "
        "dilation=(1, 1, 1), group=1, has_bias=True, weight_init=normal, bias_init=zeros, format=NCDHW"
    )


# -------------------------------------------------------------------------------- how the two relate

shapes = st.fixed_dictionaries(
    {"kernel": st.integers(1, 7), "stride": st.integers(1, 4), "dilation": st.integers(1, 3), "size": st.integers(1, 6)}
)


def both(shape: dict[str, int], spare: dict[str, Any], theirs: dict[str, Any]) -> tuple[Geometry, Geometry]:
    sizes = {"stride": shape["stride"], "dilation": shape["dilation"]}
    x = (1, 2, shape["size"], shape["size"], shape["size"])
    ours = pytorch.layer_arguments(2, 4, shape["kernel"], **sizes, **spare).geometry(x)
    return ours, mindspore.layer_arguments(2, 4, shape["kernel"], **sizes, **theirs).geometry(x)


@given(shapes)
def test_same_with_an_even_crop_is_half_of_it_as_padding(shape: dict[str, int]) -> None:
    total = shape["dilation"] * (shape["kernel"] - 1) + 1 - shape["stride"]
    if total >= 0 and total % 2 == 0:
        ours, theirs = both(shape, {"padding": total // 2}, {"pad_mode": "same"})
        assert ours == theirs


@given(shapes)
def test_same_with_an_odd_crop_drops_one_more_sample_at_the_back(shape: dict[str, int]) -> None:
    total = shape["dilation"] * (shape["kernel"] - 1) + 1 - shape["stride"]
    if total > 0 and total % 2 == 1:
        ours, theirs = both(shape, {"padding": total // 2}, {"pad_mode": "same"})
        assert ours.crop_front == theirs.crop_front
        assert ours.output_size[0] == theirs.output_size[0] + 1


@given(shapes, st.integers(0, 3), st.integers(0, 3))
def test_pad_with_one_number_is_pytorch(shape: dict[str, int], padding: int, extra: int) -> None:
    out = (shape["size"] - 1) * shape["stride"] - 2 * padding + shape["dilation"] * (shape["kernel"] - 1) + 1 + extra
    if extra < max(shape["stride"], shape["dilation"]) and out > 0:
        ours, theirs = both(
            shape,
            {"padding": padding, "output_padding": extra},
            {"pad_mode": "pad", "padding": padding, "output_padding": extra},
        )
        assert ours == theirs
