# SPDX-License-Identifier: Apache-2.0
"""The one-way order of the modules, and what importing the package costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import tconv3d

ROOT = Path(tconv3d.__file__).parent
# A module may import what stands to its left, never what stands beside it in its step.
STEPS = [
    ["errors"], ["geometry"], ["blocks", "initializers", "reference"], ["contracts"], ["_core"], ["_engine"],
    ["functional"], ["layers"], ["torch", "mindspore", "dask"], ["migrate", "volumes"], ["commands"], ["cli"],
]  # fmt: skip
RANK = {name: rank for rank, names in enumerate(STEPS) for name in names}
FRAMEWORKS = {"torch": {"torch"}, "mindspore": {"mindspore"}, "dask": {"dask"}}


def imports(path: Path) -> set[str]:
    """Absolute dotted names of everything that a file imports, at its top or inside of its functions."""
    package = ["tconv3d", *path.relative_to(ROOT).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            names |= {".".join([*base, alias.name]) for alias in node.names}
    return names


def files() -> list[tuple[str, Path]]:
    """Every file with the name of its module or folder directly under the package."""
    found = [(path.relative_to(ROOT).with_suffix("").parts[0], path) for path in ROOT.rglob("*.py")]
    return [(name, path) for name, path in found if name not in ("__init__", "__main__")]


def test_arrows_point_one_way() -> None:
    for name, path in files():
        for imported in imports(path):
            top, _, rest = imported.partition(".")
            target = rest.partition(".")[0]
            if top == "tconv3d" and target in RANK and target != name:
                assert RANK[target] < RANK[name], f"{path.relative_to(ROOT)} imports {imported}"


def test_every_module_has_a_place() -> None:
    assert {name for name, _ in files()} <= set(RANK)


def test_the_contracts_do_not_know_each_other() -> None:
    for contract, other in (("pytorch", "mindspore"), ("mindspore", "pytorch")):
        assert not any(other in name.split(".") for name in imports(ROOT / "contracts" / f"{contract}.py"))


def test_one_file_imports_the_extension() -> None:
    importers = {name for name, path in files() if any("_core" in part.split(".") for part in imports(path))}
    assert importers <= {"_engine"}


def test_frameworks_are_imported_by_their_folder_alone() -> None:
    for name, path in files():
        allowed = FRAMEWORKS.get(name, set())
        top = {imported.partition(".")[0] for imported in imports(path)}
        if RANK[name] <= RANK["torch"]:
            assert not top & (set(FRAMEWORKS) - allowed), path


def test_importing_the_package_loads_numpy_and_nothing_heavier() -> None:
    """Everything that is neither NumPy's nor ours must come with Python itself."""
    program = (
        "import sys, numpy; before = set(sys.modules); import tconv3d\n"
        "foreign = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(foreign - set(sys.stdlib_module_names) - {'numpy', 'tconv3d'}))\n"
        "print('importlib.metadata' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.stdout.split(), run.stderr) == (["[]", "False"], "")


def test_faces_load_on_first_use() -> None:
    for name in ("torch", "mindspore", "dask", "migrate", "__version__"):
        assert name in dir(tconv3d)
    assert not hasattr(tconv3d, "tensorflow")
