# SPDX-License-Identifier: Apache-2.0
"""The layers and functions around a transposed convolution, as a table: names, arguments, defaults written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import libcst as cst

from ..arguments import Arguments, Plan
from ..module import UNKNOWN
from ..options import Left
from ..site import Site
from . import dtypes
from .to_mindspore_sizes import size

Convert = Callable[[Site, Arguments, str], cst.BaseExpression | str | None]


@dataclass(frozen=True)
class Call:
    """`source(parameters...)` becomes `target(...)`. `names` maps what is kept; `dropped` means nothing in the target;
    `defaults` are written where the source leaves them out; `convert` computes a new value."""

    target: str
    parameters: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    defaults: dict[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    convert: dict[str, Convert] = field(default_factory=dict)

    def apply(self, site: Site) -> cst.BaseExpression:
        """The new call. Raises Left for an argument that the target lacks."""
        arguments = site.arguments(self.parameters)
        plan = Plan(arguments)
        for name in arguments.by_name:
            if name in self.names:
                new = self.convert[name](site, arguments, name) if name in self.convert else None
                plan.keep(name, self.names[name], new)
            elif name not in self.dropped:
                raise Left(f"{name}={arguments.text(name)} has no counterpart in {self.target}")
        given = {self.names.get(name) for name in arguments.by_name}
        for name, text in self.defaults.items():
            if name not in given:
                plan.put(name, text)
        call = site.updated.with_changes(args=plan.args(self.order))
        if site.is_super:
            return call
        return call.with_changes(func=cst.parse_expression(site.needs.name(self.target)))


@dataclass(frozen=True)
class Same:
    """Another name and nothing else; arguments and places without a call are fine."""

    target: str

    def apply(self, site: Site) -> cst.BaseExpression:
        """The call under its new name."""
        if site.is_super:
            return site.updated
        return site.updated.with_changes(func=cst.parse_expression(site.needs.name(self.target)))


@dataclass(frozen=True)
class Type:
    """A class that may be named under the other name, but not called."""

    target: str
    reason: str

    def apply(self, site: Site) -> cst.BaseExpression:
        """Left, always."""
        raise Left(self.reason)


class Sequential:
    """mindspore.nn.SequentialCell, whose one argument may be a list, to torch.nn.Sequential."""

    def apply(self, site: Site) -> cst.BaseExpression:
        """The new call, the list unpacked."""
        args = list(site.updated.args)
        if len(args) == 1 and not args[0].star:
            value = args[0].value
            if isinstance(value, (cst.List, cst.Tuple)):
                args = [cst.Arg(element.value, comma=_comma(element)) for element in value.elements]
            elif not isinstance(value, cst.Call):
                text = site.module.code(value)
                listed = f"{text} if isinstance({text}, (list, tuple)) else [{text}]"
                args = [cst.Arg(cst.parse_expression(f"({listed})"), star="*")]
        if site.is_super:
            return site.updated.with_changes(args=args)
        func = cst.parse_expression(site.needs.name("torch.nn.Sequential"))
        return site.updated.with_changes(func=func, args=args)


class InstanceNorm:
    """torch.nn.InstanceNorm3d: MindSpore's needs a GPU; one group a channel is the same arithmetic everywhere."""

    def apply(self, site: Site) -> cst.BaseExpression:
        """A GroupNorm of as many groups as channels. Left where running statistics are kept."""
        names = ("num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype")
        arguments = site.arguments(names)
        if arguments.constant("track_running_stats", False) is not False or "num_features" not in arguments:
            raise Left("InstanceNorm3d with running statistics has no counterpart on MindSpore's CPU")
        plan = Plan(arguments)
        channels = arguments.text("num_features")
        plan.keep("num_features", "num_groups")
        plan.put("num_channels", channels)
        plan.keep("eps")
        plan.keep("affine")
        if "affine" not in arguments:
            plan.put("affine", "False")
        func = cst.parse_expression(site.needs.name("mindspore.nn.GroupNorm"))
        return site.updated.with_changes(func=func, args=plan.args(("num_groups", "num_channels", "eps", "affine")))


