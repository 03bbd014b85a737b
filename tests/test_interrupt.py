# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends a long call within a second of its threads' time, as KeyboardInterrupt, and the process goes on."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

# 512 -> 512 channels, kernel 5^3, input 40^3: 4.2e12 floating-point operations, 20 s at 210 GFLOP/s.
# Processor time is what is bounded: another process that takes its share of the machine does not count.
PROGRAM = textwrap.dedent("""
    import os, signal, sys, threading, time
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
    sent = []

    def interrupt():
        sent.append(time.process_time())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(1, interrupt).start()
    try:
        calls[function](x, weight, grad)
        print("finished")
    except KeyboardInterrupt:
        print("interrupted", time.process_time() - sent[0])
    small = np.ones((1, 2, 3, 3, 3)), np.ones((2, 2, 1, 1, 1)), np.ones((1, 2, 3, 3, 3))
    print(calls[function](*small).sum())
""")
# Every output, and every gradient of an input, adds two ones; every gradient of a weight adds 27.
SUMS = {"forward": 2 * 54, "input_grad": 2 * 54, "weight_grad": 27 * 4}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("function", SUMS)
def test_ctrl_c_ends_a_long_call(function: str, threads: int) -> None:
    command = [sys.executable, "-c", PROGRAM, function, str(threads)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (run.stderr, run.returncode) == ("", 0)
    word, seconds, total = run.stdout.split()
    assert word == "interrupted"
    assert float(seconds) < threads
    assert float(total) == SUMS[function]
