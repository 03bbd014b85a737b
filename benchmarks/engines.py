# SPDX-License-Identifier: Apache-2.0
"""What is timed. An engine turns a layer and its operands into a call; each call allocates its own output.

A call returns what it computed, so that it can be checked: the output, and in a training step also the gradients of
input, weight and bias. Frameworks are imported by the engine that needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from workloads import Operands, Workload

Results = tuple[np.ndarray, ...]
Call = Callable[[], Results]
Engine = Callable[[Workload, Operands, int], Call]


class Refused(Exception):
    """The engine does not take this layer."""


def _tconv3d(layer: Workload, data: Operands, threads: int) -> Call:
    import tconv3d

    options = layer.arguments
    prepared = tconv3d.prepare(data.weight, options["stride"], options["dilation"], options["groups"])
    return lambda: (tconv3d.conv_transpose3d(data.x, prepared, data.bias, **options),)


def _tconv3d_live(layer: Workload, data: Operands, threads: int) -> Call:
    import tconv3d

    return lambda: (tconv3d.conv_transpose3d(data.x, data.weight, data.bias, **layer.arguments),)


def _torch(layer: Workload, data: Operands, threads: int, channels_last: bool = False) -> Call:
    import torch

    x, module = _torch_layer(layer, data, channels_last)

    def call() -> Results:
        with torch.no_grad():
            return (module(x).numpy(),)

    return call


def _onnxruntime(layer: Workload, data: Operands, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(_onnx_model(layer, data), options, providers=["CPUExecutionProvider"])
    return lambda: (session.run(None, {"x": data.x})[0],)


def _openvino(layer: Workload, data: Operands, threads: int) -> Call:
    """OpenVINO hands out one output buffer again and again, as its users have it."""
    import openvino

    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(_onnx_model(layer, data)), "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(data.x, shared_memory=True))

    def call() -> Results:
        request.infer()
        return (request.get_output_tensor(0).data,)

    return call


def _mindspore(layer: Workload, data: Operands, threads: int) -> Call:
    import mindspore

    options = layer.arguments
    try:
        cell = mindspore.nn.Conv3dTranspose(
            layer.in_channels,
            layer.out_channels,
            tuple(layer.kernel),
            stride=options["stride"],
            pad_mode="pad",
            padding=tuple(p for p in layer.padding for _ in ("front", "back")),
            dilation=options["dilation"],
            group=layer.groups,
            output_padding=options["output_padding"],
            has_bias=True,
            weight_init=mindspore.Tensor(data.weight),
            bias_init=mindspore.Tensor(data.bias),
        )
    except ValueError as error:
        raise Refused(str(error).splitlines()[0]) from error
    x = mindspore.Tensor(data.x)
    return lambda: (cell(x).asnumpy(),)


def _train_tconv3d(layer: Workload, data: Operands, threads: int) -> Call:
    import tconv3d

    module = tconv3d.ConvTranspose3d(layer.in_channels, layer.out_channels, tuple(layer.kernel), **layer.arguments)
    module.weight, module.bias = data.weight, data.bias

    def call() -> Results:
        y = module(data.x)
        grad_x = module.backward(data.grad)
        return y, grad_x, module.weight_grad, module.bias_grad

    return call


def _train_torch(layer: Workload, data: Operands, threads: int, channels_last: bool = False) -> Call:
    import torch

    x, module = _torch_layer(layer, data, channels_last)
    x = x.detach().requires_grad_()
    grad = torch.from_numpy(data.grad)
    if channels_last:
        grad = grad.to(memory_format=torch.channels_last_3d)

    def call() -> Results:
        x.grad = module.weight.grad = module.bias.grad = None
        y = module(x)
        y.backward(grad)
        return tuple(tensor.detach().numpy() for tensor in (y, x.grad, module.weight.grad, module.bias.grad))

    return call


def _torch_layer(layer: Workload, data: Operands, channels_last: bool) -> tuple[Any, Any]:
    import torch

    module = torch.nn.ConvTranspose3d(layer.in_channels, layer.out_channels, tuple(layer.kernel), **layer.arguments)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(data.weight))
        module.bias.copy_(torch.from_numpy(data.bias))
    x = torch.from_numpy(data.x)
    if channels_last:
        x, module = (each.to(memory_format=torch.channels_last_3d) for each in (x, module))
    return x, module


def _onnx_model(layer: Workload, data: Operands) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "ConvTranspose",
        ["x", "weight", "bias"],
        ["y"],
        kernel_shape=layer.kernel,
        strides=layer.stride,
        pads=layer.padding * 2,
        output_padding=layer.output_padding,
        dilations=layer.dilation,
        group=layer.groups,
    )
    graph = helper.make_graph(
        [node],
        layer.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, layer.input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(data.weight, "weight"), numpy_helper.from_array(data.bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def _channels_last(engine: Callable[..., Call]) -> Engine:
    return lambda layer, data, threads: engine(layer, data, threads, channels_last=True)


OURS = ("tconv3d", "tconv3d_live")
# tconv3d has its weight packed once by `prepare`, as inference engines have; tconv3d_live packs it in every call.
FORWARD: dict[str, Engine] = {
    "tconv3d": _tconv3d,
    "tconv3d_live": _tconv3d_live,
    "torch": _torch,
    "torch_cl": _channels_last(_torch),
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "mindspore": _mindspore,
}
TRAIN: dict[str, Engine] = {
    "tconv3d": _train_tconv3d,
    "torch": _train_torch,
    "torch_cl": _channels_last(_train_torch),
}
_NEEDS = {"torch_cl": ["torch"], "onnxruntime": ["onnxruntime", "onnx"], "openvino": ["openvino", "onnx"]}


def missing_packages(engine: str) -> list[str]:
    """Packages that the engine needs and this environment lacks."""
    return [name for name in _NEEDS.get(engine, [engine.removesuffix("_live")]) if find_spec(name) is None]
