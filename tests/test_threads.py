# SPDX-License-Identifier: Apache-2.0
"""The thread pool: calls from several Python threads, forks, the count and its limits."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import tconv3d

pytestmark = pytest.mark.usefixtures("restored_engine")


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own; a hang ends in TimeoutExpired."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    channels = 3 + 7 * seed
    size = rng.integers(3, 12, 3)
    return (
        rng.standard_normal((2, channels, *size), np.float32),
        rng.standard_normal((channels, 5 + seed, 3, 4, 3), np.float32),
        rng.standard_normal(5 + seed, np.float32),
    )


def step(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> list[bytes]:
    y = tconv3d.conv_transpose3d(x, weight, bias, 2, 1)
    grad_x = tconv3d.conv_transpose3d_input_grad(y, weight, x.shape, 2, 1)
    grad_weight = tconv3d.conv_transpose3d_weight_grad(x, y, weight.shape, 2, 1)
    return [array.tobytes() for array in (y, grad_x, grad_weight)]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_calls_from_several_python_threads(threads: int) -> None:
    tconv3d.set_num_threads(threads)
    problems = [problem(seed) for seed in range(6)]
    alone = [step(*each) for each in problems]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda i: step(*problems[i % 6]), range(120)))
    assert together == [alone[i % 6] for i in range(120)]


def test_one_prepared_weight_in_several_python_threads() -> None:
    x, weight, bias = problem(4)
    expected = tconv3d.conv_transpose3d(x, weight, bias, 2).tobytes()
    for _ in range(20):  # all of them find the panels missing at once
        prepared = tconv3d.prepare(weight, 2)
        with ThreadPoolExecutor(6) as pool:
            results = pool.map(lambda _, w=prepared: tconv3d.conv_transpose3d(x, w, bias, 2).tobytes(), range(12))
            assert set(results) == {expected}


def test_other_python_threads_run_during_a_call() -> None:
    """The call releases the interpreter lock: a second thread gets its turns, not just one before and one after."""
    tconv3d.set_num_threads(1)
    x, weight = np.ones((1, 32, 24, 24, 24), np.float32), np.ones((32, 32, 5, 5, 5), np.float32)  # 3.5 GFLOP
    turns, stop = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.wait(0.001):
            turns += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = turns
        tconv3d.conv_transpose3d(x, weight)
        during = turns - before
    finally:
        stop.set()
        thread.join()
    assert during > 5


FORK = """
    import os, signal, sys, threading
    import numpy as np
    import tconv3d

    tconv3d.set_num_threads(4)
    x, weight = np.ones((1, 16, 8, 8, 8), np.float32), np.ones((16, 16, 3, 3, 3), np.float32)
    expected = tconv3d.conv_transpose3d(x, weight).tobytes()
    {parent}
    for _ in range({forks}):
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # a hanging child ends by SIGALRM
            same = all(tconv3d.conv_transpose3d(x, weight).tobytes() == expected for _ in range(20))
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
    {afterwards}
    assert tconv3d.conv_transpose3d(x, weight).tobytes() == expected
    print("ok")
"""


@pytest.mark.parametrize(
    ("parent", "forks", "afterwards"),
    [
        ("", 3, ""),
        (
            "busy = True; "
            "work = lambda: [tconv3d.conv_transpose3d(x, weight) for _ in iter(lambda: busy, False)]; "
            "threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]; "
            "[thread.start() for thread in threads]",
            30,
            "busy = False; [thread.join() for thread in threads]",
        ),
    ],
    ids=["idle_parent", "computing_parent"],
)
def test_a_forked_child_computes(parent: str, forks: int, afterwards: str) -> None:
    run = run_python(FORK.format(parent=parent, forks=forks, afterwards=afterwards))
    assert (run.stdout, run.returncode) == ("ok\n", 0), run.stderr


@pytest.mark.parametrize("count", [1, 2, 7, 256, np.int64(3)])
def test_an_explicit_count_is_obeyed(count: int) -> None:
    tconv3d.set_num_threads(count)
    assert tconv3d.get_num_threads() == count
    x = np.ones((1, 2, 4, 4, 4))
    assert tconv3d.conv_transpose3d(x, np.ones((2, 1, 2, 2, 2)), stride=2).sum() == 2 * 8 * 64


@pytest.mark.parametrize(
    ("count", "error"),
    [(0, ValueError), (-1, ValueError), (257, ValueError), (2**70, ValueError), (True, TypeError), (2.0, TypeError),
     ("2", TypeError), (None, TypeError)],
)  # fmt: skip
def test_a_bad_count_changes_nothing(count: Any, error: type[Exception]) -> None:
    before = tconv3d.get_num_threads()
    with pytest.raises(error, match="1 to 256"):
        tconv3d.set_num_threads(count)
    assert tconv3d.get_num_threads() == before


def test_the_environment_sets_the_default() -> None:
    run = run_python("import tconv3d; print(tconv3d.get_num_threads())", TCONV3D_NUM_THREADS="5")
    assert (run.stdout, run.stderr) == ("5\n", "")


@pytest.mark.parametrize("value", ["0", "257", "many", "2 ", "99999999999999999999"])
def test_a_bad_environment_is_named(value: str) -> None:
    run = run_python("import tconv3d; tconv3d.get_num_threads()", TCONV3D_NUM_THREADS=value)
    assert run.returncode == 1
    assert f"TCONV3D_NUM_THREADS: '{value}'" in run.stderr
    assert "from 1 to 256" in run.stderr


@pytest.mark.parametrize("value", ["avx9", "AVX2 ", "none"])
def test_a_bad_instruction_set_is_named_with_those_there_are(value: str) -> None:
    program = "import numpy as np, tconv3d; tconv3d.conv_transpose3d(*[np.ones((1, 1, 1, 1, 1))] * 2)"
    run = run_python(program, TCONV3D_ISA=value)
    assert run.returncode == 1
    assert f"TCONV3D_ISA: '{value}'" in run.stderr
    assert "base" in run.stderr
