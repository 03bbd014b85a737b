#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Race tconv3d against its peers on layers of real networks: `python benchmarks/run.py --help`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    options = _parser().parse_args()
    _set_environment(options.threads, options.isa)
    # Only now: the libraries read these variables when they are loaded.
    import memory
    import report
    from rich.console import Console
    from workloads import load

    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.shapes:
        import shapes

        layers = shapes.draw(options.shapes)
        options.engines = options.engines or "tconv3d,tconv3d_live,torch,torch_cl"
    else:
        layers = load(options.workloads, options.only and options.only.split(","))
    if options.variants:
        import variants

        variants.print_table(console, layers, options.threads)
        return 0
    if options.memory:
        engines = _installed(options.engines or "tconv3d_live,torch", train=False)
        memory.print_table(console, layers, engines, options.threads)
        return 0
    run = report.Run.read(options.load) if options.load else _race(console, layers, options)
    report.print_summary(console, run)
    if options.shapes:
        report.print_slower(console, run, layers)
    if options.json:
        run.write(options.json)
    if options.plot:
        from tconv3d.bench.roofline import roofline

        title = f"{'training step' if run.train else 'forward'}, float32; {run.machine}"
        roofline(run.rows, run.rates, title, options.plot)
    if options.readme:
        report.write_readme(run)
    return int(any(row.wrong for row in run.rows))


def _race(console, layers, options):
    """Run the race and show the table as it grows."""
    import report
    import torch
    from rich.live import Live

    from tconv3d import _engine
    from tconv3d.bench import race

    torch.set_num_threads(options.threads)
    engines = _installed(options.engines, options.train)
    rates = race.measure_rates()
    rows = []
    limits = {"threads": options.threads, "rounds": options.rounds, "budget": options.budget, "train": options.train}
    table = report.header(engines)
    with Live(table, console=console, vertical_overflow="visible"):
        for row in race.race(layers, engines, rates, **limits):
            report.add_row(table, row, engines)
            rows.append(row)
    console.print()
    active = _engine.active_instruction_set()
    return report.Run(options.threads, active, options.train, rates, rows, report.versions(engines))


def _installed(wanted: str | None, train: bool) -> list[str]:
    """The engines asked for, or all; those whose packages are missing are named and left out."""
    from tconv3d.bench.engines import FORWARD, TRAIN, missing_packages

    known = TRAIN if train else FORWARD
    names = wanted.split(",") if wanted else list(known)
    for name in set(names) - set(known):
        sys.exit(f"run.py: error: engine {name!r} is not one of {', '.join(known)}")
    missing = {name: missing_packages(name) for name in names}
    for name, packages in missing.items():
        if packages:
            print(f"{name} is left out: {' and '.join(packages)} not installed")
    return [name for name in names if not missing[name]]


def _set_environment(threads: int, isa: str | None) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TCONV3D_NUM_THREADS"):
        os.environ[name] = str(threads)
    if isa:
        os.environ["TCONV3D_ISA"] = isa


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=Path, default=Path(__file__).with_name("workloads.json"), metavar="FILE")
    parser.add_argument("--only", metavar="NAME,..", help="layers whose names contain one of these words")
    parser.add_argument("--engines", metavar="NAME,..", help="default: all that are installed")
    parser.add_argument("--rounds", type=int, default=7, help="how often each engine runs a layer (default: 7)")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds per layer after three rounds (default: 6)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every engine (default: 2)")
    parser.add_argument("--train", action="store_true", help="forward and all three gradients")
    parser.add_argument(
        "--shapes", type=int, metavar="N", help="N random layers in place of the file; lists the slower"
    )
    parser.add_argument("--variants", action="store_true", help="other dtypes, channels last, other numbers of threads")
    parser.add_argument("--isa", help="instruction set of tconv3d, as TCONV3D_ISA")
    parser.add_argument("--memory", action="store_true", help="peak memory of a forward call in place of its time")
    parser.add_argument("--json", type=Path, metavar="OUT", help="keep the results")
    parser.add_argument("--load", type=Path, metavar="IN", help="show kept results; time nothing")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the roofline")
    parser.add_argument("--readme", action="store_true", help="rewrite the table in README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
