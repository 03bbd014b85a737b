# SPDX-License-Identifier: Apache-2.0
"""How the three operations map over a batch of operands (torch.func.vmap): always one call of the same operation.

A batch of the first operand alone goes into the axis that the operation leaves alone, a batch of the second into its
free channels, and a batch of both into groups. Each rule returns the output and the axis of its batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

Dims = tuple[Any, ...]


def conv_transpose3d(
    op: Any, batch: int, in_dims: Dims, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, dilation: Any,
    crop_front: Any, crop_back: Any, groups: int,
) -> tuple[Tensor, int]:  # fmt: skip
    """Map ``op`` = conv_transpose3d. A batch of biases is added at the end."""
    x_dim, w_dim, b_dim = in_dims[:3]
    kept = bias if b_dim is None else None
    sizes = stride, dilation, crop_front, crop_back
    if w_dim is None and x_dim is None:
        y, dim = op(input, weight, None, *sizes, groups).unsqueeze(0), 0
    elif w_dim is None:
        y, dim = _split(op(_into(input, x_dim, 0), weight, kept, *sizes, groups), 0, batch), 0
        kept = None
    elif x_dim is None:  # output channels: group, batch, rest
        y = op(input, _into(weight, w_dim, 1), None, *sizes, groups)
        y, dim = _free_batch(y, 1, groups, batch), 1
    else:
        y = op(_into(input, x_dim, 1), _into(weight, w_dim, 0), None, *sizes, groups * batch)
        y, dim = _split(y, 1, batch), 1
    if b_dim is not None:
        kept = bias.movedim(b_dim, 0).unflatten(0, (batch, 1)) if dim == 0 else bias.movedim(b_dim, 0)
    return (y, dim) if kept is None else (y + kept[..., None, None, None], dim)


def input_grad(
    op: Any, batch: int, in_dims: Dims, grad_output: Tensor, weight: Tensor, input_size: Any, stride: Any,
    dilation: Any, crop_front: Any, groups: int,
) -> tuple[Tensor, int]:  # fmt: skip
    """Map ``op`` = conv_transpose3d_input_grad."""
    gy_dim, w_dim = in_dims[:2]
    sizes = input_size, stride, dilation, crop_front
    if w_dim is None:
        return _split(op(_into(grad_output, gy_dim, 0), weight, *sizes, groups), 0, batch), 0
    if gy_dim is None:  # input channels: group, batch, rest
        free = _into_free(weight, w_dim, groups)
        return _free_batch(op(grad_output, free, *sizes, groups), 1, groups, batch), 1
    return _split(op(_into(grad_output, gy_dim, 1), _into(weight, w_dim, 0), *sizes, groups * batch), 1, batch), 1


def weight_grad(
    op: Any, batch: int, in_dims: Dims, input: Tensor, grad_output: Tensor, kernel_size: Any, stride: Any,
    dilation: Any, crop_front: Any, groups: int,
) -> tuple[Tensor, int]:  # fmt: skip
    """Map ``op`` = conv_transpose3d_weight_grad."""
    x_dim, gy_dim = in_dims[:2]
    sizes = kernel_size, stride, dilation, crop_front
    if gy_dim is None:
        gw = op(_into_channels(input, x_dim, groups), grad_output, *sizes, groups)
        return _free_batch(gw, 0, groups, batch), 0
    if x_dim is None:
        gw = op(input, _into_channels(grad_output, gy_dim, groups), *sizes, groups)
        return _split(gw, 1, batch), 1
    return _split(op(_into(input, x_dim, 1), _into(grad_output, gy_dim, 1), *sizes, groups * batch), 0, batch), 0


def _into(tensor: Tensor, batch_dim: int, axis: int) -> Tensor:
    """Make the batch the outer part of an axis."""
    return tensor.movedim(batch_dim, axis).flatten(axis, axis + 1)


def _split(tensor: Tensor, axis: int, batch: int) -> Tensor:
    """Take the batch out of the outer part of an axis, and put it before that axis."""
    return tensor.unflatten(axis, (batch, -1))


def _into_channels(tensor: Tensor, batch_dim: int, groups: int) -> Tensor:
    """Put the batch into the channels of (N, C, ...), inside of each group: group, batch, rest."""
    grouped = tensor.movedim(batch_dim, 0).unflatten(2, (groups, -1))  # batch, N, group, rest
    return grouped.movedim(0, 2).flatten(1, 3)


def _into_free(weight: Tensor, batch_dim: int, groups: int) -> Tensor:
    """Put the batch into the input channels of a weight, inside of each group: group, batch, rest."""
    grouped = weight.movedim(batch_dim, 0).unflatten(1, (groups, -1))  # batch, group, rest
    return grouped.movedim(0, 1).flatten(0, 2)


def _free_batch(tensor: Tensor, axis: int, groups: int, batch: int) -> Tensor:
    """Take the batch out of an axis that holds group, batch, rest, and put it before that axis."""
    parts = tensor.unflatten(axis, (groups, batch, -1))
    return parts.movedim(axis + 1, axis).flatten(axis + 1, axis + 2)
