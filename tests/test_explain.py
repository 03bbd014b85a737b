# SPDX-License-Identifier: Apache-2.0
"""`tconv3d explain`: reading a call, drawing the crop, finding the equal call, naming what bites."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import tconv3d
from tconv3d import _core, reference
from tconv3d.commands import CommandError, _diagram, _overlap
from tconv3d.commands.explain import constructor_text, explain
from tconv3d.contracts import mindspore, pytorch
from tconv3d.geometry import Geometry, Triple
from tconv3d.migrate import initial_weights
from tconv3d.migrate.equal import EqualCall, pad_modes, to_functional, to_mindspore, to_pytorch
from tconv3d.migrate.layer import resolve
from tconv3d.migrate.signature import MINDSPORE_PARAMETERS, PYTORCH_PARAMETERS, parse_layer, parse_shape

PAGE_INPUT = (1, 3, 4, 9, 16)


# Reading the text.


@pytest.mark.parametrize(
    "text",
    [
        "nn.ConvTranspose3d(3, 32, 5, stride=3, padding=2, output_padding=2, bias=False)",
        "torch.nn.ConvTranspose3d(3, 32, 5, 3, 2, 2, 1, False)",
        "tconv3d.ConvTranspose3d(in_channels=3, out_channels=32, kernel_size=(5, 5, 5), stride=[3, 3, 3], padding=2,\n"
        "    output_padding=2, bias=None)",
        "  self.up = nn.ConvTranspose3d(3, 32, kernel_size=5, stride=3, padding=(5-1)//2, output_padding=3-1, bias=0),",
    ],
)
def test_spellings_of_one_pytorch_call_resolve_equally(text: str) -> None:
    layer = resolve(parse_layer(text), PAGE_INPUT)
    assert layer.geometry == Geometry((4, 9, 16), (5,) * 3, (3,) * 3, (1,) * 3, (2,) * 3, (12, 27, 48), groups=1)
    assert (layer.output_shape, layer.bias) == ((1, 32, 12, 27, 48), False)


@pytest.mark.parametrize(
    "text",
    [
        "nn.Conv3dTranspose(3, 32, kernel_size=5, stride=3, weight_init='ones', pad_mode='same')",
        "mindspore.nn.Conv3dTranspose(3, 32, 5, 3, 'SAME', 0, 1, 1, 0, False, None)",
        "nn.Conv3dTranspose(3, 32, 5, 3, weight_init=ms.common.initializer.Normal(0.02), dtype=mindspore.float16)",
    ],
)
def test_spellings_of_one_mindspore_call_resolve_equally(text: str) -> None:
    layer = resolve(parse_layer(text), PAGE_INPUT)
    assert layer.geometry == Geometry((4, 9, 16), (5,) * 3, (3,) * 3, (1,) * 3, (1,) * 3, (12, 27, 48), groups=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not one layer call"),
        ("nn.ConvTranspose3d(3, 32", "cannot read"),
        ("nn.ConvTranspose3d", "not one layer call"),
        ("nn.ConvTranspose3d(3, 2, 1); nn.ConvTranspose3d(3, 2, 1)", "not one layer call"),
        ("nn.ConvTranspose3d\0(3, 2, 1)", "cannot read"),
        ("nn.ConvTranspose2d(3, 2, 1)", "not a layer known here"),
        ("F.conv_transpose3d(x, w)", "not a layer known here"),
        ("nn.ConvTranspose3d(3, 2)", "needs kernel_size"),
        ("nn.ConvTranspose3d(3, 2, k)", "`k` has no value"),
        ("nn.ConvTranspose3d(3, 2, (k, 1, 1))", "`k` has no value"),
        ("nn.ConvTranspose3d(3, 2, 2**2)", "no value without executing"),
        ("nn.ConvTranspose3d(3, 2, 4//0)", "divides by zero"),
        ("nn.ConvTranspose3d(3, 2, 1, in_channels=3)", "'in_channels' twice"),
        ("nn.ConvTranspose3d(3, 2, 1, stride=1, stride=2)", "'stride' twice"),
        ("nn.ConvTranspose3d(3, 2, 1, **options)", "'**'"),
        ("nn.ConvTranspose3d(*sizes)", "no value without executing"),
        ("nn.ConvTranspose3d(3, 2, 1, group=1)", "its name for this is 'groups'"),
        ("nn.Conv3dTranspose(3, 2, 1, bias=True)", "its name for this is 'has_bias'"),
        ("nn.Conv3dTranspose(3, 2, 1, colour='red')", "no argument 'colour'"),
        (f"nn.ConvTranspose3d({', '.join('1' * 13)})", "12 arguments at most"),
        (f"nn.ConvTranspose3d(3, 2, {'-' * 100_000}1)", "nested too deeply"),
        (f"nn.ConvTranspose3d(3, 2, {'1+' * 100_000}1)", "nested too deeply"),
        ("nn.ConvTranspose3d(3, 2, 1, dtype='float32')", "dtype='float32' is not one of"),
        ("nn.ConvTranspose3d(3, 2, 1, dtype=torch.int32)", "dtype=torch.int32 is not one of"),
        ("nn.Conv3dTranspose(3, 2, 1, dtype=None)", "dtype=None is not one of"),
        ("nn.ConvTranspose3d(3, 2, 10**9)", "no value without executing"),
        ("nn.ConvTranspose3d(3, 2, (1000001, 1, 1))", "too large to be explained"),
        ("nn.ConvTranspose3d(3, 2, 1, groups=2)", "at the constructor with ValueError"),
        ("nn.ConvTranspose3d(3, 2, 1, padding='same')", "at the call with TypeError"),
        ("nn.ConvTranspose3d(3, 2, 1, stride=0)", "at the call with RuntimeError"),
        ("nn.ConvTranspose3d(4, 2, 1)", "at the call with RuntimeError"),
        ("nn.Conv3dTranspose(3, 2, 1, stride=0)", "at the constructor with ValueError"),
        ("nn.Conv3dTranspose(3, 2, [1, 1, 1])", "at the constructor with TypeError"),
        ("nn.Conv3dTranspose(4, 2, 1)", "at the call with ValueError"),
        ("nn.Conv3dTranspose(3, 2, 1, weight_init='foo')", "at the constructor with ValueError"),
        ("nn.Conv3dTranspose(3, 2, 1, has_bias=True, bias_init='he_uniform')", "at the constructor with ValueError"),
    ],
)
def test_what_is_no_call_or_is_refused_by_the_contract_says_why(text: str, message: str) -> None:
    with pytest.raises(CommandError) as caught:
        explain(text, PAGE_INPUT)
    assert message in str(caught.value)


BRACKETS = ("(", ")", "[", "]", ",", "=", "'", "\\d", "\n", "\0", "\ud800", " ", "'same'", "(1, 2, 3)")
WORDS = (
    "0",
    "3",
    "1e999",
    "True",
    "None",
    "lambda",
    "x",
    "...",
    "f'{x}'",
    "b'3'",
    "3j",
    "stride",
    "padding",
    "pad_mode",
)
TOKENS = st.sampled_from([*BRACKETS, *WORDS, "-", "*", "**", "//", ":", "."])


@given(
    name=st.sampled_from(["nn.ConvTranspose3d(3, 2, 3, ", "nn.Conv3dTranspose(3, 2, 3, ", ""]), tokens=st.lists(TOKENS)
)
def test_any_text_is_explained_or_refused(name: str, tokens: list[str]) -> None:
    with contextlib.suppress(CommandError):
        explain(f"{name}{''.join(tokens)})", PAGE_INPUT)


def test_an_output_size_for_mindspore_is_refused() -> None:
    with pytest.raises(CommandError, match="PyTorch's alone"):
        explain("nn.Conv3dTranspose(3, 2, 1)", PAGE_INPUT, (4, 9, 16))


def test_nothing_in_the_text_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')"
    explain(f"nn.Conv3dTranspose(3, 32, 5, weight_init={code})", PAGE_INPUT)
    explain(f"open({str(trace)!r}, 'w').ConvTranspose3d(3, 32, 5)", PAGE_INPUT)
    with pytest.raises(CommandError):
        explain(f"nn.ConvTranspose3d(3, 32, {code})", PAGE_INPUT)
    assert not trace.exists()


@pytest.mark.parametrize("text", ["1,3,4,9,16", "(1, 3, 4, 9, 16)", "[1,3,4,9,16]", "1, 3, 4, 9, 16, "])
def test_shapes_are_read_in_any_brackets(text: str) -> None:
    assert parse_shape(text) == PAGE_INPUT


def test_parameter_lists_are_those_of_the_contracts() -> None:
    # The contracts' own functions need no device, and the PyTorch one no dtype.
    inspected = {name: _parameters(module.layer_arguments) for name, module in CONTRACTS.items()}
    assert [name for name in PYTORCH_PARAMETERS if name not in ("device", "dtype")] == inspected["pytorch"]
    assert [name for name in MINDSPORE_PARAMETERS if name in inspected["mindspore"]] == inspected["mindspore"]


# The crop.

SIZES = st.integers(0, 40)


@given(full=SIZES, front=SIZES, out=SIZES)
def test_crop_accounts_for_every_sample(full: int, front: int, out: int) -> None:
    crop = _diagram.crop(full, front, out)
    assert min(crop.cut_front, crop.kept, crop.cut_back, crop.appended) >= 0
    assert crop.cut_front + crop.kept + crop.cut_back == full
    assert crop.kept + crop.appended == out
    window = range(front, front + out)
    assert crop.kept == sum(sample in window for sample in range(full))


@given(full=st.integers(0, 20), front=st.integers(0, 20), out=st.integers(0, 20))
def test_short_axes_are_drawn_sample_by_sample(full: int, front: int, out: int) -> None:
    crop = _diagram.crop(full, front, out)
    samples = [_diagram.KEPT if front <= index < front + out else _diagram.CUT for index in range(full)]
    assert _diagram.draw(crop) == "".join(samples) + _diagram.ZERO * crop.appended


# The equal call.


def triples(smallest: int, largest: int) -> st.SearchStrategy[Triple]:
    return st.tuples(*[st.integers(smallest, largest)] * 3)


@st.composite
def mindspore_layers(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of a valid Conv3dTranspose of 2 -> 4 channels, within and beyond the original's back-end limits."""
    mode = draw(st.sampled_from(["same", "valid", "pad"]))
    stride, dilation = draw(triples(1, 4)), draw(triples(1, 3))
    arguments: dict[str, Any] = {"kernel_size": draw(triples(1, 4)), "stride": stride, "dilation": dilation}
    arguments |= {"pad_mode": mode, "group": draw(st.sampled_from([1, 2]))}
    if mode == "pad":
        limits = [max(pair) - 1 for pair in zip(stride, dilation, strict=True)]
        arguments["padding"] = tuple(draw(st.integers(0, 4)) for _ in range(6))
        arguments["output_padding"] = tuple(draw(st.integers(0, limit)) for limit in limits)
    return arguments


