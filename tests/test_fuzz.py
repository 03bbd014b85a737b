# SPDX-License-Identifier: Apache-2.0
"""Random calls of the whole public API; `python tests/fuzz/run.py --calls 100000` is the long run of the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).with_name("fuzz") / "run.py"


def test_random_calls_are_answered_rightly_or_refused() -> None:
    command = [sys.executable, str(FUZZ), "--calls", "1500", "--seed", "8"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.startswith("fuzz: 1500 calls, seed 8: ")
