"""Compiles the C++ engine for its tests: CPU stages, and CUDA stages as C++ (cuda/cuda_runtime.h)."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TESTS = Path(__file__).parent
CSRC = TESTS.parents[1] / "csrc"
CPU_SOURCES = sorted((CSRC / "cpu").glob("*.cpp"))
RUNTIME = TESTS / "cuda/cuda_runtime.cpp"
SANITISERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread", "-fno-sanitize-recover=all", "--param=tsan-distinguish-volatile=1"],
}


def objects(sources: list[Path], folder: Path, flags: list[str], csrc: Path = CSRC) -> list[Path]:
    """Compile `sources`, .cu files as C++, into `folder`; the run-time choice between vector variants is left out,
    which happens before a sanitiser is ready."""
    command = ["g++", "-std=c++17", "-g1", "-DREID_NO_VARIANTS", f"-I{csrc}", f"-I{TESTS / 'cuda'}", *flags]

    def compiled(source: Path) -> Path:
        out = folder / f"{source.name}.o"
        subprocess.run([*command, "-x", "c++", "-c", source, "-o", out], check=True)
        return out

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(compiled, sources))


def program(out: Path, parts: list[Path], flags: list[str]) -> Path:
    """Link `parts`, and with them the scheduler of the stand-in for CUDA, first of all: what inline functions it
    shares with the rest must be its own, without instrumentation."""
    scheduler = out.parent / "scheduler"
    first = sorted(scheduler.glob("*.o")) or objects([RUNTIME], scheduler, ["-O2", "-fPIC"])
    subprocess.run(["g++", *flags, "-pthread", *first, *parts, "-o", out], check=True)
    return out


def run(out: Path, *arguments: str, seconds: int = 300) -> subprocess.CompletedProcess[str]:
    """Run a program, to be looked at; `TimeoutExpired` after so many seconds."""
    return subprocess.run([out, *arguments], capture_output=True, text=True, timeout=seconds)
