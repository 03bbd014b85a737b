# SPDX-License-Identifier: Apache-2.0
"""Whole networks of the real MindSpore with these layers inside: training, checkpoints, accelerate, the queue."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from numpy.testing import assert_allclose

import tconv3d
import tconv3d.mindspore as face
from tconv3d.mindspore import _ops

CALLS = 1000
SIZES = (1, 2, 3), (6, 7, 8), (12, 11, 10)


class UpBlock(nn.Cell):
    """A step of V-Net's decoder: up by two, join the encoder's features, convolve, add."""

    def __init__(self, layer: Any, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__()
        self.up = layer(in_channels, out_channels, 2, 2, pad_mode="valid", has_bias=True, **options)
        self.norm = nn.BatchNorm3d(out_channels)
        self.conv = nn.Conv3d(2 * out_channels, 2 * out_channels, 3, pad_mode="same", has_bias=True)
        self.relu = nn.ReLU()

    def construct(self, x, skip):
        joined = ops.concat((self.relu(self.norm(self.up(x))), skip), 1)
        return self.relu(self.conv(joined) + joined)


class Decoder(nn.Cell):
    """Two such steps and a head that doubles the size with 'same'."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__()
        self.deep = UpBlock(layer, 8, 4, **options)
        self.shallow = UpBlock(layer, 8, 2, **options)
        self.head = layer(4, 1, 3, 2, has_bias=True, **options)

    def construct(self, x, skip_deep, skip_shallow):
        return self.head(self.shallow(self.deep(x, skip_deep), skip_shallow))


def random(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), mindspore.float32)


INPUTS = random(2, 8, 3, 4, 3), random(2, 4, 6, 8, 6, seed=1), random(2, 2, 12, 16, 12, seed=2)
TARGET = random(2, 1, 24, 32, 24, seed=3)


