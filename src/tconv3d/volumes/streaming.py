# SPDX-License-Identifier: Apache-2.0
"""One run: a volume in a file through a layer into another file, block by block.

Blocks are tasks of dask's scheduler: threads of this process, or the workers of a running cluster. Each task reads its
part of the input, computes, and writes its part of the output; when the block is on the disk, this process notes it in
the journal. So workers need the same paths as this process, on a file system that all of them see alike.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..functional import memory_limit
from . import Box, formats, needed
from .integers import narrowed
from .journal import DamagedJournal, Journal, differences, hash_of
from .layer import Layer
from .memory import held, parse
from .placement import output_to_input
from .plan import Plan, boxes, check_fit, plan
from .volume import Description, Source, Target

Array = NDArray[Any]
Tell = Callable[[int, int], None]  # called with the bytes that are done and the bytes of all

_WORKERS = 2  # one block is computed, by all threads of the engine, while the other is read or written
_MORE = 2 * 2**30  # bytes that a run without a limit may take
_CONNECT = 10  # seconds
_QUEUED = 3  # tasks per thread of a cluster that are under way at once


@dataclass(frozen=True)
class Options:
    """How to run, none of which changes the result. `memory` is text such as 512MB, `scheduler` an address."""

    memory: str | None = None
    resume: bool = False
    overwrite: bool = False
    scheduler: str | None = None


@dataclass(frozen=True)
class Outcome:
    """`computed` of `blocks` blocks were computed now, the others by earlier runs."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: int
    computed: int


@dataclass(frozen=True, eq=False)
class Job:
    """All that a task needs to know; it goes to other processes as it is."""

    source: Source
    target: Target
    layer: Layer
    boxes: tuple[Box, ...]

    def run(self, index: int) -> int:
        """Compute and write one block; return its index."""
        box = self.boxes[index]
        part = narrowed(self.layer.compute(box, self._read), self.target.dtype)
        with self.writing():
            self.target.write(box, part)
        return index

    def _read(self, box: Box) -> Array:
        try:
            return self.source.read(box)
        except (RequestError, MemoryError):
            raise
        except Exception as error:  # a damaged chunk ends in errors of its codec, of zlib or of the file system
            raise RequestError(
                f"{self.source.path} cannot be read at {_text(box)}: {type(error).__name__}: {error};"
                f" {self.target.path} is not finished"
            ) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A disk that is full or fails is no mistake of the program."""
        try:
            yield
        except OSError as error:
            raise RequestError(
                f"{self.target.path} cannot be written: {error.strerror or error}; it is not finished:"
                " once there is room, run again with --resume"
            ) from error


def stream(
    source: Source,
    layer: Layer,
    out: Path,
    dtype: np.dtype[Any],
    settings: dict[str, Any],
    options: Options,
    tell: Tell,
) -> Outcome:
    """Run `layer` over `source` into `out`. RequestError where that cannot be done; the text says what is left then.

    `settings` are those of the command; with the layer's numbers and the input's identity they are what a resumed run
    must share with the run before.
    """
    lead_from: tuple[int | None, ...] = tuple(range(len(source.shape) - 3))
    shape = layer.output_shape(source.shape)
    if len(shape) > len(source.shape):
        lead_from = (*lead_from, None)
    kept_scaling = None if layer.scaling else source.scaling
    to_input = output_to_input(layer.geometry, layer.edge)
    description = Description(shape, dtype, source, to_input, lead_from, kept_scaling)
    target = formats.target_class(out)(out, description)
    configuration = {**settings, "input": source.identity(), "layer": _numbers(layer), "output": _output(target)}
    mark = f"complete sha256:{hash_of(configuration)}"
    _import_all(options)
    # What the process holds already, a notebook perhaps, is nobody's reason to refuse a run without a limit.
    limit = held() + min(_MORE, memory_limit() // 2) if options.memory is None else parse(options.memory)
    with _cluster(options.scheduler) as (client, threads):
        journal, blocks = _begin(source, target, layer, configuration, mark, options, limit, threads)
        if journal is None:
            return Outcome(shape, target.dtype, 0, 0)
        try:
            job = Job(source, target, layer, tuple(boxes(shape, blocks.block_shape)))
            todo = journal.undone
            done = _noted(job, journal, tell)
            if client is None:
                _run_here(job, todo, blocks.workers, done)
            else:
                _run_there(client, job, todo, threads, done)
            if source.identity() != configuration["input"]:
                raise RequestError(f"{source.path} changed while it was read; start again with --overwrite")
            with job.writing():
                target.finish(mark)
            _tidy(target, journal)
            return Outcome(shape, target.dtype, len(job.boxes), len(todo))
        finally:
            journal.close()


def _begin(
    source: Source, target: Target, layer: Layer, configuration: dict[str, Any], mark: str, options: Options,
    limit: int, threads: int,
) -> tuple[Journal | None, Plan]:  # fmt: skip
    """Find out what is at the output's place, and open the journal to go on with; None where all is done already."""
    journal = _found(_journal_path(target), options.overwrite)
    try:
        if options.overwrite:
            _remove(target, journal)
            journal = None
        elif (journal is not None or target.path.exists()) and _is_finished(
            target, journal, configuration, mark, options.resume
        ):
            _tidy(target, journal)
            return None, Plan((), 0)
        if journal is not None and target.is_prepared():
            return journal, check_fit(layer, source, target, limit, journal.block_shape)
        if journal is not None and target.working_path.is_file() and target.working_path.stat().st_size:
            raise RequestError(f"{target.path} is not what the earlier run left; --overwrite replaces it")
        chosen = plan(layer, source, target, limit, threads or _WORKERS)
    except BaseException:
        if journal is not None:
            journal.close()
        raise
    if journal is not None:
        journal.remove()
    count = len(boxes(target.shape, chosen.block_shape))
    with Job(source, target, layer, ()).writing():
        journal = Journal.create(_journal_path(target), configuration, chosen.block_shape, count)
        try:
            target.prepare()
        except BaseException:
            target.remove()
            journal.remove()
            raise
    return journal, chosen


