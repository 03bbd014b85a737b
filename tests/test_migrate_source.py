# SPDX-License-Identifier: Apache-2.0
"""`tconv3d migrate`: text before and after for every transformation, what is left and why, files and folders."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tconv3d.cli import main
from tconv3d.migrate import RequestError
from tconv3d.migrate.source import Options, migrate_text
from tconv3d.migrate.source.files import find, migrate_files, write

TORCH = "from torch import nn\n"
MINDSPORE = "from mindspore import nn\n"
LAWS = "weight_init=None, bias_init=None"


def migrated(code: str, to: str, **options: str) -> tuple[str, list[tuple[str, str]]]:
    """The new text, and (kind, reason) of everything but the rewritten places."""
    result = migrate_text(textwrap.dedent(code), Options(to, **options))
    return result.text, [(note.kind, note.text) for note in result.notes if note.kind != "rewritten"]


# The constructor, PyTorch to MindSpore.


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("4, 2, 3", f"4, 2, 3, pad_mode='pad', has_bias=True, {LAWS}"),
        ("4, 2, 3, 2, 1, 1", f"4, 2, 3, 2, padding=1, output_padding=1, pad_mode='pad', has_bias=True, {LAWS}"),
        (
            "4, 2, kernel_size=(1, 2, 3), padding=(0, 1, 1)",
            f"4, 2, kernel_size=(1, 2, 3), padding=(0, 0, 1, 1, 1, 1), pad_mode='pad', has_bias=True, {LAWS}",
        ),
        ("4, 2, [3, 3, 3], bias=False", "4, 2, (3, 3, 3), has_bias=False, pad_mode='pad', weight_init=None"),
        ("4, 2, (3,), bias=0", "4, 2, 3, has_bias=False, pad_mode='pad', weight_init=None"),
        ("4, 2, 3, groups=2, padding_mode='zeros'", f"4, 2, 3, group=2, pad_mode='pad', has_bias=True, {LAWS}"),
        (
            "4, 2, 3, dilation=(1, 2, 2), device=None",
            f"4, 2, 3, dilation=(1, 2, 2), pad_mode='pad', has_bias=True, {LAWS}",
        ),
        ("in_channels=c, out_channels=c // 2, kernel_size=k - 1",
         f"in_channels=c, out_channels=c // 2, kernel_size=k - 1, pad_mode='pad', has_bias=True, {LAWS}"),
        ("4, 2, 3, bias=c > 4", f"4, 2, 3, has_bias=c > 4, pad_mode='pad', {LAWS}"),
        ("4, 2, 3, bias=c", f"4, 2, 3, has_bias=bool(c), pad_mode='pad', {LAWS}"),
        ("4, 2, 3, padding=c", f"4, 2, 3, padding=_sides(c), pad_mode='pad', has_bias=True, {LAWS}"),
        ("4, 2, 3, padding=(c, 1, c)", f"4, 2, 3, padding=(c, c, 1, 1, c, c), pad_mode='pad', has_bias=True, {LAWS}"),
    ],
)  # fmt: skip
def test_torch_layer(call: str, expected: str) -> None:
    text, notes = migrated(f"{TORCH}up = nn.ConvTranspose3d({call})\n", "mindspore")
    assert text.splitlines()[-1] == f"up = nn.Conv3dTranspose({expected})"
    assert text.startswith(MINDSPORE) and not notes


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("*sizes", "*sizes is not known without running the code"),
        ("4, 2, 3, **options", "**options is not known without running the code"),
        ("4, 2, 3, padding='same'", "padding='same' is refused by PyTorch"),
        ("4, 2, 3, padding_mode='reflect'", "padding_mode='reflect' is refused by PyTorch"),
        ("4, 2, 3, dilation=2", "MindSpore refuses a depth dilation other than 1, here 2; --use tconv3d computes it"),
        ("4, 2, 8", "MindSpore refuses kernels of more than 343 taps, here 512"),
        ("4, 2, 3, stride=(300, 1, 1)", "MindSpore refuses a depth stride above 256, here 300"),
        ("4, 2, 3, dtype=torch.float64", "dtype=torch.float64: MindSpore computes float16 and float32 alone here"),
        ("4, 2, 3, dtype=d", "dtype=d is not known without running the code"),
        ("4, 2, 3, strides=2", "argument 'strides' is not one of this call's"),
        ("4, 2, 3, kernel_size=2", "argument 'kernel_size' is given twice"),
        ("4, 2, (3, 3)", "kernel_size=(3, 3) is refused by PyTorch"),
    ],
)
def test_torch_layer_left(call: str, reason: str) -> None:
    code = f"import torch\n{TORCH}up = nn.ConvTranspose3d({call})\n"
    text, notes = migrated(code, "mindspore")
    assert ("left", reason) in notes
    assert text.endswith(f"up = nn.ConvTranspose3d({call})\n")


def test_an_output_size_at_the_call_keeps_the_layer() -> None:
    code = TORCH + "up = nn.ConvTranspose3d(4, 2, 3)\ny = up(x, output_size=(8, 8, 8))\n"
    text, notes = migrated(code, "mindspore")
    assert (text, notes) == (code, [("left", "up is called with an output size in line 3, which MindSpore lacks")])


def test_versions_of_mindspore() -> None:
    code = TORCH + "up = nn.ConvTranspose3d(4, 2, 3, padding=(0, 1, 1), groups=2, device='cpu')\n"
    text, notes = migrated(code, "mindspore", target_version="announced")
    assert text == MINDSPORE + "up = nn.Conv3dTranspose(4, 2, 3, padding=(0, 1, 1), groups=2, bias=True)\n"
    assert notes == [("warning", "device='cpu' dropped: MindSpore chooses the device for the whole process")]
    assert ("left", "MindSpore before 2.1 takes group=1 alone") in migrated(code, "mindspore", target_version="2.0")[1]
    text, _ = migrated(TORCH + "up = nn.ConvTranspose3d(4, 2, 3)\n", "mindspore", target_version="2.0.0-alpha")
    assert text.splitlines()[-1] == (
        "up = nn.Conv3dTranspose(4, 2, 3, pad_mode='pad', has_bias=True, weight_init=initializer.HeUniform(5**0.5),"
        " bias_init=initializer.Uniform(0.13608276348795434))"
    )
    with pytest.raises(RequestError, match="is no version"):
        Options("mindspore", target_version="newest")


# The constructor, MindSpore to PyTorch.


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("4, 2, 4, 2", "nn.ConvTranspose3d(4, 2, 4, 2, padding=1, bias=False)"),
        ("4, 2, 3, 2, 'same'", "_CroppedConvTranspose3d(4, 2, 3, 2, 0, bias=False, drop_back=(1, 1, 1))"),
        ("4, 2, 2, 3, pad_mode='SAME', has_bias=True",
         "nn.ConvTranspose3d(4, 2, 2, 3, padding=0, bias=True, output_padding=1)"),
        ("4, 2, 2, 3, pad_mode='valid'", "nn.ConvTranspose3d(4, 2, 2, 3, padding=0, output_padding=1, bias=False)"),
        ("4, 2, k, 2, pad_mode='pad', padding=(1, 1, 0, 0, 2, 2), output_padding=1",
         "nn.ConvTranspose3d(4, 2, k, 2, padding=(1, 0, 2), output_padding=1, bias=False)"),
        ("4, 2, k, 2, pad_mode='pad', padding=(a, a, b, b, c, c)",
         "nn.ConvTranspose3d(4, 2, k, 2, padding=(a, b, c), bias=False)"),
        ("4, 2, k, 2, pad_mode='pad', padding=(2, 1, 0, 0, 1, 1)",
         "nn.ConvTranspose3d(4, 2, k, 2, padding=(2, 0, 1), output_padding=(1, 0, 0), bias=False)"),
        ("4, 2, 3, group=2, data_format='NCDHW', pad_mode='pad', weight_init=None",
         "nn.ConvTranspose3d(4, 2, 3, groups=2, bias=False)"),
        ("4, 2, 3, pad_mode='pad', weight_init='ones'",
         "_initialised(nn.ConvTranspose3d(4, 2, 3, bias=False), weight=init.ones_)"),
        ("4, 2, 3, pad_mode='pad', weight_init=Normal(0.02), has_bias=True, bias_init='zeros'",
         "_initialised(nn.ConvTranspose3d(4, 2, 3, bias=True),"
         " weight=functools.partial(init.normal_, std=0.02), bias=init.zeros_)"),
        ("4, 2, 3, padding=1, groups=2", "nn.ConvTranspose3d(4, 2, 3, padding=1, groups=2, bias=True)"),
        ("4, 2, 3, 2, 1, 1, 2, False", "nn.ConvTranspose3d(4, 2, 3, 2, 1, 1, 2, False)"),
    ],
)  # fmt: skip
def test_mindspore_layer(call: str, expected: str) -> None:
    code = f"{MINDSPORE}from mindspore.common.initializer import Normal\nup = nn.Conv3dTranspose({call})\n"
    text, notes = migrated(code, "torch")
    assert text.splitlines()[-1] == f"up = {expected}"
    assert "from torch import nn" in text and not [note for note in notes if note[0] == "left"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("4, 2, k", "kernel_size=k is not known without running the code"),
        ("4, 2, 3, pad_mode=mode", "pad_mode=mode is not known without running the code"),
        ("4, 2, 3, 2, mode", "the fifth argument is pad_mode or padding, which is not known without running the code"),
        ("4, 2, 3, pad_mode='pad', padding=p", "padding=p is six sides or an int, not known without running the code"),
        ("4, 2, 3, has_bias=True, groups=1", "['groups', 'has_bias'] mixes two signatures"),
        ("4, 2, 3, weight_init=w", "weight_init=w is no law that is known without running the code"),
        ("4, 2, 3, data_format='NDHWC'", "MindSpore refuses every data_format but 'NCDHW'"),
        ("4, 2, 3, **options", "**options is not known without running the code"),
    ],
)
def test_mindspore_layer_left(call: str, reason: str) -> None:
    code = f"{MINDSPORE}up = nn.Conv3dTranspose({call})\n"
    assert migrated(code, "torch") == (code, [("left", reason)])


def test_constants_are_followed_and_changing_ones_are_not() -> None:
    head = MINDSPORE + "k = 5\ns = k - 2\n"
    text, _ = migrated(head + "up = nn.Conv3dTranspose(4, 2, kernel_size=k, stride=s, pad_mode='same')\n", "torch")
    assert "nn.ConvTranspose3d(4, 2, kernel_size=k, stride=s, padding=1, bias=False)" in text
    code = head + "k += 1\nup = nn.Conv3dTranspose(4, 2, k)\n"
    assert migrated(code, "torch")[1] == [("left", "kernel_size=k is not known without running the code")]
    code = MINDSPORE + "a = b\nb = a\nup = nn.Conv3dTranspose(4, 2, a)\n"  # names that stand for each other
    assert migrated(code, "torch")[1] == [("left", "kernel_size=a is not known without running the code")]


def test_older_pytorch_had_no_dtype() -> None:
    code = "import mindspore\nup = mindspore.nn.Conv3dTranspose(4, 2, 4, 2, dtype=mindspore.{})\n"
    assert "dtype=torch.float16" in migrated(code.format("float16"), "torch")[0]
    assert "dtype" not in migrated(code.format("float32"), "torch", target_version="1.8.1")[0]
    reason = "dtype=float16 cannot be asked for before PyTorch 1.9"
    assert migrated(code.format("float16"), "torch", target_version="1.8.1")[1] == [("left", reason)]


def test_older_mindspore_had_other_laws() -> None:
    code = MINDSPORE + "up = nn.Conv3dTranspose(4, 2, 4, 2)\n"
    text, _ = migrated(code, "torch", source_version="2.0")
    assert text.endswith("weight=functools.partial(init.normal_, std=0.01))\n")


# Functions.


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("x, w", "ops.conv3d_transpose(x, w, pad_mode='pad')"),
        ("x, w, b, 2, 1", "_add_bias(ops.conv3d_transpose(x, w, stride=2, padding=1, pad_mode='pad'), b)"),
        ("x, weight=w, bias=None, stride=s",
         "ops.conv3d_transpose(x, weight=w, stride=_sizes(s), pad_mode='pad')"),
    ],
)  # fmt: skip
def test_torch_function(call: str, expected: str) -> None:
    code = f"import torch.nn.functional as F\ny = F.conv_transpose3d({call})\n"
    text, notes = migrated(code, "mindspore")
    assert text.splitlines()[-1] == f"y = {expected}" and not notes
    assert migrated(f"import torch\ny = torch.conv_transpose3d({call})\n", "mindspore")[0] == text


def test_torch_function_left_for_groups() -> None:
    code = "import torch.nn.functional as F\ny = F.conv_transpose3d(x, w, groups=2)\n"
    reason = "ops.conv3d_transpose refuses some grouped weights; use a layer, or --use tconv3d"
    assert migrated(code, "mindspore") == (code, [("left", reason)])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("x, w, 'pad', 1, 2", "F.conv_transpose3d(x, w, padding=1, stride=2)"),
        ("x, w, pad_mode='pad', padding=(0, 3, 1, 1, 0, 0)",
         "F.conv_transpose3d(x, w, padding=(0, 1, 0))[..., :-3, :, :]"),
        ("x, w, stride=2", "_conv3d_transpose(x, w, stride=2, pad_mode='valid')"),
        ("inputs=x, weight=w, pad_mode='same', group=2", "_conv3d_transpose(x=x, weight=w, pad_mode='same', groups=2)"),
    ],
)  # fmt: skip
def test_mindspore_function(call: str, expected: str) -> None:
    text, notes = migrated(f"from mindspore import ops\ny = ops.conv3d_transpose({call})\n", "torch")
    assert (text.splitlines()[-1], notes) == (f"y = {expected}", [])


# Names: aliases, classes passed on, subclasses, lazy layers.


@pytest.mark.parametrize(
    "head",
    [
        "import torch.nn as N\nUp = N.ConvTranspose3d\n",
        "from torch.nn import ConvTranspose3d as Up\n",
        "from torch.nn.modules.conv import ConvTranspose3d as Up\n",
        "import torch\nnn = torch.nn\nUp = nn.ConvTranspose3d\n",
    ],
)
def test_aliases(head: str) -> None:
    text, notes = migrated(head + "up = Up(4, 2, 3)\nassert isinstance(up, Up)\n", "mindspore")
    arguments = f"(4, 2, 3, pad_mode='pad', has_bias=True, {LAWS})"
    assert f"up = Up{arguments}" in text or f"up = nn.Conv3dTranspose{arguments}" in text
    assert set(notes) <= {("left", "no rule for torch.nn")}  # the module itself, under another name
    compile(text, "migrated", "exec")


def test_star_import() -> None:
    text, _ = migrated("from torch.nn import *\nup = ConvTranspose3d(4, 2, 3)\n", "mindspore")
    assert f"up = ms_nn.Conv3dTranspose(4, 2, 3, pad_mode='pad', has_bias=True, {LAWS})" in text


def test_a_name_of_the_users_own_is_not_the_frameworks() -> None:
    code = "import torch\nclass ConvTranspose3d: pass\nup = ConvTranspose3d(4, 2, 3)\n"
    assert migrated(code, "mindspore") == (code, [])


def test_a_class_that_is_passed_on_stays() -> None:
    code = TORCH + "def layer(dim):\n    return nn.ConvTranspose3d if dim == 3 else None\n"
    reason = "torch.nn.ConvTranspose3d is passed on as a value: the calls that it ends in cannot be seen"
    assert migrated(code, "mindspore") == (code, [("left", reason)])


def test_tests_and_annotations_follow() -> None:
    code = TORCH + "def fill(m: nn.ConvTranspose3d):\n    return isinstance(m, (nn.ConvTranspose3d, nn.Conv3d))\n"
    after = MINDSPORE + "def fill(m: nn.Conv3dTranspose):\n    return isinstance(m, (nn.Conv3dTranspose, nn.Conv3d))\n"
    assert migrated(code, "mindspore") == (after, [])


def test_subclass() -> None:
    code = """\
    from torch import nn

    class Up(nn.ConvTranspose3d):
        def __init__(self, channels):
            super().__init__(channels, channels, 2, stride=2)  # doubles

        def forward(self, x):
            return super().forward(x)

    class Plain(nn.ConvTranspose3d):
        pass

    ups = Up(4), Plain(4, 2, 3)
    """
    after = f"""\
    from mindspore import nn

    class Up(nn.Conv3dTranspose):
        def __init__(self, channels):
            super().__init__(channels, channels, 2, stride=2, pad_mode='pad', has_bias=True, {LAWS})  # doubles

        def construct(self, x):
            return super().construct(x)

    class Plain(nn.Conv3dTranspose):
        pass

    ups = Up(4), Plain(4, 2, 3, pad_mode='pad', has_bias=True, {LAWS})
    """
    assert migrated(code, "mindspore") == (textwrap.dedent(after), [])
    back, notes = migrated(textwrap.dedent(after), "torch")
    assert back == textwrap.dedent(code).replace("stride=2)", "stride=2, bias=True)").replace(
        "Plain(4, 2, 3)", "Plain(4, 2, 3, bias=True)"
    )
    assert not notes


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def __init__(self, *a):\n        super().__init__(*a)", "*a is not known without running the code"),
        ("def half(self):\n        return self.groups // 2",
         "it uses self.groups, which the other layer has under another name or form"),
    ],
)  # fmt: skip
def test_a_subclass_is_rewritten_whole_or_not_at_all(body: str, reason: str) -> None:
    code = f"{TORCH}class Up(nn.ConvTranspose3d):\n    {body}\n"
    assert migrated(code, "mindspore") == (code, [("left", f"class Up: {reason}")])


def test_lazy_layer() -> None:
    code = TORCH + "up = nn.LazyConvTranspose3d(2, 3)\n"
    reason = "in_channels of a lazy layer is not known without running the code, and MindSpore needs it"
    assert migrated(code, "mindspore") == (code, [("left", reason)])
    code = TORCH + "net = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.LazyConvTranspose3d(2, kernel_size=3))\n"
    text, notes = migrated(code, "mindspore")
    assert f"nn.Conv3dTranspose(8, 2, kernel_size=3, pad_mode='pad', has_bias=True, {LAWS})" in text and not notes


# What stands around the layer, and the form of the text.


def test_surroundings() -> None:
    code = """\
    import torch
    import torch.nn as nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2), nn.LeakyReLU(inplace=True))
            self.norm = nn.InstanceNorm3d(4)
            self.head = nn.Linear(4, 1)
            self.pool = nn.MaxPool3d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, torch.relu(x)], 1)
    """
    after = """\
    import mindspore
    from mindspore import nn
    from mindspore import ops

    class Block(nn.Cell):
        def __init__(self):
            super().__init__()
            self.block = nn.SequentialCell(nn.Conv3d(1, 2, 3, padding=1, pad_mode='pad', has_bias=True), \
nn.BatchNorm3d(2, momentum=0.9), nn.LeakyReLU(alpha=0.01))
            self.norm = nn.GroupNorm(4, num_channels=4, affine=False)
            self.head = nn.Dense(4, 1, has_bias=True)
            self.pool = nn.MaxPool3d(2, stride=2)

        def construct(self, x: mindspore.Tensor) -> mindspore.Tensor:
            return ops.cat([x, ops.relu(x)], 1)
    """
    assert migrated(code, "mindspore") == (textwrap.dedent(after), [])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("1, 2, 3", "1, 2, 3, pad_mode='pad', has_bias=True"),
        ("1, 2, 3, 1, (0, 1, 2), bias=False", "1, 2, 3, 1, padding=(0, 0, 1, 1, 2, 2), has_bias=False, pad_mode='pad'"),
        ("1, 2, 3, padding='same'", "1, 2, 3, pad_mode='same', has_bias=True"),
    ],
)
def test_convolution(call: str, expected: str) -> None:
    there, notes = migrated(f"{TORCH}c = nn.Conv3d({call})\n", "mindspore")
    assert (there, notes) == (f"{MINDSPORE}c = nn.Conv3d({expected})\n", [])
    back, notes = migrated(there, "torch")
    again, _ = migrated(back, "mindspore")
    assert not notes and again.count("pad_mode") == 1 and "has_bias" in again


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (TORCH + "c = nn.Conv3d(1, 2, 3, padding_mode='reflect')\n",
         "padding_mode='reflect' has no counterpart in MindSpore's convolution"),
        (MINDSPORE + "c = nn.Conv3d(1, 2, 3, stride=2)\n",
         "pad_mode='same' with a stride pads by the input's size, which PyTorch's layer does not"),
    ],
)  # fmt: skip
def test_convolution_left(code: str, reason: str) -> None:
    assert migrated(code, "mindspore" if "torch" in code else "torch") == (code, [("left", reason)])


def test_what_has_no_rule_is_counted() -> None:
    code = "import torch\ny = torch.fft.fftn(x)\n"
    assert migrated(code, "mindspore") == (code, [("left", "no rule for torch.fft.fftn")])


def test_types_and_what_is_called_on_the_result() -> None:
    text, notes = migrated("from mindspore import Tensor\ndef f(x: Tensor): return Tensor([1.0])\n", "torch")
    assert (text, notes) == ("import torch\ndef f(x: torch.Tensor): return torch.tensor([1.0])\n", [])
    code = "import torch\nx = torch.Tensor([1])\n"
    reason = "torch.Tensor(...) makes float32 of anything; write torch.tensor(...)"
    assert migrated(code, "mindspore") == (code, [("left", reason)])
    _, notes = migrated(TORCH + "up = nn.ConvTranspose3d(4, 2, 3).to(device)\n", "mindspore")
    assert notes == [("left", ".to of the new layer: whether it has that is not known")]


def test_arrays_of_tensors() -> None:
    head = "import {}\n"
    code = "a = f(x).detach().cpu().numpy()\nb = frame.numpy()\n"
    text, notes = migrated(head.format("torch") + code, "mindspore")
    assert (text.splitlines()[-2:], notes) == (["a = f(x).asnumpy()", "b = frame.numpy()"], [])
    text, notes = migrated(head.format("mindspore") + "a = f(x).asnumpy()\n", "torch")
    assert (text.splitlines()[-1], notes) == ("a = f(x).detach().numpy()", [])


def test_comments_and_layout_stay() -> None:
    code = """\
    # head
    from torch import nn  # layers

    up = nn.ConvTranspose3d(
        4,  # in
        2,
        kernel_size = (3, 3,
                       3),
        padding=1,  # crop
        bias=False,
    )  # tail
    """
    after = """\
    # head
    from mindspore import nn

    up = nn.Conv3dTranspose(
        4,  # in
        2,
        kernel_size = (3, 3,
                       3),
        padding=1,  # crop
        has_bias=False,
        pad_mode='pad',
        weight_init=None,
    )  # tail
    """
    assert migrated(code, "mindspore")[0] == textwrap.dedent(after)


@pytest.mark.parametrize(
    "call",
    [
        "4, 2, 3",
        "4, 2, 3, stride=2, padding=1, output_padding=1, bias=False",
        "4, 2, kernel_size=(1, 3, 5), stride=(1, 2, 3), padding=(0, 1, 2), groups=2",
        "c, 2 * c, k, stride=s, padding=p, bias=True",
        "4, 4, 3, padding=(a, b, a), dilation=(1, 2, 3)",
    ],
)
def test_there_and_back_gives_the_original_arguments(call: str) -> None:
    code = f"{TORCH}up = nn.ConvTranspose3d({call})\n"
    there, _ = migrated(code, "mindspore")
    back, notes = migrated(there, "torch")
    expected = call if "bias" in call else f"{call}, bias=True"
    assert back.splitlines()[-1] == f"up = nn.ConvTranspose3d({expected})" and not notes


@pytest.mark.parametrize(
    "call",
    [
        "4, 2, 3, 2, pad_mode='same', has_bias=False, weight_init=None",
        "4, 2, 5, stride=(2, 3, 4), pad_mode='same', has_bias=True, weight_init=None, bias_init=None",
        "4, 2, 3, stride=2, padding=1, pad_mode='pad', has_bias=False, weight_init=None",
        "4, 2, 3, stride=2, padding=(0, 2, 2, 0, 3, 3), pad_mode='pad', has_bias=False, weight_init=None",
    ],
)
def test_back_and_there_gives_an_equal_call(call: str) -> None:
    from tconv3d.migrate.layer import resolve
    from tconv3d.migrate.signature import parse_layer

    code = f"{MINDSPORE}up = nn.Conv3dTranspose({call})\n"
    there, _ = migrated(code, "torch")
    back, notes = migrated(there, "mindspore")
    first, second = (resolve(parse_layer(text.splitlines()[-1]), (1, 4, 9, 8, 7)) for text in (code, back))
    assert (first.geometry, first.bias) == (second.geometry, second.bias) and not notes
    assert ("'same'" in call) == ("'same'" in back)


# --use tconv3d.


def test_our_layers_keep_their_contract() -> None:
    code = TORCH + "up = nn.ConvTranspose3d(4, 2, 3, dilation=2, padding=[1, 1, 1])\ny = up(x, output_size=(5, 5, 5))\n"
    text, notes = migrated(code, "mindspore", use="tconv3d")
    assert "tconv3d_mindspore.ConvTranspose3d(4, 2, 3, dilation=2, padding=[1, 1, 1], bias=True)" in text
    assert "from tconv3d import mindspore as tconv3d_mindspore" in text and not notes
    text, notes = migrated(MINDSPORE + "up = nn.Conv3dTranspose(4, 2, k, 2)\n", "torch", use="tconv3d")
    expected = "tconv3d_torch.Conv3dTranspose(4, 2, k, 2, pad_mode='same', has_bias=False, weight_init=None)"
    assert expected in text and not notes


# Files and the command.


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_command_prints_a_difference_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(TORCH + "up = nn.ConvTranspose3d(4, 2, 3)\n")
    before = tree(tmp_path)
    assert main(["migrate", str(tmp_path), "--to", "mindspore"]) == 0
    out, err = capsys.readouterr()
    assert "+up = nn.Conv3dTranspose(" in out and "-up = nn.ConvTranspose3d(" in out
    assert err.endswith("1 files read, 1 to change (--write does it), 1 places rewritten, 0 left\n")
    assert tree(tmp_path) == before


def test_write_is_whole_keeps_permissions_and_a_backup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.py"
    code = TORCH + "up = nn.ConvTranspose3d(4, 2, 3)\r\nleft = nn.ConvTranspose3d(*sizes)\n"
    file.write_bytes(code.encode())
    file.chmod(0o640)
    assert main(["migrate", str(file), "--to", "mindspore", "--write", "--backup"]) == 1
    assert f"{file}:3: left: *sizes is not known" in capsys.readouterr().err
    assert (tmp_path / "net.py.orig").read_bytes() == code.encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert sorted(tree(tmp_path)) == ["net.py", "net.py.orig"]
    assert main(["migrate", str(file), "--to", "torch", "--write", "--backup"]) == 2  # the backup is not overwritten


def test_a_failed_write_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.py"
    file.write_text(TORCH + "up = nn.ConvTranspose3d(4, 2, 3)\n")
    before = tree(tmp_path)
    (result,) = migrate_files(find(file), Options("mindspore"))

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write(result, backup=False)
    assert tree(tmp_path) == before


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(TORCH + "up = nn.ConvTranspose3d(4, 2, 3)\n")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "own.py").write_text("x = 1\n")
    (inside / "link.py").symlink_to(tmp_path / "outside.py")
    (inside / "loop").symlink_to(inside)
    assert find(inside) == [inside / "own.py"]
    with pytest.raises(RequestError, match="neither a file nor a folder"):
        find(tmp_path / "missing")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"from torch import nn\nup = nn.ConvTranspose3d(4,\n", "does not parse, line"),
        (b"# coding: utf-8\nimport torch  # \xff\xfe\n", "is not text that Python could read"),
        (b"# coding: no-such\nimport torch\n", "is not text that Python could read"),
        (b"import torch\nx = '\0'\n", "does not parse"),
        (b"import torch\nx = " + b"(" * 5000 + b")" * 5000, "too many nested parentheses"),
        (b"import torch\nx = a" + b".b" * 20_000, "nested too deeply"),
        (b"import torch\nx = 1" + b" and 1" * 20_000, "nested too deeply"),
        (b"import torch\nx = 'a'" + b" 'a'" * 20_000, "nested too deeply"),
        (b"import torch\nx = 1" + b" + 1" * 900, "nested too deeply"),
        (b"import torch\n" + b"x = 1 # fill\n" * 400_000, "more than the 4,194,304 that source may have"),
    ],
)
def test_files_that_cannot_be_read(
    data: bytes, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_bytes(data)
    assert main(["migrate", str(tmp_path), "--to", "mindspore", "--write"]) == 1
    assert reason in capsys.readouterr().err
    assert (tmp_path / "bad.py").read_bytes() == data


def test_depth_is_bounded_whatever_the_process_allows(tmp_path: Path) -> None:
    """Beyond a depth LibCST's parser ends the process, and some libraries raise Python's own limit."""
    program = (
        "import sys; sys.setrecursionlimit(10**5)\n"
        "from tconv3d.migrate import RequestError\n"
        "from tconv3d.migrate.source import Options, migrate_text\n"
        "for text in ('a' + '.b' * 20_000, '1' + ' + 1' * 20_000, 'not ' * 3000 + '1', 'a' + '()' * 20_000):\n"
        "    try: migrate_text('import torch; x = ' + text, Options('mindspore'))\n"
        "    except RequestError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.count("nested too deeply")) == (0, 4), run.stderr


def test_nothing_is_executed(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    code = (
        f"import torch.nn as nn\nopen({str(trap)!r}, 'w')\nup = nn.ConvTranspose3d(4, 2, __import__('os').getpid())\n"
    )
    (tmp_path / "net.py").write_text(code)
    main(["migrate", str(tmp_path), "--to", "mindspore", "--write"])
    assert not trap.exists()


def test_a_folder_in_parallel_equals_one_after_the_other(tmp_path: Path) -> None:
    for index in range(9):
        (tmp_path / f"net{index}.py").write_text(f"{TORCH}up = nn.ConvTranspose3d({index}, 2, 3)\n")
    seen: list[int] = []
    parallel = migrate_files(find(tmp_path), Options("mindspore"), processes=2, progress=seen.append)
    assert parallel == migrate_files(find(tmp_path), Options("mindspore"), processes=1)
    assert seen == list(range(1, 10)) and all(result.changed for result in parallel)
