# SPDX-License-Identifier: Apache-2.0
"""The `tconv3d` command: arguments only; what they ask for is done in `commands/`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .commands import CommandError, apply, bench, convert, demo, explain, info, migrate, upsample, verify

_EXIT_BAD_REQUEST = 2  # as argparse's own
_EXIT_INTERRUPTED = 130  # 128 + SIGINT
_EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, what a shell reports for any other command in `tconv3d ... | head`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command on `arguments` (default: the process's) and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except (CommandError, MemoryError) as error:
        print(f"tconv3d {options.command}: error: {str(error) or 'out of memory'}", file=sys.stderr)
        return _EXIT_BAD_REQUEST
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit; give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _EXIT_BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tconv3d", description="3-D transposed convolution under two contracts.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    command = commands.add_parser("demo", help="the comparison page's examples, then a brain volume upsampled x2")
    command.add_argument("--volume", type=Path, metavar="FILE", help="a 3-D volume to use in place of nibabel's own")
    command.add_argument(
        "--output-dir", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)"
    )
    command.set_defaults(run=lambda options: demo.run(options.volume, options.output_dir))

    command = commands.add_parser("explain", help="what one layer call does, and its equal in the other contract")
    command.add_argument(
        "layer", metavar="CALL", help='such as "nn.ConvTranspose3d(3, 32, 5, stride=3)"; never executed'
    )
    command.add_argument("--input", required=True, metavar="N,C,D,H,W", help="input shape (PyTorch: or C,D,H,W)")
    command.add_argument("--output-size", metavar="D,H,W", help="PyTorch's output_size at the call")
    command.add_argument("--plan", action="store_true", help="also how the engine would run it on this machine")
    command.add_argument("--overlap", action="store_true", help="also how many kernels overlap: is it a checkerboard?")
    command.set_defaults(
        run=lambda options: explain.run(
            options.layer, options.input, options.output_size, options.plan, options.overlap
        )
    )

    command = commands.add_parser("migrate", help="source of one framework rewritten for the other; never executed")
    command.add_argument("path", type=Path, metavar="PATH", help="a Python file or a folder of them")
    command.add_argument("--to", type=_framework, required=True, metavar="FRAMEWORK", help="torch or mindspore")
    command.add_argument("--target-version", metavar="X", help="the version to write for; MindSpore: or 'announced'")
    command.add_argument("--source-version", metavar="X", help="the version of the code; MindSpore: or 'announced'")
    command.add_argument(
        "--use",
        choices=("framework", "tconv3d"),
        default="framework",
        help="whose layers to write",
    )
    command.add_argument("--diff", action="store_true", help="print the difference (the default without --write)")
    command.add_argument("--write", action="store_true", help="replace the files, each in one step")
    command.add_argument("--backup", action="store_true", help="with --write: keep each old file as FILE.orig")
    command.set_defaults(
        run=lambda options: migrate.run(
            options.path, options.to, options.target_version, options.source_version, options.use, options.write,
            options.backup, options.diff,
        )
    )  # fmt: skip

    command = commands.add_parser("convert", help="a checkpoint of one framework made one of the other")
    command.add_argument("source", type=Path, metavar="IN", help="a .pth, .pt, .safetensors or .ckpt file")
    command.add_argument("target", type=Path, metavar="OUT", help="likewise; its suffix says the format")
    command.add_argument("--to", type=_framework, metavar="FRAMEWORK", help="whose names, for a .safetensors OUT")
    command.add_argument("--rules", type=Path, metavar="FILE", help="rename rules of your own, JSON")
    command.add_argument(
        "--model",
        metavar="PKG.MOD:FACTORY",
        help="a model that says which layer is where; its code is run",
    )
    command.set_defaults(
        run=lambda options: convert.run(options.source, options.target, options.to, options.rules, options.model)
    )

    command = commands.add_parser("verify", help="two layers or networks on the same inputs, with causes in words")
    command.add_argument("a", nargs="?", metavar="A", help='a layer call (not executed), or "pkg.mod:factory" (run)')
    command.add_argument("b", nargs="?", metavar="B", help="likewise; gets A's parameters")
    command.add_argument(
        "--input", action="append", default=[], metavar="N,C,D,H,W", help="input shape; may be repeated"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of inputs and weights (default: 0)")
    command.add_argument("--rules", type=Path, metavar="FILE", help="rename rules, as for convert")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    command.add_argument("--html", type=Path, metavar="FILE", help="write the report as one self-contained page")
    command.add_argument("--page", action="store_true", help="re-prove the official comparison page instead")
    command.add_argument("--markdown", type=Path, metavar="FILE", help="with --page: write every difference as a page")
    command.set_defaults(
        run=lambda options: (
            verify.run_page(options.json, options.markdown)
            if options.page
            else verify.run(
                options.a, options.b, options.input, options.seed, options.rules, options.json, options.html
            )
        )
    )

    command = commands.add_parser("upsample", help="a volume of any size made finer, from file to file")
    _add_files(command)
    command.add_argument("--scale", required=True, metavar="S[,S,S]", help="new samples per old one, along each axis")
    command.add_argument(
        "--kernel", default="linear", metavar="NAME", help="linear (default), nearest, cubic, or a .npy file of weights"
    )
    _add_streaming(command)
    command.set_defaults(
        run=lambda options: upsample.run(
            options.source, options.target, options.scale, options.kernel, options.dtype, _streaming(options)
        )
    )

    command = commands.add_parser("apply", help="one layer on a volume of any size, from file to file")
    command.add_argument("weights", type=Path, metavar="WEIGHTS", help="a .npy, .npz, .safetensors, .pth or .ckpt file")
    _add_files(command)
    command.add_argument("--contract", type=_framework, required=True, metavar="FRAMEWORK", help="torch or mindspore")
    command.add_argument("--name", metavar="NAME", help="which layer of WEIGHTS, such as decoder.up1")
    command.add_argument("--stride", default="1", metavar="N[,N,N]")
    command.add_argument("--padding", metavar="N[,N,N]", help="mindspore: or six, front and back of each axis")
    command.add_argument("--output-padding", metavar="N[,N,N]")
    command.add_argument("--dilation", default="1", metavar="N[,N,N]")
    command.add_argument("--groups", "--group", type=int, default=1, metavar="N")
    command.add_argument("--output-size", metavar="D,H,W", help="torch: in place of --output-padding")
    command.add_argument("--pad-mode", choices=("same", "valid", "pad"), help="mindspore (default there: same)")
    command.add_argument("--no-bias", action="store_true", help="leave out the bias that WEIGHTS holds")
    _add_streaming(command)
    command.set_defaults(
        run=lambda options: apply.run(
            options.weights, options.source, options.target, options.contract, options.name, not options.no_bias,
            {
                name: getattr(options, name)
                for name in ("stride", "padding", "output_padding", "dilation", "groups", "output_size", "pad_mode")
            },
            options.dtype, _streaming(options),
        )
    )  # fmt: skip

    command = commands.add_parser("bench", help="your layers, or those of your model, against what else is installed")
    command.add_argument("--layer", action="append", default=[], metavar="CALL", help="a layer call; may be repeated")
    command.add_argument("--model", metavar="FILE.py:NAME", help="or pkg.mod:name, a PyTorch model; its code is run")
    command.add_argument("--input", required=True, metavar="N,C,D,H,W", help="shape of the layers' or model's input")
    command.add_argument("--dtype", choices=bench.DTYPES, help="element type (default: the layer's own)")
    command.add_argument("--threads", type=int, metavar="N", help="threads of every engine (default: tconv3d's own)")
    command.add_argument("--rounds", type=int, default=7, metavar="N", help="runs of each engine (default: 7)")
    command.add_argument("--engines", metavar="NAME,..", help="some of those that are known (default: all)")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON")
    command.add_argument("--plot", type=Path, metavar="PNG", help="draw the roofline")
    command.set_defaults(
        run=lambda options: bench.run(
            options.layer, options.model, options.input, options.dtype, options.threads, options.rounds,
            options.engines, options.json, options.plot,
        )
    )  # fmt: skip

    command = commands.add_parser("info", help="version, instruction sets, threads, frameworks found")
    command.set_defaults(run=lambda options: info.run())
    return parser


def _add_files(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", type=Path, metavar="IN", help="a .nii, .nii.gz, .npy, .tif or .zarr volume")
    command.add_argument("target", type=Path, metavar="OUT", help="likewise; its suffix says the format")


def _add_streaming(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", metavar="NAME", help="of the output, such as uint16 (default: the input's)")
    command.add_argument("--memory", metavar="SIZE", help="the most that the process may hold, such as 512MB")
    command.add_argument("--scheduler", metavar="ADDRESS", help="a running dask cluster, such as tcp://host:8786")
    again = command.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="finish what an earlier run of the same call began")
    again.add_argument("--overwrite", action="store_true", help="replace what is there")


def _streaming(options: argparse.Namespace) -> dict[str, object]:
    """The options of `_add_streaming` that do not change the result."""
    return {name: getattr(options, name) for name in ("memory", "resume", "overwrite", "scheduler")}


def _framework(name: str) -> str:
    """The name of a framework, with the alias that people use for the first."""
    names = {"torch": "torch", "pytorch": "torch", "mindspore": "mindspore"}
    if name.lower() not in names:
        raise argparse.ArgumentTypeError(f"{name!r} is no framework known here: write torch or mindspore")
    return names[name.lower()]
