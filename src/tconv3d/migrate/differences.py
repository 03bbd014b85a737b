# SPDX-License-Identifier: Apache-2.0
"""The differences between the two contracts that change what one given call does, each as a sentence or two.

A rule is a function from a Layer to its sentence, or to None where the call is not affected. `differences` runs them
all.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..geometry import Triple, same_size
from . import initial_weights
from .equal import to_mindspore, to_pytorch
from .layer import Layer
from .signature import MINDSPORE_PARAMETERS, PYTORCH_PARAMETERS

_SAME_POSITIONS = 4
_LARGEST_KERNEL_VOLUME = 343
_LARGEST_DEPTH_STRIDE = 256
_SIZES = ("kernel_size", "stride", "padding", "output_padding", "dilation")


def differences(layer: Layer) -> list[str]:
    """Every sentence that applies to this call; those about shapes and values come first."""
    rules = _FROM_PYTORCH if layer.call.is_pytorch else _FROM_MINDSPORE
    sentences = (rule(layer) for rule in (*rules, *_BOTH_WAYS))
    return [sentence for sentence in sentences if sentence]


# A PyTorch call on its way to MindSpore.


def _shape_of_same_but_other_values(layer: Layer) -> str | None:
    g = layer.geometry
    crop, size = _same(layer)
    if g.output_size != size or g.crop_front == crop:
        return None
    equal = to_pytorch(replace(g, crop_front=crop))
    paddings = ", ".join(f"{name}={equal.geometry_arguments.get(name, 0)!r}" for name in ("padding", "output_padding"))
    drop = f" and then y{equal.slice_text}" if equal.slice_text else ""
    return (
        "MindSpore's default, pad_mode='same', has the output shape of this call but not its values: this call cuts"
        f" {g.crop_front} samples in front, 'same' cuts {crop}; all-ones data can hide it. The true equal of 'same' is"
        f" {paddings}{drop}."
    )


def _default_pad_mode(layer: Layer) -> str | None:
    size = _same(layer)[1]
    if layer.geometry.output_size == size:
        return None
    return f"Write pad_mode: MindSpore's default 'same' gives spatial size {size}, not {layer.geometry.output_size}."


def _output_size_argument(layer: Layer) -> str | None:
    if layer.output_size is None:
        return None
    return (
        "output_size exists in PyTorch alone. It replaces output_padding at the call, so the equal call holds for this"
        " input size only."
    )


def _unbatched(layer: Layer) -> str | None:
    if len(layer.input_shape) == 5:
        return None
    return "MindSpore refuses an input without a batch axis (ValueError): pass x[None] and take [0] of the result."


def _sizes_mindspore_refuses(layer: Layer) -> str | None:
    refused = [name for name in _SIZES if not _is_mindspore_size(name, layer.call.arguments.get(name, 1))]
    if not refused:
        return None
    return (
        "MindSpore takes a size as an int or a tuple of three ints (padding: of six), and refuses as written here:"
        f" {', '.join(refused)}."
    )


def _is_mindspore_size(name: str, value: object) -> bool:
    length = 6 if name == "padding" else 3
    entries = value if isinstance(value, tuple) else (value,) * length
    return len(entries) == length and all(type(entry) is int for entry in entries)


def _bias_that_is_no_bool(layer: Layer) -> str | None:
    bias = layer.call.arguments.get("bias", True)
    if isinstance(bias, bool):
        return None
    return f"bias={bias!r} counts as {bool(bias)} in PyTorch; MindSpore's has_bias must be a bool (TypeError)."


def _dtype_mindspore_refuses(layer: Layer) -> str | None:
    if layer.call.dtype in ("float16", "float32"):
        return None
    return f"MindSpore computes float16 and float32 alone and refuses {layer.call.dtype} at the call (TypeError)."


def _device(layer: Layer) -> str | None:
    return "The device argument exists in PyTorch alone." if "device" in layer.call.arguments else None


def _bias_default_of_pytorch(layer: Layer) -> str | None:
    if "bias" in layer.call.arguments:
        return None
    return "bias is not written: on by default in PyTorch, off in MindSpore."


# A MindSpore call on its way to PyTorch.


def _odd_total_of_same(layer: Layer) -> str | None:
    g = layer.geometry
    if _pad_mode(layer) != "same" or not any(to_pytorch(g).drop_back):
        return None
    return (
        "'same' cuts an odd total here and takes the odd sample from the back; PyTorch's padding is symmetric, so its"
        " last sample must be dropped. One more padding with output_padding=1 has the right shape and values shifted by"
        " one sample."
    )


def _recipe_of_the_comparison_page(layer: Layer) -> str | None:
    g = layer.geometry
    recipe = tuple((k - 1) // 2 for k in g.kernel_size)
    odd = all(k % 2 for k in g.kernel_size)
    if _pad_mode(layer) != "same" or not odd or g.dilation != (1, 1, 1) or recipe == g.crop_front:
        return None
    return (
        "padding=(kernel_size-1)//2 with output_padding=stride-1, often given as equal to 'same', has the right shape"
        f" but cuts {recipe} samples in front instead of {g.crop_front}: other values."
    )


def _kernel_smaller_than_stride(layer: Layer) -> str | None:
    g = layer.geometry
    mode = _pad_mode(layer)
    if mode == "pad" or all(e >= s for e, s in zip(g.effective_kernel, g.stride, strict=True)):
        return None
    return (
        f"The kernel is smaller than the stride, so {mode!r} appends zeros at the back (then adds the bias); PyTorch"
        " needs output_padding=stride-kernel for them, its default stops at the last sample."
    )


def _asymmetric_padding(layer: Layer) -> str | None:
    padding = layer.call.arguments.get("padding", 0)
    if not isinstance(padding, tuple):
        return None
    if padding[::2] == padding[1::2]:
        return "PyTorch refuses a padding of six entries (at forward, RuntimeError): one entry per axis there."
    return (
        "The padding is asymmetric: PyTorch knows one padding per axis, so output_padding or a slice must make up for"
        " the difference; tconv3d.conv_transpose3d takes all six."
    )


def _pad_mode_default(layer: Layer) -> str | None:
    if "pad_mode" in layer.call.arguments:
        return None
    g = layer.geometry
    return (
        f"pad_mode is not written: 'same' by default, spatial size {g.output_size}. PyTorch with the same words cuts"
        f" nothing and gives {g.full_size}."
    )


def _sizes_pytorch_refuses(layer: Layer) -> str | None:
    if 0 in layer.geometry.input_size and layer.batch:
        return "PyTorch refuses an input with a spatial size of zero (RuntimeError)."
    if 0 in layer.geometry.output_size:
        return "PyTorch refuses an output size of zero (RuntimeError)."
    return None


def _bias_default_of_mindspore(layer: Layer) -> str | None:
    if "has_bias" in layer.call.arguments:
        return None
    return "has_bias is not written: off by default in MindSpore, bias is on by default in PyTorch."


def _data_format(layer: Layer) -> str | None:
    return "data_format exists in MindSpore alone." if "data_format" in layer.call.arguments else None


def _pad_mode(layer: Layer) -> str:
    return str(layer.call.arguments.get("pad_mode", "same")).lower()


# Either way.


def _kernel_volume(layer: Layer) -> str | None:
    volume = math.prod(layer.geometry.kernel_size)
    if volume <= _LARGEST_KERNEL_VOLUME:
        return None
    return _back_end_limit(f"kernels of more than {_LARGEST_KERNEL_VOLUME} taps, here {volume} (ValueError)")


def _depth_dilation(layer: Layer) -> str | None:
    depth = layer.geometry.dilation[0]
    return None if depth == 1 else _back_end_limit(f"a depth dilation other than 1, here {depth} (ValueError)")


def _depth_stride(layer: Layer) -> str | None:
    depth = layer.geometry.stride[0]
    if depth <= _LARGEST_DEPTH_STRIDE:
        return None
    return _back_end_limit(f"a depth stride above {_LARGEST_DEPTH_STRIDE}, here {depth} (ValueError)")


def _output_padding_beyond_stride(layer: Layer) -> str | None:
    arguments = to_mindspore(layer.geometry).geometry_arguments if layer.call.is_pytorch else layer.call.arguments
    value = arguments.get("output_padding", 0)
    entries = value if isinstance(value, tuple) else (value,) * 3
    if all(entry < s for entry, s in zip(entries, layer.geometry.stride, strict=True)):
        return None
    return _back_end_limit("an output_padding of the stride or more on CPU (RuntimeError)")


def _back_end_limit(what: str) -> str:
    return f"MindSpore refuses {what}; tconv3d.Conv3dTranspose computes it."


def _groups(layer: Layer) -> str | None:
    if layer.geometry.groups == 1:
        return None
    return "MindSpore 2.10 takes groups on CPU; r2.0.0-alpha, and Ascend in every release, take group=1 alone."


def _float16_gradient(layer: Layer) -> str | None:
    if layer.call.dtype != "float16":
        return None
    return "The gradient of a float16 weight is float32 in MindSpore, float16 in PyTorch."


def _positions(layer: Layer) -> str | None:
    if layer.call.positional <= _SAME_POSITIONS:
        return None
    other = MINDSPORE_PARAMETERS if layer.call.is_pytorch else PYTORCH_PARAMETERS
    moved = slice(_SAME_POSITIONS, layer.call.positional)
    pairs = zip(layer.call.parameters[moved], (*other, "nothing", "nothing")[moved], strict=True)
    changes = ", ".join(f"{mine} -> {theirs}" for mine, theirs in pairs)
    return f"Arguments from the fifth on mean something else in the other contract when given by position: {changes}."


def _fresh_values(layer: Layer) -> str | None:
    return (initial_weights.from_pytorch if layer.call.is_pytorch else initial_weights.from_mindspore)(layer)


def _same(layer: Layer) -> tuple[Triple, Triple]:
    """(samples cut in front, output size) of pad_mode='same'."""
    g = layer.geometry
    return same_size(g.input_size, g.effective_kernel, g.stride)


_FROM_PYTORCH = (
    _shape_of_same_but_other_values,
    _default_pad_mode,
    _output_size_argument,
    _unbatched,
    _sizes_mindspore_refuses,
    _bias_that_is_no_bool,
    _dtype_mindspore_refuses,
    _device,
    _bias_default_of_pytorch,
)
_FROM_MINDSPORE = (
    _odd_total_of_same,
    _recipe_of_the_comparison_page,
    _kernel_smaller_than_stride,
    _asymmetric_padding,
    _pad_mode_default,
    _sizes_pytorch_refuses,
    _data_format,
    _bias_default_of_mindspore,
)
_BOTH_WAYS = (
    _kernel_volume,
    _depth_dilation,
    _depth_stride,
    _output_padding_beyond_stride,
    _groups,
    _float16_gradient,
    _positions,
    _fresh_values,
)
