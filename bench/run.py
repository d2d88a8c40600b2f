"""Benchmarks of the engine's own stages, each beside what it is held against: one table, one file in bench/results/."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from checkpoint import checkpoint
from cluster import cluster
from epoch import dataset_in, epoch
from images import images
from overhead import overhead
from peer import REFERENCE, Peer
from plot import check, plot
from report import Row, machine, save_stage, where
from retrieval import retrieval
from rich.console import Console
from scaling import scaling
from step import step
from table import pairs, table
from whole import whole

from reid_fast.errors import UserError, exit_on_user_error

RESULTS = Path(__file__).parent / "results"
STAGES = ("images", "cluster", "step", "checkpoint", "overhead", "scaling", "epoch", "whole", "retrieval")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chosen stages, keep their rows unless it was a smoke run, and show all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, nargs="+", default=STAGES, help="these instead of all")
    parser.add_argument(
        "--scaling", action="store_const", dest="stage", const=("scaling",), help="the stage of this name alone"
    )
    parser.add_argument("--smoke", action="store_true", help="small sizes, a minute or two on a CPU, nothing kept")
    parser.add_argument(
        "--data-dir", type=Path, nargs="+", default=[], metavar="DIR", help="sets for epoch; the first for others"
    )
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="DIR",
        help="a checkout of Cluster Contrast's published code, for epoch and whole; else its form in our own words",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a drawing of the table, .svg or .png")
    arguments = parser.parse_args(argv)
    with exit_on_user_error():
        failed = run(arguments)
    sys.exit(1 if failed else 0)


def run(arguments: argparse.Namespace) -> list[str]:
    """The stages that this machine cannot run, for want of a library; the table of the others is shown."""
    if arguments.plot is not None:
        check(arguments.plot)
    for folder in arguments.data_dir:
        dataset_in(folder)
    smoke, folders, rows, failed = arguments.smoke, arguments.data_dir, [], []
    with contextlib.ExitStack() as stack:

        @cache
        def peer() -> Peer:
            return stack.enter_context(Peer(arguments.peer or REFERENCE))

        stages = {"images": images, "cluster": cluster, "step": step, "checkpoint": checkpoint}
        stages |= {
            "overhead": lambda smoke: overhead(smoke, folders),
            "scaling": lambda smoke: scaling(smoke, folders),
            "epoch": lambda smoke: epoch(smoke, folders, peer()),
            "whole": lambda smoke: whole(smoke, folders, peer()),
            "retrieval": lambda smoke: retrieval(smoke, folders),
        }
        if arguments.peer is not None:  # a wrong checkout is said before anything runs
            peer()
        for name in arguments.stage:
            print(f"{name} ...", file=sys.stderr)
            try:
                found = stages[name](smoke)
            except UserError as error:  # a library that this machine lacks: the other stages may not need it
                print(f"{name}: {error}", file=sys.stderr)
                failed.append(name)
                continue
            rows += found
            if not smoke:
                print(f"kept in {save_stage('run', name, found, RESULTS)}", file=sys.stderr)
    show(rows, arguments.plot)
    return failed


def show(rows: list[Row], drawing: Path | None) -> None:
    """Print the table, and draw it."""
    found = list(pairs(rows))
    Console(width=None if sys.stdout.isatty() else 180).print(table(found))
    if drawing is not None:
        plot(found, caption(rows), drawing)
        print(f"drawn in {drawing}", file=sys.stderr)


def caption(rows: list[Row]) -> list[str]:
    """What a drawing says of its origin."""
    sets = sorted({row["set"] for row in rows if "set" in row})
    return [where(machine()), f"medians of {', '.join(sets)}" if sets else "medians"]


if __name__ == "__main__":
    main()
