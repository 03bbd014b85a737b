# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends one long call within a second, as KeyboardInterrupt, and the process goes on computing."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time

import pytest

# 512 -> 512 channels, kernel 5^3, input 40^3: 4.2e12 floating-point operations, 20 s at 210 GFLOP/s.
PROGRAM = textwrap.dedent("""
    import signal, sys
    import numpy as np
    import tconv3d

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with SIGINT ignored
    function, threads = sys.argv[1], int(sys.argv[2])
    tconv3d.set_num_threads(threads)
    shapes = (1, 512, 40, 40, 40), (512, 512, 5, 5, 5), (1, 512, 44, 44, 44)
    x, weight, grad = (np.ones(shape, np.float32) for shape in shapes)
    calls = {
        "forward": lambda x, w, g: tconv3d.conv_transpose3d(x, w),
        "input_grad": lambda x, w, g: tconv3d.conv_transpose3d_input_grad(g, w, x.shape),
        "weight_grad": lambda x, w, g: tconv3d.conv_transpose3d_weight_grad(x, g, w.shape),
    }
    print("started", flush=True)
    try:
        calls[function](x, weight, grad)
        print("finished", flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    small = np.ones((1, 2, 3, 3, 3)), np.ones((2, 2, 1, 1, 1)), np.ones((1, 2, 3, 3, 3))
    print(calls[function](*small).sum(), flush=True)
""")
# Every output, and every gradient of an input, adds two ones; every gradient of a weight adds 27.
SUMS = {"forward": 2 * 54, "input_grad": 2 * 54, "weight_grad": 27 * 4}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("function", SUMS)
def test_ctrl_c_ends_a_long_call(function: str, threads: int) -> None:
    command = [sys.executable, "-c", PROGRAM, function, str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "started\n", process.stderr.read()
            time.sleep(1)
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            word = process.stdout.readline()
            elapsed = time.monotonic() - sent
            total, errors = process.stdout.readline(), process.stderr.read()
            process.wait(timeout=60)
        finally:
            process.kill()
    assert (word, errors, process.returncode) == ("interrupted\n", "", 0)
    assert elapsed < 1
    assert float(total) == SUMS[function]