def _found(path: Path, overwrite: bool) -> Journal | None:
    """The journal of an earlier run; None where there is none, or a damaged one that is to be replaced."""
    try:
        return Journal(path)
    except FileNotFoundError:
        return None
    except DamagedJournal:
        if overwrite:
            return None
        raise


def _remove(target: Target, journal: Journal | None) -> None:
    if target.path.is_dir() and not formats.is_zarr(target.path):
        raise RequestError(f"{target.path} is a folder but no zarr store; remove it yourself")
    target.remove()
    _journal_path(target).unlink(missing_ok=True)
    if journal is not None:
        journal.close()


def _is_finished(
    target: Target, journal: Journal | None, configuration: dict[str, Any], mark: str, resume: bool
) -> bool:
    """Whether the output is whole and that of this call. RequestError where it is not to be gone on with."""
    found = target.mark_of(target.path)
    if not resume:
        kind = "is the unfinished output of a run" if journal else "exists"
        raise RequestError(f"{target.path} {kind}; --resume goes on with it, --overwrite replaces it")
    if found == mark:
        return True
    if journal is None:
        why = "was finished with another configuration" if found else "was not begun by this command"
        raise RequestError(f"{target.path} {why}, so there is nothing to resume; --overwrite replaces it")
    if hash_of(journal.configuration) != hash_of(configuration):
        raise RequestError(
            f"{target.path} was begun with another configuration: {differences(journal.configuration, configuration)};"
            " repeat the first call to resume it, or replace it with --overwrite"
        )
    return False


def _tidy(target: Target, journal: Journal | None) -> None:
    """Drop what only an unfinished output needs."""
    target.remove_working()
    if journal is not None:
        journal.remove()


def _run_here(job: Job, todo: list[int], workers: int, done: Callable[[int], None]) -> None:
    """On dask's scheduler of threads. What is under way when something fails is finished first."""
    get = needed("dask.threaded").get
    graph = {f"block-{index}": (_run_and_note, job, index, done) for index in todo}
    with ThreadPoolExecutor(workers) as pool:
        get(graph, list(graph), pool=pool)


