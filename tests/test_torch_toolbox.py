# SPDX-License-Identifier: Apache-2.0
"""The PyTorch face under PyTorch's tools: compilers, exporters, tracers, transforms, counters, several processes."""

from __future__ import annotations

import copy
import io
import itertools
import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional as torch_functional
from torch.utils.flop_counter import FlopCounterMode

import tconv3d.torch as face
from tconv3d import _engine
from tconv3d.torch import _library

OPERATORS = {op._schema.name.partition("::")[2]: op for op in _library.OPERATORS}
CHANNELS_LAST = torch.channels_last_3d


@pytest.fixture(autouse=True)
def seeded_torch() -> None:
    torch.manual_seed(20240)


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a call reaches the engine."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the call reached the engine")

    for name in ("forward_at", "input_grad_at", "weight_grad_at"):
        monkeypatch.setattr(_engine, name, refuse)


@pytest.fixture
def engine_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that reached the engine."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., None]:
        real = getattr(_engine, name)
        return lambda *args: calls.append(name) or real(*args)

    for name in ("forward_at", "input_grad_at", "weight_grad_at"):
        monkeypatch.setattr(_engine, name, counted(name))
    return calls


def pair(*args: Any, **kwargs: Any) -> tuple[face.ConvTranspose3d, torch.nn.ConvTranspose3d]:
    """Our layer and PyTorch's with the same weights."""
    ours, theirs = face.ConvTranspose3d(*args, **kwargs), torch.nn.ConvTranspose3d(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


GEOMETRY = ((2, 1, 2), (1, 0, 1), (1, 0, 0), 2, (1, 2, 1))  # stride, padding, output_padding, groups, dilation


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = (2, 4, 2, 3, 2), (4, 2, 3, 2, 3), (4,)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return face.functional.conv_transpose3d(x, weight, bias, *GEOMETRY)


def theirs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch_functional.conv_transpose3d(x, weight, bias, *GEOMETRY)


# The operators themselves.


def operator_samples(dtype: torch.dtype = torch.float64) -> list[tuple[str, tuple[Any, ...]]]:
    """Calls of each operator: both contracts' crops, groups, dilation, an empty batch, channels_last_3d."""
    samples: list[tuple[str, tuple[Any, ...]]] = []
    sizes = [
        ([2, 2, 2], [1, 1, 1], [1, 1, 1], [0, 1, 1], 1),
        ([2, 1, 3], [1, 2, 1], [1, 0, 0], [2, 1, -1], 2),
        ([1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0], 4),
    ]
    for (stride, dilation, front, back, groups), batch in itertools.product(sizes, (2, 0)):
        x = torch.randn(batch, 4, 3, 4, 2, dtype=dtype)
        w, b = torch.randn(4, 2, 3, 2, 2, dtype=dtype), torch.randn(2 * groups, dtype=dtype)
        geometry = stride, dilation, front
        y = OPERATORS["conv_transpose3d"](x, w, b, *geometry, back, groups)
        samples += [
            ("conv_transpose3d", (x, w, b, *geometry, back, groups)),
            ("conv_transpose3d", (x.to(memory_format=CHANNELS_LAST), w, None, *geometry, back, groups)),
            ("conv_transpose3d_input_grad", (y, w, [3, 4, 2], *geometry, groups)),
            ("conv_transpose3d_input_grad", (y.to(memory_format=CHANNELS_LAST), w, [3, 4, 2], *geometry, groups)),
            ("conv_transpose3d_weight_grad", (x, y, [3, 2, 2], *geometry, groups)),
        ]
    return samples


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    for name, arguments in operator_samples(dtype):
        tensors = [a.requires_grad_() if isinstance(a, Tensor) and a.shape[0] else a for a in arguments]
        tools = ["test_schema", "test_autograd_registration", "test_faketensor"]
        if dtype == torch.float64:
            tools.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(OPERATORS[name], tuple(tensors), test_utils=tools)


def mapped(name: str, arguments: tuple[Any, ...], function: Any = None) -> tuple[Any, tuple[Tensor, ...]]:
    """The operator as a function of its tensors alone, and these."""
    tensors = tuple(a for a in arguments if isinstance(a, Tensor))
    rest = arguments[len(tensors) :]
    function = function or OPERATORS[name]
    return lambda *leaves: function(*leaves, *rest), tensors


@pytest.mark.parametrize("index", range(0, 30, 2))
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, of its first dual number
def test_derivatives_of_the_operators(index: int) -> None:
    name, arguments = operator_samples()[index]
    if arguments[0].shape[0] == 0:
        return
    function, tensors = mapped(name, arguments)
    leaves = tuple(tensor.detach().requires_grad_() for tensor in tensors)
    checks = dict(check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradcheck(function, leaves, check_batched_forward_grad=True, **checks)
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_operators_without_the_engine_agree(device: str) -> None:
    """What other devices run, on this one; and what meta tensors make of it."""
    for name, arguments in operator_samples():
        expected = OPERATORS[name](*arguments)
        if device == "cpu" and arguments[0].shape[0]:
            function = getattr(face._aten, name.removeprefix("conv_transpose3d_"))
            torch.testing.assert_close(function(*arguments), expected)
        moved = [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
        result = OPERATORS[name](*moved)
        assert (result.shape, result.stride(), result.device.type) == (expected.shape, expected.stride(), device)


@pytest.mark.parametrize("asked", [a for a in itertools.product([None, 0, 1], repeat=3) if a != (None,) * 3])
def test_vmap_over_every_choice_of_operands(asked: tuple[int | None, ...]) -> None:
    """Against a loop: every operator, every axis, groups too."""
    for name, arguments in operator_samples()[:5] + operator_samples()[10:15]:
        function, tensors = mapped(name, arguments)
        dims = asked[: len(tensors)]
        if all(dim is None for dim in dims):
            continue
        batched = [
            tensor if dim is None else torch.stack([tensor, 2 * tensor, tensor.flip(-1)], dim)
            for tensor, dim in zip(tensors, dims, strict=True)
        ]
        singles = [
            function(*(t if dim is None else t.select(dim, i) for t, dim in zip(batched, dims, strict=True)))
            for i in range(3)
        ]
        torch.testing.assert_close(vmap(function, in_dims=dims)(*batched), torch.stack(singles))


# torch.func and forward mode, on the public function.


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_forward_mode_of_every_operand() -> None:
    x, weight, bias = operands()
    tangents = tuple(torch.randn_like(leaf) for leaf in (x, weight, bias))
    for asked in itertools.product([False, True], repeat=3):
        if not any(asked):
            continue

        def partial(function: Any, asked: Any = asked) -> Any:
            chosen = [i for i in range(3) if asked[i]]
            fixed = [x, weight, bias]

            def call(*leaves: Tensor) -> Tensor:
                full = list(fixed)
                for i, leaf in zip(chosen, leaves, strict=True):
                    full[i] = leaf
                return function(*full)

            return jvp(call, tuple(fixed[i] for i in chosen), tuple(tangents[i] for i in chosen))

        for mine, other in zip(partial(ours), partial(theirs), strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own, of its first dual number
def test_dual_numbers() -> None:
    x, weight, bias = (leaf.detach() for leaf in operands())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        mine, other = (forward_ad.unpack_dual(function(dual, weight, bias)) for function in (ours, theirs))
        torch.testing.assert_close(mine.primal, other.primal)
        torch.testing.assert_close(mine.tangent, other.tangent)


def loss(function: Any, *leaves: Tensor) -> Tensor:
    return function(*leaves).pow(3).sum()


def stacked(*tensors: Tensor) -> Tensor:
    return torch.stack(tensors)


# Each maps the function and its operands to a result.
FUNC: dict[str, Callable[..., Any]] = {
    "grad": lambda f, x, w, b: grad(lambda *leaves: loss(f, *leaves), argnums=(0, 1, 2))(x, w, b),
    "grad of grad": lambda f, x, w, b: grad(
        lambda *a: sum(g.square().sum() for g in grad(lambda *c: loss(f, *c), argnums=(0, 1, 2))(*a)),
        argnums=(0, 1, 2),
    )(x, w, b),
    "vjp": lambda f, x, w, b: vjp(f, x, w, b)[1](torch.ones_like(f(x, w, b))),
    "jacrev": lambda f, x, w, b: jacrev(lambda c: f(x, w, c))(b),
    "jacfwd": lambda f, x, w, b: jacfwd(lambda v: f(x, v).sum((0, 2, 3, 4)))(w),
    "hessian": lambda f, x, w, b: hessian(lambda c: loss(f, x, w, c))(b),
    "hessian of the weight": lambda f, x, w, b: hessian(lambda v: loss(f, x, v))(w),
    "vmap of grad": lambda f, x, w, b: vmap(grad(lambda one, v: loss(f, one[None], v), argnums=1), (0, None))(x, w),
    "vmap of vmap": lambda f, x, w, b: vmap(vmap(f, (0, None)), (None, 0))(stacked(x, -x), stacked(w, 2 * w, -w)),
    "vmap of jvp": lambda f, x, w, b: vmap(lambda t: jvp(lambda z: f(z, w), (x,), (t,))[1])(stacked(x, -x)),
    "jvp of grad": lambda f, x, w, b: jvp(grad(lambda v: loss(f, x, v)), (w,), (torch.ones_like(w),)),
    "jvp of jvp": lambda f, x, w, b: jvp(
        lambda z: jvp(lambda v: f(z, v), (w,), (torch.ones_like(w),))[1], (x,), (torch.ones_like(x),)
    ),
    "grad of vmap": lambda f, x, w, b: grad(lambda v: vmap(f, (0, None))(stacked(x, -x), v).pow(2).sum())(w),
    "grad of jvp": lambda f, x, w, b: grad(lambda v: jvp(lambda z: f(z, v), (x,), (x,))[1].pow(2).sum())(w),
}


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("transform", FUNC)
def test_torch_func(transform: str, engine_calls: list[str]) -> None:
    leaves = operands()
    expected = FUNC[transform](theirs, *leaves)
    assert not engine_calls
    torch.testing.assert_close(FUNC[transform](ours, *leaves), expected)
    assert engine_calls


def test_gradients_per_sample() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    x = torch.randn(4, 2, 3, 3, 3)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def per_sample(module: Any) -> Any:
        return vmap(
            grad(lambda p, one: functional_call(module, p, one[None]).square().sum()), in_dims=(None, 0)
        )(parameters, x)  # fmt: skip

    torch.testing.assert_close(per_sample(layer), per_sample(other))


# Compilers and exporters.


class Decoder(torch.nn.Module):
    """Two layers with something between them."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.up, self.out = kind(3, 4, 3, stride=2, padding=1, output_padding=1), kind(4, 2, (2, 3, 1), groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.up(x)))


def decoders() -> tuple[Decoder, Decoder]:
    mine, other = Decoder(face.ConvTranspose3d), Decoder(torch.nn.ConvTranspose3d)
    other.load_state_dict(mine.state_dict())
    return mine, other


@pytest.fixture
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_whole_graphs(backend: str, engine_calls: list[str]) -> None:
    mine, other = decoders()
    compiled = torch.compile(mine, fullgraph=True, backend=backend)
    for memory_format in (torch.contiguous_format, CHANNELS_LAST):
        x = torch.randn(2, 3, 4, 5, 3).to(memory_format=memory_format).requires_grad_()
        grads = []
        for module in (compiled, other):
            y = module(x)
            grads.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    assert set(engine_calls) == {"forward_at", "input_grad_at", "weight_grad_at"}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_for_all_shapes_at_once() -> None:
    mine, other = decoders()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(mine, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((2, 3, 4, 5, 6), (3, 3, 2, 7, 4), (5, 3, 6, 3, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), other(x))
    assert len(graphs) == 1


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_what_is_called_otherwise() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    x = torch.randn(1, 2, 3, 4, 5)
    calls: list[Callable[[Any], Any]] = [
        lambda module: module(x[0]),
        lambda module: module(x, output_size=[8, 9, 12]),
        lambda module: module(x.double().to(torch.complex64).real),
        lambda module: module(x.to(torch.float32)),
    ]
    for call in calls:
        torch.testing.assert_close(torch.compile(call, fullgraph=True, backend="aot_eager")(layer), call(other))
    assert torch.compile(ours, fullgraph=True, backend="aot_eager")(*operands()).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        assert torch.compile(other, fullgraph=True, backend="aot_eager")(x).dtype == y.dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        torch.compile(layer, backend="aot_eager")(torch.randn(1, 5, 3, 3, 3))


@pytest.mark.usefixtures("fresh_compiler")
def test_what_the_engine_lacks_compiles_to_pytorchs_operator() -> None:
    layer, other = pair(2, 3, 2, dtype=torch.complex64)
    x = torch.randn(1, 2, 3, 3, 3, dtype=torch.complex64)
    targets: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend=backend)(x), other(x))
    assert len(targets) == 1
    assert "tconv3d" not in targets[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_exporting_saving_and_loading(strict: bool, tmp_path: Path) -> None:
    mine, other = decoders()
    sizes = {2 + i: torch.export.Dim(name, min=2, max=64) for i, name in enumerate(("depth", "height", "width"))}
    program = torch.export.export(mine, (torch.randn(2, 3, 4, 5, 6),), dynamic_shapes=(sizes,), strict=strict)
    torch.export.save(program, tmp_path / "decoder.pt2")
    loaded = torch.export.load(tmp_path / "decoder.pt2").module()
    targets = {str(node.target) for node in program.graph.nodes}
    assert "tconv3d.conv_transpose3d.default" in targets
    for shape in ((2, 3, 4, 5, 6), (2, 3, 2, 7, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x), other(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_holds_pytorchs_operator(how: str) -> None:
    mine, other = decoders()
    mine(torch.randn(2, 3, 4, 4, 4))  # what a call leaves behind must not disturb
    module = torch.jit.script(mine) if how == "script" else torch.jit.trace(mine, torch.randn(2, 3, 4, 5, 6))
    file = io.BytesIO()
    torch.jit.save(module, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    assert "tconv3d::" not in str(loaded.inlined_graph)
    x = torch.randn(1, 3, 3, 6, 2)
    torch.testing.assert_close(loaded(x), other(x))
    assert isinstance(mine.up, face.ConvTranspose3d)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripting_single_layers() -> None:
    layer, other = pair(2, 3, 3, stride=2, padding=1)
    x = torch.randn(1, 2, 3, 3, 3)
    scripted = torch.jit.script(layer)
    torch.testing.assert_close(scripted(x, [6, 5, 6]), other(x, [6, 5, 6]))
    cropped = face.Conv3dTranspose(2, 3, 4, stride=3, has_bias=True)
    torch.testing.assert_close(torch.jit.script(cropped)(x), cropped(x))


def test_fx_records_our_function(engine_calls: list[str]) -> None:
    mine, other = decoders()
    graph = torch.fx.symbolic_trace(mine)
    assert "tconv3d_torch_functional" in graph.code
    x = torch.randn(1, 3, 3, 6, 2)
    for module in (graph, copy.deepcopy(graph)):
        torch.testing.assert_close(module(x), other(x))
    assert len(engine_calls) == 4

    class Resized(torch.nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x, output_size=[8, 8, 7])

    layer, other = pair(2, 3, 3, stride=2)
    x = torch.randn(1, 2, 3, 3, 3)
    torch.testing.assert_close(torch.fx.symbolic_trace(Resized(layer))(x), other(x, [8, 8, 7]))
    cropped = face.Conv3dTranspose(2, 3, 4, stride=3, has_bias=True)
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(cropped))
    for size in (2, 3):
        x = torch.randn(1, 2, size, 3, 3)
        assert torch.equal(graph(x), cropped(x))


# ONNX.


def run_onnx(program: Any, path: Path, x: Tensor) -> tuple[list[Any], np.ndarray]:
    """The nodes of a saved model, and what onnxruntime makes of it."""
    import onnx
    import onnxruntime

    if program is not None:
        program.save(path)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return list(model.graph.node), session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def attributes(node: Any) -> dict[str, list[int]]:
    return {attribute.name: list(attribute.ints) or attribute.i for attribute in node.attribute}


ONNX_LAYERS: list[tuple[Callable[[], torch.nn.Module], dict[str, Any]]] = [
    (lambda: face.ConvTranspose3d(4, 6, (3, 2, 4), 2, (1, 0, 1), 1, 2), {"pads": [1, 0, 1, 0, -1, 0]}),
    (lambda: face.ConvTranspose3d(4, 2, 3, 2, 1, dilation=(1, 2, 1), bias=False), {"pads": [1, 1, 1, 1, 1, 1]}),
    (lambda: face.Conv3dTranspose(4, 3, 4, has_bias=True, bias_init="ones"), {"pads": [1, 1, 1, 2, 2, 2]}),
    (lambda: face.Conv3dTranspose(4, 3, 2, stride=4), {"output_padding": [2, 2, 2]}),
    (lambda: face.Conv3dTranspose(4, 3, 5, 2, "pad", (0, 3, 2, 0, 1, 4)), {"pads": [0, 2, 1, 3, 0, 4]}),
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("case", range(len(ONNX_LAYERS)))
def test_onnx_export_is_one_plain_node(case: int, dynamo: bool, tmp_path: Path) -> None:
    make, expected = ONNX_LAYERS[case]
    layer = make().eval()
    x, path = torch.randn(2, 4, 3, 4, 5), tmp_path / "layer.onnx"
    program = torch.onnx.export(layer, (x,), None if dynamo else path, dynamo=dynamo, verbose=False)
    nodes, y = run_onnx(program, path, x)
    assert [(node.op_type, node.domain) for node in nodes] == [("ConvTranspose", "")]
    np.testing.assert_allclose(y, layer(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    for name, value in expected.items():
        if min(value) >= 0:
            assert attributes(nodes[0])[name] == value


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_export_with_dynamic_shapes_and_of_exported_programs(tmp_path: Path) -> None:
    mine, other = decoders()
    x = torch.randn(2, 3, 4, 5, 6)
    sizes = {2 + i: torch.export.Dim(name, min=2, max=64) for i, name in enumerate(("depth", "height", "width"))}
    program = torch.export.export(mine.eval(), (x,), dynamic_shapes=(sizes,))
    fresh = torch.randn(2, 3, 3, 7, 4)
    exports = (
        torch.onnx.export(mine, (x,), dynamo=True, dynamic_shapes=(sizes,), verbose=False),
        torch.onnx.export(program, dynamo=True, verbose=False),
    )
    for i, export in enumerate(exports):
        nodes, y = run_onnx(export, tmp_path / f"{i}.onnx", fresh)
        assert [node.op_type for node in nodes] == ["ConvTranspose", "Relu", "ConvTranspose"]
        np.testing.assert_allclose(y, other(fresh).detach().numpy(), rtol=1e-4, atol=1e-5)


# Modes.


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
def test_autocast_as_pytorch_does(lower: torch.dtype, engine_calls: list[str]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        layer, other = pair(2, 3, 3, stride=2, dtype=dtype)
        x = torch.randn(2, 2, 3, 4, 5, dtype=dtype, requires_grad=True)
        grads = []
        for module in (layer, other):
            module.zero_grad()
            with torch.autocast("cpu", dtype=lower):
                y = module(x)
            y.float().square().sum().backward()
            grads.append((y, *(p.grad for p in module.parameters())))
        for mine, expected in zip(*grads, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0.05, atol=0.2)
    assert engine_calls


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("how", ["eager", "compiled", "mapped"])
def test_autocast_through_several_layers(how: str, engine_calls: list[str]) -> None:
    """From the second layer on, inputs are in the lower precision and weights are not."""
    mine, other = decoders()
    x = torch.randn(2, 3, 4, 5, 6)
    module: Callable[[Tensor], Tensor] = {
        "eager": lambda x: mine(x),
        "compiled": torch.compile(mine, fullgraph=True, backend="aot_eager"),
        "mapped": lambda x: vmap(mine)(x[None])[0],
    }[how]
    cropped = face.Conv3dTranspose(2, 2, 4, has_bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        y, expected = module(x), other(x)
        z = cropped(y)
    assert y.dtype == z.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(z.float(), cropped(y.float()), rtol=0.05, atol=0.02)
    assert engine_calls[:3] == ["forward_at"] * 3


def test_output_sizes_are_resolved_once() -> None:
    layer = face.ConvTranspose3d(2, 3, 3, stride=2)
    x = torch.randn(1, 2, 3, 3, 3)
    before = face.functional._kept_calls.cache_info().misses
    for _ in range(3):
        layer(x, output_size=[8, 7, 8])
    assert face.functional._kept_calls.cache_info().misses <= before + 1


def test_autocast_of_a_frozen_layer() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    face.freeze(layer)
    x = torch.randn(2, 2, 3, 4, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(x), other(x), rtol=0.02, atol=0.02)
    assert torch.equal(layer(x), face.functional.conv_transpose3d(x, layer.weight, layer.bias, 2))


def test_the_flop_counter_counts_as_for_pytorch() -> None:
    for arguments in ((4, 6, 3, 2, 1, 1), (4, 6, (3, 2, 1), 1, 0, 0, 2)):
        counts = []
        for module in pair(*arguments):
            with FlopCounterMode(display=False) as counter:
                module(torch.randn(2, 4, 3, 4, 5, requires_grad=True)).sum().backward()
            counts.append(counter.get_total_flops())
        assert counts[0] == counts[1] > 0


def test_fake_and_meta_tensors() -> None:
    layer, other = pair(2, 3, 3, stride=2)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for memory_format in (torch.contiguous_format, CHANNELS_LAST):
            x = mode.from_tensor(torch.randn(2, 2, 3, 4, 5).to(memory_format=memory_format))
            y = layer(x)
            assert y.shape == other(x).shape
            assert y.is_contiguous(memory_format=memory_format)
        with pytest.raises(RuntimeError, match="channels"):
            layer(mode.from_tensor(torch.randn(2, 3, 3, 4, 5)))
    layer, other = layer.to("meta"), other.to("meta")
    x = torch.empty(2, 2, 3, 4, 5, device="meta")
    for each in (x, x[0]):
        y = layer(each)
        assert (y.is_meta, y.shape) == (True, other(each).shape)
        y.sum().backward()
    with torch.device("meta"):
        assert face.Conv3dTranspose(2, 3, 4)(torch.empty(1, 2, 3, 3, 3)).shape == (1, 3, 3, 3, 3)


@pytest.mark.cuda
def test_cuda_goes_to_pytorchs_operator() -> None:
    layer, other = (module.cuda() for module in pair(4, 6, 3, 2, 1, 1, 2))
    x = torch.randn(2, 4, 3, 4, 5, device="cuda", requires_grad=True)
    for module in (layer, other):
        module.zero_grad()
        module(x).square().sum().backward()
    torch.testing.assert_close(layer(x), other(x))
    torch.testing.assert_close([p.grad for p in layer.parameters()], [p.grad for p in other.parameters()])
    cropped = face.Conv3dTranspose(4, 6, 4)
    expected = cropped(x.detach().cpu())
    torch.testing.assert_close(cropped.cuda()(x).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_deterministic_algorithms() -> None:
    layer, other = pair(4, 4, 3, stride=2)
    x = torch.randn(3, 4, 5, 5, 5)
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(3):
            layer.zero_grad()
            y = layer(x)
            y.square().sum().backward()
            runs.append([y.detach(), layer.weight.grad, layer.bias.grad])
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
        torch.testing.assert_close(layer(x), other(x))
    finally:
        torch.use_deterministic_algorithms(False)


class Loud(torch.Tensor):
    """A subclass that leaves everything to PyTorch."""


class Wrapped(torch.Tensor):
    """A subclass that sees each call, as MONAI's MetaTensor does."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Loud, Wrapped])
def test_subclasses_keep_their_type_and_reach_the_engine(kind: type[Tensor], engine_calls: list[str]) -> None:
    layer, other = pair(2, 3, 2)
    x = torch.randn(1, 2, 3, 3, 3).as_subclass(kind)
    for result in (layer(x), face.functional.conv_transpose3d(x, layer.weight, layer.bias)):
        assert type(result) is kind
        torch.testing.assert_close(result.as_subclass(Tensor), other(x).as_subclass(Tensor))
    cropped = face.Conv3dTranspose(2, 3, 4)
    assert type(cropped(x)) is kind
    face.freeze(layer)
    expected = layer(x)
    layer.weight.data.zero_()  # unseen by design: the packed weights are in use
    assert torch.equal(layer(x).as_subclass(Tensor), expected.as_subclass(Tensor))
    assert len(engine_calls) == 5


def test_default_devices_keep_the_engine(engine_calls: list[str]) -> None:
    layer, other = pair(2, 3, 2)
    x = torch.randn(1, 2, 3, 3, 3)
    with torch.device("cpu"):
        torch.testing.assert_close(layer(x), other(x))
    assert engine_calls
    with torch.device("meta"):
        layer(x).sum().backward()
    assert not layer.weight.grad.is_meta


def test_dispatch_modes_see_one_operator() -> None:
    seen = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    layer, other = pair(2, 3, 2)
    x = torch.randn(1, 2, 3, 3, 3)
    with Recorder(), torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y, other(x))
    assert seen == ["tconv3d.conv_transpose3d.default"]


# Several threads and processes.


@pytest.mark.parametrize("is_frozen", [False, True])
def test_three_threads_call_one_module_while_a_fourth_trains(is_frozen: bool) -> None:
    mine, other = decoders()
    if is_frozen:
        face.freeze(mine)
    inputs = [torch.randn(1, 3, 4 + i % 3, 5, 4) for i in range(12)]
    expected = [other(x).detach() for x in inputs]
    failures: list[str] = []

    def call(indices: list[int]) -> None:
        with torch.no_grad():
            for _, i in itertools.product(range(10), indices):
                if not torch.allclose(mine(inputs[i]), expected[i], rtol=1e-4, atol=1e-5):
                    failures.append(f"input {i}")

    trained, reference = decoders()
    optimizers = [torch.optim.SGD(module.parameters(), lr=1e-3) for module in (trained, reference)]

    def train(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for x in inputs * 3:
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()

    threads = [threading.Thread(target=call, args=(list(range(i, 12, 3)),), daemon=True) for i in range(3)]
    threads.append(threading.Thread(target=train, args=(trained, optimizers[0]), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not failures
    train(reference, optimizers[1])
    torch.testing.assert_close(list(trained.parameters()), list(reference.parameters()), rtol=1e-4, atol=1e-5)


class Upsampled(torch.utils.data.Dataset):
    """Items that a layer computes in the worker."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.layer(torch.full((2, 4, 4, 4), float(index)))


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one processor
def test_forked_workers_after_the_parent_used_the_layer() -> None:
    layer = face.ConvTranspose3d(2, 3, 3, stride=2)
    dataset = Upsampled(layer)
    expected = torch.stack([dataset[i] for i in range(6)])
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=6, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    (items,) = list(loader)
    assert torch.equal(items, expected)


def train_in_parallel(rank: int, rendezvous: str, queue: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    try:
        grads = []
        for module in parallel_modules():
            parallel = torch.nn.parallel.DistributedDataParallel(module)
            parallel(parallel_input()[rank : rank + 1]).square().sum().backward()
            grads.append([parameter.grad.numpy() for parameter in module.parameters()])
        queue.put((rank, grads))
    finally:
        torch.distributed.destroy_process_group()


def parallel_input() -> Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 4 * 4 * 4).view(2, 3, 4, 4, 4)


def parallel_modules() -> tuple[Decoder, Decoder]:
    torch.manual_seed(1)
    return decoders()


def test_distributed_data_parallel(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [
        context.Process(target=train_in_parallel, args=(rank, str(tmp_path / "rendezvous"), queue), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    results = dict(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    module = parallel_modules()[1]
    module(parallel_input()).square().sum().backward()
    expected = [parameter.grad.numpy() / 2 for parameter in module.parameters()]
    for rank, kind in itertools.product(range(2), range(2)):
        for grad_, other in zip(results[rank][kind], expected, strict=True):
            np.testing.assert_allclose(grad_, other, rtol=1e-4, atol=1e-5)
