# SPDX-License-Identifier: Apache-2.0
"""The cells beside the real MindSpore's and PyTorch's layers: construction, values, gradients, modes."""

from __future__ import annotations

import copy
import ctypes
import inspect
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
import torch
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import HeNormal
from numpy.testing import assert_allclose
from test_frameworks import mindspore_arguments, random_layer
from test_page_examples import EXAMPLE_1, EXAMPLE_2, all_ones

import tconv3d
import tconv3d.mindspore as face
from tconv3d import _engine
from tconv3d.mindspore import _ops

# The MindSpore half of both examples on the comparison page, with its import changed and nothing else.
PAGE = """
import mindspore as ms
import tconv3d.mindspore as nn
import numpy as np

k = 5
s = 3
x_ = np.ones([1, 3, 4, 9, 16])
x = ms.Tensor(x_, ms.float32)
net = nn.Conv3dTranspose(3, 32, kernel_size=k, stride=s, weight_init='ones', pad_mode='{pad_mode}')
output = net(x)
print(output.shape)
"""


def random(*shape: int, dtype: Any = mindspore.float32, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), dtype)


def pair(*arguments: Any, **options: Any) -> tuple[face.Conv3dTranspose, nn.Conv3dTranspose]:
    """Our layer and MindSpore's with the same random weights."""
    ours = face.Conv3dTranspose(*arguments, **options, weight_init=None, bias_init=None)
    weights = {"weight_init": Tensor(ours.weight.asnumpy())}
    if ours.bias is not None:
        weights["bias_init"] = Tensor(ours.bias.asnumpy())
    return ours, nn.Conv3dTranspose(*arguments, **options, **weights)


def leaves(result: Any) -> list[np.ndarray]:
    if isinstance(result, Tensor):
        return [result.asnumpy()]
    return [leaf for part in result for leaf in leaves(part)]


def assert_same(ours: Any, theirs: Any, tolerance: float = 2e-5) -> None:
    """Equal up to rounding, which is measured by the largest value of each tensor."""
    for mine, other in zip(leaves(ours), leaves(theirs), strict=True):
        assert mine.shape == other.shape
        assert_allclose(mine, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max(initial=0)))


@pytest.mark.parametrize(
    ("pad_mode", "front", "shape"), [("same", 1, EXAMPLE_1), ("valid", 0, EXAMPLE_2)], ids=["example 1", "example 2"]
)
def test_the_pages_code(pad_mode: str, front: int, shape: Any, mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(PAGE.format(pad_mode=pad_mode), names)
    assert capsys.readouterr().out == f"{shape}\n"
    assert np.array_equal(names["output"].asnumpy(), all_ones(front, shape[2:]))


def test_the_signature_is_the_pages_and_dtype() -> None:
    page = (
        "(in_channels, out_channels, kernel_size, stride=1, pad_mode='same', padding=0, dilation=1, group=1, "
        "output_padding=0, has_bias=False, weight_init='normal', bias_init='zeros', data_format='NCDHW', dtype=Float32)"
    )
    parameters = list(inspect.signature(face.Conv3dTranspose).parameters.values())
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert str(inspect.Signature(plain)).replace("mindspore.float32", "Float32") == page
    with pytest.raises(TypeError, match="groups"):
        face.Conv3dTranspose(2, 4, 3, groups=2)


def test_attributes_and_repr_are_the_originals() -> None:
    options = {"stride": (2, 1, 2), "pad_mode": "Pad", "padding": (1, 0, 1, 0, 0, 1), "output_padding": (1, 0, 1)}
    ours = face.Conv3dTranspose(4, 6, 3, **options, group=2, has_bias=True, weight_init="ones", bias_init="normal")
    theirs = nn.Conv3dTranspose(4, 6, 3, **options, group=2, has_bias=True, weight_init="ones", bias_init="normal")
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, nn.Conv3dTranspose)
    names = "in_channels out_channels kernel_size stride dilation output_padding pad_mode padding group has_bias"
    for name in [*names.split(), "weight_init", "bias_init", "data_format"]:
        assert getattr(ours, name) == getattr(theirs, name)
    assert [p.name for p in ours.get_parameters()] == [p.name for p in theirs.get_parameters()]
    assert list(nn.SequentialCell(ours).parameters_dict()) == ["0.weight", "0.bias"]
    assert ours.conv3d_transpose.stride == theirs.conv3d_transpose.stride
    assert ours.bias_add.name == theirs.bias_add.name
    assert face.Conv3dTranspose(4, 6, 3, dilation=2).conv3d_transpose is None
    bare = face.Conv3dTranspose(4, 6, 3, bias_init="no such law")
    assert bare.bias is None and list(bare.parameters_dict()) == ["weight"]


