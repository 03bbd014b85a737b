#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Random calls of the whole public API: python tests/fuzz/run.py --calls 100000 --seed 1

Every call is made from the seed and its number alone, in a child process that may hold 3 GiB. A call is wrong when its
answer is not exact, when a right call is refused, when a spoiled one raises what no contract names, when it hangs, and
when it ends the process; each is printed with what repeats it. The exit code is 1 then.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

_MEMORY = 3 << 30
_SECONDS_A_CALL = 2  # then a signal ends the call, as Ctrl-C would
_SECONDS_TO_HANG = 120
_MOST_SHOWN = 20


class OutOfTime(BaseException):
    """The alarm of a call that has much to do."""


def main() -> int:
    options = _parser().parse_args()
    if options.child:
        return _child(options.seed, options.first, options.first + options.calls)
    counts: Counter[str] = Counter()
    first, end = options.first, options.first + options.calls
    while first < end and counts["wrong"] < _MOST_SHOWN:
        reached, died = _run_child(options.seed, first, end, counts)
        if died:
            counts["wrong"] += 1
            print(f"CRASH: {died} in\n  {_repeat(options.seed, reached)}\n  {_text(options.seed, reached)}", flush=True)
        first = reached + 1
    total = sum(counts[kind] for kind in ("answered", "refused", "stopped", "wrong"))
    print(f"fuzz: {total} calls, seed {options.seed}: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))
    return int(counts["wrong"] > 0 or total < options.calls)


def _run_child(seed: int, first: int, end: int, counts: Counter[str]) -> tuple[int, str]:
    """Run calls in a process of their own. Returns the last one begun, and how the process died, if it did."""
    command = [sys.executable, __file__, "--child", f"--seed={seed}", f"--first={first}", f"--calls={end - first}"]
    reached = first
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            signal.signal(signal.SIGALRM, lambda *_: child.kill())
            for line in child.stdout:
                signal.alarm(_SECONDS_TO_HANG)
                kind, _, rest = line.strip().partition(" ")
                if kind == "call":
                    reached = int(rest)
                elif kind in ("answered", "refused", "stopped", "wrong"):
                    counts[kind] += 1
                    if kind == "stopped":
                        print(f"stopped after {_SECONDS_A_CALL} s: {rest}")
                    if kind == "wrong":
                        print(f"WRONG: {_repeat(seed, reached)}\n  {rest.rstrip()}", flush=True)
                else:
                    print(line, end="")
        finally:
            signal.alarm(0)
        code = child.wait()
    if code == 0:
        return end, ""
    hung = "no answer for two minutes" if code == -signal.SIGKILL else f"exit code {code}"
    return reached, signal.Signals(-code).name + f" ({hung})" if code < 0 else hung


def _child(seed: int, first: int, end: int) -> int:
    signal.signal(signal.SIGALRM, _out_of_time)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    targets = _targets()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY + _address_space(), resource.RLIM_INFINITY))
    for number in range(first, end):
        # Written before the call and without a buffer, so that a crash leaves the number behind.
        os.write(1, b"call %d\n" % number)
        os.write(1, (_one(seed, number, targets) + "\n").encode(errors="replace"))
    return 0


def _one(seed: int, number: int, targets: list) -> str:
    """Make one call and say how it went, in one line."""
    from targets import Wrong

    rng = Random(f"{seed}:{number}")
    call = rng.choice(targets)(rng)
    try:
        _within_time(lambda: call.judge(call.run()))
        return "answered"
    except Wrong as wrong:
        return f"wrong {wrong}: {call.text}"
    except OutOfTime:
        return f"stopped {call.text}"
    except call.refusals as error:
        if call.spoiled and (str(error) or isinstance(error, MemoryError)):
            return "refused"
        return f"wrong {type(error).__name__}, {error}: {call.text}{_place(error)}".replace("\n", " ")
    except Exception as error:
        return f"wrong {type(error).__name__}, {error}: {call.text}{_place(error)}".replace("\n", " ")


def _within_time(run: Callable[[], Any]) -> Any:
    """The result of a call, or OutOfTime; judging kernels of a million taps takes its time as well."""
    try:
        signal.alarm(_SECONDS_A_CALL)
        try:
            return run()
        finally:
            signal.alarm(0)
    finally:  # once more: the alarm may have rung on the way out
        signal.alarm(0)


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" [{Path(frame.filename).name}:{frame.lineno}]"


def _targets() -> list:
    import targets

    if find_spec("torch") is None:
        return targets.NUMPY
    import torch_targets

    return targets.NUMPY + torch_targets.TORCH


def _out_of_time(*_: object) -> None:
    raise OutOfTime


def _address_space() -> int:
    """Bytes of addresses in use: libraries reserve far more than they touch."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _text(seed: int, number: int) -> str:
    """What a call was, made anew without running it."""
    rng = Random(f"{seed}:{number}")
    return rng.choice(_targets())(rng).text


def _repeat(seed: int, number: int) -> str:
    return f"python tests/fuzz/run.py --seed {seed} --first {number} --calls 1"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="which (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="number of the first call (default: 0)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
