# SPDX-License-Identifier: Apache-2.0
"""The official comparison page of both layers, re-proved statement by statement on the installed frameworks.

The statements are those of MindSpore's page on the differences from
torch.nn.ConvTranspose3d (r2.0), in English and in their order. Verdicts:

    true         as it stands
    incomplete   true, but something that a reader needs is missing
    shape only   the shapes are as said, the values are not
    no longer    it was so in the releases that the page cites
    not true     it is not, and was not
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import reference
from ..geometry import Geometry
from .probes import Array, Frameworks, close, data, raised

TRUE, INCOMPLETE, SHAPE_ONLY, NO_LONGER, NOT_TRUE = "true", "incomplete", "shape only", "no longer", "not true"
VERDICTS = (TRUE, INCOMPLETE, SHAPE_ONLY, NO_LONGER, NOT_TRUE)

Finding = tuple[str, str]

_PYTORCH = (
    "in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1, bias=True, dilation=1,"
    " padding_mode='zeros'"
)
_MINDSPORE = (
    "in_channels, out_channels, kernel_size, stride=1, pad_mode='same', padding=0, dilation=1, group=1,"
    " output_padding=0, has_bias=False, weight_init='normal', bias_init='zeros', data_format='NCDHW'"
)
_EXAMPLE = {"in_channels": 3, "out_channels": 32, "kernel_size": 5, "stride": 3}
_INPUT = (1, 3, 4, 9, 16)


@dataclass(frozen=True)
class Statement:
    """`place` on the page, the page's words in English, and the probe that answers."""

    place: str
    text: str
    probe: Callable[[Frameworks], Finding]


def _check(holds: bool, evidence: str, otherwise: str = NOT_TRUE) -> Finding:
    return (TRUE if holds else otherwise), evidence


def _signature(kind: str, on_page: str) -> Callable[[Frameworks], Finding]:
    def probe(f: Frameworks) -> Finding:
        said = {part.partition("=")[0].strip(): part.partition("=")[2].strip() for part in on_page.split(", ")}
        found = f.parameters(kind)
        changed = [f"{name}={found[name]!r}" for name, text in said.items() if text and repr(found.get(name)) != text]
        added = [name for name in found if name not in said]
        evidence = "; ".join(filter(None, [", ".join(changed), f"added: {', '.join(added)}" if added else ""]))
        return _check(list(found) == list(said) and not changed, evidence or "the same today", NO_LONGER)

    return probe


