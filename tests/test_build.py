# SPDX-License-Identifier: Apache-2.0
"""What the linker may see of an instruction-set object.

Each file of kernels/isa is compiled with flags that most machines cannot run. If its object held a weak symbol (an
inline function or a template outside of its own namespace) or called one of the standard library, the linker could pick
that copy for everybody, and an older processor would stop with an illegal instruction.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[1] / "kernels"
X86_64 = {
    "base": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c"],
}
AARCH64 = {"base": [], "neon": []}
FAMILIES = {"x86_64": X86_64, "amd64": X86_64, "aarch64": AARCH64, "arm64": AARCH64}
CROSS = "aarch64-linux-gnu-g++"


def targets() -> list[tuple[str, str, list[str]]]:
    """Compiler, instruction set and flags: this machine's own, and aarch64's where its cross compiler is found."""
    own = FAMILIES.get(platform.machine().lower(), {"base": []})
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), "c++")
    found = [(compiler, name, flags) for name, flags in own.items()]
    if own is X86_64 and shutil.which(CROSS):
        found += [(CROSS, name, flags) for name, flags in AARCH64.items()]
    return found


def defined_and_undefined(compiler: str, name: str, flags: list[str], folder: Path) -> tuple[dict[str, str], set[str]]:
    """Compile one file and read its symbols: {defined name: nm's letter}, undefined names.

    Flags are those of CMakeLists.txt but for -O1: fewer functions are inlined, so more of them could show.
    """
    target = folder / f"{name}.o"
    common = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-ffp-contract=fast",
        "-fno-exceptions",
        "-fno-rtti",
        "-w",
    ]
    source = KERNELS / "isa" / f"{name}.cc"
    subprocess.run(
        [compiler, *common, *flags, f"-I{KERNELS}", "-c", str(source), "-o", str(target)], check=True, timeout=300
    )
    nm = "aarch64-linux-gnu-nm" if compiler == CROSS else "nm"
    listing = subprocess.run([nm, "-C", str(target)], check=True, capture_output=True, text=True, timeout=60).stdout
    defined, undefined = {}, set()
    for line in listing.splitlines():
        letter, symbol = line[17:18], line[19:]
        if letter == "U":
            undefined.add(symbol)
        else:
            defined[symbol] = letter
    return defined, undefined


@pytest.mark.parametrize(
    ("compiler", "name", "flags"), targets(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_an_instruction_set_keeps_to_itself(compiler: str, name: str, flags: list[str], tmp_path: Path) -> None:
    defined, undefined = defined_and_undefined(compiler, name, flags, tmp_path)
    assert [symbol for symbol, letter in defined.items() if letter in "WVuwv"] == []
    shared = {symbol: letter for symbol, letter in defined.items() if letter in "TDBRC"}
    assert shared == {f"tconv3d::{name}::table()": "T"}
    # What the compiler itself may call: memory moves, the position-independent table, half-precision helpers.
    allowed = {"memcpy", "memset", "memmove", "_GLOBAL_OFFSET_TABLE_", "__stack_chk_fail"}
    foreign = {symbol for symbol in undefined - allowed if not symbol.startswith(("__extend", "__trunc"))}
    assert foreign == set()
