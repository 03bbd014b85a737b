# SPDX-License-Identifier: Apache-2.0
"""The parts of the public API, each as a maker of random calls that know how to judge their answers.

A call is right when its answer is exact, or when it was spoiled and is refused with an exception of the contract.
"""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import answers
import hostile
import numpy as np

import tconv3d
from tconv3d.cli import main

REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError, MemoryError)


class Wrong(Exception):
    """The library did what no contract allows."""


@dataclass
class Call:
    """One call: what runs, what judges its answer, and whether it was spoiled."""

    text: str
    run: Callable[[], Any]
    judge: Callable[[Any], None]
    spoiled: bool = False
    refusals: tuple[type[BaseException], ...] = REFUSALS


def same(what: str, found: Any, exact: np.ndarray, dtype: Any) -> None:
    """Raise Wrong unless the result is the exact one, rounded once."""
    expected = exact.astype(np.dtype(dtype).newbyteorder("="))
    if not isinstance(found, np.ndarray) or (found.dtype, found.shape) != (expected.dtype, expected.shape):
        raise Wrong(f"{what} is {type(found)} {getattr(found, 'shape', '')}, not {expected.dtype} {expected.shape}")
    if not np.array_equal(found, expected):
        raise Wrong(f"{what} is off by {np.abs(answers.wide(found) - exact).max()}")


def shapes(rng: Random) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], int]:
    """Arguments that PyTorch's contract takes, with the shapes of input and weight, and the output channels."""
    while True:
        groups = rng.choice([1, 1, 1, 2, 3])
        kernel = [rng.randint(1, 4) for _ in range(3)]
        stride, dilation = ([rng.choice([1, 1, 2, 2, 3]) for _ in range(3)] for _ in range(2))
        size = [rng.randint(1, 6) for _ in range(3)]
        padding = [rng.choice([0, 0, 1, 2]) for _ in range(3)]
        extra = [rng.randrange(max(s, d)) if rng.random() < 0.3 else 0 for s, d in zip(stride, dilation, strict=True)]
        axes = zip(size, stride, padding, dilation, kernel, extra, strict=True)
        if min((n - 1) * s - 2 * p + d * (k - 1) + 1 + more for n, s, p, d, k, more in axes) < 1:
            continue
        given = {
            "stride": tuple(stride),
            "padding": tuple(padding),
            "output_padding": tuple(extra),
            "groups": groups,
            "dilation": tuple(dilation),
        }
        inputs, columns, batch = groups * rng.randint(1, 4), rng.randint(1, 4), rng.randint(0, 2)
        x_shape = (batch, inputs, *size) if rng.random() < 0.8 else (inputs, *size)
        return given, x_shape, (inputs, columns, *kernel), columns * groups


def described(value: Any) -> str:
    """A value short enough to print."""
    if isinstance(value, np.ndarray):
        return f"{type(value).__name__}{value.shape}:{value.dtype}:strides{value.strides}"
    text = repr(value)
    return text if len(text) < 60 else f"{type(value).__name__}..."


def spoil(rng: Random, given: dict[str, Any], arrays: tuple[str, ...]) -> bool:
    """Replace one or two arguments in half of the calls."""
    if rng.random() < 0.45:
        return False
    for name in rng.sample(sorted(given), min(len(given), rng.choice([1, 1, 2]))):
        value = given[name]
        right = isinstance(value, np.ndarray) and name in arrays
        given[name] = hostile.operand(rng, value) if right and rng.random() < 0.9 else hostile.size(rng)
    return True


def replayable(given: dict[str, Any]) -> dict[str, Any]:
    """The same arguments for the judge: iterators are used up by the call."""
    return {name: tuple(value) if hasattr(value, "__next__") else value for name, value in given.items()}


def _arguments(rng: Random) -> tuple[dict[str, Any], np.ndarray, Any]:
    given, x_shape, w_shape, outputs = shapes(rng)
    dtype = rng.choice(hostile.DTYPES)
    given["input"] = hostile.relaid(rng, hostile.integers(rng, x_shape, dtype))
    given["weight"] = hostile.relaid(rng, hostile.integers(rng, w_shape, dtype))
    if rng.random() < 0.5:
        given["bias"] = hostile.relaid(rng, hostile.integers(rng, (outputs,), dtype))
    sizes = answers.pytorch_sizes(given["input"], given["weight"], given)
    if rng.random() < 0.15:
        given["padding"], given["output_padding"] = rng.choice(["same", "valid"]), 0
    elif rng.random() < 0.15:
        given.pop("output_padding")
        given["output_size"] = sizes.out
        sizes_given = given | {"output_padding": 0, "output_size": None}
        smallest = answers.pytorch_sizes(given["input"], given["weight"], sizes_given).out
        axes = zip(smallest, sizes.stride, strict=True)
        given["output_size"] = tuple(low + rng.randrange(step) for low, step in axes)
        if min(given["output_size"]) < 1:
            given["output_size"] = None
            given["padding"] = 0
    return given, np.zeros(0), dtype


