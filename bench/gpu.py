"""What only a GPU can show, in stages of nine minutes together: `python bench/gpu.py [STAGE ...]`.

It takes the machine's own torch, Triton and nvcc, and no network. Figures are kept as they come. A stage that is out of
its time is stopped, and the next one begins.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[1]
# This tree, installed or not; without the cache of torch's allocator the sanitizer sees every tensor's end.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
UNCACHED = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1")


class Stage(NamedTuple):
    """Commands that run one after another, whatever becomes of each."""

    shows: str
    seconds: int  # for all of them
    commands: tuple[tuple[str, ...], ...]


def python(*arguments: str) -> tuple[str, ...]:
    """A command for this Python."""
    return sys.executable, *arguments


def sanitized(tool: str) -> tuple[str, ...]:
    """Every op once, under one of compute-sanitizer's tools."""
    return (*UNCACHED, "compute-sanitizer", f"--tool={tool}", "--error-exitcode=9", *python("tests/ops/sanitized.py"))


# In eight processes: most of their time goes into compiling kernels.
TESTS = python("-m", "pytest", "-p", "no:cacheprovider", "-n", "8", "-m", "gpu")
STAGES = {
    "build": Stage("the extension, with CUDA", 60, (python("setup.py", "build_ext", "--inplace"),)),
    "parity": Stage("everything beside its reference", 100, (TESTS,)),
    "sanitize": Stage(
        "no race, nothing out of bounds", 80, tuple(map(sanitized, ("memcheck", "racecheck", "synccheck")))
    ),
    "ops": Stage("each op beside its reference and its floor", 80, (python("bench/ops.py", "--eager"),)),
    "cluster": Stage("features to labels", 60, (python("bench/run.py", "--stage", "cluster"),)),
    "step": Stage("training steps", 60, (python("bench/run.py", "--stage", "step"),)),
    "whole": Stage("runs on Market-1501 and MSMT17, projected", 90, (python("bench/run.py", "--stage", "whole"),)),
}


def run(stage: Stage) -> str:
    """What became of it."""
    end, failed = time.monotonic() + stage.seconds, []
    for command in stage.commands:
        print("$", *command, flush=True)
        # A session of its own: what the command has started ends with it.
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True)
        try:
            code = process.wait(timeout=max(1.0, end - time.monotonic()))
            failed += [f"exit code {code}"] if code else []
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            failed.append("out of time")
    return ", ".join(failed) or "passed"


def has_cuda() -> bool:
    """Whether the extension is built with CUDA."""
    code = "from reid_fast import _C; assert _C.cuda"
    return subprocess.run(python("-c", code), cwd=ROOT, env=ENVIRONMENT, capture_output=True).returncode == 0


def main() -> None:
    """Run the stages named, all by default, and say what became of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(STAGES))
    names = parser.parse_args().stages or [name for name in STAGES if name != "build" or not has_cuda()]
    if unknown := set(names) - set(STAGES):
        parser.error(f"{min(unknown)} is no stage: choose from {', '.join(STAGES)}")
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device on this machine")
    said = {}
    for name in names:
        start = time.monotonic()
        said[name] = f"{run(STAGES[name]):<16} {time.monotonic() - start:5.0f} s  {STAGES[name].shows}"
    for name, line in said.items():
        print(f"{name:<10} {line}")
    sys.exit(any(not line.startswith("passed") for line in said.values()))


if __name__ == "__main__":
    main()
