# SPDX-License-Identifier: Apache-2.0
"""What ``torch.onnx.export`` makes of the library operator: one node ConvTranspose of ONNX's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._kernels import output_size
from ._operators import conv_transpose3d

Sizes = Sequence[int]


def conv_transpose_node(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    """Return the node. The crops are its pads, which may differ in front and behind.

    Where zeros or samples are appended instead, they are its output padding; ONNX defines both as this library does.
    """
    attributes = {
        "kernel_shape": [int(size) for size in weight.shape[2:]],
        "strides": list(stride),
        "dilations": list(dilation),
        "pads": [*crop_front, *(max(0, back) for back in crop_back)],
        "output_padding": [max(0, -back) for back in crop_back],
        "group": groups,
    }
    operands = (input, weight) if bias is None else (input, weight, bias)
    out = output_size(input.shape, weight.shape, stride, dilation, crop_front, crop_back)
    shape = (input.shape[0], weight.shape[1] * groups, *out)
    return torch.onnx.ops.symbolic("ConvTranspose", operands, attributes, dtype=input.dtype, shape=shape)


# The exporter looks for decompositions in this table; torch.compile and torch.export have tables of their own.
torch._decomp.register_decomposition(conv_transpose3d)(conv_transpose_node)
