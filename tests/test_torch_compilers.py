# SPDX-License-Identifier: Apache-2.0
"""The PyTorch face under torch.compile, torch.export, TorchScript, torch.fx and ONNX export."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_support import CHANNELS_LAST, decoders, operands, ours, pair

import tconv3d.torch as face


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
    assert set(engine_calls) == {"forward", "input_grad", "weight_grad"}


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
def test_compiling_for_all_shapes_keeps_channels_last() -> None:
    mine, other = pair(8, 6, 3, stride=2, padding=1)
    compiled = torch.compile(mine, fullgraph=True, dynamic=True)
    for shape in ((2, 8, 3, 4, 5), (1, 8, 5, 3, 4)):
        x = torch.randn(shape).to(memory_format=CHANNELS_LAST).requires_grad_()
        grads = []
        for module in (compiled, other):
            y = module(x)
            grads.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
        assert compiled(x).is_contiguous(memory_format=CHANNELS_LAST)
    # What the compiler is told, which decides about code behind the layer.
    last = torch.compile(lambda x: mine(x).is_contiguous(memory_format=CHANNELS_LAST), dynamic=True, backend="eager")
    assert last(torch.randn(2, 8, 3, 4, 5).to(memory_format=CHANNELS_LAST))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiling_calls_with_output_sizes_of_several_inputs() -> None:
    mine, other = pair(4, 3, 3, stride=2)
    compiled = torch.compile(mine, fullgraph=True, backend="aot_eager")
    for shape, size in (((2, 4, 3, 4, 5), [8, 10, 12]), ((2, 4, 4, 4, 5), [10, 10, 12]), ((2, 4, 5, 3, 2), [11, 8, 5])):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x, output_size=size), other(x, output_size=size))


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
