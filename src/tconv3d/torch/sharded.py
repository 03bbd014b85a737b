# SPDX-License-Identifier: Apache-2.0
"""One volume over several processes: each holds a slab of the input and makes a slab of the output.

    # torchrun --nproc-per-node 2 train.py, after torch.distributed.init_process_group("gloo")
    from tconv3d.torch import sharded
    y = sharded.conv_transpose3d(my_slab, weight, bias, stride=2, padding=1)     # my slab of the whole's output

Before it computes, a process receives what the others hold of the samples that reach its outputs (the halo), and
sends what they need; backward sends the gradients of these samples home. The blocks are those of `tconv3d.blocks`, the
same that cut an array of dask. Weight and bias are the same tensors on every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from .. import _engine
from ..blocks import Block, Cut, block_of, cut
from ..contracts import pytorch
from ..errors import describe
from ..geometry import Geometry

Size = int | Sequence[int]
Range = tuple[int, int]


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    *,
    output_size: Sequence[int] | None = None,
    axis: int = -3,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Return this process' slab of the transposed convolution of a volume that the processes of a group share.

    The slabs of the input, of any thickness and in the order of the ranks, make up the whole along ``axis`` (-3 depth,
    -2 height, -1 width); everything else, ``output_size`` too, speaks of the whole and must be equal on all of them.
    The output of rank r begins at ``stride`` times the sample where its input begins, so that layers follow one another
    without another exchange; the last rank takes what remains.

    The output has the bits of the whole's. Each process gets the gradient of its slab, and the whole gradients of
    weight and bias, added up over the group in backward: no further reduction is due, and an average of equal
    gradients, as DistributedDataParallel takes it, changes nothing. Every process must call forward and, if one does,
    backward, with the same tensors that require gradients. There are no second derivatives.

    Needs a group with a back-end for the CPU, such as gloo, and tensors there; RuntimeError otherwise, for slabs that
    do not fit together, and for sizes as in PyTorch's function.
    """
    _check_on_cpu(input, weight, bias)
    names = (str(t.dtype).removeprefix("torch.") for t in (input, weight, bias) if t is not None)
    pytorch.check_dtypes(*names)
    if axis not in (-3, -2, -1):
        raise ValueError(describe("axis", axis, "it counts from the back", "use -3 for depth, -2 height, -1 width"))
    thickness = _thickness(input, axis, group)
    whole = list(input.shape)
    whole[axis] = sum(thickness)
    geometry = pytorch.functional_geometry(
        whole, weight.shape, None if bias is None else bias.shape, stride, padding, output_padding, groups, dilation,
        output_size=output_size,
    )  # fmt: skip
    batched = input if input.ndim == 5 else input[None]
    plan = _Plan.of(geometry, thickness, axis, group)
    result = _Sharded.apply(batched, weight, bias, plan)
    return result if input.ndim == 5 else result[0]


@dataclass(frozen=True)
class _Plan:
    """Who holds and who reads which samples along the axis."""

    geometry: Geometry
    held: list[Range]
    cuts: list[Cut]
    axis: int
    rank: int
    group: dist.ProcessGroup | None

    @classmethod
    def of(cls, geometry: Geometry, thickness: list[int], axis: int, group: dist.ProcessGroup | None) -> _Plan:
        held = list(pairwise((0, *accumulate(thickness))))
        past = geometry.output_size[axis]
        starts = [min(start * geometry.stride[axis], past) for start, _ in held]
        cuts = [cut(geometry, axis % 3, *reach) for reach in pairwise((*starts, past))]
        return cls(geometry, held, cuts, axis, dist.get_rank(group), group)

    @property
    def block(self) -> Block:
        """This process' part of the whole."""
        outputs = [slice(0, size) for size in self.geometry.output_size]
        outputs[self.axis] = self.cuts[self.rank].output
        (d, h, w) = outputs
        return block_of(self.geometry, (d.start, h.start, w.start), (d.stop, h.stop, w.stop))

    def shared(self, holder: int, reader: int) -> Range:
        """The samples that one process holds and another reads."""
        (start, stop), read = self.held[holder], self.cuts[reader].input
        start, stop = max(start, read.start), min(stop, read.stop)
        return (start, stop) if start < stop else (0, 0)

    def part(self, tensor: Tensor, samples: Range, first: int) -> Tensor:
        """These samples of the whole, of a tensor that begins at sample ``first``; a view."""
        return tensor.narrow(self.axis, samples[0] - first if samples[0] < samples[1] else 0, samples[1] - samples[0])