def _run_and_note(job: Job, index: int, done: Callable[[int], None]) -> None:
    done(job.run(index))


def _run_there(client: Any, job: Job, todo: list[int], threads: int, done: Callable[[int], None]) -> None:
    """On a cluster. A few tasks per thread are under way at once; a block whose worker died runs on another."""
    distributed = needed("distributed")
    shared = client.submit(_itself, job, pure=False)  # not scattered: what a dead worker held can be made again
    left = iter(todo)
    most = _QUEUED * threads * len(_workers(client))
    under_way = {client.submit(Job.run, shared, index, pure=False) for index in islice(left, most)}
    try:
        results = distributed.as_completed(list(under_way))
        for future in results:
            under_way.discard(future)
            done(future.result())
            for index in islice(left, 1):
                another = client.submit(Job.run, shared, index, pure=False)
                under_way.add(another)
                results.add(another)
    except (RequestError, MemoryError):
        raise
    except Exception as error:  # the cluster's own failures: no worker left, blocks that killed several workers
        raise RequestError(
            f"the cluster failed: {type(error).__name__}: {error}; {job.target.path} is not finished:"
            " run again with --resume"
        ) from error
    finally:
        # A task that went on after this run would write into an output that may be another run's by then.
        with suppress(Exception):
            distributed.wait(list(under_way), timeout=60)


def _itself(job: Job) -> Job:
    return job


def _workers(client: Any) -> dict[str, int]:
    """The threads of each worker, by its address."""
    return dict(client.nthreads())


@contextmanager
def _cluster(address: str | None) -> Iterator[tuple[Any, int]]:
    """The client of a running cluster and the most threads of one of its workers; (None, 0) without an address."""
    if address is None:
        yield None, 0
        return
    distributed = needed("distributed")
    try:
        client = distributed.Client(address, timeout=_CONNECT)
    except (OSError, ValueError, TimeoutError) as error:
        raise RequestError(f"no scheduler answers at {address}: {error}") from None
    with client:
        threads = _workers(client).values()
        if not threads:
            raise RequestError(f"the cluster at {address} has no workers; start some")
        yield client, max(threads)


def _noted(job: Job, journal: Journal, tell: Tell) -> Callable[[int], None]:
    """What to do with each block that is on the disk."""
    sizes = [int(np.prod([stop - start for start, stop in box])) * job.target.dtype.itemsize for box in job.boxes]
    undone = set(journal.undone)
    done = sum(size for index, size in enumerate(sizes) if index not in undone)
    total = sum(sizes)
    lock = threading.Lock()
    tell(done, total)

    def note(index: int) -> None:
        nonlocal done
        with job.writing():
            journal.mark(index)
        with lock:
            done += sizes[index]
            tell(done, total)

    return note


def _import_all(options: Options) -> None:
    """Load what the run needs before memory is measured."""
    needed("dask.threaded")
    if options.scheduler is not None:
        needed("distributed")


def _numbers(layer: Layer) -> dict[str, Any]:
    """What tells this layer from another."""
    geometry = layer.geometry
    return {
        "weight": hashlib.sha256(np.ascontiguousarray(layer.weight).tobytes()).hexdigest(),
        "bias": None if layer.bias is None else layer.bias.tolist(),
        "dtype": layer.weight.dtype.name,
        "geometry": [list(geometry.stride), list(geometry.dilation), list(geometry.crop_front), geometry.groups],
        "edge": list(layer.edge),
        "scaling": layer.scaling and list(layer.scaling),
        "channel_axis": layer.channel_axis,
    }


def _output(target: Target) -> dict[str, Any]:
    return {"shape": list(target.shape), "dtype": target.dtype.str, "format": formats.suffix(target.path)}


def _journal_path(target: Target) -> Path:
    working = target.working_path
    return working.with_name(working.name + ".tconv3d-journal")


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in box) + "]"
