# SPDX-License-Identifier: Apache-2.0
"""`tconv3d explain`: what one layer call does, and what it becomes in the other contract."""

from __future__ import annotations

import textwrap

from .._engine import active_instruction_set, describe_plan, describe_weight_grad, get_num_threads
from ..migrate.differences import differences
from ..migrate.equal import EqualCall, pad_modes, to_functional, to_mindspore, to_pytorch
from ..migrate.layer import Layer, resolve
from ..migrate.signature import SourceText, parse_layer, parse_shape
from . import _diagram, _overlap

_AXES = ("depth", "height", "width")
_WIDTH = 110
_PHASES_SHOWN = 9
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def run(layer: str, input_shape: str, output_size: str | None = None, plan: bool = False, overlap: bool = False) -> int:
    """Print the explanation of `layer` on an input of `input_shape`, all three as the user wrote them."""
    size = None if output_size is None else parse_shape(output_size)
    print(explain(layer, parse_shape(input_shape), size, plan, overlap))
    return 0


def explain(
    text: str,
    input_shape: tuple[int, ...],
    output_size: tuple[int, ...] | None = None,
    plan: bool = False,
    overlap: bool = False,
) -> str:
    """The whole explanation, with the engine's plans and the overlap of the kernels if asked.

    Raises CommandError for a text that is no layer call, or one that its contract refuses.
    """
    layer = resolve(parse_layer(text), input_shape, output_size)
    sections = [_cost(layer), _crop(layer), _equal(layer), _bites(layer)]
    if plan:
        sections.insert(1, _plan(layer))
    if overlap:
        sections.insert(-2, _overlap.draw(layer.geometry))
    return "\n\n".join("\n".join(lines) for lines in sections)


def _cost(layer: Layer) -> list[str]:
    contract = "PyTorch" if layer.call.is_pytorch else "MindSpore"
    work = layer.geometry.multiply_adds(layer.batch, layer.arguments.in_channels, layer.arguments.out_channels)
    tensors = {"input": layer.input_shape, "weight": layer.arguments.weight_shape, "output": layer.output_shape}
    memory = ", ".join(f"{name} {_size(layer.bytes_of(shape))}" for name, shape in tensors.items())
    bias = f", bias {(layer.arguments.out_channels,)}" if layer.bias else ", no bias"
    return [
        f"{layer.call.layer} of {contract}",
        f"  input          {layer.input_shape}",
        f"  output         {layer.output_shape}",
        f"  weight         {layer.arguments.weight_shape}{bias}",
        f"  multiply-adds  {work:,} that reach the output",
        f"  memory         {memory} ({layer.call.dtype})",
    ]


def _plan(layer: Layer) -> list[str]:
    """How the engine would run the call here: method, tiles, blocks, and the cycles its cost model expects."""
    lines = [f"Plan on {active_instruction_set()} with {get_num_threads()} threads"]
    shapes = (layer.batch, *layer.input_shape[-4:]), layer.arguments.weight_shape
    double = layer.call.dtype == "float64"
    plans = {
        "forward": describe_plan(*shapes, layer.geometry, double=double),
        "input gradient": describe_plan(*shapes, layer.geometry, double=double, backward=True),
        "weight gradient": describe_weight_grad(*shapes, layer.geometry, layer.call.dtype),
    }
    for name, text in plans.items():
        head, _, rest = text.partition(": ")
        lines += [f"  {name:<16}{head}", *(f"{'':18}{part}" for part in rest.split("; ") if part)]
    return lines


def _size(count: int) -> str:
    """Bytes in the unit that leaves one to four digits: 6912 -> '6.8 KiB'."""
    power = min(max(0, (count.bit_length() - 1) // 10), len(_UNITS) - 1)
    return f"{count / 1024**power:.3g} {_UNITS[power]}" if power else f"{count} B"


def _crop(layer: Layer) -> list[str]:
    g = layer.geometry
    crops = [_diagram.crop(*axis) for axis in zip(g.full_size, g.crop_front, g.output_size, strict=True)]
    drawings = [_diagram.draw(axis) for axis in crops]
    width = max(map(len, drawings))
    lines = [
        "Crop per axis, out of `full` with (input-1)*stride + dilation*(kernel-1) + 1 samples",
        f"          {_diagram.LEGEND}",
    ]
    for name, drawing, axis in zip(_AXES, drawings, crops, strict=True):
        lines.append(f"  {name:<8}{drawing:<{width}}  {_diagram.describe(axis)}")
    return [
        *lines,
        f"  taps of each output phase: {' x '.join(_taps(layer, axis) for axis in range(3))}",
    ]


def _taps(layer: Layer, axis: int) -> str:
    """The taps of each phase of one axis, such as '(2+1)': every output sample sees the taps of its phase alone."""
    counts = [str(len(taps)) for taps in layer.geometry.phases(axis)]
    shown = counts if len(counts) <= _PHASES_SHOWN else [*counts[:_PHASES_SHOWN], ".."]
    return f"({'+'.join(shown)})"


def _equal(layer: Layer) -> list[str]:
    equal = to_mindspore(layer.geometry) if layer.call.is_pytorch else to_pytorch(layer.geometry)
    lines = ["Equal call in " + ("MindSpore" if layer.call.is_pytorch else "PyTorch")]
    lines += [f"  net = {constructor_text(layer, equal)}", f"  y = {_use(layer, equal)}"]
    if layer.call.is_pytorch:
        modes = " and ".join(f"pad_mode={mode!r}" for mode in pad_modes(layer.geometry))
        return lines + ([f"  {modes} without padding says the same"] if modes else [])
    if equal.slice_text:
        lines += ["or, without the slice,", f"  y = {_functional(layer)}"]
    return lines


def constructor_text(layer: Layer, equal: EqualCall) -> str:
    """The other contract's constructor call; its bias and initial laws are written out, since the defaults differ."""
    arguments = dict(equal.geometry_arguments)
    if layer.call.is_pytorch:
        arguments |= {"has_bias": layer.bias, "weight_init": None} | ({"bias_init": None} if layer.bias else {})
    else:
        arguments["bias"] = layer.bias
    if "dtype" in layer.call.arguments:
        framework = "mindspore" if layer.call.is_pytorch else "torch"
        arguments["dtype"] = SourceText(f"{framework}.{layer.call.dtype}")
    name = "Conv3dTranspose" if layer.call.is_pytorch else "ConvTranspose3d"
    return f"nn.{name}({layer.arguments.in_channels}, {layer.arguments.out_channels}, {_keywords(arguments)})"


def _use(layer: Layer, equal: EqualCall) -> str:
    return "net(x[None])[0]" if len(layer.input_shape) == 4 else f"net(x){equal.slice_text}"


def _functional(layer: Layer) -> str:
    bias = "bias" if layer.bias else "None"
    return f"tconv3d.conv_transpose3d(x, weight, {bias}, {_keywords(to_functional(layer.geometry))})"


def _keywords(arguments: dict[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _bites(layer: Layer) -> list[str]:
    wrapped = (
        textwrap.fill(text, _WIDTH, initial_indent="  - ", subsequent_indent="    ") for text in differences(layer)
    )
    return ["Differences that bite this call", *wrapped]
