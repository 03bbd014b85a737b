# SPDX-License-Identifier: Apache-2.0
"""What is timed. An engine turns a layer and its operands into a call; each call allocates its own output.

A call returns what it computed, so that it can be checked: the output, and in a training step also the gradients of
input, weight and bias. Frameworks are imported by the engine that needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..functional import (
    conv_transpose3d,
    conv_transpose3d_input_grad,
    conv_transpose3d_weight_grad,
    prepare,
    run_bias_grad,
)
from ..geometry import Geometry
from ..migrate.equal import to_pytorch
from .workload import Operands, Workload

Array = NDArray[Any]
Results = tuple[Array, ...]
Call = Callable[[], Results]
Engine = Callable[[Workload, Operands, int], Call]


class Refused(Exception):
    """The engine does not take this layer."""


def _tconv3d(layer: Workload, data: Operands, threads: int) -> Call:
    g, options, bias = layer.geometry, layer.arguments, data.bias if layer.bias else None
    prepared = prepare(data.weight, g.stride, g.dilation, g.groups)
    return lambda: (conv_transpose3d(data.x, prepared, bias, **options),)


def _tconv3d_live(layer: Workload, data: Operands, threads: int) -> Call:
    options, bias = layer.arguments, data.bias if layer.bias else None
    return lambda: (conv_transpose3d(data.x, data.weight, bias, **options),)


def _torch(layer: Workload, data: Operands, threads: int, channels_last: bool = False) -> Call:
    torch = import_module("torch")
    x, module, cut = _torch_layer(layer, data, channels_last)

    def call() -> Results:
        with torch.no_grad():
            return (_array(module(x)[cut]),)

    return call


def _onnxruntime(layer: Workload, data: Operands, threads: int) -> Call:
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = _onnx_model(layer, data)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: (session.run(None, {"x": data.x})[0],)


def _openvino(layer: Workload, data: Operands, threads: int) -> Call:
    """OpenVINO hands out one output buffer again and again, as its users have it."""
    openvino = import_module("openvino")
    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(_onnx_model(layer, data)), "CPU", options).create_infer_request()
    request.set_input_tensor(openvino.Tensor(data.x, shared_memory=True))

    def call() -> Results:
        request.infer()
        return (request.get_output_tensor(0).data,)

    return call


def _mindspore(layer: Workload, data: Operands, threads: int) -> Call:
    if layer.dtype not in ("float16", "float32"):
        raise Refused(f"it has no {layer.dtype}")
    mindspore = import_module("mindspore")
    try:
        cell = mindspore.nn.Conv3dTranspose(
            layer.in_channels,
            layer.out_channels,
            **_mindspore_arguments(layer.geometry),
            has_bias=layer.bias,
            weight_init=mindspore.Tensor(data.weight),
            bias_init=mindspore.Tensor(data.bias) if layer.bias else "zeros",
            dtype=getattr(mindspore, layer.dtype),
        )
    except ValueError as error:
        raise Refused(str(error).splitlines()[0]) from error
    x = mindspore.Tensor(data.x)
    return lambda: (cell(x).asnumpy(),)


def _train_tconv3d(layer: Workload, data: Operands, threads: int) -> Call:
    options, bias = layer.arguments, data.bias if layer.bias else None

    def call() -> Results:
        y = conv_transpose3d(data.x, data.weight, bias, **options)
        grad_x = conv_transpose3d_input_grad(data.grad, data.weight, data.x.shape, **options)
        grad_weight = conv_transpose3d_weight_grad(data.x, data.grad, data.weight.shape, **options)
        return (y, grad_x, grad_weight, *([run_bias_grad(data.grad)] if layer.bias else []))

    return call


def _train_torch(layer: Workload, data: Operands, threads: int, channels_last: bool = False) -> Call:
    torch = import_module("torch")
    x, module, cut = _torch_layer(layer, data, channels_last)
    x = x.detach().requires_grad_()
    grad = _tensor(data.grad)
    if channels_last:
        grad = grad.to(memory_format=torch.channels_last_3d)
    parameters = [module.weight, *([module.bias] if layer.bias else [])]

    def call() -> Results:
        for tensor in (x, *parameters):
            tensor.grad = None
        y = module(x)[cut]
        y.backward(grad)
        return tuple(_array(tensor.detach()) for tensor in (y, x.grad, *(p.grad for p in parameters)))

    return call


def _torch_layer(layer: Workload, data: Operands, channels_last: bool) -> tuple[Any, Any, Any]:
    """Input, module, and the index that cuts its output where PyTorch's symmetric padding cannot."""
    torch = import_module("torch")
    equal = to_pytorch(layer.geometry)
    options: dict[str, Any] = equal.geometry_arguments
    dtype = getattr(torch, layer.dtype)
    module = torch.nn.ConvTranspose3d(layer.in_channels, layer.out_channels, **options, bias=layer.bias, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(_tensor(data.weight))
        if layer.bias:
            module.bias.copy_(_tensor(data.bias))
    x = _tensor(data.x)
    if channels_last:
        x, module = (each.to(memory_format=torch.channels_last_3d) for each in (x, module))
    sides = zip(equal.drop_front, equal.drop_back, strict=True)
    return x, module, (..., *(slice(front or None, -back or None) for front, back in sides))


def _tensor(array: Array) -> Any:
    """The same memory as a tensor; bfloat16, which torch does not take from NumPy, by its bits."""
    torch = import_module("torch")
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Any) -> Array:
    """The same memory as an array; bfloat16 as float32, in which it is exact."""
    array: Array = (tensor.float() if tensor.dtype.itemsize == 2 and "bfloat" in str(tensor.dtype) else tensor).numpy()
    return array