@dataclass(frozen=True)
class Filled:
    """torch.ones and torch.zeros, whose sizes may be separate arguments."""

    target: str

    def apply(self, site: Site) -> cst.BaseExpression:
        """The new call with one shape. Left for keywords, none of which MindSpore has."""
        args = site.updated.args
        if any(arg.star or arg.keyword is not None for arg in args):
            raise Left(f"{self.target} takes a shape and no keywords")
        if len(args) > 1:
            text = ", ".join(site.module.code(arg.value) for arg in args)
            args = [cst.Arg(cst.parse_expression(f"({text})"))]
        return site.updated.with_changes(func=cst.parse_expression(site.needs.name(self.target)), args=args)


@dataclass(frozen=True)
class Pool:
    """A pooling layer: its stride is the kernel by default in PyTorch, 1 in MindSpore, so it is written out."""

    target: str

    def apply(self, site: Site) -> cst.BaseExpression:
        """The new call. Left for padding, whose border the two count differently."""
        to_mindspore = site.options.to == "mindspore"
        arguments = site.arguments(("kernel_size", "stride", "padding" if to_mindspore else "pad_mode", "padding"))
        pads = arguments.constant("padding", 0) in (0, (0, 0, 0)) and arguments.constant("pad_mode", "valid") == "valid"
        if not pads or "kernel_size" not in arguments:
            raise Left(f"{self.target} with padding: the border is counted differently")
        plan = Plan(arguments)
        for name in ("kernel_size", "stride"):
            plan.keep(name, value=size(site, arguments, name) if to_mindspore else None)
        if "stride" not in arguments:
            plan.put("stride", arguments.text("kernel_size") if to_mindspore else "1")
        func = cst.parse_expression(site.needs.name(self.target))
        return site.updated.with_changes(func=func, args=plan.args(("kernel_size", "stride")))


@dataclass(frozen=True)
class Primitive:
    """mindspore.ops.Concat(axis=1): an operator object, to a function with its arguments filled in."""

    target: str
    parameters: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)

    def apply(self, site: Site) -> cst.BaseExpression:
        """The function, or functools.partial of it."""
        arguments = site.arguments(self.parameters)
        words = {self.names[name]: arguments.text(name) for name in arguments.by_name}
        words = self.defaults | words
        target = site.needs.name(self.target)
        if words:
            text = ", ".join(f"{name}={value}" for name, value in words.items())
            target = f"{site.needs.name('functools.partial')}({target}, {text})"
        return cst.parse_expression(target)


def _comma(element: cst.BaseElement) -> cst.Comma | cst.MaybeSentinel:
    return element.comma if isinstance(element.comma, cst.Comma) else cst.MaybeSentinel.DEFAULT


def _one_minus(site: Site, arguments: Arguments, name: str) -> str:
    value = arguments.constant(name)
    if value is None:
        raise Left(f"{name}=None has no counterpart")
    if value is UNKNOWN:
        return f"1 - ({arguments.text(name)})"
    return repr(round(1 - value, 12))


def _approximate_to_mindspore(site: Site, arguments: Arguments, name: str) -> str:
    return repr(arguments.require(name) == "tanh")


def _approximate_to_torch(site: Site, arguments: Arguments, name: str) -> str:
    return repr("tanh" if arguments.require(name) else "none")


def _dtype(site: Site, arguments: Arguments, name: str) -> str | None:
    source = site.options.source
    dtype = dtypes.of_argument(arguments, source)
    return None if dtype is None else site.needs.name(f"{site.options.to}.{dtype}")


def _one_axis(site: Site, arguments: Arguments, name: str) -> cst.BaseExpression | str | None:
    """torch's LayerNorm over the last axis alone: its int becomes a tuple of one."""
    value = arguments.constant(name)
    node = arguments.node(name)
    if value is not UNKNOWN and not isinstance(value, int) and len(value) != 1:
        raise Left("LayerNorm over several axes: write begin_norm_axis yourself")
    if value is UNKNOWN and not (node is not None and arguments.module.is_int(node)):
        raise Left(f"{name}={arguments.text(name)} may have several axes, not known without running the code")
    return None if isinstance(value, (tuple, list)) else f"({arguments.text(name)},)"