def test_initializers() -> None:
    def drawn(init: Any, **options: Any) -> mindspore.Parameter:
        return face.Conv3dTranspose(8, 8, 3, weight_init=init, **options).weight

    assert np.std(drawn(HeNormal()).asnumpy()) == pytest.approx((2 / (8 * 27)) ** 0.5, rel=0.1)
    assert np.std(drawn(tconv3d.initializers.Normal(0.5)).asnumpy()) == pytest.approx(0.5, rel=0.1)
    assert (drawn(3).asnumpy() == 3).all()
    given = Tensor(np.ones((8, 8, 3, 3, 3)), mindspore.float16)
    weight = drawn(given)
    assert weight.dtype == mindspore.float16  # the tensor's own type wins, as in MindSpore
    weight.set_data(ops.zeros_like(weight))
    assert given.asnumpy().all()
    assert drawn("zeros", dtype=mindspore.bfloat16).dtype == mindspore.bfloat16
    assert np.abs(drawn(None).asnumpy()).max() <= 1 / (8 * 27) ** 0.5
    for layer in (lambda: face.Conv3dTranspose(2, 2, 3, has_bias=True), lambda: face.ConvTranspose3d(2, 2, 3)):
        first, second = (seeded(layer) for _ in range(2))
        assert_same(first.trainable_params(), second.trainable_params(), 0)


def seeded(layer: Any) -> Any:
    mindspore.set_seed(7)
    return layer()


def test_constructor_errors_of_frameworks() -> None:
    for layer in (face.Conv3dTranspose, face.ConvTranspose3d):
        for wrong in ("float32", np.float32):
            with pytest.raises(TypeError, match="dtype"):
                layer(2, 2, 3, dtype=wrong)
    with pytest.raises(RuntimeError, match="dtype"):
        face.ConvTranspose3d(2, 2, 3, dtype=mindspore.int32)
    assert face.ConvTranspose3d(2, 2, 3, device="cpu").weight.dtype == mindspore.float32
    with pytest.raises(RuntimeError, match="GPU"):
        face.ConvTranspose3d(2, 2, 3, device="GPU")
    with pytest.raises(TypeError, match="device"):
        face.ConvTranspose3d(2, 2, 3, device=0)