def _mindspore_arguments(g: Geometry) -> dict[str, Any]:
    """Any window of the uncropped signal as a 'pad' call: what is cut on each side, or what follows behind."""
    sides = zip(g.crop_front, g.crop_back, strict=True)
    return {
        "kernel_size": g.kernel_size,
        "stride": g.stride,
        "pad_mode": "pad",
        "padding": tuple(side for front, back in sides for side in (front, max(0, back))),
        "output_padding": tuple(max(0, -back) for back in g.crop_back),
        "dilation": g.dilation,
        "group": g.groups,
    }


def _onnx_model(layer: Workload, data: Operands) -> bytes:
    if layer.dtype != "float32":
        raise Refused(f"raced in float32 alone, not in {layer.dtype}")
    onnx = import_module("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    g = layer.geometry
    inputs = {"weight": data.weight, **({"bias": data.bias} if layer.bias else {})}
    node = helper.make_node(
        "ConvTranspose",
        ["x", *inputs],
        ["y"],
        kernel_shape=g.kernel_size,
        strides=g.stride,
        # What is cut in front and behind; samples beyond the uncropped signal are output_padding there.
        pads=[*g.crop_front, *(max(0, back) for back in g.crop_back)],
        output_padding=[max(0, -back) for back in g.crop_back],
        dilations=g.dilation,
        group=g.groups,
    )
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", float32, layer.input_shape)],
        [helper.make_tensor_value_info("y", float32, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in inputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


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
LABELS = {
    "tconv3d": "tconv3d, weights prepared",
    "tconv3d_live": "tconv3d",
    "torch": "PyTorch",
    "torch_cl": "PyTorch, channels_last_3d",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "mindspore": "MindSpore",
}
_NEEDS = {
    "tconv3d": [],
    "tconv3d_live": [],
    "torch_cl": ["torch"],
    "onnxruntime": ["onnxruntime", "onnx"],
    "openvino": ["openvino", "onnx"],
}


def missing_packages(engine: str) -> list[str]:
    """Packages that the engine needs and this environment lacks."""
    return [name for name in _NEEDS.get(engine, [engine]) if find_spec(name) is None]