@st.composite
def pytorch_layers(draw: st.DrawFn) -> dict[str, Any]:
    stride, dilation = draw(triples(1, 4)), draw(triples(1, 3))
    limits = [max(pair) - 1 for pair in zip(stride, dilation, strict=True)]
    return {
        "kernel_size": draw(triples(1, 4)),
        "stride": stride,
        "dilation": dilation,
        "padding": draw(triples(0, 4)),
        "output_padding": tuple(draw(st.integers(0, limit)) for limit in limits),
        "groups": draw(st.sampled_from([1, 2])),
    }


CONTRACTS: dict[str, Any] = {"pytorch": pytorch, "mindspore": mindspore}


def geometry_of(contract: str, arguments: dict[str, Any], size: Triple) -> Geometry:
    """The geometry of a 2 -> 4 layer; the example is dropped where the contract refuses this input size."""
    try:
        return CONTRACTS[contract].layer_arguments(2, 4, **arguments).geometry((1, 2, *size))
    except RuntimeError:
        assume(False)
        raise


def dropped(geometry: Geometry, equal: EqualCall) -> tuple[Triple, Triple]:
    """(first sample kept, samples kept) of `geometry` after the slice of `equal`."""
    start = tuple(c + d for c, d in zip(geometry.crop_front, equal.drop_front, strict=True))
    drop = zip(geometry.output_size, equal.drop_front, equal.drop_back, strict=True)
    return start, tuple(out - front - back for out, front, back in drop)  # type: ignore[return-value]


