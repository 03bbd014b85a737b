# SPDX-License-Identifier: Apache-2.0
"""Both NumPy layers as objects: parameters, state, pickles, reprs, backward."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tconv3d
from tconv3d import AllocationTooLarge, Conv3dTranspose, ConvTranspose3d
from tconv3d.initializers import HeUniform, Normal, Uniform

X = np.random.default_rng(0).standard_normal((2, 4, 3, 4, 5), np.float32)


def both() -> list[Any]:
    return [
        ConvTranspose3d(4, 6, 3, stride=2, padding=1, groups=2),
        Conv3dTranspose(4, 6, 3, stride=2, group=2, has_bias=True),
    ]


each_layer = pytest.mark.parametrize("layer", both(), ids=["pytorch", "mindspore"])


def test_attributes() -> None:
    ours = ConvTranspose3d(4, 6, 3, padding="same", bias=0)
    assert (ours.in_channels, ours.out_channels, ours.groups, ours.transposed) == (4, 6, 1, True)
    assert (ours.kernel_size, ours.stride, ours.dilation) == ((3, 3, 3), (1, 1, 1), (1, 1, 1))
    assert (ours.padding, ours.output_padding, ours.padding_mode, ours.bias) == (tuple("same"), (0,) * 3, "zeros", None)
    theirs = Conv3dTranspose(4, 6, 3, pad_mode="PAD", padding=(0, 1, 2, 3, 4, 5), bias_init=None)
    assert (theirs.pad_mode, theirs.padding, theirs.group) == ("PAD", (0, 1, 2, 3, 4, 5), 1)
    assert (theirs.has_bias, theirs.weight_init, theirs.bias_init) == (False, "normal", None)
    assert (theirs.data_format, theirs.output_padding, theirs.bias) == ("NCDHW", (0, 0, 0), None)
    assert not hasattr(theirs, "dtype") and not hasattr(ours, "pad_mode")


@each_layer
def test_arguments_are_fixed(layer: Any) -> None:
    with pytest.raises(AttributeError, match="fixed"):
        layer.stride = (1, 1, 1)
    with pytest.raises(AttributeError, match="no attribute"):
        layer.strides  # noqa: B018


def test_reprs() -> None:
    assert repr(ConvTranspose3d(4, 8, (3, 2, 1), stride=(2, 1, 1), bias=False)) == (
        "ConvTranspose3d(4, 8, kernel_size=(3, 2, 1), stride=(2, 1, 1), bias=False)"
    )
    assert repr(Conv3dTranspose(2, 4, 3, has_bias=True, weight_init=Normal(0.1), bias_init=0)) == (
        "Conv3dTranspose(input_channels=2, output_channels=4, kernel_size=(3, 3, 3), stride=(1, 1, 1), pad_mode=same, "
        "padding=0, dilation=(1, 1, 1), group=1, has_bias=True, weight_init=Normal(sigma=0.1, mean=0.0), bias_init=0, "
        "format=NCDHW)"
    )


def test_positional_orders_are_the_originals() -> None:
    assert ConvTranspose3d(4, 6, 3, 2, 1, 1, 2, False, 1, "zeros", "cpu", np.float64).weight.dtype == np.float64
    layer = Conv3dTranspose(4, 6, 3, 2, "pad", 1, 1, 2, 1, True, "ones", 2, "NCDHW", np.float16)
    assert (layer.weight == 1).all() and (layer.bias == 2).all() and layer.weight.dtype == np.float16


@each_layer
def test_parameters_can_be_assigned_and_changed_in_place(layer: Any) -> None:
    layer = copy.deepcopy(layer)
    before = layer(X)
    layer.weight *= 2
    layer.bias = layer.bias + 1
    bias = layer.bias.reshape(-1, 1, 1, 1)
    assert np.allclose(layer(X) - bias, 2 * (before - (bias - 1)), atol=1e-5)
    layer.bias = None
    assert layer(X).shape == before.shape
    for wrong in (np.ones((4, 3, 3, 3, 2), np.float32), np.ones((4, 4, 3, 3, 3), np.float32)):
        layer.weight = wrong
        with pytest.raises((RuntimeError, ValueError), match="shape of weight"):
            layer(X)
    layer.weight = "ones"
    with pytest.raises(TypeError, match="weight is a str"):
        layer(X)


@pytest.mark.parametrize(("layer", "error"), list(zip(both(), (RuntimeError, TypeError), strict=True)))
def test_dtypes_must_agree(layer: Any, error: type[Exception]) -> None:
    for x in (X.astype(np.float64), X.astype(np.complex64)):
        with pytest.raises(error):
            layer(x)
    layer(X.astype(">f4"))


def test_call_names_are_the_originals() -> None:
    ours, theirs = both()
    assert ours(input=X, output_size=(5, 8, 9)).shape == (2, 6, 5, 8, 9)
    assert np.array_equal(ours.forward(X), ours(X))
    assert np.array_equal(theirs(x=X), theirs.construct(X))
    for wrong in (lambda: ours(x=X), lambda: theirs(input=X), lambda: theirs(X, (6, 8, 10)), lambda: ours()):
        with pytest.raises(TypeError):
            wrong()
    for wrong in ([1.0], None, 3):
        with pytest.raises(TypeError, match="NumPy"):
            ours(wrong)


def test_unbatched_input_is_pytorchs_alone() -> None:
    ours, theirs = both()
    assert np.array_equal(ours(X[0]), ours(X[:1])[0])
    grad = np.ones_like(ours(X[0]))
    unbatched = ours.backward(grad), ours.weight_grad, ours.bias_grad
    ours(X[:1])
    batched = ours.backward(grad[None])[0], ours.weight_grad, ours.bias_grad
    assert all(np.array_equal(a, b) for a, b in zip(unbatched, batched, strict=True))
    with pytest.raises(ValueError):
        theirs(X[0])


@each_layer
def test_backward_overwrites_and_checks(layer: Any) -> None:
    layer = copy.deepcopy(layer)
    with pytest.raises(RuntimeError, match="no input"):
        layer.backward(X)
    assert layer.weight_grad is None and layer.bias_grad is None
    grad = np.ones_like(layer(X))
    first = layer.backward(grad), layer.weight_grad, layer.bias_grad
    second = layer.backward(grad), layer.weight_grad, layer.bias_grad
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].shape == X.shape and first[1].shape == layer.weight.shape
    assert layer.bias_grad.tolist() == [grad[:, 0].size] * 6
    for wrong in (grad[:1], grad[0], grad[..., :-1]):
        with pytest.raises((RuntimeError, ValueError), match="shape of grad_output"):
            layer.backward(wrong)
    with pytest.raises((RuntimeError, TypeError), match="dtype"):
        layer.backward(grad.astype(float))
    with pytest.raises(TypeError):
        layer.backward(None)


def test_backward_without_bias() -> None:
    layer = ConvTranspose3d(4, 2, 1, bias=False)
    layer.backward(np.ones_like(layer(X)))
    assert layer.bias_grad is None and layer.weight_grad is not None


def test_mindspores_half_precision_weight_gradient_is_single() -> None:
    x = X.astype(np.float16)
    theirs, ours = Conv3dTranspose(4, 2, 3, dtype=np.float16), ConvTranspose3d(4, 2, 3, padding=1, dtype=np.float16)
    for layer, expected in ((theirs, np.float32), (ours, np.float16)):
        assert layer.backward(np.ones_like(layer(x))).dtype == np.float16
        assert layer.weight_grad.dtype == expected


@each_layer
def test_state_is_copied_out_and_in(layer: Any) -> None:
    layer = copy.deepcopy(layer)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias"]
    state["weight"][:] = 0
    assert (layer.weight != 0).any()
    result = layer.load_state_dict({"weight": state["weight"].astype(float), "bias": np.arange(6)})
    assert result == ([], []) and (layer.weight == 0).all() and layer.weight.dtype == np.float32
    state["weight"][:] = 1
    assert (layer.weight == 0).all()
    assert layer.bias.tolist() == list(range(6)) and layer.bias.dtype == np.float32


@each_layer
def test_states_that_do_not_fit(layer: Any) -> None:
    layer = copy.deepcopy(layer)
    layer.weight[:] = 5
    good = np.zeros_like(layer.weight)
    for state in (
        {"weight": good},
        {"weight": good, "bias": np.zeros(6), "scale": 1},
        {"weight": good, "bias": np.zeros(5)},
        {"weight": good[..., :2], "bias": np.zeros(6)},
    ):
        with pytest.raises(RuntimeError, match="cannot load"):
            layer.load_state_dict(state)
    assert (layer.weight == 5).all()
    with pytest.raises(TypeError):
        layer.load_state_dict([good])
    found = layer.load_state_dict({"weight": good, "scale": 1}, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["bias"], ["scale"]) and (layer.weight == 0).all()


def test_states_move_between_the_contracts() -> None:
    ours, theirs = both()
    theirs.load_state_dict(ours.state_dict())
    # 'same' with kernel 3 at stride 2 crops one sample, at the back; padding=1 crops one at either end.
    full = ConvTranspose3d(4, 6, 3, stride=2, groups=2)
    full.load_state_dict(ours.state_dict())
    assert np.allclose(theirs(X), full(X)[..., :-1, :-1, :-1], atol=1e-6)


@each_layer
@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_compute_the_same_and_forget_the_input(layer: Any, clone: Any) -> None:
    layer(X)
    other = clone(layer)
    with pytest.raises(RuntimeError, match="no input"):
        other.backward(X)
    assert repr(other) == repr(layer)
    assert np.array_equal(other(X), layer(X))


def test_deep_copies_own_their_parameters() -> None:
    layer = ConvTranspose3d(4, 6, 3)
    other = copy.deepcopy(layer)
    other.weight[:] = 0
    assert (layer.weight != 0).any()


@each_layer
def test_the_seed_repeats_the_parameters(layer: Any) -> None:
    layer = copy.deepcopy(layer)
    np.random.seed(3)
    layer.reset_parameters()
    first = layer.state_dict()
    layer.reset_parameters()
    assert not np.array_equal(layer.weight, first["weight"])
    np.random.seed(3)
    layer.reset_parameters()
    assert all(np.array_equal(layer.state_dict()[name], first[name]) for name in first)


def test_page_defaults_and_newer_law() -> None:
    page = Conv3dTranspose(16, 32, 3, has_bias=True)
    assert 0.009 < page.weight.std() < 0.011 and (page.bias == 0).all()
    newer = Conv3dTranspose(16, 32, 3, has_bias=True, weight_init=None, bias_init=None)
    bound = 1 / (32 * 27) ** 0.5
    assert newer.weight_init == HeUniform(5**0.5) and newer.bias_init == Uniform(bound)
    for values in (newer.weight, newer.bias):
        assert 0.8 * bound < np.abs(values).max() <= bound * (1 + 1e-6)


def test_given_weights() -> None:
    weight = np.arange(2 * 4 * 27, dtype=np.float64).reshape(2, 4, 3, 3, 3)
    layer = Conv3dTranspose(2, 4, 3, weight_init=weight)
    assert layer.weight.dtype == np.float64 and not np.shares_memory(layer.weight, weight)
    assert layer(np.ones((1, 2, 2, 2, 2))).dtype == np.float64
    with pytest.raises(ValueError):
        Conv3dTranspose(2, 4, 2, weight_init=weight)
    with pytest.raises(ValueError):
        Conv3dTranspose(2, 4, 3, has_bias=True, bias_init="he_uniform")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.complex64, np.dtype(">c16")])
@pytest.mark.parametrize("kind", [ConvTranspose3d, Conv3dTranspose])
def test_dtypes(kind: Any, dtype: Any) -> None:
    layer = kind(2, 4, 3, dtype=dtype)
    native = np.dtype(dtype).newbyteorder("=")
    assert layer.weight.dtype == native and layer.weight.dtype.isnative
    y = layer(np.ones((1, 2, 2, 2, 2), native))
    assert y.dtype == layer.backward(y).dtype == native


@pytest.mark.parametrize("dtype", ["float32", 5, [np.float32]])
@pytest.mark.parametrize("kind", [ConvTranspose3d, Conv3dTranspose])
def test_dtypes_that_are_none(kind: Any, dtype: Any) -> None:
    with pytest.raises(TypeError):
        kind(2, 4, 3, dtype=dtype)


def test_integer_parameters() -> None:
    with pytest.raises(RuntimeError):
        ConvTranspose3d(2, 4, 3, dtype=np.int32)
    layer = Conv3dTranspose(2, 4, 3, dtype=np.int32, weight_init="ones")
    with pytest.raises(TypeError):
        layer(np.ones((1, 2, 2, 2, 2), np.int32))


@pytest.mark.parametrize(("device", "error"), [("cuda", RuntimeError), ("foo", RuntimeError), (1.5, TypeError)])
def test_devices(device: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ConvTranspose3d(2, 4, 3, device=device)


def test_unknown_keywords() -> None:
    for wrong in (lambda: ConvTranspose3d(2, 4, 3, group=1), lambda: Conv3dTranspose(2, 4, 3, groups=1)):
        with pytest.raises(TypeError):
            wrong()


def test_weights_larger_than_memory() -> None:
    for kind in (ConvTranspose3d, Conv3dTranspose):
        with pytest.raises(AllocationTooLarge, match="bytes"):
            kind(10**6, 10**6, 10)


def test_empty_batches_have_zero_gradients() -> None:
    for layer in both():
        y = layer(X[:0])
        assert y.shape[:2] == (0, 6)
        assert layer.backward(y).shape == (0, 4, 3, 4, 5)
        assert not layer.weight_grad.any() and not layer.bias_grad.any()


def test_mindspore_takes_empty_axes() -> None:
    layer = Conv3dTranspose(2, 3, 3, has_bias=True, bias_init=7, pad_mode="pad")
    y = layer(np.ones((1, 2, 0, 2, 2), np.float32))
    assert y.shape == (1, 3, 2, 4, 4) and (y == 7).all()
    assert layer.backward(y).shape == (1, 2, 0, 2, 2)
    assert not layer.weight_grad.any() and layer.bias_grad.tolist() == [7 * 32] * 3


def test_public_names() -> None:
    for name in tconv3d.__all__:
        assert getattr(tconv3d, name) is not None
