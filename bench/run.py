"""Benchmarks of the engine's own stages: `python bench/run.py [--stage NAME] [--smoke]`; rows go to bench/results/."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from checkpoint import checkpoint
from cluster import cluster
from images import images
from report import save
from step import step
from whole import whole

from reid_fast.errors import UserError

# A stage is a function (smoke) -> rows; each row holds ours beside the reference.
STAGES = {"images": images, "cluster": cluster, "step": step, "checkpoint": checkpoint, "whole": whole}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run the chosen stages, print their rows, keep them unless it was a smoke run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=STAGES, help="one stage instead of all")
    parser.add_argument("--smoke", action="store_true", help="small sizes, a minute on a CPU, nothing kept")
    arguments = parser.parse_args()
    stopped = []
    for name in [arguments.stage] if arguments.stage else STAGES:
        try:
            rows = STAGES[name](arguments.smoke)
        except UserError as error:  # a library that this machine lacks: the other stages may not need it
            print(f"{name}: {error}", file=sys.stderr)
            stopped.append(name)
            continue
        print(*map(json.dumps, rows), sep="\n")
        if not arguments.smoke:
            print(f"kept in {save(name, rows, RESULTS)}", file=sys.stderr)
    sys.exit(1 if stopped else 0)


if __name__ == "__main__":
    main()