@given(arguments=mindspore_layers(), size=triples(1, 4), other_size=triples(1, 4))
def test_equal_pytorch_call_has_the_same_window_at_every_input_size(
    arguments: dict[str, Any], size: Triple, other_size: Triple
) -> None:
    equal = to_pytorch(geometry_of("mindspore", arguments, size))
    wanted = geometry_of("mindspore", arguments, other_size)
    found = geometry_of("pytorch", equal.geometry_arguments, other_size)
    assert dropped(found, equal) == (wanted.crop_front, wanted.output_size)
    assert (found.kernel_size, found.stride, found.dilation) == (wanted.kernel_size, wanted.stride, wanted.dilation)
    assert found.groups == wanted.groups


@given(arguments=pytorch_layers(), size=triples(1, 4), other_size=triples(1, 4))
def test_equal_mindspore_call_has_the_same_geometry_at_every_input_size(
    arguments: dict[str, Any], size: Triple, other_size: Triple
) -> None:
    equal = to_mindspore(geometry_of("pytorch", arguments, size))
    wanted = geometry_of("pytorch", arguments, other_size)
    assert geometry_of("mindspore", equal.geometry_arguments, other_size) == wanted
    assert equal.slice_text == ""
    for mode in pad_modes(wanted):
        by_mode = {name: wanted_value for name, wanted_value in arguments.items() if "padding" not in name}
        by_mode["group"] = by_mode.pop("groups")
        assert geometry_of("mindspore", by_mode | {"pad_mode": mode}, other_size) == wanted