def _formula(axis: int) -> Callable[[Frameworks], Finding]:
    def probe(f: Frameworks) -> Finding:
        rng, wrong = np.random.default_rng(axis), 0
        for _ in range(20):
            size, kernel, stride, dilation = (rng.integers(1, 5, 3).tolist() for _ in range(4))
            padding = [int(rng.integers(0, (d * (k - 1)) // 2 + 1)) for d, k in zip(dilation, kernel, strict=True)]
            extra = [int(rng.integers(0, max(s, d))) for s, d in zip(stride, dilation, strict=True)]
            layer = f.pytorch(1, 1, kernel, stride, padding, extra, dilation=dilation)
            found = f.run(layer, data(1, 1, *size)).shape[2 + axis]
            s, k, st, d, p, op = (v[axis] for v in (size, kernel, stride, dilation, padding, extra))
            wrong += found != (s - 1) * st - 2 * p + d * (k - 1) + op + 1
        return _check(not wrong, f"{20 - wrong} of 20 random layers")

    return probe


def _is_transposed(f: Frameworks) -> Finding:
    a, b = f.pair({"stride": 2}, {"stride": 2, "pad_mode": "pad"}, data(1, 2, 3, 3, 3))
    geometry = Geometry((3,) * 3, (3,) * 3, (2,) * 3, (1,) * 3, (0,) * 3, (7,) * 3, 1)
    exact = reference.forward(data(1, 2, 3, 3, 3), data(2, 3, 3, 3, 3), None, geometry)
    return _check(close(a, exact) and close(b, exact), "both equal the definition")


def _is_gradient(f: Frameworks) -> Finding:
    layer = f.pytorch(2, 3, 3, stride=2, bias=False)
    x = f.torch.tensor(data(1, 2, 3, 3, 3))
    gradient = f.torch.nn.grad.conv3d_input((1, 3, 7, 7, 7), layer.weight, x, stride=2)
    return _check(close(layer(x).detach().numpy(), gradient.detach().numpy()), "equals the input gradient of Conv3d")


def _is_no_deconvolution(f: Frameworks) -> Finding:
    x, weight = f.torch.tensor(data(1, 1, 4, 4, 4)), f.torch.tensor(data(1, 1, 3, 3, 3))
    functions = f.torch.nn.functional
    back = functions.conv_transpose3d(functions.conv3d(x, weight), weight)
    return _check(not close(back.numpy(), x.numpy()), "applied behind Conv3d it does not give the input back")


def _axes(f: Frameworks) -> Finding:
    sizes = f.run(f.pytorch(2, 3, (1, 2, 3)), data(1, 2, 4, 5, 6)).shape
    return _check(sizes == (1, 3, 4, 6, 8), f"(1, 2, 4, 5, 6) becomes {sizes}")


def _batch(f: Frameworks) -> Finding:
    layer, x = f.pytorch(2, 3, 3), data(3, 2, 3, 3, 3)
    return _check(close(f.run(layer, x)[1:2], f.run(layer, x[1:2])), "every entry is computed alone")


def _channel_is_spatial(f: Frameworks) -> Finding:
    refused = raised(lambda: f.run(f.pytorch(2, 3, 3), data(1, 4, 3, 3, 3)))
    return _check(refused == "nothing", f"C is the channel: it must equal in_channels, else {refused}")


def _mostly_equal(f: Frameworks) -> Finding:
    a, b = f.pair({"padding": 1}, {"pad_mode": "pad", "padding": 1}, data(1, 2, 4, 4, 4))
    refused = raised(lambda: f.conv3d_transpose(2, 3, 3, dilation=2))
    return _check(close(a, b) and refused == "nothing", f"equal calls exist; dilation=2: {refused}", INCOMPLETE)


def _new_pad_mode(f: Frameworks) -> Finding:
    added = "pad_mode" in f.parameters("mindspore") and "pad_mode" not in f.parameters("torch")
    return _check(added, "pad_mode in MindSpore alone", NO_LONGER)


def _pad_is_pytorch(f: Frameworks) -> Finding:
    words = {"stride": 2, "padding": 1, "output_padding": 1}
    a, b = f.pair(words, words | {"pad_mode": "pad"}, data(1, 2, 4, 4, 4))
    return _check(close(a, b), "equal values with the same numbers")


def _configures(f: Frameworks) -> Finding:
    layer = f.conv3d_transpose(2, 3, 3, has_bias=True, weight_init="ones", bias_init=2)
    return _check(bool((layer.weight.asnumpy() == 1).all() and (layer.bias.asnumpy() == 2).all()), "'ones' and 2")


def _channels(f: Frameworks) -> Finding:
    first, second = f.pytorch(2, 3, 3), f.conv3d_transpose(2, 3, 3)
    return _check(tuple(first.weight.shape) == tuple(second.weight.shape), "the same weight shape")


def _sizes(name: str) -> Callable[[Frameworks], Finding]:
    def probe(f: Frameworks) -> Finding:
        words = {name: (2, 3, 2)}
        a, b = f.pair(words, words | {"pad_mode": "pad"}, data(1, 2, 4, 4, 4))
        if not close(a, b):
            return NOT_TRUE, "other values"
        listed = raised(lambda: f.conv3d_transpose(2, 3, **({"kernel_size": 3} | {name: [2, 3, 2]})))
        return _check(listed == "nothing", f"equal values; a list is a {listed} in MindSpore alone", INCOMPLETE)

    return probe


def _padding(f: Frameworks) -> Finding:
    a, b = f.pair({"padding": (1, 0, 1)}, {"pad_mode": "pad", "padding": (1, 1, 0, 0, 1, 1)}, data(1, 2, 4, 4, 4))
    _, c = f.pair({}, {"pad_mode": "pad", "padding": (0, 2, 0, 0, 0, 0)}, data(1, 2, 4, 4, 4))
    full, _ = f.pair({}, {"pad_mode": "pad"}, data(1, 2, 4, 4, 4))
    refused = raised(lambda: f.conv3d_transpose(2, 3, 3, pad_mode="pad", padding=(1, 0, 1)))
    fine = close(a, b) and close(full[:, :, :-2], c)
    return (
        INCOMPLETE if fine and refused != "nothing" else _check(fine, "")[0]
    ), f"three numbers in MindSpore: {refused}"


def _output_padding(f: Frameworks) -> Finding:
    words = {"stride": 2, "output_padding": 1}
    a, b = f.pair(words, words | {"pad_mode": "pad"}, data(1, 2, 3, 3, 3))
    refused = raised(lambda: f.conv3d_transpose(2, 3, 3, stride=2, output_padding=1))
    return _check(close(a, b) and refused == "nothing", f"without pad_mode='pad': {refused} in MindSpore", INCOMPLETE)


def _groups(f: Frameworks) -> Finding:
    words = {"out_channels": 4}
    a, b = f.pair(words | {"groups": 2}, words | {"group": 2, "pad_mode": "pad"}, data(1, 2, 3, 3, 3))
    return _check(close(a, b), "equal values under the two names")


def _bias(f: Frameworks) -> Finding:
    first, second = f.parameters("torch")["bias"], f.parameters("mindspore").get("has_bias")
    return _check((first, second) == (True, False), f"{first}, {second}", NO_LONGER)


def _dilation(f: Frameworks) -> Finding:
    refused = raised(lambda: f.conv3d_transpose(2, 3, 3, dilation=2))
    return _check(refused == "nothing", f"dilation=2: {refused} in MindSpore, whose depth must not be dilated")


def _padding_mode(f: Frameworks) -> Finding:
    refused = raised(lambda: f.pytorch(2, 3, 3, padding_mode="reflect"))
    absent = "padding_mode" not in f.parameters("mindspore")
    return _check(refused == "ValueError" and absent, f"'reflect': {refused}; no such argument in MindSpore")


def _pad_mode(f: Frameworks) -> Finding:
    refused = all(_refuses(f, pad_mode=mode, padding=1) for mode in ("same", "valid"))
    default = f.parameters("mindspore").get("pad_mode")
    return _check(refused and default == "same", f"default {default!r}; padding=1 is refused by the first two")


def _refuses(f: Frameworks, **words: object) -> bool:
    return raised(lambda: f.conv3d_transpose(2, 3, 3, **words)) != "nothing"


def _init(name: str, on_page: str) -> Callable[[Frameworks], Finding]:
    def probe(f: Frameworks) -> Finding:
        laws = ("TruncatedNormal", "Normal", "Uniform", "HeUniform", "XavierUniform", "One", "Zero")
        refused = [law for law in laws if _refuses(f, **{"has_bias": True, name: law})]
        default = f.parameters("mindspore").get(name)
        more = f"; refused here: {', '.join(refused)}" if refused else ""
        return _check(default == on_page and not refused, f"the default is {default!r}{more}", NO_LONGER)

    return probe


def _data_format(f: Frameworks) -> Finding:
    refused = raised(lambda: f.conv3d_transpose(2, 3, 3, data_format="NDHWC"))
    return _check(refused == "ValueError" and "data_format" not in f.parameters("torch"), f"'NDHWC': {refused}")


def _input(f: Frameworks) -> Finding:
    first = raised(lambda: f.pytorch(2, 3, 3)(input=f.torch.zeros(1, 2, 3, 3, 3)))
    second = raised(lambda: f.conv3d_transpose(2, 3, 3)(x=f.mindspore.Tensor(data(1, 2, 3, 3, 3))))
    return _check((first, second) == ("nothing", "nothing"), "input=, x=")


def _instantiated(f: Frameworks) -> Finding:
    return _check(True, "layers are built, then called; both frameworks have functions that need neither")


def _example_1(f: Frameworks) -> tuple[Array, Array]:
    return f.pair(_EXAMPLE | {"padding": 2, "output_padding": 2}, _EXAMPLE | {"pad_mode": "same"}, data(*_INPUT))


def _example_2(f: Frameworks) -> tuple[Array, Array]:
    return f.pair(_EXAMPLE, _EXAMPLE | {"pad_mode": "valid"}, data(*_INPUT))


def _width(f: Frameworks) -> Finding:
    widths = [y.shape[4] for y in _example_1(f)]
    return _check(widths == [3 * _INPUT[4]] * 2, f"{widths[0]} = 3 * {_INPUT[4]}")


def _recipe(f: Frameworks) -> Finding:
    a, b = _example_1(f)
    words = {"kernel_size": 4, "stride": 2}
    even, _ = f.pair(words | {"padding": 1, "output_padding": 1}, words, data(1, 2, 4, 4, 4))
    evidence = (
        f"differs by {np.abs(a - b).max():.3g} where the largest output is {np.abs(b).max():.3g}; padding=1 is equal;"
        f" for the even kernel 4 and stride 2 even the shape is another, {even.shape[2]} for 8"
    )
    return (TRUE if close(a, b) else SHAPE_ONLY if a.shape == b.shape else NOT_TRUE), evidence


def _options_2(f: Frameworks) -> Finding:
    a, b = _example_2(f)
    short = f.pair(
        {"kernel_size": 2, "stride": 3}, {"kernel_size": 2, "stride": 3, "pad_mode": "valid"}, data(1, 2, 3, 3, 3)
    )
    sizes = [y.shape[2] for y in short]
    return _check(
        close(a, b) and sizes[0] == sizes[1], f"equal here; kernel 2, stride 3: {sizes[0]}, {sizes[1]}", INCOMPLETE
    )


def _drops(f: Frameworks) -> Finding:
    x = f.torch.tensor(data(*_INPUT), requires_grad=True)
    layer = f.pytorch(**_EXAMPLE, bias=False)
    with f.torch.no_grad():
        layer.weight.fill_(1)
    layer(x).sum().backward()
    kept = bool((x.grad == 32 * 125).all())
    return _check(not kept, "nothing is dropped: every input sample reaches the output by every tap")


def _shape(
    pair: Callable[[Frameworks], tuple[Array, Array]], side: int, spatial: tuple[int, ...]
) -> Callable[[Frameworks], Finding]:
    def probe(f: Frameworks) -> Finding:
        found = pair(f)[side].shape
        return _check(found == (1, 32, *spatial), f"{found}")

    return probe


PAGE = (
    Statement("signature", f"torch.nn.ConvTranspose3d({_PYTORCH})", _signature("torch", _PYTORCH)),
    Statement("signature", f"mindspore.nn.Conv3dTranspose({_MINDSPORE})", _signature("mindspore", _MINDSPORE)),
    Statement("PyTorch", "computes a 3-D transposed convolution", _is_transposed),
    Statement("PyTorch", "can be seen as the gradient of Conv3d with respect to its input", _is_gradient),
    Statement("PyTorch", "called deconvolution, but is no actual deconvolution", _is_no_deconvolution),
    Statement("PyTorch", "the input's shape is usually (N, C_in, D_in, H_in, W_in)", _axes),
    Statement("PyTorch", "N is the batch size", _batch),
    Statement("PyTorch", "C is the spatial dimension", _channel_is_spatial),
    Statement("PyTorch", "D, H and W are depth, height and width of the feature map", _axes),
    Statement("PyTorch", "the output's shape is (N, C_out, D_out, H_out, W_out)", _axes),
    *(
        Statement(
            "formula",
            f"{n}_out = ({n}_in-1)*stride - 2*padding + dilation*(kernel_size-1) + output_padding + 1",
            _formula(i),
        )
        for i, n in enumerate("DHW")
    ),
    Statement("MindSpore", "does basically the same as PyTorch's", _mostly_equal),
    Statement("MindSpore", "has a new argument pad_mode", _new_pad_mode),
    Statement("MindSpore", "with pad_mode='pad' it works as PyTorch does by default", _pad_is_pytorch),
    Statement("MindSpore", "weight_init and bias_init configure the initial values", _configures),
    Statement("table 1", "in_channels: no difference", _channels),
    Statement("table 2", "out_channels: no difference", _channels),
    Statement("table 3", "kernel_size: no difference", _sizes("kernel_size")),
    Statement("table 4", "stride: no difference", _sizes("stride")),
    Statement("table 5", "padding: three equal on both sides in PyTorch, six in MindSpore", _padding),
    Statement("table 6", "output_padding: no difference", _output_padding),
    Statement("table 7", "groups, group: the same under another name", _groups),
    Statement("table 8", "bias, has_bias: True by default in PyTorch, False in MindSpore", _bias),
    Statement("table 9", "dilation: no difference", _dilation),
    Statement("table 10", "padding_mode: only 'zeros'; MindSpore has no such argument", _padding_mode),
    Statement(
        "table 11", "pad_mode: 'same', 'valid', 'pad'; padding must be 0 in the first two; default 'same'", _pad_mode
    ),
    Statement("table 12", "weight_init: seven laws, default 'normal'", _init("weight_init", "normal")),
    Statement("table 13", "bias_init: the same options as weight_init, default 'zeros'", _init("bias_init", "zeros")),
    Statement("table 14", "data_format: 'NCDHW' alone, PyTorch's order", _data_format),
    Statement("table 15", "input, x: the same under another name", _input),
    Statement("example 1", "both compute a transposed convolution and are instantiated first", _instantiated),
    Statement("example 1", "the output's width divided by the stride is the input's", _width),
    Statement(
        "example 1", "padding=(kernel_size-1)/2, output_padding=stride-1 for pad_mode='same': the same options", _recipe
    ),
    Statement("example 1", "PyTorch prints (1, 32, 12, 27, 48)", _shape(_example_1, 0, (12, 27, 48))),
    Statement("example 1", "MindSpore prints (1, 32, 12, 27, 48)", _shape(_example_1, 1, (12, 27, 48))),
    Statement("example 2", "both compute a transposed convolution and are instantiated first", _instantiated),
    Statement("example 2", "without padding, a stride > 1 may drop data", _drops),
    Statement("example 2", "padding=0, output_padding=0 for pad_mode='valid': the same options", _options_2),
    Statement("example 2", "PyTorch prints (1, 32, 14, 29, 50)", _shape(_example_2, 0, (14, 29, 50))),
    Statement("example 2", "MindSpore prints (1, 32, 14, 29, 50)", _shape(_example_2, 1, (14, 29, 50))),
)


def proved(frameworks: Frameworks) -> list[tuple[Statement, str, str]]:
    """(statement, verdict, evidence) of the whole page; a probe that fails of itself is a statement that holds no"
    " longer."""
    found = []
    for statement in PAGE:
        try:
            verdict, evidence = statement.probe(frameworks)
        except Exception as error:  # another release may raise anything
            verdict, evidence = NO_LONGER, f"the probe failed: {type(error).__name__}"
        found.append((statement, verdict, evidence))
    return found


def as_table(results: list[tuple[Statement, str, str]], versions: str) -> str:
    """The page as a table for a terminal, and how many statements each verdict has."""
    from rich.console import Console
    from rich.table import Table

    console, table = Console(width=160), Table("place", "the page says", "verdict", "seen")
    for statement, verdict, evidence in results:
        cells = (statement.place, statement.text, verdict, evidence)
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    with console.capture() as capture:
        console.print(table)
    counts = ", ".join(f"{sum(v == verdict for _, v, _ in results)} {verdict}" for verdict in VERDICTS)
    return f"{versions}\n{capture.get().rstrip()}\n{len(results)} statements: {counts}"
