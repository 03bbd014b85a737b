# SPDX-License-Identifier: Apache-2.0
"""Processes that end, fork or are started anew while calls run, and what the system refuses them meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run_python(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own; a hang ends in TimeoutExpired."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)


EXIT = """
    import sys, threading
    import numpy as np
    import tconv3d

    function, how = sys.argv[1:]
    tconv3d.set_num_threads(2)
    large = np.ones((1, 32, 16, 16, 16), np.float32), np.ones((32, 32, 5, 5, 5), np.float32)
    small = np.ones((1, 2, 3, 3, 3), np.float32), np.ones((2, 2, 2, 2, 2), np.float32)
    calls = {
        "forward": lambda x, w: tconv3d.conv_transpose3d(x, w),
        "input_grad": lambda x, w: tconv3d.conv_transpose3d_input_grad(tconv3d.conv_transpose3d(x, w), w, x.shape),
        "weight_grad": lambda x, w: tconv3d.conv_transpose3d_weight_grad(x, tconv3d.conv_transpose3d(x, w), w.shape),
    }
    running = threading.Barrier(5)

    def work(operands):
        calls[function](*operands)
        running.wait()
        while True:
            calls[function](*operands)

    for operands in (large, large, small, small):
        threading.Thread(target=work, args=(operands,), daemon=True).start()
    running.wait()
    if how == "exit":
        sys.exit(3)
"""


@pytest.mark.parametrize("how", ["end", "exit"])
@pytest.mark.parametrize("function", ["forward", "input_grad", "weight_grad"])
def test_the_interpreter_ends_while_daemon_threads_compute(function: str, how: str) -> None:
    """Python ends such threads where they ask for its lock; that must not be an abort of the process."""
    for _ in range(3):
        run = run_python(EXIT, function, how)
        assert (run.returncode, run.stdout, run.stderr) == ({"end": 0, "exit": 3}[how], "", "")


def test_a_call_that_outlasts_the_interpreter() -> None:
    """Its next poll for Ctrl-C asks for an interpreter that is gone; the C library holds the process open meanwhile."""
    program = """
        import ctypes, threading, time
        import numpy as np
        import tconv3d

        # 20 s at 210 GFLOP/s, in tasks that take longer than the interpreter's end.
        x, w = np.ones((1, 512, 40, 40, 40), np.float32), np.ones((512, 512, 5, 5, 5), np.float32)
        threading.Thread(target=tconv3d.conv_transpose3d, args=(x, w), daemon=True).start()
        time.sleep(1)
        libc = ctypes.CDLL(None)
        libc.__cxa_atexit(libc.getchar, None, None)  # waits for the input's end
    """
    for _ in range(3):  # one poll in two comes while the interpreter ends, as in the test above
        command = [sys.executable, "-c", textwrap.dedent(program)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=3)
            assert (process.communicate(timeout=120), process.returncode) == ((None, b""), 0)


def test_calls_at_exit_and_from_what_is_left_behind() -> None:
    """atexit functions, a weakref callback and a finalizer may compute as well."""
    run = run_python("""
        import atexit, weakref
        import numpy as np
        import tconv3d

        x, w = np.ones((1, 8, 16, 16, 16), np.float32), np.ones((8, 8, 2, 2, 2), np.float32)
        small = np.ones((1, 1, 2, 2, 2)), np.ones((1, 1, 2, 2, 2))
        call = lambda: print(int(tconv3d.conv_transpose3d(*small).sum()), flush=True)

        class Last:
            def __del__(self):
                call()

        atexit.register(call)
        left = Last()
        kept = tconv3d.conv_transpose3d(x, w, stride=2)  # from the pool of outputs; freed by the end
        weakref.finalize(left, call)
    """)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split() == ["64"] * 3


SPAWN = """
    import multiprocessing
    import numpy as np
    import tconv3d

    x, w = np.ones((1, 16, 8, 8, 8), np.float32), np.ones((16, 16, 3, 3, 3), np.float32)
    prepared = tconv3d.prepare(w, 2)

    def work(weight):
        return float(tconv3d.conv_transpose3d(x, weight, stride=2).sum())

    if __name__ == "__main__":
        expected = work(prepared)
        for method in {methods}:
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.map(work, [prepared, w, prepared, w]) == [expected] * 4, method
        print("ok")
"""


def test_processes_of_every_start_method(tmp_path: Path) -> None:
    """Workers that are forked, spawned or forked by a server compute, and take packed weights."""
    script = tmp_path / "spawn.py"
    script.write_text(textwrap.dedent(SPAWN).format(methods=["fork", "spawn", "forkserver"]))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr, run.returncode) == ("ok\n", "", 0)


def test_a_process_that_may_start_no_thread_computes_alone() -> None:
    run = run_python("""
        import resource
        import numpy as np
        import tconv3d

        tconv3d.set_num_threads(64)
        x, w = np.ones((2, 16, 16, 16, 16), np.float32), np.ones((16, 16, 3, 3, 3), np.float32)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_STACK, (2**31, resource.RLIM_INFINITY))  # of each new thread
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, resource.RLIM_INFINITY))
        print(int(tconv3d.conv_transpose3d(x, w).sum()))
    """)
    assert (run.returncode, run.stderr) == (0, "")
    assert int(run.stdout) == 2 * 16 * 16 * 16**3 * 27


@pytest.mark.parametrize(
    ("name", "value"),
    [("TCONV3D_OUTPUT_POOL", value) for value in ("many", "-1", "1e3", "99999999999999999999")]
    + [("TCONV3D_ALGORITHM", "fast"), ("TCONV3D_ALGORITHM", "\u20ac"), ("TCONV3D_NUM_THREADS", "-" * 10_000)],
)
def test_a_bad_variable_is_named(name: str, value: str) -> None:
    """By the import or by the first call, as an exception."""
    run = run_python(
        "import numpy as np, tconv3d; tconv3d.conv_transpose3d(*[np.ones((1, 1, 1, 1, 1))] * 2)", **{name: value}
    )
    assert run.returncode == 1, run.returncode
    assert f"{name}: '{value[:20]}" in run.stderr


@pytest.mark.parametrize("name", ["TCONV3D_OUTPUT_POOL", "TCONV3D_ALGORITHM", "TCONV3D_NUM_THREADS", "TCONV3D_ISA"])
def test_an_empty_variable_is_none(name: str) -> None:
    run = run_python("import tconv3d; print(tconv3d.show_config())", **{name: ""})
    assert (run.returncode, run.stderr) == (0, "")
