# SPDX-License-Identifier: Apache-2.0
"""The three operations as operators of PyTorch: what compilers, tracers and transforms see instead of our Python.

    tconv3d::conv_transpose3d              (input, weight, bias, stride, dilation, crop_front, crop_back, groups)
    tconv3d::conv_transpose3d_input_grad   (grad_output, weight, input_size, stride, dilation, crop_front, groups)
    tconv3d::conv_transpose3d_weight_grad  (input, grad_output, kernel_size, stride, dilation, crop_front, groups)

Tensors are 5-D and batched, sizes have three entries for depth, height and width. ``crop_front`` and ``crop_back`` are
the samples of the uncropped signal that the output lacks; a negative ``crop_back`` appends zeros. Both contracts are
such crops, and neither depends on the size of the input, so that a graph recorded for one size serves all. `_library`
gives them their kernels and rules.
"""

from __future__ import annotations

from typing import Any

import torch

library = torch.library.Library("tconv3d", "DEF")


def _define(name: str, arguments: str) -> Any:
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    library.define(f"{name}({arguments}, SymInt groups) -> Tensor", tags=tags)
    return getattr(torch.ops.tconv3d, name).default


_SIZES = "SymInt[3] stride, SymInt[3] dilation, SymInt[3] crop_front"
conv_transpose3d = _define(
    "conv_transpose3d", f"Tensor input, Tensor weight, Tensor? bias, {_SIZES}, SymInt[3] crop_back"
)
input_grad = _define(
    "conv_transpose3d_input_grad", f"Tensor grad_output, Tensor weight, SymInt[3] input_size, {_SIZES}"
)
weight_grad = _define(
    "conv_transpose3d_weight_grad", f"Tensor input, Tensor grad_output, SymInt[3] kernel_size, {_SIZES}"
)
OPERATORS = (conv_transpose3d, input_grad, weight_grad)