def call_text(name: str, given: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={described(value)}' for key, value in given.items())})"


def forward(rng: Random) -> Call:
    """conv_transpose3d, with and without `out`, a prepared weight or none."""
    given, _, dtype = _arguments(rng)
    sizes = answers.pytorch_sizes(given["input"], given["weight"], given)
    spoiled = spoil(rng, given, ("input", "weight", "bias"))
    before = None
    if rng.random() < 0.2:
        shape = (*given["input"].shape[:-4], given["weight"].shape[1] * sizes.groups, *sizes.out) if not spoiled else ()
        place = np.full(shape or (1, 2, 3, 3, 3), 7, dtype)
        if shape and rng.random() < 0.2:
            given["input"], given["out"] = hostile.in_one_place(given["input"], place)
        else:
            given["out"] = hostile.result_place(rng, place, [given["input"], given["weight"]])
        spoiled = True
    text = call_text("conv_transpose3d", given)
    passed = {name: tuple(value) if hasattr(value, "__next__") else value for name, value in given.items()}
    out = passed.get("out")
    if isinstance(out, np.ndarray) and out.size < 1000:
        before = np.array(np.asarray(out))
    operands = [passed[name] for name in ("input", "weight", "bias") if isinstance(passed.get(name), np.ndarray)]
    kept = [array.copy() if array.size < 10_000 else None for array in operands]

    def run() -> Any:
        try:
            return tconv3d.conv_transpose3d(**passed)
        except BaseException:
            if before is not None and before.dtype.kind != "O" and before.tobytes() != np.asarray(out).tobytes():
                raise Wrong("a refused call wrote into out") from None
            raise

    def judge(y: Any) -> None:
        x, w = np.asarray(passed["input"]), np.asarray(passed["weight"])
        exact = answers.forward(x, w, passed.get("bias"), answers.pytorch_sizes(x, w, passed))
        if out is not None and y is not out:
            raise Wrong("the result is not out")
        same("output", np.asarray(y), exact, x.dtype)
        for array, copied in zip(operands, kept, strict=True):
            if copied is not None and array.tobytes() != copied.tobytes():
                raise Wrong("an operand was changed")

    return Call(text, run, judge, spoiled)


def gradients(rng: Random) -> Call:
    """conv_transpose3d_input_grad or conv_transpose3d_weight_grad."""
    given, _, dtype = _arguments(rng)
    given.pop("bias", None)
    x, w = given.pop("input"), given.pop("weight")
    sizes = answers.pytorch_sizes(x, w, given)
    gy = hostile.integers(rng, (*x.shape[:-4], w.shape[1] * sizes.groups, *sizes.out), dtype)
    gy = hostile.relaid(rng, gy)
    gx, gw = answers.gradients(x, w, gy, sizes)
    of_input = rng.random() < 0.5
    exact = gx if of_input else gw
    name = f"conv_transpose3d_{'input' if of_input else 'weight'}_grad"
    given["grad_output"] = gy
    given |= {"weight": w, "input_size": x.shape} if of_input else {"input": x, "weight_size": w.shape}
    right = dict(given)
    spoiled = spoil(rng, given, ("grad_output", "weight", "input")) or np.dtype(dtype).kind == "i"
    text = call_text(name, given)

    def judge(found: Any) -> None:
        if all(given[key] is right[key] for key in given):
            same(name, found, exact, dtype)
        else:
            _judge_spoiled_gradient(found, of_input, given)

    return Call(text, lambda: getattr(tconv3d, name)(**given), judge, spoiled)


def _judge_spoiled_gradient(found: Any, of_input: bool, given: dict[str, Any]) -> None:
    """An answer to changed arguments is right if it is the one that these arguments have."""
    if any(hasattr(value, "__next__") for value in given.values()):
        return  # used up by the call
    gy = np.asarray(given["grad_output"])
    if of_input:
        w = np.asarray(given["weight"])
        x = np.zeros(tuple(given["input_size"]), gy.dtype)
    else:
        x = np.asarray(given["input"])
        w = np.zeros(tuple(given["weight_size"]), gy.dtype)
    both = answers.gradients(x, w, gy, answers.pytorch_sizes(x, w, given))
    same("gradient", found, both[0] if of_input else both[1], gy.dtype)


def prepared(rng: Random) -> Call:
    """prepare, then calls with what it returned, also after pickling and copying."""
    given, _, dtype = _arguments(rng)
    given.pop("output_size", None)
    made = {key: given[key] for key in ("weight", "stride", "dilation", "groups")}
    spoiled = spoil(rng, made, ("weight",)) or np.dtype(dtype).kind == "i"
    used = replayable({**given, **{key: value for key, value in made.items() if rng.random() < 0.9}})
    spoiled |= any(used[key] is not made[key] for key in made)
    through = rng.choice([lambda w: w, lambda w: pickle.loads(pickle.dumps(w)), copy.deepcopy, copy.copy])
    changed = rng.choice([None, None, None, "stride", "dilation", "groups", "packed"])
    text = call_text("prepare", made) + " then " + call_text("conv_transpose3d", used)

    def run() -> Any:
        weight = through(tconv3d.prepare(**replayable(made)))
        tconv3d.conv_transpose3d(**{**used, "weight": weight})
        if changed:
            with contextlib.suppress(AttributeError, TypeError):
                setattr(weight, changed, rng.choice([(1, 1, 1), (2, 2, 2), 1, 2, None, weight]))
        return tconv3d.conv_transpose3d(**{**used, "weight": weight})

    def judge(y: Any) -> None:
        x, w = np.asarray(used["input"]), np.asarray(made["weight"])
        same("output", y, answers.forward(x, w, used.get("bias"), answers.pytorch_sizes(x, w, used)), x.dtype)

    return Call(text, run, judge, spoiled)


def pytorch_layer(rng: Random) -> Call:
    """tconv3d.ConvTranspose3d: made, called, taken back, saved and loaded."""
    given, x_shape, w_shape, outputs = shapes(rng)
    dtype = rng.choice([d for d in hostile.DTYPES if np.dtype(d).kind != "i"])
    given = {"in_channels": w_shape[0], "out_channels": outputs, "kernel_size": w_shape[2:], **given, "dtype": dtype}
    given["bias"] = rng.random() < 0.5
    spoiled = spoil(rng, given, ())
    x = hostile.relaid(rng, hostile.integers(rng, x_shape, dtype))
    return _layer_call(rng, tconv3d.ConvTranspose3d, given, x, spoiled, _pytorch_layer_sizes)


def _pytorch_layer_sizes(layer: Any, x: np.ndarray) -> answers.Sizes:
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    return answers.pytorch_sizes(x, layer.weight, {name: getattr(layer, name) for name in names})


def mindspore_layer(rng: Random) -> Call:
    """tconv3d.Conv3dTranspose, likewise."""
    given, x_shape, w_shape, outputs = shapes(rng)
    dtype = rng.choice([d for d in hostile.DTYPES if np.dtype(d).kind != "i"])
    x = hostile.relaid(rng, hostile.integers(rng, x_shape if len(x_shape) == 5 else (1, *x_shape), dtype))
    mode = rng.choice(["same", "valid", "Pad"])
    extra = given.pop("output_padding") if mode == "Pad" else 0
    padding = tuple(p for p in given["padding"] for _ in "fb") if mode == "Pad" else 0
    given |= {"in_channels": w_shape[0], "out_channels": outputs, "kernel_size": w_shape[2:], "pad_mode": mode}
    given |= {"group": given.pop("groups"), "padding": padding, "output_padding": extra, "dtype": dtype}
    given |= {"has_bias": rng.random() < 0.5, "weight_init": rng.choice(["normal", "ones", 0.5, None])}
    spoiled = spoil(rng, given, ())
    return _layer_call(rng, tconv3d.Conv3dTranspose, given, x, spoiled, _mindspore_layer_sizes)


def _mindspore_layer_sizes(layer: Any, x: np.ndarray) -> answers.Sizes:
    effective = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.weight.shape[2:], strict=True)]
    front, out = answers.mindspore_window(
        layer.pad_mode, layer.padding, layer.output_padding, x.shape[2:], effective, layer.stride
    )
    return answers.Sizes(layer.stride, layer.dilation, tuple(front), tuple(out), layer.group)


