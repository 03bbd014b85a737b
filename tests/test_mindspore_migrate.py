# SPDX-License-Identifier: Apache-2.0
"""Migrated code and converted checkpoints on the real frameworks: snippets, installed packages, a whole network."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import migrate_snippets
import mindspore
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from tconv3d.migrate.checkpoint import files
from tconv3d.migrate.checkpoint.convert import convert
from tconv3d.migrate.source import Note, Options, migrate_text

UNET = '''
import torch
from torch import nn


def block(in_channels: int, out_channels: int):
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm3d(out_channels),
        nn.LeakyReLU(0.01, inplace=True),
        nn.Conv3d(out_channels, out_channels, kernel_size=3, padding=1),
        nn.GroupNorm(2, out_channels),
        nn.PReLU(out_channels),
    )


class UNet(nn.Module):
    """Two levels, norms of several kinds, heads at two depths."""

    def __init__(self, channels=(4, 6, 8), classes=3):
        super().__init__()
        self.first = block(1, channels[0])
        self.down = nn.Conv3d(channels[0], channels[0], kernel_size=(1, 2, 2), stride=(1, 2, 2))
        self.second = block(channels[0], channels[1])
        self.pool = nn.MaxPool3d(2)
        self.bottom = block(channels[1], channels[2])
        self.up2 = nn.ConvTranspose3d(channels[2], channels[1], kernel_size=3, stride=2, padding=1, output_padding=1)
        self.norm2 = nn.InstanceNorm3d(channels[1])
        self.dec2 = block(2 * channels[1], channels[1])
        self.up1 = nn.ConvTranspose3d(channels[1], channels[0], (1, 2, 2), stride=(1, 2, 2), groups=2, bias=False)
        self.dec1 = block(2 * channels[0], channels[0])
        self.heads = nn.ModuleList([nn.Conv3d(channels[0], classes, 1), nn.Conv3d(channels[1], classes, 1)])

    def forward(self, x):
        a = self.first(x)
        b = self.second(self.down(a))
        c = self.bottom(self.pool(b))
        d = self.dec2(torch.cat([self.norm2(self.up2(c)), b], dim=1))
        e = self.dec1(torch.cat((self.up1(d), a), 1))
        return self.heads[0](e), torch.sigmoid(self.heads[1](d))
'''


def run(code: str, name: str = "migrated") -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": name}
    exec(compile(code, name, "exec"), scope)
    return scope


def left(notes: list[Note]) -> list[str]:
    return [note.text for note in notes if note.kind == "left"]


def randomize(module: torch.nn.Module) -> None:
    """Give every parameter and statistic a value of its own, so that none can hide behind 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                fresh = torch.rand(value.shape, generator=generator)
                value.copy_(fresh + 0.5 if name.endswith(("var", "weight")) and value.dim() < 2 else fresh - 0.5)


def transfer(module: torch.nn.Module, cell: mindspore.nn.Cell, folder: Path, model: str | None = None) -> None:
    """Move the parameters by way of files and this project's converter, and load them strictly.

    A MindSpore norm without affine parameters has them all the same, at 1 and 0; nothing else may be missing.
    """
    torch.save(module.state_dict(), folder / "x.pth")
    convert(folder / "x.pth", folder / "x.ckpt", model=model)
    parameters = mindspore.load_checkpoint(str(folder / "x.ckpt"))
    missing, unused = mindspore.load_param_into_net(cell, parameters, strict_load=True)
    constant = {name for name, parameter in cell.parameters_dict().items() if not parameter.requires_grad}
    assert unused == [] and set(missing) <= {name for name in constant if name.endswith((".gamma", ".beta"))}


def outputs(net: Any, x: np.ndarray) -> list[np.ndarray]:
    if isinstance(net, torch.nn.Module):
        with torch.no_grad():
            found = net.eval()(torch.tensor(x))
        return [y.numpy() for y in (found if isinstance(found, tuple) else (found,))]
    found = net.set_train(False)(mindspore.Tensor(x))
    return [y.asnumpy() for y in (found if isinstance(found, tuple) else (found,))]


def assert_equal_outputs(a: Any, b: Any, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).standard_normal(shape, np.float32)
    for ours, theirs in zip(outputs(a, x), outputs(b, x), strict=True):
        assert ours.shape == theirs.shape
        assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("name", migrate_snippets.SNIPPETS)
def test_snippets_in_the_style_of_the_model_zoo(name: str, tmp_path: Path) -> None:
    code, make, shape = migrate_snippets.SNIPPETS[name]
    code = migrate_snippets.HEAD + code
    there = migrate_text(code, Options("torch"))
    assert left(there.notes) == [] and "import mindspore" not in there.text
    module, cell = eval(make, run(there.text)), eval(make, run(code))
    if "function" not in name:
        randomize(module)
        transfer(module, cell, tmp_path)
    assert_equal_outputs(module, cell, shape)
    back = migrate_text(there.text, Options("mindspore"))
    assert left(back.notes) == []
    again = eval(make, run(back.text))
    if "function" not in name:
        transfer(module, again, tmp_path)
    assert_equal_outputs(again, cell, shape)