@pytest.mark.parametrize("pad_mode", ["same", "valid", "pad"])
@pytest.mark.parametrize("seed", range(3))
def test_random_layers_against_the_original(pad_mode: str, seed: int, mode: str) -> None:
    rng = np.random.default_rng([4, seed])
    options, layer = mindspore_arguments(rng, pad_mode)
    ours, theirs = pair(layer.x[1], layer.weight[1] * layer.groups, **options, has_bias=bool(seed % 2))
    x = random(*layer.x, seed=seed)
    if seed % 3 == 0:
        x = random(*layer.x[::-1], seed=seed).permute(4, 3, 2, 1, 0)

    def gradients(cell: nn.Cell) -> Any:
        def loss(x):
            return (cell(x) ** 2).sum()

        return mindspore.value_and_grad(loss, 0, cell.trainable_params())(x)

    assert_same(ours(x), theirs(x))
    assert_same(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("compiled", [False, True])
def test_second_derivatives(compiled: bool, mode: str) -> None:
    x = random(2, 4, 3, 4, 3)

    def second(cell: nn.Cell) -> Any:
        def loss(x):
            return (cell(x) ** 3).sum()

        first = mindspore.grad(loss)

        def norm(x):
            return (first(x) ** 2).sum()

        function = mindspore.grad(norm, 0, cell.trainable_params())
        return (mindspore.jit(function) if compiled else function)(x)

    ours, theirs = pair(4, 6, 3, 2, "pad", 1, group=2, has_bias=True)
    assert_same(second(ours), second(theirs), 1e-4)


def test_second_derivatives_by_the_weight(mode: str) -> None:
    """A loss of the gradients of weight and bias, differentiated by everything; MindSpore's operator cannot."""
    x, ours = random(2, 2, 3, 4, 3), face.ConvTranspose3d(2, 4, 3, 2, 1, groups=2)
    theirs = torch.nn.ConvTranspose3d(2, 4, 3, 2, 1, groups=2)
    theirs.load_state_dict({p.name: torch.tensor(p.asnumpy()) for p in ours.trainable_params()})

    def loss(x):
        return (ours(x) ** 3).sum()

    first = mindspore.grad(loss, None, ours.trainable_params())

    def norm(x):
        gw, gb = first(x)
        return (gw**2).sum() + (gb**2).sum()

    second = mindspore.grad(norm, 0, ours.trainable_params())(x)
    tensor = torch.tensor(x.asnumpy(), requires_grad=True)
    gradients = torch.autograd.grad((theirs(tensor) ** 3).sum(), list(theirs.parameters()), create_graph=True)
    sum((gradient**2).sum() for gradient in gradients).backward()
    assert_same(second, [Tensor(each.grad.numpy()) for each in (tensor, *theirs.parameters())], 1e-4)


def applied(cells: nn.CellList) -> Any:
    def outputs(x):
        return [cell(x) for cell in cells]

    return outputs


def test_layers_that_differ_in_their_crop_alone() -> None:
    """Equal shapes everywhere: whatever MindSpore keeps by shape must not mix them up."""
    crops = [(1, 1, 1, 1, 1, 1), (0, 2, 0, 2, 0, 2), (2, 0, 1, 1, 0, 2), (0, 0, 0, 0, 0, 0)]
    x = random(1, 2, 4, 4, 4)
    for dtype in (mindspore.float32, mindspore.float16):
        pairs = [pair(2, 2, 3, pad_mode="pad", padding=crop, dtype=dtype) for crop in crops]
        ours, theirs = (nn.CellList([both[side] for both in pairs]) for side in range(2))
        outputs = applied(ours)
        narrow = x.astype(dtype)
        tolerance = 2e-5 if dtype == mindspore.float32 else 2e-3
        assert_same(mindspore.jit(outputs)(narrow), [cell(narrow) for cell in theirs], tolerance)
        assert_same([cell(narrow) for cell in ours], [cell(narrow) for cell in theirs], tolerance)


@pytest.mark.parametrize("seed", range(4))
def test_pytorchs_contract_against_pytorch(seed: int, mode: str) -> None:
    rng = np.random.default_rng([5, seed])
    layer = random_layer(rng, 8)
    channels = layer.x[1], layer.weight[1] * layer.groups
    options = {**layer._asdict(), "kernel_size": layer.weight[2:], "bias": bool(seed % 2)}
    del options["x"], options["weight"]
    theirs, ours = torch.nn.ConvTranspose3d(*channels, **options), face.ConvTranspose3d(*channels, **options)
    assert repr(ours) == repr(theirs)
    for name, value in theirs.state_dict().items():
        getattr(ours, name).set_data(Tensor(value.numpy()))

    x = rng.standard_normal(layer.x[seed % 3 == 0 :], np.float32)
    tensor = torch.tensor(x, requires_grad=True)
    size = None
    if seed % 2:
        smallest = [n - extra for n, extra in zip(theirs(tensor).shape[-3:], layer.output_padding, strict=True)]
        size = tuple(n + int(rng.integers(0, s)) for n, s in zip(smallest, layer.stride, strict=True))
    y = theirs(tensor, size)
    (y**2).sum().backward()

    def loss(x):
        y = ours(x, size)
        return (y**2).sum(), y

    (_, output), grads = mindspore.value_and_grad(loss, 0, ours.trainable_params(), has_aux=True)(Tensor(x))
    assert_same(output, Tensor(y.detach().numpy()))
    expected = [tensor.grad, *(parameter.grad for parameter in theirs.parameters())]
    assert_same(grads, [Tensor(grad.numpy()) for grad in expected], 1e-4)


def test_output_sizes_of_any_kind(mode: str) -> None:
    layer, x = face.ConvTranspose3d(2, 4, 3, 2, 1), random(1, 2, 3, 3, 3)
    for size in ((6, 5, 6), [6, 5, 6], [1, 4, 6, 5, 6], tuple(np.array([6, 5, 6]))):
        assert layer(x, size).shape == (1, 4, 6, 5, 6)
        assert layer(x, output_size=size).shape == (1, 4, 6, 5, 6)
    assert mode == "graph" or layer(x, Tensor([6, 5, 6])).shape == (1, 4, 6, 5, 6)
    for wrong, error in ((6, TypeError), ((6.0, 5.0, 6.0), TypeError), ((6, 5), ValueError), ((7, 5, 6), ValueError)):
        with pytest.raises(error):
            layer(x, wrong)


def test_bytecode_capture() -> None:
    ours, theirs = pair(2, 4, 3, 2)
    x = random(1, 2, 3, 3, 3)

    def forward(x):
        return ours(x)

    assert_same(mindspore.jit(forward, capture_mode="bytecode")(x), theirs(x))


def test_vmap(mode: str) -> None:
    ours, theirs = pair(2, 4, 3, 2, "pad", 1, has_bias=True)
    x = random(2, 2, 2, 3, 4, 3)

    def results(cell: nn.Cell) -> Any:
        def loss(x):
            return (cell(x) ** 2).sum()

        def forward(x):
            return cell(x)

        return (
            mindspore.vmap(forward)(x),
            mindspore.vmap(forward, in_axes=2)(x),
            mindspore.vmap(mindspore.grad(loss), in_axes=2)(x),
        )

    assert_same(results(ours), results(theirs))


def test_shapes_unknown_to_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MindSpore's own operator takes them, and says what it has not."""
    monkeypatch.chdir(tmp_path)
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    try:
        ours, theirs = pair(2, 4, 3, 2, has_bias=True)
        other = face.ConvTranspose3d(2, 4, 3, 2, 1, 1)
        for cell in (ours, other):
            cell.set_inputs(Tensor(shape=[None, 2, None, None, None], dtype=mindspore.float32))
        for size in (3, 4):
            x = random(size - 2, 2, size, 3, 3)
            assert_same(ours(x), theirs(x))
            assert other(x).shape == (size - 2, 4, 2 * size, 6, 6)
        rankless = face.Conv3dTranspose(2, 4, 3, 2)
        rankless.set_inputs(Tensor(shape=None, dtype=mindspore.float32))
        assert rankless(random(1, 2, 3, 3, 3)).shape == (1, 4, 6, 6, 6)
        deep = face.Conv3dTranspose(2, 4, 3, dilation=2)
        deep.set_inputs(Tensor(shape=[None, 2, 3, 3, 3], dtype=mindspore.float32))
        with pytest.raises(ValueError, match="dilation"):
            deep(random(1, 2, 3, 3, 3))
    finally:
        mindspore.set_context(mode=mindspore.PYNATIVE_MODE)


def test_other_devices_get_the_original_operator(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Ascend: this machine has the CPU alone, so the route is chosen by hand and its operator runs here."""
    ours, theirs = pair(4, 6, (3, 2, 3), 2, "pad", (1, 0, 1, 0, 0, 1), group=2, output_padding=1, has_bias=True)
    other = face.ConvTranspose3d(4, 6, 3, 2, 1, groups=2)
    x = random(2, 4, 3, 3, 3)
    expected = other(x), other(x[0]), other(x, (6, 5, 6))
    monkeypatch.setattr(_ops, "on_cpu", lambda: False)
    for cell in (ours, other):
        cell._arguments._calls.clear()
        cell.compile_cache.clear()
    monkeypatch.setattr(_ops.Call, "forward", None)
    assert_same(ours(x), theirs(x))
    assert_same((other(x), other(x[0]), other(x, (6, 5, 6))), expected)


class AmpNetwork(nn.Cell):
    def __init__(self, up: nn.Cell) -> None:
        super().__init__()
        self.conv, self.norm, self.up = nn.Conv3d(2, 2, 1, weight_init="ones"), nn.BatchNorm3d(4), up

    def construct(self, x):
        return self.norm(self.up(self.conv(x)))


@pytest.mark.parametrize("level", ["O1", "O2", "O3", "auto"])
def test_mixed_precision(level: str, mode: str) -> None:
    """Products in float16, sums in float32: within a few roundings of the original, gradients in the weights' type."""
    x = random(2, 2, 4, 4, 4)

    def results(up: nn.Cell) -> Any:
        network = mindspore.amp.auto_mixed_precision(AmpNetwork(up).set_train(), level)

        def loss(x):
            y = network(x)
            return (y**3).mean(), y

        return mindspore.value_and_grad(loss, 0, [up.weight], has_aux=True)(x)

    ours, theirs = (results(layer) for layer in pair(2, 4, 3, 2, has_bias=True))
    assert [leaf.dtype for leaf in leaves(ours)] == [leaf.dtype for leaf in leaves(theirs)]
    assert_same(ours, theirs, 4e-3)


def test_float16_adds_up_in_float32(mode: str) -> None:
    """4096 products of one: in float16 a sum would stop at 2048."""
    layer = face.Conv3dTranspose(4096, 1, 1, weight_init="ones").to_float(mindspore.float16)
    y = layer(ops.ones((1, 4096, 1, 1, 1)))
    assert y.dtype == mindspore.float16
    assert y.asnumpy().item() == 4096


@pytest.mark.parametrize("dtype", [mindspore.float16, mindspore.bfloat16, mindspore.float64, mindspore.complex64])
def test_types(dtype: Any, mode: str) -> None:
    layer = face.ConvTranspose3d(2, 4, 3, 2, 1, dtype=dtype)
    assert {p.dtype for p in layer.trainable_params()} == {dtype}
    y = layer(ops.ones((1, 2, 3, 3, 3)).astype(dtype))
    assert (y.dtype, y.shape) == (dtype, (1, 4, 5, 5, 5))
    with pytest.raises(RuntimeError, match="dtype"):
        layer(ops.ones((1, 2, 3, 3, 3)))


def test_inputs_that_are_no_tensors(mode: str) -> None:
    for layer in (face.Conv3dTranspose(2, 4, 3), face.ConvTranspose3d(2, 4, 3)):
        for wrong in (5, np.ones((1, 2, 3, 3, 3), np.float32)):
            with pytest.raises(TypeError, match="Tensor"):
                layer(wrong)


def test_a_weight_of_another_shape_is_refused() -> None:
    layer = face.Conv3dTranspose(2, 4, 3)
    layer.weight = mindspore.Parameter(ops.ones((2, 4, 3, 3, 2)), name="weight")
    with pytest.raises(ValueError, match="weight"):
        layer(ops.ones((1, 2, 3, 3, 3)))


def test_copies_are_independent(mode: str) -> None:
    for layer in (face.Conv3dTranspose(2, 4, 3, has_bias=True), face.ConvTranspose3d(2, 4, 3)):
        x = random(1, 2, 3, 3, 3)
        before = layer(x)
        other = copy.deepcopy(layer)
        assert type(other) is type(layer) and repr(other) == repr(layer)
        assert_same(other(x), before, 0)
        other.weight.set_data(ops.zeros_like(other.weight))
        assert_same(layer(x), before, 0)
        assert not np.array_equal(other(x).asnumpy(), before.asnumpy())


def test_mindir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exported graph runs in a process that has not imported this library."""
    monkeypatch.chdir(tmp_path)
    network = nn.SequentialCell(face.Conv3dTranspose(2, 4, 3, 2, has_bias=True), nn.ReLU())
    x = random(1, 2, 3, 4, 5)
    np.save("x.npy", x.asnumpy())
    mindspore.export(network, x, file_name="network", file_format="MINDIR")
    program = (
        "import sys, numpy as np, mindspore as ms\n"
        "network = ms.nn.GraphCell(ms.load('network.mindir'))\n"
        "np.save('y.npy', network(ms.Tensor(np.load('x.npy'))).asnumpy())\n"
        "assert 'tconv3d' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300, cwd=tmp_path)
    assert_allclose(np.load("y.npy"), network(x).asnumpy(), rtol=0, atol=1e-6)


def test_threads_do_not_change_the_bits(mode: str) -> None:
    layer, x = face.Conv3dTranspose(8, 8, 3, 2), random(1, 8, 8, 8, 8)
    outputs = []
    for count in (1, 2, 3):
        before = tconv3d.get_num_threads()
        tconv3d.set_num_threads(count)
        outputs.append(layer(x).asnumpy())
        tconv3d.set_num_threads(before)
    assert np.array_equal(outputs[0], outputs[1]) and np.array_equal(outputs[0], outputs[2])


def test_a_result_larger_than_memory_is_refused(mode: str) -> None:
    layer = face.Conv3dTranspose(1, 1, 1, stride=100_000)
    with pytest.raises(tconv3d.AllocationTooLarge):
        layer(ops.ones((1, 1, 2, 2, 2)))


def test_without_mindspore_the_import_names_it() -> None:
    program = (
        "import sys; sys.modules['mindspore'] = None\n"
        "import tconv3d\n"
        "try: tconv3d.mindspore\n"
        "except ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "tconv3d[mindspore]" in run.stdout, run.stderr


class Symbol:
    """One of the C symbols, called as MindSpore calls it."""

    def __init__(self, name: str) -> None:
        self.function = getattr(ctypes.CDLL(_engine.LIBRARY), f"tconv3d_mindspore_{name}")

    def __call__(self, *arrays: np.ndarray, names: list[str] | None = None) -> int:
        names = [str(array.dtype) for array in arrays] if names is None else names
        n = len(arrays)
        shapes = [(ctypes.c_int64 * max(1, a.ndim))(*a.shape) for a in arrays]
        return self.function(
            n,
            (ctypes.c_void_p * n)(*(a.ctypes.data for a in arrays)),
            (ctypes.c_int * n)(*(a.ndim for a in arrays)),
            (ctypes.POINTER(ctypes.c_int64) * n)(*(ctypes.cast(s, ctypes.POINTER(ctypes.c_int64)) for s in shapes)),
            (ctypes.c_char_p * n)(*(name.encode() for name in names)),
            None,
            None,
        )


def test_the_c_symbols_refuse_what_does_not_fit() -> None:
    x, w, y = (np.ones(shape, np.float32) for shape in ((1, 2, 3, 3, 3), (2, 4, 3, 3, 3), (1, 4, 5, 5, 5)))
    b, sizes = np.ones(4, np.float32), np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1])
    forward, input_grad, weight_grad, bias_grad = map(Symbol, ("forward", "input_grad", "weight_grad", "bias_grad"))
    assert forward(x, w, sizes, y) == forward(x, w, b, sizes, y) == 0
    assert y[0, 0, 2, 2, 2] == 1 + 2 * 27
    assert input_grad(y, w, sizes, x) == weight_grad(x, y, sizes, w) == bias_grad(y, b) == 0
    assert b[0] == pytest.approx(y[0, 0].sum())

    def without(index: int, value: int) -> np.ndarray:
        changed = sizes.copy()
        changed[index] = value
        return changed

    wrong = [
        (x, w, y),
        (x, w, sizes[:10], y),
        (x, w, sizes.astype(np.int32), y),
        (x, w, without(0, 0), y),
        (x, w, without(4, -1), y),
        (x, w, without(9, 0), y),
        (x, w, without(9, 2), y),
        (x[:, :1], w, sizes, y),
        (x, w.astype(np.float64), sizes, y),
        (x, w, b[:3], sizes, y),
        (x[0, 0], w, sizes, y),
    ]
    assert all(forward(*operands) for operands in wrong)
    assert forward(x, w, sizes, y, names=["int32", "int32", "int64", "int32"])
    assert input_grad(y, w, sizes, x, x) and input_grad(y, w[:1], sizes, x)
    assert weight_grad(x, y, w) and weight_grad(x, y[:, :3], sizes, w)
    assert bias_grad(y, b[:3]) and bias_grad(y, b.astype(np.float64)) and bias_grad(y)


def test_large_results_and_the_output_pool(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the sizes where memory is advised and tasks are split; never in buffers that something else may be given."""
    monkeypatch.setattr(_engine._core, "empty", None)
    ours, theirs = pair(2, 4, 2, 2, has_bias=True)
    x = random(1, 2, 48, 48, 48)

    def results(cell: nn.Cell) -> Any:
        def loss(x):
            y = cell(x)
            return (y**2).mean(), y

        return mindspore.value_and_grad(loss, 0, cell.trainable_params(), has_aux=True)(x)

    assert prod(ours(x).shape) * 4 > 8 << 20
    assert_same(results(ours), results(theirs))


def test_arrays_that_lie_askew(mode: str) -> None:
    memory = np.zeros(2 * 27 * 4 + 1, np.uint8)
    array = np.frombuffer(memory.data, np.float32, 54, offset=1).reshape(1, 2, 3, 3, 3)
    array[:] = np.arange(54).reshape(array.shape)
    layer, x = face.Conv3dTranspose(2, 4, 3), Tensor.from_numpy(array)
    assert_same(layer(x), layer(Tensor(array.copy())), 0)