def _layer_call(
    rng: Random, kind: Any, given: dict[str, Any], x: np.ndarray, spoiled: bool, sizes_of: Callable[..., answers.Sizes]
) -> Call:
    """Make a layer, give it integers as parameters, and perhaps something in place of one of them or of the input."""
    text = call_text(kind.__name__, given) + f" of {described(x)}"
    late = rng.choice(["", "", "", "weight", "bias", "input", "state", "grad"])

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zero-element parameters
            layer = kind(**replayable(given))
        layer = rng.choice([lambda layer: layer, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])(layer)
        layer.weight = hostile.integers(rng, layer.weight.shape, layer.weight.dtype)
        if layer.bias is not None:
            layer.bias = hostile.integers(rng, layer.bias.shape, layer.bias.dtype)
        seen = x
        if late == "weight":
            layer.weight = hostile.operand(rng, layer.weight)
        elif late == "bias":
            layer.bias = hostile.operand(rng, np.ones(3, x.dtype))
        elif late == "state":
            layer.load_state_dict(rng.choice([{"weight": hostile.size(rng)}, layer.state_dict(), 3, {}, {1: 2}]))
        elif late == "input":
            seen = hostile.operand(rng, x)
        y = layer(seen)
        gy = hostile.integers(rng, y.shape, y.dtype)
        gx = layer.backward(hostile.operand(rng, gy) if late == "grad" and y.size else gy)
        return layer, seen, y, (None if late == "grad" else gy), gx

    def judge(found: Any) -> None:
        layer, seen, y, gy, gx = found
        seen, w = np.asarray(seen), np.asarray(layer.weight)
        sizes = sizes_of(layer, seen)
        same("output", y, answers.forward(seen, w, layer.bias, sizes), seen.dtype)
        if gy is not None:
            exact_x, exact_w = answers.gradients(seen, w, gy, sizes)
            same("input gradient", gx, exact_x, seen.dtype)
            narrow = kind is tconv3d.Conv3dTranspose and seen.dtype.newbyteorder("=") == np.float16
            same("weight gradient", layer.weight_grad, exact_w, np.float32 if narrow else seen.dtype)

    return Call(text, run, judge, spoiled or bool(late))