def test_a_whole_unet_on_our_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--use tconv3d: the same network with this library's layers, which compute a dilated depth as well."""
    import tconv3d.mindspore

    code = UNET.replace("output_padding=1)", "output_padding=1, dilation=1)").replace(
        "groups=2,", "groups=2, dilation=(2, 1, 1),"
    )
    code = code.replace("torch.cat((self.up1(d), a), 1)", "torch.cat((self.up1(d)[:, :, : a.shape[2]], a), 1)")
    (tmp_path / "unet_source.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    there = migrate_text(code, Options("mindspore", use="tconv3d"))
    assert left(there.notes) == []
    module, cell = run(code)["UNet"](), run(there.text)["UNet"]()
    ours = [child for _, child in cell.cells_and_names() if isinstance(child, tconv3d.mindspore.ConvTranspose3d)]
    assert len(ours) == 2
    randomize(module)
    transfer(module, cell, tmp_path, model="unet_source:UNet")
    assert_equal_outputs(module, cell, (2, 1, 4, 8, 12))


def test_mindspores_layer_becomes_ours_in_torch() -> None:
    code = (
        "from mindspore import nn\n\n\ndef make():\n"
        "    return nn.Conv3dTranspose(4, 6, 3, 2, pad_mode='same', group=2, has_bias=True)\n"
    )
    there = migrate_text(code, Options("torch", use="tconv3d"))
    assert left(there.notes) == []
    cell, module = run(code)["make"](), run(there.text)["make"]()
    with torch.no_grad():
        module.weight.copy_(torch.tensor(cell.weight.asnumpy()))
        module.bias.copy_(torch.tensor(cell.bias.asnumpy()))
    assert_equal_outputs(module, cell, (2, 4, 3, 4, 5))


def test_a_whole_unet_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unet_source.py").write_text(UNET)
    monkeypatch.chdir(tmp_path)
    there = migrate_text(UNET, Options("mindspore"))
    assert left(there.notes) == [] and "torch" not in there.text
    module, cell = run(UNET)["UNet"](), run(there.text)["UNet"]()
    randomize(module)
    transfer(module, cell, tmp_path, model="unet_source:UNet")  # the model tells PReLU from a norm without bias
    shape = (2, 1, 4, 8, 12)
    assert_equal_outputs(module, cell, shape)

    mindspore.save_checkpoint(cell, str(tmp_path / "back.ckpt"))
    (tmp_path / "rules.json").write_text('{"drop": ["norm2\\\\..*"]}')  # MindSpore's affine=False has parameters
    convert(tmp_path / "back.ckpt", tmp_path / "back.pth", rules_file=tmp_path / "rules.json", model="unet_source:UNet")
    fresh = run(UNET)["UNet"]()
    fresh.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True))
    assert all(torch.equal(fresh.state_dict()[name], value) for name, value in module.state_dict().items())
    assert_equal_outputs(fresh, cell, shape)

    back = migrate_text(there.text, Options("torch"))
    assert left(back.notes) == []


def test_mindspore_reads_and_writes_the_same_bytes(tmp_path: Path) -> None:
    arrays = {
        "bf": mindspore.Tensor(np.ones((2, 3)), mindspore.bfloat16),
        "h": mindspore.Tensor(np.ones(3), mindspore.float16),
        "scalar": mindspore.Tensor(2.5, mindspore.float32), "one": mindspore.Tensor([2.5], mindspore.float32),
        "i": mindspore.Tensor([[1, 2]], mindspore.int64), "b": mindspore.Tensor([True, False]),
    }  # fmt: skip
    listed = [{"name": name, "data": value} for name, value in arrays.items()]
    mindspore.save_checkpoint(listed, str(tmp_path / "x.ckpt"), crc_check=True, append_dict={"epoch": 3, "note": "x"})
    found = {tensor.name: tensor for tensor in files.read(tmp_path / "x.ckpt").tensors}
    assert {name: tensor.shape for name, tensor in found.items() if name in arrays} == {
        name: value.shape for name, value in arrays.items()
    }
    convert(tmp_path / "x.ckpt", tmp_path / "y.pth")
    convert(tmp_path / "y.pth", tmp_path / "z.ckpt")
    back = mindspore.load_checkpoint(str(tmp_path / "z.ckpt"))
    for name, value in arrays.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape
        assert np.array_equal(back[name].float().asnumpy(), value.float().asnumpy())


# Installed packages.


