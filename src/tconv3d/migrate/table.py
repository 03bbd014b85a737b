# SPDX-License-Identifier: Apache-2.0
"""Every difference between torch.nn.ConvTranspose3d and mindspore.nn.Conv3dTranspose, each with a probe.

A probe runs the installed frameworks and returns whether the sentence holds for them, and what it saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .probes import Frameworks, close, data, raised

Finding = tuple[bool, str]


@dataclass(frozen=True)
class Difference:
    """One row: `on_page` says how much of it the official comparison page tells: 'yes', 'in part' or 'no'."""

    number: int
    topic: str
    sentence: str
    on_page: str
    probe: Callable[[Frameworks], Finding]


def _names(f: Frameworks) -> Finding:
    has = hasattr(f.torch.nn.ConvTranspose3d, "forward") and hasattr(f.mindspore.nn.Conv3dTranspose, "construct")
    x = f.mindspore.Tensor(data(1, 2, 2, 2, 2))
    layer = f.conv3d_transpose(2, 3, 1)
    return has and raised(lambda: layer(input=x)) == "TypeError", "forward(input), construct(x)"


def _order(f: Frameworks) -> Finding:
    first, second = list(f.parameters("torch")), list(f.parameters("mindspore"))
    return first[:4] == second[:4] and first[4] != second[4], f"fifth: {first[4]}, {second[4]}"


def _words(f: Frameworks) -> Finding:
    first, second = f.parameters("torch"), f.parameters("mindspore")
    ours, theirs = {"groups", "bias"} & set(first), {"group", "has_bias"} & set(second)
    return len(ours) == len(theirs) == 2, f"{sorted(ours)}, {sorted(theirs)}"


def _bias(f: Frameworks) -> Finding:
    first, second = f.parameters("torch")["bias"], f.parameters("mindspore")["has_bias"]
    strict = raised(lambda: f.conv3d_transpose(2, 3, 3, has_bias=1))
    return (first, second, strict) == (True, False, "TypeError"), f"defaults {first}, {second}; has_bias=1: {strict}"


def _default_geometry(f: Frameworks) -> Finding:
    x = data(1, 2, 5, 5, 5)
    shapes = [f.run(make(2, 4, 3), x).shape[2:] for make in (f.pytorch, f.conv3d_transpose)]
    return shapes == [(7, 7, 7), (5, 5, 5)], f"kernel 3 on 5: {shapes[0][0]}, {shapes[1][0]}"


def _padding(f: Frameworks) -> Finding:
    x = f.torch.tensor(data(1, 2, 5, 5, 5))
    six, three = (1, 2, 0, 1, 1, 1), (1, 1, 1)
    refused = raised(lambda: f.pytorch(2, 3, 3, padding=six)(x))
    other = raised(lambda: f.conv3d_transpose(2, 3, 3, pad_mode="pad", padding=three))
    taken = raised(lambda: f.conv3d_transpose(2, 3, 3, pad_mode="pad", padding=six))
    return (refused, other, taken) == ("RuntimeError", "ValueError", "nothing"), f"six: {refused}; three: {other}"


def _modes(f: Frameworks) -> Finding:
    x = data(1, 2, 3, 3, 3)
    plain, valid = f.pair({"kernel_size": 2, "stride": 3}, {"kernel_size": 2, "stride": 3, "pad_mode": "valid"}, x)
    odd, same = f.pair({"stride": 2}, {"stride": 2, "pad_mode": "same"}, x)
    sizes = plain.shape[2], valid.shape[2]
    return sizes == (8, 9) and close(odd[..., :-1, :-1, :-1], same), f"'valid', kernel 2, stride 3: {sizes[1]}, not 8"


def _example(f: Frameworks) -> Finding:
    words = {"kernel_size": 5, "stride": 3}
    a, b = f.pair(words | {"padding": 2, "output_padding": 2}, words, data(1, 2, 4, 5, 6))
    true, _ = f.pair(words | {"padding": 1}, words, data(1, 2, 4, 5, 6))
    return a.shape == b.shape and not close(a, b) and close(true, b), "equal in shape; padding=1 is equal in value"


def _only_words(f: Frameworks) -> Finding:
    first, second = f.parameters("torch"), f.parameters("mindspore")
    ours, theirs = "padding_mode" in first, "data_format" in second
    return ours and theirs and "padding_mode" not in second, "padding_mode, data_format"


def _output_padding(f: Frameworks) -> Finding:
    early = raised(lambda: f.conv3d_transpose(2, 3, 3, stride=2, output_padding=1))
    late = f.pytorch(2, 3, 3, stride=2, output_padding=2)
    call = raised(lambda: late(f.torch.zeros(1, 2, 3, 3, 3)))
    beyond = raised(lambda: f.pytorch(2, 3, 3, dilation=3, output_padding=1)(f.torch.zeros(1, 2, 3, 3, 3)))
    return (early, call, beyond) == (
        "ValueError",
        "RuntimeError",
        "nothing",
    ), f"outside 'pad': {early}; too large: {call}"


def _output_size(f: Frameworks) -> Finding:
    layer = f.pytorch(2, 3, 3, stride=2)
    shape = tuple(layer(f.torch.zeros(1, 2, 3, 3, 3), output_size=(8, 8, 8)).shape[2:])
    other = raised(lambda: f.conv3d_transpose(2, 3, 3)(f.mindspore.Tensor(data(1, 2, 3, 3, 3)), output_size=(8, 8, 8)))
    return shape == (8, 8, 8) and other == "TypeError", f"MindSpore: {other}"


def _unbatched(f: Frameworks) -> Finding:
    x = data(2, 3, 3, 3)
    other = raised(lambda: f.run(f.conv3d_transpose(2, 3, 3), x))
    return f.run(f.pytorch(2, 3, 3), x).ndim == 4 and other == "ValueError", f"MindSpore: {other}"


def _dilation(f: Frameworks) -> Finding:
    other = raised(lambda: f.conv3d_transpose(2, 3, 3, dilation=2))
    flat = raised(lambda: f.conv3d_transpose(2, 3, 3, dilation=(1, 2, 2)))
    return (other, flat) == ("ValueError", "nothing"), f"dilation=2: {other}; (1, 2, 2): {flat}"


def _limits(f: Frameworks) -> Finding:
    volume = raised(lambda: f.conv3d_transpose(1, 1, 8))
    stride = raised(lambda: f.conv3d_transpose(1, 1, 1, stride=(257, 1, 1)))
    wide = raised(lambda: f.conv3d_transpose(1, 1, 1, stride=(1, 257, 1)))
    found = (volume, stride, wide)
    return found == ("ValueError", "ValueError", "nothing"), f"512 taps: {volume}; depth stride 257: {stride}"


def _groups(f: Frameworks) -> Finding:
    a, b = f.pair(
        {"out_channels": 4, "groups": 2}, {"out_channels": 4, "group": 2, "pad_mode": "pad"}, data(1, 2, 3, 3, 3)
    )
    return close(a, b), "groups are equal on this CPU"


def _dtypes(f: Frameworks) -> Finding:
    wide = f.conv3d_transpose(2, 3, 3, dtype=f.mindspore.float64)
    other = raised(lambda: wide(f.mindspore.Tensor(data(1, 2, 3, 3, 3).astype(np.float64))))
    own = raised(lambda: f.pytorch(2, 3, 3, dtype=f.torch.float64)(f.torch.zeros(1, 2, 3, 3, 3, dtype=f.torch.float64)))
    return (own, other) == ("nothing", "TypeError"), f"float64: {own}, {other}"


def _dtype_word(f: Frameworks) -> Finding:
    first, second = f.parameters("torch"), f.parameters("mindspore")
    none = raised(lambda: f.conv3d_transpose(2, 3, 3, dtype=None))
    device = "device" in first and "device" not in second
    return first["dtype"] is None and none == "ValueError" and device, f"dtype=None: {none}; device only in PyTorch"


def _default_law(f: Frameworks) -> Finding:
    bound = 1 / np.sqrt(4 * 27)
    layer = f.conv3d_transpose(64, 4, 3, has_bias=True)
    weight = layer.weight.asnumpy()
    uniform = abs(weight).max() <= bound and abs(weight.std() - bound / np.sqrt(3)) < 0.05 * bound
    return bool(uniform), "uniform up to 1/sqrt(fan_in), the law of PyTorch; not Normal(0.01)"


def _init_words(f: Frameworks) -> Finding:
    unknown = raised(lambda: f.conv3d_transpose(2, 3, 3, weight_init="kaiming_uniform"))
    biased = raised(lambda: f.conv3d_transpose(2, 3, 3, has_bias=True, bias_init="he_uniform"))
    known = raised(lambda: f.conv3d_transpose(2, 3, 3, weight_init="XAVIER_normal"))
    return (unknown, biased, known) == ("ValueError", "ValueError", "nothing"), f"'he_uniform' for a bias: {biased}"


def _streams(f: Frameworks) -> Finding:
    f.torch.manual_seed(0)
    f.mindspore.set_seed(0)
    first, second = f.pytorch(2, 3, 3).weight.detach().numpy(), f.conv3d_transpose(2, 3, 3).weight.asnumpy()
    return not np.allclose(first, second), "seed 0 gives other weights"


def _size_types(f: Frameworks) -> Finding:
    listed = raised(lambda: f.conv3d_transpose(2, 3, [3, 3, 3]))
    own = raised(lambda: f.pytorch(2, 3, [3, 3, 3]))
    return (own, listed) == ("nothing", "TypeError"), f"a list: {own}, {listed}"


def _when(f: Frameworks) -> Finding:
    built = raised(lambda: f.pytorch(2, 3, 3, stride=0))
    called = raised(lambda: f.pytorch(2, 3, 3, stride=0)(f.torch.zeros(1, 2, 3, 3, 3)))
    other = raised(lambda: f.conv3d_transpose(2, 3, 3, stride=0))
    return (built, called, other) == (
        "nothing",
        "RuntimeError",
        "ValueError",
    ), f"stride=0: {called} at the call, {other}"


def _zeros(f: Frameworks) -> Finding:
    x = data(1, 2, 0, 3, 3)
    first = raised(lambda: f.run(f.pytorch(2, 3, 3), x))
    second = raised(lambda: f.run(f.conv3d_transpose(2, 3, 3), x))
    return (first, second) == ("RuntimeError", "nothing"), f"a depth of 0: {first}, {second}"


def _layout(f: Frameworks) -> Finding:
    first, second = f.pytorch(4, 6, (1, 2, 3), groups=2), f.conv3d_transpose(4, 6, (1, 2, 3), group=2, has_bias=True)
    shapes = tuple(first.weight.shape), tuple(second.weight.shape)
    names = list(first.state_dict()), [p.name for p in second.get_parameters()]
    return shapes[0] == shapes[1] and names[0] == names[1], f"{names[0]}, weight {shapes[0]}"


def _gradients(f: Frameworks) -> Finding:
    layer = f.conv3d_transpose(2, 3, 3, dtype=f.mindspore.float16)
    x = f.mindspore.Tensor(data(1, 2, 3, 3, 3).astype(np.float16))
    gradient = f.mindspore.grad(lambda x: layer(x).sum(), None, layer.trainable_params())(x)
    kind = str((gradient[0] if isinstance(gradient, (tuple, list)) else gradient).dtype)
    return kind == "Float32", f"of a float16 weight: {kind}"


def _attributes(f: Frameworks) -> Finding:
    first, second = f.pytorch(2, 3, 3, padding=1), f.conv3d_transpose(2, 3, 3, pad_mode="PAD", padding=1)
    found = first.padding, second.padding, second.pad_mode
    return found == ((1, 1, 1), 1, "PAD"), f"padding {found[0]}, {found[1]}; pad_mode keeps {found[2]!r}"


def _reprs(f: Frameworks) -> Finding:
    first, second = repr(f.pytorch(2, 3, 3)), repr(f.conv3d_transpose(2, 3, 3))
    return first.startswith("ConvTranspose3d(2, 3") and "input_channels=2" in second, "2, 3; input_channels=2"


def _lazy(f: Frameworks) -> Finding:
    own, other = hasattr(f.torch.nn, "LazyConvTranspose3d"), hasattr(f.mindspore.nn, "LazyConv3dTranspose")
    return own and not other, "LazyConvTranspose3d, nothing"


def _functions(f: Frameworks) -> Finding:
    x, w = f.mindspore.Tensor(data(1, 4, 2, 2, 2)), f.mindspore.Tensor(data(4, 1, 2, 2, 2))
    depthwise = raised(lambda: f.mindspore.ops.conv3d_transpose(x, w, group=4))
    biased = raised(lambda: f.mindspore.ops.conv3d_transpose(x, w, bias=None))
    return (depthwise, biased) == ("ValueError", "TypeError"), f"depthwise groups: {depthwise}; bias: {biased}"


def _mixed(f: Frameworks) -> Finding:
    half = data(1, 2, 3, 3, 3).astype(np.float16)
    first = raised(lambda: f.run(f.pytorch(2, 3, 3), half))
    second = raised(lambda: f.run(f.conv3d_transpose(2, 3, 3), half))
    return (first, second) == ("RuntimeError", "TypeError"), f"float16 into float32: {first}, {second}"


def _same_word(f: Frameworks) -> Finding:
    built = raised(lambda: f.pytorch(2, 3, 3, padding="same"))
    called = raised(lambda: f.pytorch(2, 3, 3, padding="same")(f.torch.zeros(1, 2, 3, 3, 3)))
    return (built, called) == ("nothing", "TypeError"), f"constructor: {built}; call: {called}"


def _announced(f: Frameworks) -> Finding:
    return "groups" not in f.parameters("mindspore"), "the installed release has the signature of the page's words"


TABLE = tuple(
    Difference(number, *row)
    for number, row in enumerate(
        [
            (
                "names",
                "Class, method and argument: ConvTranspose3d.forward(input), Conv3dTranspose.construct(x).",
                "in part",
                _names,
            ),
            ("order", "From the fifth on, arguments by position mean something else.", "no", _order),
            ("words", "groups is group, bias is has_bias.", "yes", _words),
            ("bias", "On by default in PyTorch, off in MindSpore, where it must be a bool.", "in part", _bias),
            (
                "default geometry",
                "PyTorch crops nothing; MindSpore's default 'same' gives input size * stride.",
                "no",
                _default_geometry,
            ),
            (
                "padding",
                "Three symmetric numbers in PyTorch, six in MindSpore; each refuses the other's.",
                "in part",
                _padding,
            ),
            (
                "pad modes",
                "'same' drops an odd sample at the back; 'valid' appends zeros to a kernel shorter than the stride.",
                "no",
                _modes,
            ),
            (
                "the page's example 1",
                "padding=(k-1)//2 with output_padding=s-1 equals 'same' in shape, not in values.",
                "no",
                _example,
            ),
            ("only in one", "padding_mode is PyTorch's alone, data_format MindSpore's.", "yes", _only_words),
            (
                "output_padding",
                "MindSpore takes it with pad_mode='pad' alone and checks it when built, PyTorch at the call.",
                "no",
                _output_padding,
            ),
            ("output_size", "PyTorch's alone.", "no", _output_size),
            ("unbatched input", "PyTorch's alone.", "no", _unbatched),
            ("dilation", "MindSpore refuses a dilation of the depth.", "no", _dilation),
            ("limits", "MindSpore refuses kernels of more than 343 taps and depth strides above 256.", "no", _limits),
            ("groups", "Equal on CPU; r2.0.0-alpha, and Ascend in every release, take 1 alone.", "no", _groups),
            ("dtypes", "MindSpore computes float16 and float32 alone.", "no", _dtypes),
            (
                "dtype and device",
                "PyTorch's dtype=None is the global default, MindSpore refuses None; device is PyTorch's alone.",
                "no",
                _dtype_word,
            ),
            (
                "default law",
                "The same in both from MindSpore 2.1 on; before, Normal(0.01) and zeros.",
                "no",
                _default_law,
            ),
            (
                "weight_init, bias_init",
                "MindSpore's alone; laws with a fan cannot draw a bias.",
                "in part",
                _init_words,
            ),
            ("random streams", "One seed never gives the same weights.", "no", _streams),
            ("types of sizes", "PyTorch takes any iterable, MindSpore an int or a tuple.", "no", _size_types),
            (
                "errors",
                "PyTorch refuses most at the call (RuntimeError), MindSpore when built: ValueError or TypeError.",
                "no",
                _when,
            ),
            ("empty sizes", "PyTorch refuses an empty axis, MindSpore computes it.", "no", _zeros),
            ("weights", "Equal names and layouts: arrays move as they are.", "no", _layout),
            ("gradients", "The gradient of a float16 weight is float32 in MindSpore.", "no", _gradients),
            ("attributes", "PyTorch keeps padding as a tuple, MindSpore as it was given.", "no", _attributes),
            ("repr", "Another form.", "no", _reprs),
            ("lazy layer", "PyTorch's alone, as is the memory format channels_last_3d.", "no", _lazy),
            (
                "functions",
                "ops.conv3d_transpose has no bias, another default and refuses depthwise groups.",
                "no",
                _functions,
            ),
            ("mixed dtypes", "RuntimeError in PyTorch, TypeError in MindSpore.", "no", _mixed),
            ("padding='same'", "PyTorch's constructor takes it, its call does not.", "no", _same_word),
            (
                "announced signature",
                "MindSpore announces PyTorch's signature; releases so far have their own.",
                "no",
                _announced,
            ),
        ],
        start=1,
    )
)


def probed(frameworks: Frameworks) -> list[tuple[Difference, bool, str]]:
    """Every row with what its probe found. A probe that fails of itself counts as not holding."""
    found = []
    for row in TABLE:
        try:
            holds, evidence = row.probe(frameworks)
        except Exception as error:  # another release may raise anything
            holds, evidence = False, f"the probe failed: {type(error).__name__}"
        found.append((row, holds, evidence))
    return found


def as_markdown(frameworks: Frameworks) -> str:
    """The documentation's page of differences."""
    lines = [
        "# Every difference between torch.nn.ConvTranspose3d and mindspore.nn.Conv3dTranspose",
        "",
        f"Written by `tconv3d verify --page --markdown FILE`, each row probed on {frameworks.versions}. The third"
        " column says whether the official comparison page tells it.",
        "",
        "| # | topic | on the page | difference | holds | seen |",
        "|--:|---|---|---|---|---|",
    ]
    for row, holds, evidence in probed(frameworks):
        cells = [row.number, row.topic, row.on_page, row.sentence, "yes" if holds else "**no longer**", evidence]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"
