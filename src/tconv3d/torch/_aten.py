# SPDX-License-Identifier: Apache-2.0
"""The same three operations by PyTorch's own operators, for devices and dtypes that the engine lacks.

PyTorch's operator crops alike at both ends. What is left of the two crops is cut off afterwards, or appended as zeros,
which is one call of ``pad`` with negative or positive numbers; its transpose goes before a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

Sizes = Sequence[int]


def conv_transpose3d(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    crop_back: Sizes, groups: int,
) -> Tensor:  # fmt: skip
    """As the library operator of this name.

    >>> x, w = torch.ones(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 3)
    >>> conv_transpose3d(x, w, None, [1, 1, 2], [1, 1, 1], [0, 0, 1], [0, 0, -1], 1).ravel()
    tensor([1., 2., 1., 1., 0.])
    """
    padding, pad = split_crops(crop_front, crop_back)
    full = functional.conv_transpose3d(input, weight, None, stride, padding, 0, groups, dilation)
    output = functional.pad(full, pad)
    return output if bias is None else output + bias.view(-1, 1, 1, 1)


def input_grad(
    grad_output: Tensor, weight: Tensor, input_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> Tensor:  # fmt: skip
    """As the library operator of this name.

    >>> gy, w = torch.ones(1, 1, 1, 1, 5), torch.ones(1, 1, 1, 1, 3)
    >>> input_grad(gy, w, [1, 1, 2], [1, 1, 2], [1, 1, 1], [0, 0, 0], 1).ravel()
    tensor([3., 3.])
    """
    shape = (grad_output.shape[0], weight.shape[0], *input_size)
    input = grad_output.new_empty(1).expand(shape)  # asked for its shape alone
    return _backward(grad_output, input, weight, stride, dilation, crop_front, groups, 0)


def weight_grad(
    input: Tensor, grad_output: Tensor, kernel_size: Sizes, stride: Sizes, dilation: Sizes, crop_front: Sizes,
    groups: int,
) -> Tensor:  # fmt: skip
    """As the library operator of this name.

    >>> x, gy = torch.tensor([1.0, 10.0]).view(1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 5)
    >>> weight_grad(x, gy, [1, 1, 3], [1, 1, 2], [1, 1, 1], [0, 0, 0], 1).ravel()
    tensor([11., 11., 11.])
    """
    shape = (input.shape[1], grad_output.shape[1] // groups, *kernel_size)
    weight = grad_output.new_empty(1).expand(shape)  # asked for its shape alone
    return _backward(grad_output, input, weight, stride, dilation, crop_front, groups, 1)


def _backward(
    grad_output: Tensor, input: Tensor, weight: Tensor, stride: Sizes, dilation: Sizes, crop_front: Sizes, groups: int,
    wanted: int,
) -> Tensor:  # fmt: skip
    sizes = zip(input.shape[2:], weight.shape[2:], stride, dilation, strict=True)
    full = [(size - 1) * step + spread * (kernel - 1) + 1 for size, kernel, step, spread in sizes]
    crops = zip(full, crop_front, grad_output.shape[2:], strict=True)
    crop_back = [length - front - out for length, front, out in crops]
    padding, pad = split_crops(crop_front, crop_back)
    grad_full = functional.pad(grad_output, [-count for count in pad])
    mask = [wanted == i for i in range(3)]
    arguments = stride, padding, dilation, True, [0, 0, 0], groups, mask
    return torch.ops.aten.convolution_backward(grad_full, input, weight, None, *arguments)[wanted]


def split_crops(crop_front: Sizes, crop_back: Sizes) -> tuple[list[int], list[int]]:
    """Return the padding of PyTorch's operator, which both ends lose, and what ``pad`` has to do besides.

    >>> split_crops([2, 0, 0], [1, 0, -1])
    ([1, 0, 0], [0, 1, 0, 0, -1, 0])
    """
    padding = [max(0, min(front, back)) for front, back in zip(crop_front, crop_back, strict=True)]
    pad: list[int] = []
    for front, back, both in zip(crop_front, crop_back, padding, strict=True):
        pad = [both - front, both - back, *pad]  # the last axis first
    return padding, pad