def source_of(module: str) -> str:
    """A module's text, found without importing it."""
    parent, _, name = module.rpartition(".")
    root = importlib.util.find_spec(parent.partition(".")[0])
    assert root is not None and root.submodule_search_locations
    folder = Path(root.submodule_search_locations[0]).joinpath(*parent.split(".")[1:])
    return (folder / f"{name}.py").read_text(encoding="utf-8")


PASSED_ON = "torch.nn.ConvTranspose3d is passed on as a value: the calls that it ends in cannot be seen"
TRANSPOSED = "ConvTranspose3d"


@pytest.mark.parametrize(
    ("module", "before", "passed_on", "after"),
    [
        ("monai.networks.nets.vista3d", 1, 0, 1),
        ("monai.networks.nets.dynunet", 1, 0, 1),
        ("monai.networks.nets.vnet", 1, 0, 1),
        ("monai.networks.layers.factories", 2, 1, 1),
        ("monai.networks.blocks.mednext_block", 1, 1, 0),
        ("dynamic_network_architectures.building_blocks.helper", 1, 1, 0),
        ("dynamic_network_architectures.building_blocks.patch_encode_decode", 2, 0, 2),
        ("dynamic_network_architectures.architectures.primus", 1, 0, 1),
        ("dynamic_network_architectures.architectures.dinov2_eva", 1, 0, 1),
        ("dynamic_network_architectures.initialization.weight_init", 2, 0, 2),
    ],
)
def test_every_file_that_holds_the_layer(module: str, before: int, passed_on: int, after: int) -> None:
    """What can be seen is rewritten, what cannot is left with its reason, and the file still parses."""
    code = source_of(module)
    result = migrate_text(code, Options("mindspore"))
    ast.parse(result.text)
    assert uses(code, TRANSPOSED) == before
    assert left(result.notes).count(PASSED_ON) == passed_on == uses(result.text, TRANSPOSED)
    assert uses(result.text, "Conv3dTranspose") == after


def uses(code: str, name: str) -> int:
    return sum(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(ast.parse(code)))


def expression(code: str, holds: Callable[[str], bool]) -> str:
    """The value of the one assignment whose text `holds`."""
    found = [
        ast.get_source_segment(code, node.value)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Assign) and holds(ast.unparse(node.targets[0]))
    ]
    assert len(found) == 1 and found[0]
    return found[0]


def pieces(code: str, *names: str) -> str:
    """Imports, helpers and the named classes of a file, without what else it needs."""
    tree = ast.parse(code)
    kept = [
        ast.get_source_segment(code, node) or ""
        for node in tree.body
        if (isinstance(node, (ast.Import, ast.ImportFrom)) and imports_a_framework(node))
        or (isinstance(node, (ast.ClassDef, ast.FunctionDef)) and (node.name in names or node.name.startswith("_")))
    ]
    return "\n\n".join(["import numpy as np", *kept])


def imports_a_framework(node: ast.Import | ast.ImportFrom) -> bool:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
    return any(name.partition(".")[0] in ("torch", "mindspore", "functools", "typing") for name in names)


def test_the_upscaling_of_monai_vista3d_runs_in_mindspore(tmp_path: Path) -> None:
    code = source_of("monai.networks.nets.vista3d")
    migrated = migrate_text(code, Options("mindspore")).text
    nets = []
    for text in (code, migrated):
        scope = run(pieces(text)) | {"transformer_dim": 8}
        nets.append(eval(expression(text, lambda target: target == "self.output_upscaling"), scope))
    module, cell = nets
    randomize(module)
    transfer(module, cell, tmp_path)
    assert_equal_outputs(module, cell, (1, 8, 3, 4, 5))


def test_the_patch_decoder_of_dynamic_network_architectures_runs_in_mindspore(tmp_path: Path) -> None:
    code = source_of("dynamic_network_architectures.building_blocks.patch_encode_decode")
    migrated = migrate_text(code, Options("mindspore")).text
    module = run(pieces(code, "PatchDecode", "LayerNormNd"))["PatchDecode"]((4, 8, 8), 24, 2)
    exact = lambda: mindspore.nn.GELU(approximate=False)  # noqa: E731  # a class passed on is the caller's to choose
    cell = run(pieces(migrated, "PatchDecode", "LayerNormNd"))["PatchDecode"]((4, 8, 8), 24, 2, activation=exact)
    randomize(module)
    (tmp_path / "rules.json").write_text(
        '{"layers": {"LayerNormNd": {"weight": "weight", "bias": "bias"}}, "modules": {".*\\\\.1": "LayerNormNd"}}'
    )
    torch.save(module.state_dict(), tmp_path / "x.pth")
    convert(tmp_path / "x.pth", tmp_path / "x.ckpt", rules_file=tmp_path / "rules.json")
    found = mindspore.load_checkpoint(str(tmp_path / "x.ckpt"))
    assert mindspore.load_param_into_net(cell, found, strict_load=True) == ([], [])
    assert_equal_outputs(module, cell, (1, 24, 2, 3, 2))
