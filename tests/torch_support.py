# SPDX-License-Identifier: Apache-2.0
"""Layers, models and functions in pairs, ours and PyTorch's, for the tests of the PyTorch face."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

import tconv3d.torch as face

CHANNELS_LAST = torch.channels_last_3d


def pair(*args: Any, **kwargs: Any) -> tuple[face.ConvTranspose3d, torch.nn.ConvTranspose3d]:
    """Our layer and PyTorch's with the same weights."""
    ours, theirs = face.ConvTranspose3d(*args, **kwargs), torch.nn.ConvTranspose3d(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


GEOMETRY = ((2, 1, 2), (1, 0, 1), (1, 0, 0), 2, (1, 2, 1))  # stride, padding, output_padding, groups, dilation


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = (2, 4, 2, 3, 2), (4, 2, 3, 2, 3), (4,)
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return face.functional.conv_transpose3d(x, weight, bias, *GEOMETRY)


def theirs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch_functional.conv_transpose3d(x, weight, bias, *GEOMETRY)


class Decoder(torch.nn.Module):
    """Two layers with something between them."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.up, self.out = kind(3, 4, 3, stride=2, padding=1, output_padding=1), kind(4, 2, (2, 3, 1), groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.up(x)))


def decoders() -> tuple[Decoder, Decoder]:
    mine, other = Decoder(face.ConvTranspose3d), Decoder(torch.nn.ConvTranspose3d)
    other.load_state_dict(mine.state_dict())
    return mine, other