_ARITHMETIC = ("sqrt", "exp", "abs", "add", "mul", "sub", "matmul")
_BN_T = ("num_features", "eps", "momentum", "affine", "track_running_stats", "device", "dtype")
_BN_M = ("num_features", "eps", "momentum", "affine")


def _same_words(*words: str) -> dict[str, str]:
    return {word: word for word in words}


TO_MINDSPORE: dict[str, Call | Same | Type | InstanceNorm | Pool | Filled] = {
    "torch.nn.Module": Same("mindspore.nn.Cell"),
    "torch.nn.Sequential": Same("mindspore.nn.SequentialCell"),
    "torch.nn.ModuleList": Same("mindspore.nn.CellList"),
    "torch.nn.Identity": Same("mindspore.nn.Identity"),
    "torch.nn.Sigmoid": Same("mindspore.nn.Sigmoid"),
    "torch.nn.Tanh": Same("mindspore.nn.Tanh"),
    "torch.Tensor": Type("mindspore.Tensor", "torch.Tensor(...) makes float32 of anything; write torch.tensor(...)"),
    "torch.nn.Parameter": Same("mindspore.Parameter"),
    "torch.nn.ReLU": Call("mindspore.nn.ReLU", ("inplace",), dropped=("inplace",)),
    "torch.nn.ReLU6": Call("mindspore.nn.ReLU6", ("inplace",), dropped=("inplace",)),
    "torch.nn.SiLU": Call("mindspore.nn.SiLU", ("inplace",), dropped=("inplace",)),
    "torch.nn.LeakyReLU": Call(
        "mindspore.nn.LeakyReLU", ("negative_slope", "inplace"), {"negative_slope": "alpha"}, ("alpha",),
        {"alpha": "0.01"}, ("inplace",),
    ),
    "torch.nn.ELU": Call(
        "mindspore.nn.ELU", ("alpha", "inplace"), _same_words("alpha"), ("alpha",), {}, ("inplace",)
    ),
    "torch.nn.GELU": Call(
        "mindspore.nn.GELU", ("approximate",), _same_words("approximate"), ("approximate",),
        {"approximate": "False"}, convert={"approximate": _approximate_to_mindspore},
    ),
    "torch.nn.PReLU": Call(
        "mindspore.nn.PReLU", ("num_parameters", "init", "device", "dtype"), {"num_parameters": "channel", "init": "w"},
        ("channel", "w"),
    ),
    "torch.nn.Softmax": Call("mindspore.nn.Softmax", ("dim",), {"dim": "axis"}, ("axis",)),
    "torch.nn.Dropout": Call(
        "mindspore.nn.Dropout", ("p", "inplace"), _same_words("p"), ("keep_prob", "p"), {"p": "0.5"}, ("inplace",)
    ),
    "torch.nn.Linear": Call(
        "mindspore.nn.Dense", ("in_features", "out_features", "bias", "device", "dtype"),
        {"in_features": "in_channels", "out_features": "out_channels", "bias": "has_bias"},
        ("in_channels", "out_channels"), {"has_bias": "True"},
    ),
    "torch.nn.Embedding": Call(
        "mindspore.nn.Embedding", ("num_embeddings", "embedding_dim", "padding_idx"),
        {"num_embeddings": "vocab_size", "embedding_dim": "embedding_size", "padding_idx": "padding_idx"},
        ("vocab_size", "embedding_size"),
    ),
    **{
        f"torch.nn.BatchNorm{n}d": Call(
            f"mindspore.nn.BatchNorm{n}d", _BN_T, _same_words(*_BN_M), _BN_M, {"momentum": "0.9"},
            convert={"momentum": _one_minus},
        )
        for n in (1, 2, 3)
    },
    "torch.nn.InstanceNorm3d": InstanceNorm(),
    "torch.nn.GroupNorm": Call(
        "mindspore.nn.GroupNorm", ("num_groups", "num_channels", "eps", "affine", "device", "dtype"),
        _same_words("num_groups", "num_channels", "eps", "affine"), ("num_groups", "num_channels", "eps", "affine"),
    ),
    "torch.nn.LayerNorm": Call(
        "mindspore.nn.LayerNorm", ("normalized_shape", "eps", "elementwise_affine", "bias"),
        {"normalized_shape": "normalized_shape", "eps": "epsilon"}, ("normalized_shape",), {"epsilon": "1e-5"},
        convert={"normalized_shape": _one_axis},
    ),
    "torch.tensor": Call(
        "mindspore.Tensor", ("data", "dtype", "device", "requires_grad"), {"data": "input_data", "dtype": "dtype"},
        ("input_data",), dropped=("device",), convert={"dtype": _dtype},
    ),
    "torch.cat": Call(
        "mindspore.ops.cat", ("tensors", "dim"), {"tensors": "tensors", "dim": "axis"}, ("tensors", "axis")
    ),
    **{f"torch.{name}": Filled(f"mindspore.ops.{name}") for name in ("ones", "zeros", "randn", "rand")},
    "torch.stack": Call(
        "mindspore.ops.stack", ("tensors", "dim"), {"tensors": "tensors", "dim": "axis"}, ("tensors", "axis")
    ),
    **{
        f"{place}.{name}": Call(
            f"mindspore.ops.{name}", ("input", "inplace"), _same_words("input"), ("input",), dropped=("inplace",)
        )
        for place in ("torch", "torch.nn.functional")
        for name in ("relu", "sigmoid", "tanh")
    },
    **{f"torch.{name}": Same(f"mindspore.ops.{name}") for name in _ARITHMETIC},
    "torch.nn.functional.leaky_relu": Call(
        "mindspore.ops.leaky_relu", ("input", "negative_slope", "inplace"),
        {"input": "input", "negative_slope": "alpha"}, ("input", "alpha"), {"alpha": "0.01"}, ("inplace",),
    ),
    **{
        name: Call("mindspore.ops.softmax", ("input", "dim"), {"input": "input", "dim": "axis"}, ("input", "axis"))
        for name in ("torch.softmax", "torch.nn.functional.softmax")
    },
    **{f"torch.nn.{kind}Pool3d": Pool(f"mindspore.nn.{kind}Pool3d") for kind in ("Max", "Avg")},
    **{f"torch.{name}": Same(f"mindspore.{name}") for name in sorted(dtypes.NAMES - {"bool"})},
    **{f"torch.{name}": Same(f"mindspore.{full}") for name, full in (("half", "float16"), ("float", "float32"))},
}  # fmt: skip

