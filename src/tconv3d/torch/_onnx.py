# SPDX-License-Identifier: Apache-2.0
"""What ``torch.onnx.export`` makes of the library operator: one node ConvTranspose of ONNX's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ._kernels import forward_shape, output_size
from ._operators import conv_transpose3d

Sizes = Sequence[int]


def conv_transpose_node(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    """Return the node as the exporter over torch.export records it."""
    if not torch.onnx.is_in_onnx_export():  # fake tensors of symbolic sizes look for their shapes in the same table
        return forward_shape(input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    attributes = _attributes(weight.shape[2:], stride, dilation, crop_front, crop_back, groups)
    operands = (input, weight) if bias is None else (input, weight, bias)
    out = output_size(input.shape, weight.shape, stride, dilation, crop_front, crop_back)
    shape = (input.shape[0], weight.shape[1] * groups, *out)
    return torch.onnx.ops.symbolic("ConvTranspose", operands, attributes, dtype=input.dtype, shape=shape)


def _attributes(
    kernel_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes, crop_back: Sizes, groups: int
) -> dict[str, Any]:
    """The crops are the node's pads, which may differ in front and behind; what is appended is its output padding."""
    return {
        "kernel_shape": [int(size) for size in kernel_size],
        "strides": list(stride),
        "dilations": list(dilation),
        "pads": [*crop_front, *(max(0, back) for back in crop_back)],
        "output_padding": [max(0, -back) for back in crop_back],
        "group": groups,
    }


# The exporter looks for decompositions in this table. So do fake tensors of symbolic sizes, before their own rules.
torch._decomp.register_decomposition(conv_transpose3d)(conv_transpose_node)


@cache
def register_for_traces() -> None:
    """Teach the older exporter (``dynamo=False``), which goes by a trace; not at import, since this loads it."""
    from torch.onnx import register_custom_op_symbolic, symbolic_helper

    @symbolic_helper.parse_args("v", "v", "v", "is", "is", "is", "is", "i")
    def symbolic(
        g: Any, input: Any, weight: Any, bias: Any, stride: Any, dilation: Any, front: Any, back: Any, groups: Any
    ) -> Any:  # the decorator parses what is named
        kernel_size, sizes = symbolic_helper._get_tensor_sizes(weight)[2:], (stride, dilation, front, back, groups)
        attributes = {f"{name}_i": value for name, value in _attributes(kernel_size, *sizes).items()}
        operands = (input, weight) if symbolic_helper._is_none(bias) else (input, weight, bias)
        return g.op("ConvTranspose", *operands, **attributes)

    register_custom_op_symbolic("tconv3d::conv_transpose3d", symbolic, 11)
