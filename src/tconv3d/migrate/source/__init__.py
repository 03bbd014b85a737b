# SPDX-License-Identifier: Apache-2.0
"""Source of one framework rewritten for the other. The text is parsed, never imported, compiled or run.

module.py            what names stand for and which constants are known
arguments.py         a call's arguments, bound and written back
transformations/     one file per kind of place
rewriter.py          the walk;  imports.py and helpers.py finish the file
files.py             files and folders: difference, atomic write, backup
"""

from __future__ import annotations

import libcst as cst

from .. import RequestError
from .imports import settle
from .module import Module
from .options import ANNOUNCED, Note, Options, Result
from .rewriter import Rewriter

__all__ = ["ANNOUNCED", "Note", "Options", "Result", "migrate_text"]

_ROUNDS = 8


def migrate_text(text: str, options: Options) -> Result:
    """The file's text for the other framework, with a note for every place that was rewritten or left.

    RequestError where it does not parse.

    >>> result = migrate_text("from torch import nn\\nup = nn.ConvTranspose3d(4, 2, 3)\\n", Options("mindspore"))
    >>> print(result.text, end="")
    from mindspore import nn
    up = nn.Conv3dTranspose(4, 2, 3, pad_mode='pad', has_bias=True, weight_init=None, bias_init=None)
    """
    if options.source not in text:
        return Result(text)
    try:
        return _migrate(text, options)
    except RecursionError:
        raise RequestError("is nested too deeply to be read") from None


def _migrate(text: str, options: Options) -> Result:
    module = Module(text)
    blocked: dict[cst.ClassDef, str] = {}
    for _ in range(_ROUNDS):
        rewriter = Rewriter(module, options, blocked)
        tree = module.tree.visit(rewriter)
        if not rewriter.newly_blocked:
            break
        blocked = blocked | rewriter.newly_blocked
    notes = sorted(rewriter.notes, key=lambda note: note.line)
    code = tree.code
    if code == text:
        return Result(text, notes)
    return Result(settle(code, options.source, rewriter.needs), notes)
