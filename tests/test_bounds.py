# SPDX-License-Identifier: Apache-2.0
"""No operation reads or writes a byte outside of its arrays: each lies against a page that may not be touched."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import ctypes, mmap, sys
    import numpy as np
    from tconv3d import _core

    PAGE = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    kept = []

    def guarded(shape, at_end, dtype):
        # Between two pages without access, against the one or the other.
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        inner = -(-size // PAGE) * PAGE
        memory = mmap.mmap(-1, inner + 2 * PAGE)
        kept.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for page in (start, start + PAGE + inner):
            assert libc.mprotect(page, PAGE, 0) == 0
        array = np.frombuffer(memory, dtype, int(np.prod(shape)), PAGE + (inner - size if at_end else 0)).reshape(shape)
        array[...] = 1
        return array

    dtype, at_end = sys.argv[1], sys.argv[2] == "end"
    for width in range(1, 41):
        for stride in range(1, 6):
            kernel, dilation, padding = 1 + width % 4, 1 + (width % 5 == 0), width % 2
            output = (width - 1) * stride + (kernel - 1) * dilation + 1 - 2 * padding
            if output < 1:
                continue
            sizes = (2, 3, width), (2, 2, kernel), (1, 2, stride), (1, 1, dilation), (0, 0, padding), (3, 6, output), 1
            x = guarded((1, 3, *sizes[0]), at_end, dtype)
            weight = guarded((3, 5, *sizes[1]), at_end, dtype)
            y = guarded((1, 5, *sizes[5]), at_end, dtype)
            grad_x, grad_weight = guarded(x.shape, at_end, dtype), guarded(weight.shape, at_end, dtype)
            rest = sizes[2], sizes[3], sizes[4], 1, 1
            for family in _core.Family.__members__.values():
                _core.forward(x, weight, None, y, *rest, None, family)
                _core.input_grad(y, weight, grad_x, *rest, None, family)
            for algorithm in ("direct", "two_tap", "col2im"):
                _core.set_algorithm(algorithm)
                _core.forward(x, weight, None, y, *rest)
                _core.input_grad(y, weight, grad_x, *rest)
                _core.weight_grad(x, y, grad_weight, *rest)
            kept.clear()
    print("done")
"""


@pytest.mark.parametrize("side", ["start", "end"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_arrays_against_forbidden_pages(isa: str, dtype: str, side: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), dtype, side]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "TCONV3D_ISA": isa})
    assert (run.returncode, run.stdout.strip()) == (0, "done"), run.stderr
