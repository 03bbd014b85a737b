# SPDX-License-Identifier: Apache-2.0
"""What the commands on volumes share: their arguments as numbers, the progress bar, the line at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import Triple
from ..volumes import formats, needed
from ..volumes.layer import Layer
from ..volumes.streaming import Options, Tell, stream
from ..volumes.volume import Source, check_dtype
from . import CommandError


def run_layer(
    source: Path, target: Path, layer_of: Callable[[Source], Layer], dtype: np.dtype[Any] | None,
    settings: dict[str, Any], options: dict[str, Any],
) -> int:  # fmt: skip
    """Run the layer that belongs to the volume in `source` over it, into `target`; print one line."""
    source, target = Path(source).absolute(), Path(target).absolute()
    formats.target_class(target)
    _check_places(source, target)
    begun = time.monotonic()
    try:
        volume = formats.open_source(source, target.with_name(f".{target.name}.unpacked"))
    except OSError as error:
        raise CommandError(f"{error.filename or source} cannot be opened: {error.strerror or error}") from None
    try:
        if 0 in volume.shape:
            raise CommandError(f"{source} has shape {volume.shape}: there is nothing in it")
        layer = layer_of(volume)
        if 0 in layer.geometry.output_size:
            raise CommandError(f"the output would have the size {layer.geometry.output_size}: there is nothing in it")
        if dtype is None:
            dtype = np.dtype(np.float32) if layer.scaling is not None else volume.dtype
        with _progress() as tell:
            done = stream(volume, layer, target, dtype, settings, Options(**options), tell)
    finally:
        volume.close()
    if done.blocks == 0:
        print(f"{target}: complete already, nothing to do")
        return 0
    earlier = f", {done.blocks - done.computed} of an earlier run" if done.computed < done.blocks else ""
    print(
        f"{target}: {done.shape} {done.dtype.name}, {done.computed} of {done.blocks} blocks computed{earlier},"
        f" {time.monotonic() - begun:.1f} s"
    )
    return 0


def sizes(option: str, text: str) -> int | tuple[int, ...]:
    """One number, or several with commas between them."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise CommandError(f"{option} {text!r} is not a number or a list of numbers such as 2,2,2") from None
    return numbers[0] if len(numbers) == 1 else numbers


def three_sizes(option: str, text: str) -> Triple:
    """One number for all axes, or three."""
    numbers = sizes(option, text)
    if isinstance(numbers, int):
        return numbers, numbers, numbers
    if len(numbers) != 3:
        raise CommandError(f"{option} {text} has {len(numbers)} entries; give one, or one for each of three axes")
    return numbers[0], numbers[1], numbers[2]


def dtype_named(name: str | None) -> np.dtype[Any] | None:
    """The dtype of --dtype."""
    if name is None:
        return None
    try:
        dtype = np.dtype(name)
    except TypeError:
        raise CommandError(f"--dtype {name}: NumPy knows no such dtype; write one such as uint16 or float32") from None
    check_dtype(Path("the output"), dtype)
    return dtype


def _check_places(source: Path, target: Path) -> None:
    if not target.parent.is_dir():
        raise CommandError(f"{target.parent} is not a folder; make it first")
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise CommandError(f"{source} and {target} lie in each other; write somewhere else")


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar with rate and time left on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    progress, console = needed("rich.progress"), needed("rich.console").Console(stderr=True)
    columns = (
        progress.BarColumn(), progress.TaskProgressColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=console, transient=True, speed_estimate_period=60) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
