# SPDX-License-Identifier: Apache-2.0
"""`tconv3d apply`: one transposed convolution on a volume of any size, from file to file."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from ..contracts import mindspore, pytorch
from ..geometry import Geometry
from ..volumes.integers import computing_dtype
from ..volumes.layer import Layer
from ..volumes.volume import Source
from . import CommandError
from ._volumes import dtype_named, run_layer, sizes
from ._weights import read_layer

_OF_ONE_CONTRACT = {"output_size": "torch", "pad_mode": "mindspore"}


def run(
    weights: Path, source: Path, target: Path, contract: str, name: str | None, use_bias: bool,
    arguments: dict[str, Any], dtype: str | None, options: dict[str, Any],
) -> int:  # fmt: skip
    """Write the layer's output to `target`; print one line. Raises CommandError for what cannot be done.

    `arguments` are the layer's as text, None where they were not given.
    """
    for argument, owner in _OF_ONE_CONTRACT.items():
        if arguments[argument] is not None and owner != contract:
            raise CommandError(
                f"--{argument.replace('_', '-')} is an argument of {owner}'s contract, not of {contract}'s"
            )
    weight, bias = read_layer(weights, name)
    if not use_bias:
        bias = None

    def layer_of(volume: Source) -> Layer:
        channel_axis = _channel_axis(volume)
        lead = list(volume.shape[:-3])
        channels = 1 if channel_axis is None else lead.pop(channel_axis)
        shape = (prod(lead), channels, *volume.shape[-3:])
        geometry = _geometry(contract, shape, weight.shape, None if bias is None else bias.shape, arguments)
        computing = computing_dtype(volume.dtype, weight.dtype)
        return Layer(
            weight.astype(computing), None if bias is None else bias.astype(computing), geometry, (0, 0, 0),
            channel_axis, volume.scaling,
        )  # fmt: skip

    settings = {"command": "apply", "contract": contract}
    return run_layer(source, target, layer_of, dtype_named(dtype), settings, options)


def _channel_axis(volume: Source) -> int | None:
    """The axis that the file names so; where it names none the last before space, as in (N, C, D, H, W)."""
    if volume.names:
        return volume.names.find("c") if "c" in volume.names else None
    return len(volume.shape) - 4 if len(volume.shape) > 3 else None


def _geometry(
    contract: str,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
    arguments: dict[str, Any],
) -> Geometry:
    given: dict[str, Any] = {
        key: sizes(f"--{key.replace('_', '-')}", value)
        for key, value in arguments.items()
        if value is not None and key not in ("groups", "pad_mode")
    }
    try:
        if contract == "torch":
            padding, output_padding = given.get("padding", 0), given.get("output_padding", 0)
            return pytorch.functional_geometry(
                input_shape, weight_shape, bias_shape, given["stride"], padding, output_padding, arguments["groups"],
                given["dilation"], output_size=given.get("output_size"),
            )  # fmt: skip
        group = arguments["groups"]
        extra = {} if arguments["pad_mode"] is None else {"pad_mode": arguments["pad_mode"]}
        layer = mindspore.layer_arguments(
            weight_shape[0], weight_shape[1] * group, weight_shape[2:], group=group, has_bias=bias_shape is not None,
            **given, **extra,
        )  # fmt: skip
        if bias_shape not in (None, (layer.out_channels,)):
            raise ValueError(f"the bias has shape {bias_shape}, but the layer has {layer.out_channels} output channels")
        return layer.geometry(input_shape)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CommandError(f"on a volume that is (N, C, D, H, W) = {input_shape}: {error}") from None
