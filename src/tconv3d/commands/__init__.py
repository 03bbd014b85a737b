# SPDX-License-Identifier: Apache-2.0
"""The `tconv3d` command, one file per sub-command. Each has a `run` that prints; what it prints is made by pure"
" functions."""

from __future__ import annotations

# The user asked for something that cannot be done: the command prints the message and ends with exit code 2.
from ..errors import RequestError as CommandError

__all__ = ["CommandError"]
