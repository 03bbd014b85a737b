# SPDX-License-Identifier: Apache-2.0
"""Text to tree. LibCST's parser ends the process on text that is nested deeply enough, so depth is checked before."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings

import libcst as cst

from .. import RequestError

_DEEPEST = 400  # levels of the tree; LibCST's parser survives 3000, not 20,000
_LONGEST_CHAIN = 1000  # operands of one `and`, or strings side by side: LibCST nests these
_STRING_LIKE = ("STRING", "FSTRING", "NL", "COMMENT")


def parse(text: str) -> cst.Module:
    """The tree; RequestError, with the place, where the text is no Python or is nested too deeply."""
    try:
        _check(text)
        return cst.parse_module(text)
    except SyntaxError as error:
        raise RequestError(f"does not parse, line {error.lineno}: {error.msg}") from None
    except cst.ParserSyntaxError as error:
        raise RequestError(f"does not parse, line {error.raw_line}: {error.message.splitlines()[0]}") from None
    except (RecursionError, MemoryError):
        raise RequestError("does not parse: it is nested too deeply") from None
    except (ValueError, tokenize.TokenError) as error:
        raise RequestError(f"does not parse: {error}") from None


def _check(text: str) -> None:
    """Raise RecursionError for a tree that is too deep, in Python's own form of it or in LibCST's, which nests chains.

    Python's parser counts its own depth; that of the tree is counted here, since what the process allows may be raised.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes and such: this is no source of ours
        tree = ast.parse(text)
    longest, deepest = 0, 0
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    while waiting and deepest <= _DEEPEST:
        node, depth = waiting.pop()
        longest = max(longest, len(node.values) if isinstance(node, ast.BoolOp) else 0)
        deepest = max(deepest, depth)
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    if deepest > _DEEPEST:
        raise RecursionError
    run = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        run = run + 1 if tokenize.tok_name[token.type].startswith(_STRING_LIKE) else 0
        longest = max(longest, run)
    if longest > _LONGEST_CHAIN:
        raise RecursionError