class _Sharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
        slab = _gather(input, plan)
        ctx.plan, ctx.has_bias = plan, bias is not None
        ctx.save_for_backward(slab, weight)
        x, w, b = _array(slab), _array(weight), None if bias is None else _array(bias)
        whole = list(input.shape)
        whole[plan.axis] = plan.held[-1][1]
        method = _engine.method_of(tuple(whole), tuple(weight.shape), plan.geometry, x.dtype)
        block = plan.block
        y = _engine.forward(x, w, b, block.geometry, method=method, origin=block.origin, threads=_threads())
        return _tensor(y, input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        slab, weight = ctx.saved_tensors
        plan, geometry = ctx.plan, ctx.plan.block.geometry
        gy, dtype = _array(grad_output), weight.dtype
        grads: list[Tensor | None] = [None, None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = _scatter(_tensor(_engine.input_grad(gy, _array(weight), geometry), dtype), plan)
        if ctx.needs_input_grad[1]:
            grads[1] = _summed(_tensor(_engine.weight_grad(_array(slab), gy, geometry), dtype), plan.group)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            grads[2] = _summed(_tensor(_engine.bias_grad(gy), dtype), plan.group)
        return tuple(grads)


def _gather(mine: Tensor, plan: _Plan) -> Tensor:
    """The input of this process' block, put together from what every process holds of it."""
    rank, read = plan.rank, plan.cuts[plan.rank].input
    shape = list(mine.shape)
    shape[plan.axis] = read.stop - read.start
    slab = mine.new_empty(shape)
    first = plan.held[rank][0]
    sent = [plan.part(mine, plan.shared(rank, reader), first) for reader in range(len(plan.held))]
    places = [plan.part(slab, plan.shared(holder, rank), read.start) for holder in range(len(plan.held))]
    for place, values in zip(places, _exchanged(sent, places, plan), strict=True):
        place.copy_(values)
    return slab


def _scatter(slab_grad: Tensor, plan: _Plan) -> Tensor:
    """The gradient of what this process holds: the sum over all blocks that read it, in the order of the ranks."""
    rank, read = plan.rank, plan.cuts[plan.rank].input
    first, past = plan.held[rank]
    shape = list(slab_grad.shape)
    shape[plan.axis] = past - first
    grad = slab_grad.new_zeros(shape)
    sent = [plan.part(slab_grad, plan.shared(holder, rank), read.start) for holder in range(len(plan.held))]
    places = [plan.part(grad, plan.shared(rank, reader), first) for reader in range(len(plan.held))]
    for place, values in zip(places, _exchanged(sent, places, plan), strict=True):
        place += values
    return grad


def _exchanged(sent: list[Tensor], like: list[Tensor], plan: _Plan) -> list[Tensor]:
    """Send a tensor to every process and return what each sent, of the shapes in ``like``."""
    received = [torch.empty(place.shape, dtype=place.dtype) for place in like]
    received[plan.rank] = sent[plan.rank]
    transfers = []
    for other in range(len(sent)):
        if other == plan.rank:
            continue
        peer = other if plan.group is None else dist.get_global_rank(plan.group, other)
        # As bytes, since back-ends know fewer dtypes than PyTorch.
        if sent[other].numel():
            parcel = sent[other].contiguous().view(-1).view(torch.uint8)
            transfers.append(dist.P2POp(dist.isend, parcel, peer, plan.group))
        if received[other].numel():
            transfers.append(dist.P2POp(dist.irecv, received[other].view(-1).view(torch.uint8), peer, plan.group))
    for transfer in dist.batch_isend_irecv(transfers) if transfers else ():
        transfer.wait()
    return received


def _summed(part: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum over the group; in double precision, so that splitting a volume costs no more than a rounding."""
    wide = part.to(torch.complex128 if part.is_complex() else torch.float64)
    real = torch.view_as_real(wide) if wide.is_complex() else wide
    dist.all_reduce(real, group=group)
    return wide.to(part.dtype)


def _thickness(input: Tensor, axis: int, group: dist.ProcessGroup | None) -> list[int]:
    """The slabs of all processes along the axis; RuntimeError if they do not fit together."""
    if input.ndim not in (4, 5):
        rule = "it must be (N, C, D, H, W), or (C, D, H, W) without a batch"
        raise RuntimeError(describe("the shape of the input", tuple(input.shape), rule, "add or remove axes"))
    mine = torch.tensor((*([0] if input.ndim == 4 else []), *input.shape))
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    shapes = [tuple(shape.tolist()) for shape in gathered]
    others = {shape[:axis] + (shape[axis + 1 :] if axis < -1 else ()) for shape in shapes}
    if len(others) > 1:
        rule = f"they must agree on every axis but {axis}"
        raise RuntimeError(describe("the shapes of the slabs", shapes, rule, "cut the whole along one axis"))
    return [shape[axis] for shape in shapes]


def _check_on_cpu(*tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.device.type != "cpu":
            rule = "sharded calls run in this library's engine, on the CPU"
            raise RuntimeError(describe("the device", str(tensor.device), rule, "move the tensors there"))


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as an array; bfloat16 as its bits, which is how the engine takes it."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _tensor(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


def _threads() -> int:
    return _engine.threads_at(torch.get_num_threads())
