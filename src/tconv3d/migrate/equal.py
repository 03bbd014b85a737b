# SPDX-License-Identifier: Apache-2.0
"""The call of the other contract that gives the same values, from the geometry alone.

Both contracts crop a window out of the same `full` (size (S-1)*stride + E, effective kernel E). Per axis a window is
two numbers that do not depend on the input size S: `front`, the first sample kept, and `length` = output -
(S-1)*stride.

    PyTorch     front = padding      length = E - 2*padding + output_padding     output_padding < max(stride, dilation)
    MindSpore   front = pad_front    length = E - pad_front - pad_back + output_padding            ('pad')
                front = (E-stride)//2 or 0     length = stride                                     ('same')
                front = 0                      length = max(E, stride)                             ('valid')

So every PyTorch call is a 'pad' call. The reverse needs help where PyTorch's symmetric padding cuts too little or too
much: then the equal call computes a few samples more, and a slice drops them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..geometry import Geometry, Triple, same_size, valid_size

NOTHING: Triple = (0, 0, 0)


@dataclass(frozen=True)
class EqualCall:
    """Constructor arguments of the other contract, and the samples to drop from its output per axis (D, H, W).

    `geometry_arguments` leaves out what the other constructor has as its default.
    """

    geometry_arguments: dict[str, object] = field(default_factory=dict)
    drop_front: Triple = NOTHING
    drop_back: Triple = NOTHING

    @property
    def slice_text(self) -> str:
        """What to write after the output to drop the samples: '[..., :-1, :-1, :-1]', or '' where none is dropped."""
        if self.drop_front == self.drop_back == NOTHING:
            return ""
        axes = (f"{a or ''}:{-b or ''}" for a, b in zip(self.drop_front, self.drop_back, strict=True))
        return f"[..., {', '.join(axes)}]"


@dataclass(frozen=True)
class _Window:
    """One axis: `front` and `length` as in the head of this file, `effective` kernel, `stride`, `dilation`."""

    front: int
    length: int
    effective: int
    stride: int
    dilation: int

    @property
    def output_padding(self) -> int:
        """How many samples PyTorch's symmetric padding=front leaves too few (negative: too many) at the back."""
        return self.length - self.effective + 2 * self.front


def _windows(geometry: Geometry) -> list[_Window]:
    axes = zip(
        geometry.crop_front, geometry.output_size, geometry.input_size, geometry.stride, geometry.effective_kernel,
        geometry.dilation, strict=True,
    )  # fmt: skip
    return [_Window(front, out - (size - 1) * s, effective, s, d) for front, out, size, s, effective, d in axes]


def to_pytorch(geometry: Geometry) -> EqualCall:
    """The ConvTranspose3d call equal to a Conv3dTranspose call of this geometry, for every input size.

    An odd total of 'same' becomes padding=total//2 with the last sample dropped; the padding that has the right shape,
    ceil(total/2) with output_padding=1, has values shifted by one sample.
    """
    padding, output_padding, drop_front, drop_back = zip(*map(_pytorch_axis, _windows(geometry)), strict=True)
    arguments = _common(geometry) | _unless_default(padding=(padding, 0), output_padding=(output_padding, 0))
    return EqualCall(arguments | _unless_default(groups=(geometry.groups, 1)), drop_front, drop_back)


def _pytorch_axis(window: _Window) -> tuple[int, int, int, int]:
    """(padding, output_padding, samples to drop in front, samples to drop at the back) of one axis."""
    largest = max(window.stride, window.dilation) - 1  # PyTorch refuses an output_padding beyond it
    # One less padding needs one less output_padding: the sample moves to the front, where a slice drops it.
    padding = min(window.front, window.front + largest - window.output_padding)
    moved = window.front - padding
    needed = window.output_padding - moved
    output_padding = max(0, needed)
    return padding, output_padding, moved, output_padding - needed


def to_mindspore(geometry: Geometry) -> EqualCall:
    """The Conv3dTranspose call equal to a ConvTranspose3d call of this geometry: always pad_mode='pad'."""
    windows = _windows(geometry)
    padding = tuple(window.front for window in windows)
    output_padding = tuple(window.output_padding for window in windows)
    sides = tuple(p for p in padding for _ in ("front", "back"))
    arguments = _common(geometry) | {"pad_mode": "pad"} | _unless_default(padding=(sides, 0))
    return EqualCall(arguments | _unless_default(output_padding=(output_padding, 0), group=(geometry.groups, 1)))


def pad_modes(geometry: Geometry) -> list[str]:
    """The pad_mode strings, of 'same' and 'valid', whose window is exactly this geometry's, for every input size."""
    g = geometry
    laws = {"same": same_size, "valid": valid_size}
    window = (g.crop_front, g.output_size)
    return [name for name, law in laws.items() if law(g.input_size, g.effective_kernel, g.stride) == window]


def to_functional(geometry: Geometry) -> dict[str, object]:
    """Arguments of tconv3d.conv_transpose3d for this geometry; its padding takes (front, back) per axis, so no"
    " slice."""
    windows = _windows(geometry)
    output_padding = tuple(max(0, w.front + w.length - w.effective) for w in windows)
    padding = tuple(side for w in windows for side in (w.front, max(0, w.effective - w.length - w.front)))
    return _unless_default(
        stride=(geometry.stride, 1), padding=(padding, 0), output_padding=(output_padding, 0),
        groups=(geometry.groups, 1), dilation=(geometry.dilation, 1),
    )  # fmt: skip


def _common(geometry: Geometry) -> dict[str, object]:
    kernel = _unless_default(kernel_size=(geometry.kernel_size, None))
    return kernel | _unless_default(stride=(geometry.stride, 1), dilation=(geometry.dilation, 1))


def _unless_default(**arguments: tuple[object, object]) -> dict[str, object]:
    """{name: value} of each name=(value, default) that differ; three equal sizes are written as one."""
    short = {name: (_shortest(value), default) for name, (value, default) in arguments.items()}
    return {name: value for name, (value, default) in short.items() if value != default}


def _shortest(value: object) -> object:
    if isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value