class Loss(nn.Cell):
    def __init__(self, network: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.network = network

    def construct(self, x, skip_deep, skip_shallow, target):
        return ((self.network(x, skip_deep, skip_shallow) - target) ** 2).mean()


def with_weights_of(network: nn.Cell, other: nn.Cell) -> nn.Cell:
    for parameter, source in zip(network.get_parameters(), other.get_parameters(), strict=True):
        assert parameter.name == source.name
        parameter.set_data(Tensor(source.asnumpy().copy()))
    return network


def train(network: nn.Cell, steps: int = 3) -> list[float]:
    optimizer = nn.Momentum(network.trainable_params(), 0.2, 0.9)
    step = nn.TrainOneStepCell(Loss(network), optimizer).set_train()
    return [float(step(*INPUTS, TARGET).asnumpy()) for _ in range(steps)]


def test_training_follows_the_original(mode: str) -> None:
    theirs = Decoder(nn.Conv3dTranspose)
    ours = with_weights_of(Decoder(face.Conv3dTranspose), theirs)
    accelerated = copy.deepcopy(theirs)
    assert len(face.accelerate(accelerated).accelerated) == 3
    expected = train(theirs)
    assert expected[0] > expected[2]
    assert_allclose(train(ours), expected, rtol=0, atol=1e-4)
    assert_allclose(train(accelerated), expected, rtol=0, atol=1e-4)
    for parameter, other in zip(ours.trainable_params(), theirs.trainable_params(), strict=True):
        assert parameter.name == other.name
        assert_allclose(parameter.asnumpy(), other.asnumpy(), rtol=0, atol=1e-4)


def test_mixed_precision_training(mode: str) -> None:
    """The customary recipe: O2, a loss scale and an optimizer that keeps float32 weights."""

    def losses(network: nn.Cell) -> list[float]:
        optimizer = nn.Momentum(network.trainable_params(), 0.1, 0.9, loss_scale=64.0)
        manager = mindspore.amp.FixedLossScaleManager(64, drop_overflow_update=False)
        build = mindspore.amp.build_train_network
        step = build(Loss(network), optimizer, level="O2", loss_scale_manager=manager)
        return [float(step(*INPUTS, TARGET).asnumpy()) for _ in range(3)]

    theirs = Decoder(nn.Conv3dTranspose)
    ours = with_weights_of(Decoder(face.Conv3dTranspose), theirs)
    assert_allclose(losses(ours), losses(theirs), rtol=1e-2)
    assert {p.dtype for p in ours.trainable_params()} == {mindspore.float32}


@pytest.mark.parametrize("format", ["ckpt", "safetensors"])
def test_checkpoints_go_both_ways(format: str, tmp_path: Path) -> None:
    layers = nn.Conv3dTranspose, face.Conv3dTranspose
    for index, (saver, loader) in enumerate((layers, layers[::-1])):
        saved, loaded = Decoder(saver), Decoder(loader, weight_init="zeros")
        name = str(tmp_path / f"{index}.{format}")
        mindspore.save_checkpoint(saved, name, format=format)
        values = mindspore.load_checkpoint(name, format=format)
        assert mindspore.load_param_into_net(loaded, values, strict_load=True) == ([], [])
        saved.set_train(False)
        loaded.set_train(False)
        assert_allclose(loaded(*INPUTS).asnumpy(), saved(*INPUTS).asnumpy(), rtol=0, atol=1e-5)


def test_accelerate_and_restore(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.Conv3dTranspose):
        """A subclass of a user."""

    network = nn.SequentialCell(
        nn.Conv3dTranspose(2, 4, 3, 2, has_bias=True, weight_init="normal"),
        nn.SequentialCell(nn.Conv3dTranspose(4, 4, 2, 2, "valid", group=2), nn.ReLU()),
        Own(4, 1, 1),
        face.Conv3dTranspose(1, 1, 1),
    )
    layer, weight, text = network[0], network[0].weight, repr(network)
    x = random(1, 2, 3, 3, 3)
    before = network(x).asnumpy()
    resolved: list[Any] = []
    monkeypatch.setattr(_ops, "on_cpu", lambda: resolved.append(1) or True)

    report = face.accelerate(network)
    assert report.accelerated == ("0", "1.0")
    assert list(report.left) == ["2"] and "Own" in report.left["2"]
    assert "accelerated 2 of 3" in str(report)
    assert network[0] is layer and layer.weight is weight and repr(network) == text
    assert isinstance(layer, face.Conv3dTranspose)
    assert_allclose(network(x).asnumpy(), before, rtol=0, atol=1e-6)
    assert resolved, "the compiled graph was not compiled anew"

    assert face.accelerate(network).accelerated == ()
    assert face.restore(network) == ("0", "1.0")
    assert type(layer) is nn.Conv3dTranspose and type(network[3]) is face.Conv3dTranspose
    assert not [name for name in layer.__dict__ if name.startswith("_was") or name == "_arguments"]
    network[3].compile_cache.clear()
    assert np.array_equal(network(x).asnumpy(), before)
    assert face.restore(network) == ()


def test_accelerate_takes_the_layer_itself_and_refuses_other_things() -> None:
    layer = nn.Conv3dTranspose(2, 4, 3)
    assert face.accelerate(layer).accelerated == ("Conv3dTranspose",)
    assert face.accelerate(nn.ReLU()) == face.Report((), {})
    for function in (face.accelerate, face.restore):
        with pytest.raises(TypeError, match="Cell"):
            function([layer])


def test_a_layer_with_other_arguments_is_left() -> None:
    """MindSpore has announced PyTorch's arguments for this class, without pad_mode."""
    layer = nn.Conv3dTranspose(2, 4, 3)
    del layer.pad_mode
    assert "ConvTranspose3d" in face.accelerate(layer).left["Conv3dTranspose"]
    assert type(layer) is nn.Conv3dTranspose


def test_a_layer_whose_construct_was_replaced_is_left() -> None:
    layer = nn.Conv3dTranspose(2, 4, 3)
    layer.construct = lambda x: x
    assert "replaced" in face.accelerate(layer).left["Conv3dTranspose"]


def gradient_of(layer: nn.Cell) -> Any:
    def total(x):
        return layer(x).sum()

    return mindspore.grad(total)


def test_the_queue() -> None:
    """1,000 calls among queued operations, in random order, with results dropped and their memory written over.

    Small integers make every value exact, so that a single stale element shows, and few sizes make reuse likely.
    """
    rng = np.random.default_rng(30)
    layers = [face.Conv3dTranspose(c, 2 * c, c + 1, 2, weight_init="ones") for c in (1, 2, 3)]
    gradients = [gradient_of(layer) for layer in layers]
    waiting: list[tuple[Tensor, np.ndarray]] = []
    for _ in range(CALLS):
        index = int(rng.integers(len(layers)))
        layer, weight = layers[index], layers[index].weight.asnumpy()
        size = SIZES[int(rng.integers(len(SIZES)))]
        array = rng.integers(-4, 5, (1, layer.in_channels, *size)).astype(np.float32)
        x = Tensor(array)
        if rng.integers(2):  # an input that is still in the queue
            x, array = x * 2 + 1, array * 2 + 1
        expected = tconv3d.conv_transpose3d(array, weight, None, 2, "same")
        if rng.integers(4):
            output = layer(x)
        else:
            ones = np.ones_like(expected)
            output, expected = (
                gradients[index](x),
                tconv3d.conv_transpose3d_input_grad(ones, weight, array.shape, 2, "same"),
            )
        if rng.integers(3):  # an operation on the result goes into the queue, and the result's own object dies
            output, expected = output * 3 - 1, expected * 3 - 1
            np.empty(expected.shape, np.float32).fill(np.nan)
        waiting.append((output, expected))
        while len(waiting) > 20 or (waiting and rng.integers(3) == 0):
            result, expected = waiting.pop(int(rng.integers(len(waiting))))
            assert np.array_equal(result.asnumpy(), expected)
    assert all(np.array_equal(result.asnumpy(), expected) for result, expected in waiting)