TO_TORCH: dict[str, Call | Same | Sequential | Pool | Primitive] = {
    "mindspore.nn.Cell": Same("torch.nn.Module"),
    "mindspore.nn.SequentialCell": Sequential(),
    "mindspore.nn.CellList": Same("torch.nn.ModuleList"),
    "mindspore.nn.Identity": Same("torch.nn.Identity"),
    "mindspore.nn.Sigmoid": Same("torch.nn.Sigmoid"),
    "mindspore.nn.Tanh": Same("torch.nn.Tanh"),
    "mindspore.nn.ReLU": Same("torch.nn.ReLU"),
    "mindspore.nn.ReLU6": Same("torch.nn.ReLU6"),
    "mindspore.nn.SiLU": Same("torch.nn.SiLU"),
    "mindspore.Tensor": Call(
        "torch.tensor", ("input_data", "dtype"), {"input_data": "data", "dtype": "dtype"}, ("data",),
        convert={"dtype": _dtype},
    ),
    "mindspore.Parameter": Call(
        "torch.nn.Parameter", ("default_input", "name", "requires_grad"),
        {"default_input": "data", "requires_grad": "requires_grad"}, ("data",), dropped=("name",),
    ),
    "mindspore.nn.LeakyReLU": Call(
        "torch.nn.LeakyReLU", ("alpha",), {"alpha": "negative_slope"}, ("negative_slope",), {"negative_slope": "0.2"}
    ),
    "mindspore.nn.ELU": Call("torch.nn.ELU", ("alpha",), _same_words("alpha"), ("alpha",)),
    "mindspore.nn.GELU": Call(
        "torch.nn.GELU", ("approximate",), _same_words("approximate"), (), {"approximate": "'tanh'"},
        convert={"approximate": _approximate_to_torch},
    ),
    "mindspore.nn.PReLU": Call(
        "torch.nn.PReLU", ("channel", "w"), {"channel": "num_parameters", "w": "init"}, ("num_parameters", "init")
    ),
    "mindspore.nn.Softmax": Call("torch.nn.Softmax", ("axis",), {"axis": "dim"}, ("dim",), {"dim": "-1"}),
    "mindspore.nn.Dropout": Call(
        "torch.nn.Dropout", ("keep_prob", "p"), {"keep_prob": "p", "p": "p"}, ("p",), {"p": "0.5"},
        convert={"keep_prob": _one_minus},
    ),
    "mindspore.nn.Dense": Call(
        "torch.nn.Linear", ("in_channels", "out_channels", "weight_init", "bias_init", "has_bias", "activation"),
        {"in_channels": "in_features", "out_channels": "out_features", "has_bias": "bias"},
        ("in_features", "out_features"), {"bias": "True"},
    ),
    "mindspore.nn.Embedding": Call(
        "torch.nn.Embedding",
        ("vocab_size", "embedding_size", "use_one_hot", "embedding_table", "dtype", "padding_idx"),
        {"vocab_size": "num_embeddings", "embedding_size": "embedding_dim", "padding_idx": "padding_idx"},
        ("num_embeddings", "embedding_dim"),
    ),
    **{
        f"mindspore.nn.BatchNorm{n}d": Call(
            f"torch.nn.BatchNorm{n}d", _BN_M, _same_words(*_BN_M), _BN_M, {"momentum": "0.1"},
            convert={"momentum": _one_minus},
        )
        for n in (1, 2, 3)
    },
    "mindspore.nn.GroupNorm": Call(
        "torch.nn.GroupNorm", ("num_groups", "num_channels", "eps", "affine"),
        _same_words("num_groups", "num_channels", "eps", "affine"), ("num_groups", "num_channels", "eps", "affine"),
    ),
    **{f"mindspore.nn.{kind}Pool3d": Pool(f"torch.nn.{kind}Pool3d") for kind in ("Max", "Avg")},
    "mindspore.ops.Concat": Primitive("torch.cat", ("axis",), {"axis": "dim"}, {"dim": "0"}),
    "mindspore.ops.Add": Primitive("torch.add"),
    "mindspore.ops.Mul": Primitive("torch.mul"),
    "mindspore.ops.ReLU": Same("torch.nn.ReLU"),
    "mindspore.ops.Sigmoid": Same("torch.nn.Sigmoid"),
    "mindspore.ops.Tanh": Same("torch.nn.Tanh"),
    "mindspore.ops.Softmax": Call("torch.nn.Softmax", ("axis",), {"axis": "dim"}, ("dim",), {"dim": "-1"}),
    "mindspore.ops.softmax": Call(
        "torch.softmax", ("input", "axis"), {"input": "input", "axis": "dim"}, ("input", "dim"), {"dim": "-1"}
    ),
    **{
        f"mindspore.ops.{name}": Call(
            "torch.cat", ("tensors", "axis"), {"tensors": "tensors", "axis": "dim"}, ("tensors", "dim"), {"dim": "0"}
        )
        for name in ("cat", "concat")
    },
    **{
        f"mindspore.ops.{name}": Call(f"torch.{name}", ("shape", "dtype"), {"shape": "size"}, ("size",))
        for name in ("ones", "zeros")
    },
    "mindspore.ops.stack": Call(
        "torch.stack", ("tensors", "axis"), {"tensors": "tensors", "axis": "dim"}, ("tensors", "dim"), {"dim": "0"}
    ),
    **{
        f"mindspore.ops.{name}": Same(f"torch.{name}")
        for name in ("relu", "sigmoid", "tanh", *_ARITHMETIC)
    },
    "mindspore.ops.leaky_relu": Call(
        "torch.nn.functional.leaky_relu", ("input", "alpha"), {"input": "input", "alpha": "negative_slope"},
        ("input", "negative_slope"), {"negative_slope": "0.2"},
    ),
    **{f"mindspore.{name}": Same(f"torch.{name}") for name in sorted(dtypes.NAMES)},
}  # fmt: skip