def initializers(rng: Random) -> Call:
    """Every law with arguments that it may not take."""
    laws = [name for name in dir(tconv3d.initializers) if name[0].isupper() and name not in ("Initializer", "Number")]
    law = rng.choice([getattr(tconv3d.initializers, name) for name in laws])
    arguments = [hostile.size(rng) for _ in range(rng.choice([0, 0, 1, 1, 2]))]
    shape = rng.choice([(2, 3, 2, 2, 2), (4,), (), (0, 3), (3, 3, 1, 2, 3), hostile.size(rng)])
    text = f"{getattr(law, '__name__', law)}({', '.join(map(described, arguments))})({described(shape)})"

    def judge(found: Any) -> None:
        if isinstance(found, np.ndarray) and isinstance(shape, tuple) and found.shape != shape:
            raise Wrong(f"a parameter of {found.shape} for {shape}")

    def run() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of NumPy, about sigma = inf
            if not isinstance(law, type) or not issubclass(law, tconv3d.initializers.Initializer):
                return tconv3d.initializers.resolve(rng.choice([*arguments, "normal"]))
            return law(*arguments)(shape, np.dtype(np.float32), np.random.default_rng(0))

    return Call(text, run, judge, spoiled=True)


def settings(rng: Random) -> Call:
    """set_num_threads, show_config, and the command line."""
    if rng.random() < 0.5:
        count = hostile.size(rng)
        right = isinstance(count, (int, np.integer)) and not isinstance(count, bool) and 1 <= count <= 256

        def judge(_: Any) -> None:
            if not right or tconv3d.get_num_threads() != count:
                raise Wrong("a count that is none was taken")
            tconv3d.set_num_threads(2)

        return Call(f"set_num_threads({count!r})", lambda: tconv3d.set_num_threads(count), judge, not right)
    names = ["3", "-1", "k", "10**30", "9" * rng.choice([1, 20, 5000]), "(" * rng.choice([1, 200]), "1.5", "None"]
    names += [
        f"{key}={value}" for key in ("stride", "padding", "dilation", "groups") for value in (0, 2, 2**63, "(1,)")
    ]
    names += ["[1,2,3]", "'same'", "pad_mode='same'", "**k", "*a", "lambda: 0", "\0", "\ud800"]
    layer = f"{rng.choice(['nn.ConvTranspose3d', 'Conv3dTranspose', 'x'])}(3, 8, {', '.join(rng.choices(names, k=3))})"
    shape = rng.choice(["1,3,4,5,6", "3,4,5,6", "1,3", "0,3,4,4,4", f"1,3,{2**62},2,2", "x", "", "1,3,4,5,-6"])
    arguments = ["explain", layer, f"--input={shape}", *rng.choice([[], ["--plan"], ["--output-size=9,9,9"]])]

    def run() -> int:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return main(arguments)

    def judge_code(code: Any) -> None:
        if code not in (0, 2):
            raise Wrong(f"exit code {code!r}")

    return Call(f"tconv3d {arguments!r}"[:300], run, judge_code)


_PARTS = [prepared, pytorch_layer, mindspore_layer, initializers, settings]
NUMPY = [forward, forward, forward, gradients, gradients, *_PARTS]
