# SPDX-License-Identifier: Apache-2.0
"""The public dotted name of what the frameworks offer under several."""

from __future__ import annotations

import re

TORCH_LAYER, TORCH_LAZY = "torch.nn.ConvTranspose3d", "torch.nn.LazyConvTranspose3d"
TORCH_CROPPED = "torch.nn._CroppedConvTranspose3d"  # the helper that an earlier migration may have written
TORCH_SAME_FUNCTION = "torch.nn.functional._conv3d_transpose"  # likewise
TORCH_FUNCTION = "torch.nn.functional.conv_transpose3d"
MINDSPORE_LAYER, MINDSPORE_FUNCTION = "mindspore.nn.Conv3dTranspose", "mindspore.ops.conv3d_transpose"

# Where the frameworks define what they offer elsewhere.
_PLACES = (
    (re.compile(r"^torch\.torch\."), "torch."),
    (re.compile(r"^torch\.nn\.modules(\.[a-z]\w*)?\.(?=[A-Z])"), "torch.nn."),
    (re.compile(r"^torch\.nn\.modules$"), "torch.nn"),
    (re.compile(r"^torch\.conv_transpose3d$"), TORCH_FUNCTION),
    (re.compile(r"^torch\.nn\.parameter\.Parameter$"), "torch.nn.Parameter"),
    (re.compile(r"^mindspore\.nn\.layer(\.[a-z]\w*)?\.(?=[A-Z])"), "mindspore.nn."),
    (re.compile(r"^mindspore\.nn\.cell\.(?=[A-Z])"), "mindspore.nn."),
    (re.compile(r"^mindspore\.ops\.(operations|functional|composite|function)(\.[a-z]\w*)?\.(?=\w)"), "mindspore.ops."),
    (re.compile(r"^mindspore\.ops\.(operations|functional)$"), "mindspore.ops"),
    (re.compile(r"^mindspore\.common\.(initializer\.)(?=\w)"), r"mindspore.common.\1"),
    (re.compile(r"^mindspore\.common\.dtype\.(?=\w)"), "mindspore."),
    (re.compile(r"^mindspore\.common\.dtype$"), "mindspore"),
    (re.compile(r"^mindspore\.common\.(tensor|parameter)\.(?=[A-Z])"), "mindspore."),
    (re.compile(r"^mindspore\.common\.(?=[A-Z])"), "mindspore."),
)


def canonical(name: str) -> str:
    """The name under which documentation lists it.

    >>> canonical("torch.nn.modules.conv.ConvTranspose3d"), canonical("mindspore.ops.operations.nn_ops.Conv3D")
    ('torch.nn.ConvTranspose3d', 'mindspore.ops.Conv3D')
    """
    for place, public in _PLACES:
        name = place.sub(public, name)
    return name


def knows(name: str) -> bool:
    """Whether a name out of a star import can be one of ours."""
    from .transformations import has_rule

    return has_rule(name)