@given(arguments=mindspore_layers(), size=triples(1, 3))
def test_equal_functional_call_has_the_same_geometry(arguments: dict[str, Any], size: Triple) -> None:
    wanted = geometry_of("mindspore", arguments, size)
    assume(min(wanted.output_size) > 0)
    weight_shape = (2, 4 // wanted.groups, *wanted.kernel_size)
    defaults: dict[str, Any] = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    call = defaults | to_functional(wanted)
    found = pytorch.functional_geometry((1, 2, *size), weight_shape, None, **call, extended_padding=True)
    assert found == wanted


@given(arguments=mindspore_layers(), seed=st.integers(0, 2**32 - 1))
def test_equal_calls_give_equal_values_through_the_layers(arguments: dict[str, Any], seed: int) -> None:
    size = (2, 3, 2)
    equal = to_pytorch(geometry_of("mindspore", arguments, size))
    geometry_of("pytorch", equal.geometry_arguments, size)  # PyTorch refuses outputs without samples
    rng = np.random.default_rng(seed)
    x = rng.integers(-4, 5, (1, 2, *size)).astype(np.float32)  # small integers: exact in any order of addition
    ours = tconv3d.Conv3dTranspose(2, 4, has_bias=True, **arguments)
    theirs = tconv3d.ConvTranspose3d(2, 4, **equal.geometry_arguments)
    ours.weight = theirs.weight = rng.integers(-4, 5, ours.weight.shape).astype(np.float32)
    ours.bias = theirs.bias = rng.integers(-4, 5, 4).astype(np.float32)
    np.testing.assert_array_equal(eval("y" + equal.slice_text, {"y": theirs(x)}), ours(x))


def test_page_example_1_is_told_apart_from_same() -> None:
    page = resolve(parse_layer("nn.ConvTranspose3d(3, 32, 5, 3, 2, 2, bias=False)"), PAGE_INPUT)
    same = resolve(parse_layer("nn.Conv3dTranspose(3, 32, 5, 3)"), PAGE_INPUT)
    assert page.output_shape == same.output_shape
    assert pad_modes(page.geometry) == []
    expected = EqualCall({"kernel_size": 5, "stride": 3, "padding": 1})
    assert to_pytorch(same.geometry) == expected
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal(PAGE_INPUT), rng.standard_normal((3, 32, 5, 5, 5))
    values = [reference.forward(x, weight, None, layer.geometry) for layer in (page, same)]
    assert np.abs(values[0] - values[1]).max() > 1


def test_odd_total_of_same_drops_the_last_sample() -> None:
    layer = resolve(parse_layer("nn.Conv3dTranspose(2, 4, 4, 1)"), (1, 2, 5, 5, 5))
    equal = to_pytorch(layer.geometry)
    assert equal == EqualCall({"kernel_size": 4, "padding": 1}, drop_back=(1, 1, 1))
    assert equal.slice_text == "[..., :-1, :-1, :-1]"


def test_padding_that_pytorch_would_refuse_moves_into_the_slice() -> None:
    # front 2, back 0 at stride 1: padding=2 would need output_padding=2, which must stay below the stride.
    layer = resolve(
        parse_layer("nn.Conv3dTranspose(2, 4, 3, pad_mode='pad', padding=(2, 0, 0, 1, 0, 0))"), (1, 2, 5, 5, 5)
    )
    equal = to_pytorch(layer.geometry)
    assert equal == EqualCall({"kernel_size": 3}, drop_front=(2, 0, 0), drop_back=(0, 1, 0))
    assert equal.slice_text == "[..., 2:, :-1, :]"


# The equal call, run by the original.

MINDSPORE_TEXTS = [
    "nn.Conv3dTranspose(2, 4, 5, 3)",
    "nn.Conv3dTranspose(2, 4, 4, 1, has_bias=True)",
    "nn.Conv3dTranspose(2, 4, (2, 3, 4), (3, 2, 1), group=2)",
    "nn.Conv3dTranspose(2, 4, 2, 3, 'valid', has_bias=True)",
    "nn.Conv3dTranspose(2, 4, 3, 2, 'pad', (1, 0, 0, 1, 2, 2), output_padding=1)",
    "nn.Conv3dTranspose(2, 4, 3, 1, 'pad', (2, 0, 0, 2, 1, 0), dtype=mindspore.float32)",
]


@pytest.mark.parametrize("text", MINDSPORE_TEXTS)
def test_printed_pytorch_call_runs_in_pytorch_and_is_equal(text: str) -> None:
    torch = pytest.importorskip("torch")
    layer = resolve(parse_layer(text), (1, 2, 3, 4, 5))
    equal = to_pytorch(layer.geometry)
    net = eval(constructor_text(layer, equal), {"nn": torch.nn, "torch": torch}).double()
    x = torch.randn(layer.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = eval("y" + equal.slice_text, {"y": net(x).detach().numpy()})
    bias = net.bias.detach().numpy() if layer.bias else None
    np.testing.assert_allclose(found, reference.forward(x.numpy(), net.weight.detach().numpy(), bias, layer.geometry))


@pytest.mark.parametrize("law", sorted(initial_weights._TORCH_INIT))
def test_named_torch_initializer_draws_the_law(law: str) -> None:
    torch = pytest.importorskip("torch")
    shape = (40, 30, 3, 3, 3)
    layer = tconv3d.Conv3dTranspose(*shape[:2], 3, weight_init=law)
    theirs = torch.empty(shape)
    function, keywords = initial_weights.torch_law(law)
    getattr(torch.nn.init, function)(theirs, **{name: float(value) for name, value in keywords.items()})
    ours = np.asarray(layer.weight, np.float64)
    # 32400 values: the spread is known to 0.4 % (one sigma) for a normal law, the end of a uniform one better still.
    assert theirs.double().std().item() == pytest.approx(ours.std(), rel=0.03)
    assert theirs.double().mean().item() == pytest.approx(ours.mean(), abs=0.05 * ours.std())
    assert np.sort(theirs.numpy().ravel())[324] == pytest.approx(np.sort(ours.ravel())[324], rel=0.1)


# What is printed.


def _parameters(function: Any) -> list[str]:
    return list(function.__code__.co_varnames[: function.__code__.co_argcount])


def test_the_whole_explanation_of_example_1() -> None:
    text = explain("nn.ConvTranspose3d(3, 32, 5, stride=3, padding=2, output_padding=2, bias=False)", PAGE_INPUT)
    for part in (
        "output         (1, 32, 12, 27, 48)",
        "weight         (3, 32, 5, 5, 5), no bias",
        "input 6.75 KiB, weight 46.9 KiB, output 1.9 MiB (float32)",
        "depth   xx############        14 samples, 2 cut in front -> 12",
        "taps of each output phase: (2+2+1) x (2+2+1) x (2+2+1)",
        "nn.Conv3dTranspose(3, 32, kernel_size=5, stride=3, pad_mode='pad', padding=2, output_padding=2,",
        "MindSpore's default, pad_mode='same', has the output shape of this call but not its values",
        "The true equal of 'same' is padding=1, output_padding=0.",
    ):
        assert _one_line(part) in _one_line(text), text


def test_multiply_adds_are_those_that_reach_the_output() -> None:
    # One sample, kernel 3, 'same': each axis keeps 1 of 3 products.
    assert "multiply-adds  6 that" in explain("nn.Conv3dTranspose(2, 3, 3)", (1, 2, 1, 1, 1))


CUBE = (1, 2, 5, 5, 5)


@pytest.mark.parametrize(
    ("text", "shape", "bites"),
    [
        (
            "nn.ConvTranspose3d(2, 4, 3)",
            CUBE,
            "Write pad_mode: MindSpore's default 'same' gives spatial size (5, 5, 5)",
        ),
        ("nn.ConvTranspose3d(2, 4, 3)", CUBE, "bias is not written: on by default in PyTorch"),
        ("nn.ConvTranspose3d(2, 4, 3)", CUBE, "U(+-0.09623)"),
        ("nn.ConvTranspose3d(2, 4, 3)", CUBE[1:], "pass x[None] and take [0]"),
        ("nn.ConvTranspose3d(2, 4, 3, stride=[2, 2, 2])", CUBE, "refuses as written here: stride"),
        ("nn.ConvTranspose3d(2, 4, 3, padding=(1,))", CUBE, "refuses as written here: padding"),
        ("nn.ConvTranspose3d(2, 4, 3, padding=(1, 1, 1))", CUBE, "refuses as written here: padding"),
        ("nn.ConvTranspose3d(2, 4, 3, bias=1)", CUBE, "bias=1 counts as True"),
        ("nn.ConvTranspose3d(2, 4, 3, dtype=torch.double)", CUBE, "refuses float64 at the call"),
        ("nn.ConvTranspose3d(2, 4, 3, dtype=torch.half)", CUBE, "The gradient of a float16 weight"),
        ("nn.ConvTranspose3d(2, 4, 3, device='cpu')", CUBE, "The device argument exists in PyTorch alone"),
        ("nn.ConvTranspose3d(2, 4, 8)", CUBE, "kernels of more than 343 taps, here 512"),
        ("nn.ConvTranspose3d(2, 4, 3, dilation=2)", CUBE, "depth dilation other than 1, here 2"),
        ("nn.ConvTranspose3d(2, 4, 3, stride=(300, 1, 1))", CUBE, "depth stride above 256, here 300"),
        ("nn.ConvTranspose3d(2, 4, 3, dilation=2, output_padding=1)", CUBE, "output_padding of the stride or more"),
        ("nn.ConvTranspose3d(2, 4, 3, groups=2)", CUBE, "take group=1 alone"),
        (
            "nn.ConvTranspose3d(2, 4, 3, 1, 1, 0, 2)",
            CUBE,
            "padding -> pad_mode, output_padding -> padding, groups -> dil",
        ),
        ("nn.Conv3dTranspose(2, 4, 4)", CUBE, "takes the odd sample from the back"),
        ("nn.Conv3dTranspose(2, 4, 5, 3)", CUBE, "cuts (2, 2, 2) samples in front instead of (1, 1, 1)"),
        ("nn.Conv3dTranspose(2, 4, 2, 3)", CUBE, "'same' appends zeros at the back"),
        ("nn.Conv3dTranspose(2, 4, 2, 3, 'valid')", CUBE, "'valid' appends zeros at the back"),
        ("nn.Conv3dTranspose(2, 4, 3, 2, 'pad', (1, 0, 1, 1, 1, 1))", CUBE, "The padding is asymmetric"),
        ("nn.Conv3dTranspose(2, 4, 3, 2, 'pad', (1, 1, 2, 2, 1, 1))", CUBE, "PyTorch refuses a padding of six entries"),
        ("nn.Conv3dTranspose(2, 4, 3)", CUBE, "pad_mode is not written: 'same' by default"),
        ("nn.Conv3dTranspose(2, 4, 3)", CUBE, "has_bias is not written: off by default"),
        ("nn.Conv3dTranspose(2, 4, 3)", CUBE, "weight_init is not written"),
        ("nn.Conv3dTranspose(2, 4, 3)", (1, 2, 0, 5, 5), "PyTorch refuses an input with a spatial size of zero"),
        ("nn.Conv3dTranspose(2, 4, 1, 1, 'pad', 1)", (1, 2, 2, 2, 2), "PyTorch refuses an output size of zero"),
        ("nn.Conv3dTranspose(2, 4, 3, data_format='NCDHW')", CUBE, "data_format exists in MindSpore alone"),
        ("nn.Conv3dTranspose(2, 4, 3, dilation=(2, 1, 1))", CUBE, "depth dilation other than 1, here 2"),
        (
            "nn.Conv3dTranspose(2, 4, 3, 1, 'pad', dilation=(1, 2, 2), output_padding=(0, 1, 0))",
            CUBE,
            "output_padding of the stride or more on CPU",
        ),
        ("nn.Conv3dTranspose(2, 4, 3, weight_init='He_Uniform')", CUBE, "torch.nn.init.kaiming_uniform_(net.weight)"),
        ("nn.Conv3dTranspose(2, 4, 3, weight_init=0.5)", CUBE, "torch.nn.init.constant_(net.weight, 0.5)"),
        ("nn.Conv3dTranspose(2, 4, 3, weight_init=Normal(0.1))", CUBE, "Apply weight_init=Normal(0.1) to net.weight"),
        ("nn.Conv3dTranspose(2, 4, 3, weight_init=None)", CUBE, "weight_init=None is PyTorch's law"),
        ("nn.Conv3dTranspose(2, 4, 3, has_bias=True)", CUBE, "torch.nn.init.zeros_(net.bias)"),
        (
            "nn.Conv3dTranspose(2, 4, 3, 2, 'pad', (0, 1, 1, 1, 2, 2))",
            CUBE,
            "tconv3d.conv_transpose3d(x, weight, None, s",
        ),
    ],
)
def test_a_difference_that_bites_is_named(text: str, shape: tuple[int, ...], bites: str) -> None:
    assert bites in _one_line(explain(text, shape))


def test_an_output_size_is_said_to_hold_for_this_input_alone() -> None:
    text = _one_line(explain("nn.ConvTranspose3d(2, 4, 3, stride=2, padding=1)", CUBE, (10, 9, 10)))
    assert "output_padding=(1, 0, 1)" in text
    assert "holds for this input size only" in text


def test_a_plain_call_is_bitten_by_its_fresh_values_alone() -> None:
    text = explain("nn.ConvTranspose3d(2, 4, 3, padding=1, bias=True)", CUBE)
    assert text.partition("Differences that bite this call\n")[2].count("\n  - ") == 0
    assert "pad_mode='same' without padding says the same" in text


def _one_line(text: str) -> str:
    return " ".join(text.split())


# The plan.


def test_the_plan_names_method_blocks_and_threads() -> None:
    layer = "nn.ConvTranspose3d(128, 64, 3, stride=2, padding=1, output_padding=1)"
    before, algorithm = tconv3d.get_num_threads(), _core.active_algorithm()
    tconv3d.set_num_threads(2)
    _core.set_algorithm("two_tap")  # left to the prices, the axes depend on the instruction set
    try:
        text = explain(layer, (1, 128, 12, 16, 32), plan=True)
    finally:
        tconv3d.set_num_threads(before)
        _core.set_algorithm(algorithm)
    assert "with 2 threads\n  forward         two-tap along dhw\n" in text
    assert "  weight gradient two-tap along dhw\n" in text
    assert "cycles expected" in text
    assert "Plan on" not in explain(layer, (1, 128, 12, 16, 32))


def test_the_plan_of_a_call_that_no_tap_reaches() -> None:
    text = explain("nn.ConvTranspose3d(2, 3, 1, stride=3, padding=1, output_padding=2)", (1, 2, 1, 1, 1), plan=True)
    assert "forward         nothing but the bias" in text


# The overlap.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("3, stride=2, padding=1, output_padding=1", "uneven: 1 or 2; kernel % stride = 3 % 2 = 1"),
        ("(5, 4, 4), stride=(3, 2, 2)", "uneven: 1 or 2; kernel % stride = 5 % 3 = 2"),
        ("4, stride=2, padding=1", "even: 2 for each output; kernel % stride = 4 % 2 = 0"),
        ("2, stride=3, output_padding=1", "holes: kernel 2 is smaller than stride 3, so 1 of 3 outputs gets no input"),
        (
            "3, stride=6, dilation=4",
            "holes: stride 6 and dilation 4 share the factor 2, so 3 of 6 outputs get no input",
        ),
        ("3, stride=2, dilation=3", "uneven: 1 or 2; kernel % stride = 3 % 2 = 1"),
        ("3, padding=1", "even: 3 for each output; kernel % stride = 3 % 1 = 0"),
    ],
)
def test_the_overlap_is_what_ones_add_up_to(arguments: str, says: str) -> None:
    call = f"nn.ConvTranspose3d(1, 1, {arguments})"
    text = explain(call, (1, 1, 2, 3, 3), overlap=True)
    rows = text.partition("Overlap:")[2].splitlines()
    layer = eval(call, {"nn": tconv3d})
    layer.weight, layer.bias = np.ones_like(layer.weight), np.zeros(1, np.float32)
    ones = layer(np.ones((1, 1, 2, 3, 3), np.float32))[0, 0].astype(int)
    drawn = [list(map(int, rows[line].split()[1:])) for line in (1, 3, 5)]
    # The overlap of the volume is the product of the axes', so one row of it is a multiple of the axis'.
    assert np.array_equal(np.multiply.outer(np.multiply.outer(drawn[0], drawn[1]), drawn[2]), ones)
    plane = [list(map(int, row.split())) for row in rows[8 : 8 + min(12, ones.shape[1])]]
    assert np.array_equal(plane, np.multiply.outer(drawn[1], drawn[2])[:12])
    assert rows[2].strip() == says
    if max(layer.stride) == 1:
        advice = "No stride"
    else:
        advice = "ICNR" if all(rows[line].strip().startswith("even") for line in (2, 4, 6)) else "A checkerboard"
    assert advice in text


def test_the_overlap_of_a_long_axis_is_cut_and_no_plan_or_overlap_is_drawn_unasked() -> None:
    text = explain("nn.ConvTranspose3d(1, 1, 3, stride=2)", (1, 1, 100, 100, 2), overlap=True)
    assert "1 1 2 1 2 1 2 1 2 1 2 1 2 1 2 1 2 1 2 1 2 1 2 1 ..\n" in text
    assert "kernel_size=4, dilation=1 is even" in text
    assert "Overlap" not in explain("nn.ConvTranspose3d(1, 1, 3, stride=2)", (1, 1, 100, 100, 2))


def test_the_largest_kernel_and_stride_are_counted_at_once() -> None:
    g = Geometry((2, 2, 2), (10**6, 1, 10**6), (1, 10**6, 10**6), (1, 1, 3), (0, 0, 0), (10**6,) * 3, groups=1)
    lines = _overlap.draw(g)
    assert lines[2].strip() == "even: 1000000 for each output; kernel % stride = 1000000 % 1 = 0"
    assert (
        lines[4].strip() == "holes: kernel 1 is smaller than stride 1000000, so 999999 of 1000000 outputs get no input"
    )
