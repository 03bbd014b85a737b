# SPDX-License-Identifier: Apache-2.0
"""Nothing opens a network connection: every module is imported and every command run where sockets raise."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

# Before anything else is imported: connections, name look-ups and sends end in an error that nobody catches by chance.
SITECUSTOMIZE = """
import socket, sys

class NetworkUsed(BaseException):
    pass

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        if event != "socket.connect" or not isinstance(arguments[1], str):  # a path: a socket of this machine
            raise NetworkUsed(f"{event}{arguments[1:]}")

sys.addaudithook(refuse)
"""
LAYER = "nn.ConvTranspose3d(2, 3, 3, stride=2, padding=1)"
COMMANDS = [
    ["info"],
    ["explain", LAYER, "--input", "1,2,3,4,5", "--plan"],
    ["verify", LAYER, LAYER, "--input", "1,2,3,4,5"],
    ["migrate", "source.py", "--to", "mindspore", "--diff"],
    ["bench", "--layer", LAYER, "--input", "1,2,3,4,5", "--rounds", "1", "--engines", "tconv3d,tconv3d_live"],
    ["convert", "up.safetensors", "up.ckpt"],
    ["demo"],
]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_guard_sees_a_connection(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", "import socket; socket.create_connection(('localhost', 9), 1)")
    assert done.returncode == 1 and "NetworkUsed" in done.stderr


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_runs_offline(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text(f"from torch import nn\n\nup = {LAYER}\n")
    save_file({"weight": np.ones((2, 3, 3, 3, 3), np.float32)}, tmp_path / "up.safetensors")
    done = run(tmp_path, "-m", "tconv3d", *command)
    assert done.returncode == 0, done.stderr
    assert "NetworkUsed" not in done.stderr + done.stdout


def test_importing_everything_needs_no_network(tmp_path: Path) -> None:
    """Faces of frameworks that are not installed are left out."""
    program = f"""
import importlib, pkgutil, tconv3d
absent = {[name for name in ("torch", "mindspore", "dask") if find_spec(name) is None]}
for module in pkgutil.walk_packages(tconv3d.__path__, "tconv3d.", onerror=lambda name: None):
    if module.name.split(".")[1] not in (*absent, "__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # what an extra brings that is not installed here
            assert not error.name.startswith("tconv3d"), error
"""
    done = run(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
