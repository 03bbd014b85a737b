# SPDX-License-Identifier: Apache-2.0
"""Which blocks of an output are done.

OUT.tconv3d-journal: a line of JSON (the configuration and the cut into blocks), then one byte per block, 0 or 1. A byte
is set after its block is on the disk, so a run that is killed at any moment loses only blocks in flight; they are
computed again. The file is locked while a run writes; the lock ends with its process, whichever way that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ..errors import RequestError
from .volume import sync_folder


def hash_of(configuration: dict[str, Any]) -> str:
    """Return the SHA-256 of a configuration.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Say in which entries two configurations differ.

    >>> differences({"scale": [2, 2, 2], "kernel": "linear"}, {"scale": [3, 3, 3], "kernel": "linear"})
    'scale was [2, 2, 2] and is now [3, 3, 3]'
    """
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return "; ".join(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}" for key in keys)


class DamagedJournal(RequestError):
    """What is done cannot be told from the file."""


class Journal:
    """An open, locked journal. Read `block_shape` and `undone`; `close` it, or `remove` it with the last block."""

    def __init__(self, path: Path) -> None:
        """Open what is there. FileNotFoundError where nothing is, RequestError where another run holds it."""
        self.path = path
        self._handle = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(self._handle), "rb") as file:
                file.seek(0)
                line = file.readline()
                self._done = bytearray(file.read())
            header = json.loads(line)
            self.configuration: dict[str, Any] = header["configuration"]
            self.block_shape = tuple(int(size) for size in header["block_shape"])
            if len(self._done) != header["blocks"]:
                raise ValueError
        except BlockingIOError:
            self.close()
            raise RequestError(f"another run is writing this output now: it holds {path}; wait for it") from None
        except (ValueError, KeyError, TypeError):
            self.close()
            raise DamagedJournal(
                f"{path} is damaged, so what is done is not known; start again with --overwrite"
            ) from None
        self._start = len(line)

    @classmethod
    def create(cls, path: Path, configuration: dict[str, Any], block_shape: tuple[int, ...], blocks: int) -> Journal:
        """A new journal with nothing done, whole on the disk or absent."""
        header = {"configuration": configuration, "block_shape": list(block_shape), "blocks": blocks}
        replace_file(path, json.dumps(header).encode() + b"\n" + bytes(blocks))
        return cls(path)

    @property
    def undone(self) -> list[int]:
        """The blocks that are left, in order."""
        return [index for index, done in enumerate(self._done) if not done]

    @property
    def blocks(self) -> int:
        """How many there are altogether."""
        return len(self._done)

    def mark(self, index: int) -> None:
        """Write down that a block is done, once the block itself is on the disk."""
        os.pwrite(self._handle, b"\x01", self._start + index)
        os.fsync(self._handle)
        self._done[index] = 1

    def close(self) -> None:
        """End the lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def remove(self) -> None:
        """The output is finished, or to be begun again."""
        self.path.unlink(missing_ok=True)
        self.close()


def replace_file(path: Path, content: bytes) -> None:
    """Put a file on the disk in one step: afterwards there is the new one, whole, or what was there before."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)
