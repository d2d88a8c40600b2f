"""Breaks the CUDA stages one statement at a time and says which breaks the tests of `stages.cpp` see.

    python tests/clustering/cuda/mutations.py [words in the names of the mutations to try]

A mutation is caught where the program does not compile, fails or hangs under the address or the thread sanitiser.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import current_thread
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine_build import CPU_SOURCES, CSRC, SANITISERS, TESTS, objects, program, run


class Mutation(NamedTuple):
    """The `place`-th occurrence of a text in a file of csrc/cuda, and what stands there instead."""

    file: str
    old: str
    new: str
    place: int = 0


MUTATIONS = [
    # Barriers and what warps exchange.
    Mutation("device.cu", "__syncthreads();", "", 0),
    Mutation("device.cu", "__syncthreads();", "", 1),
    Mutation("device.cu", "__syncthreads();", "", 2),
    Mutation("device.cu", "__syncthreads();", "if (warp == 0) __syncthreads();", 1),
    Mutation("device.cu", "__syncthreads();", "if (i < n) __syncthreads();", 2),
    Mutation("graph.cu", "__syncwarp();", "", 0),
    Mutation("graph.cu", "__syncwarp();", "", 1),
    Mutation("weights.cu", "__syncwarp();", "", 0),
    Mutation("weights.cu", "__syncwarp();", "", 1),
    Mutation("weights.cu", "__syncwarp();", "if (lane == 0) __syncwarp();", 0),
    Mutation("device.h", "0xFFFFFFFFu", "0x7FFFFFFFu"),
    Mutation("graph.cu", "(1u << lane) - 1", "(2u << lane) - 1"),
    Mutation("graph.cu", "__ballot_sync(kAllLanes, fresh)", "__ballot_sync(kAllLanes, !fresh)"),
    Mutation("device.cu", "if (lane >= step)", "if (lane > step)"),
    Mutation("device.cu", "lane == kWarp - 1", "lane == 0"),
    Mutation("device.cu", "step *= 2", "step *= 4"),
    Mutation("device.cu", "carry += warp_end[kWarp - 1]", "carry = warp_end[kWarp - 1]"),
    Mutation("device.cu", "warp > 0 ?", "warp > 1 ?"),
    Mutation("weights.cu", "half > 0; half /= 2", "half > 1; half /= 2"),
    Mutation("weights.cu", "if (lane == 0) value[e]", "value[e]"),
    Mutation("graph.cu", "if (!index && lane == 0)", "if (!index)"),
    Mutation("graph.cu", "if (index && lane == 0)", "if (index)"),
    # Atomics.
    Mutation("graph.cu", "atomicAdd(length + from.index[e] + 1, 1ull)", "++length[from.index[e] + 1]"),
    Mutation("graph.cu", "atomicAdd(slot + g, 1ull)", "slot[g]++"),
    Mutation("dbscan.cu", "if (atomicCAS(parent + high, high, low) == high) return;", "parent[high] = low; return;"),
    Mutation(
        "dbscan.cu",
        "if (atomicCAS(parent + high, high, low) == high) return;",
        "atomicMin(parent + high, low); return;",
    ),
    Mutation("dbscan.cu", "== high) return;", "== high || true) return;"),
    Mutation("dbscan.cu", "atomicCAS(parent + high, high, low)", "atomicCAS(parent + high, high, high)"),
    Mutation("dbscan.cu", "const int32_t low = i < j", "const int32_t low = i > j"),
    Mutation("dbscan.cu", "atomicMin(parent + i, above);", ""),
    Mutation("dbscan.cu", "atomicMin(parent + i, above);", "parent[i] = above;"),
    Mutation("dbscan.cu", "atomicMin(parent + i, above);", "atomicMin(parent + up, i);"),
    Mutation("dbscan.cu", "static_cast<const volatile int32_t*>(parent + i)", "(parent + i)"),
    # Bounds, comparisons, sums.
    Mutation("device.h", "if (i < n) body(i);", "if (i <= n) body(i);"),
    Mutation("device.h", "(n + kThreads - 1) / kThreads", "n / kThreads"),
    Mutation("device.h", "if (n > 0) launch", "if (n > 1) launch"),
    Mutation("device.cu", "i < n ? values[i] : 0", "values[i]"),
    Mutation("device.cu", "if (i < n) values[i] =", "values[i] ="),
    Mutation("device.cu", "slot >= gap && index", "slot > gap && index"),
    Mutation("device.cu", "value[slot] = carried;", ""),
    Mutation("weights.cu", "slot >= gap && set", "slot > gap && set"),
    Mutation("weights.cu", "10, 4, 1}", "10, 4, 2}"),
    Mutation("weights.cu", "if (d + kWarp < width)", ""),
    Mutation("weights.cu", "d += 2 * kWarp", "d += kWarp"),
    Mutation("weights.cu", "sum += upper;", ""),
    Mutation("weights.cu", "if (i >= features.n) return;", "if (i > features.n) return;"),
    Mutation("weights.cu", "value[e] /= total", "value[e] *= total"),
    Mutation("weights.cu", "start[i] + lane; e <", "start[i] + lane + 1; e <"),
    Mutation("weights.cu", "row_index[cursor[t]] < next", "row_index[cursor[t]] > next"),
    Mutation("weights.cu", "sum / static_cast<float>(k2)", "sum"),
    Mutation("weights.cu", "expand(full, half, first + t", "expand(full, half, t"),
    Mutation("weights.cu", "take(first + t", "take(t"),
    Mutation("weights.cu", "std::min(chunk, n - first)", "chunk"),
    Mutation("weights.cu", "std::max<int64_t>(1, std::min(fit, n))", "std::min(fit, n)"),
    Mutation("weights.cu", "chunk * bound, context", "chunk * (bound / 4), context"),
    Mutation("weights.cu", "cursor + i * k2,", "cursor,"),
    Mutation("graph.cu", "fminf(", "fmaxf("),
    Mutation("graph.cu", "c + lane < end", "c + lane <= end"),
    Mutation("graph.cu", "t + lane < count", "t + lane <= count"),
    Mutation("graph.cu", "if (j != i) {", "if (true) {"),
    Mutation("graph.cu", "if (j >= 0) sums[j] = 0;", ""),
    Mutation("graph.cu", "sums.clear();", ""),
    Mutation("graph.cu", "distance <= max_distance", "distance < max_distance"),
    Mutation("graph.cu", "int64_t found = 1;", "int64_t found = 0;"),
    Mutation("graph.cu", "i += warps", "i += warps + 1"),
    Mutation("graph.cu", "all_sums + warp * n", "all_sums"),
    Mutation("graph.cu", "all_touched + warp * n", "all_touched"),
    Mutation("graph.cu", "sort_rows(graph.start, graph.index, graph.value, context);", ""),
    Mutation("graph.cu", "std::max<int64_t>(1, ", "std::max<int64_t>(0, "),
    Mutation("graph.cu", "if (k2 > 1)", "if (k2 > 2)"),
    Mutation("device_rows.h", "start.clear();", ""),
    Mutation("device_rows.h", "inclusive_sum(start, context);", ""),
    Mutation("dbscan.cu", "graph.value[e] <= eps", "graph.value[e] < eps", 0),
    Mutation("dbscan.cu", "graph.value[e] <= eps", "graph.value[e] < eps", 1),
    Mutation("dbscan.cu", "graph.value[e] <= eps", "graph.value[e] < eps", 2),
    Mutation("dbscan.cu", "neighbours >= min_samples", "neighbours > min_samples"),
    Mutation("dbscan.cu", "numbers.clear();", ""),
    Mutation("dbscan.cu", "number[root_of", "number[1 + root_of"),
    Mutation("dbscan.cu", "labels[j] < lowest", "labels[j] > lowest"),
    Mutation("dbscan.cu", "if (core[i]) return;", ""),
    Mutation("dbscan.cu", "&& core[j]) join", ") join"),
    Mutation("dbscan.cu", "&& core[j] && (lowest", "&& (lowest"),
    # Streams and memory.
    Mutation("device.h", "check(cudaStreamSynchronize(stream_));", ""),
    Mutation("device.h", "check(cudaMemcpyAsync(", "(cudaMemcpyAsync("),
    Mutation("device.h", "check(cudaLaunchKernelEx(", "(cudaLaunchKernelEx("),
    Mutation("device.h", "sizeof(T)) * size)", "sizeof(T)) * (size - 1))"),
]


def mutated(text: str, mutation: Mutation) -> str:
    """`text` with one occurrence replaced."""
    parts = text.split(mutation.old)
    if len(parts) < mutation.place + 2:
        raise SystemExit(f"{mutation.file} has no {mutation.place + 1} × {mutation.old}")
    split = mutation.place + 1
    return mutation.old.join(parts[:split]) + mutation.new + mutation.old.join(parts[split:])


class Bench:
    """Builds the program under one sanitiser from a copy of csrc, compiling again what a mutation may change."""

    def __init__(self, sanitiser: str, folder: Path) -> None:
        self.folder, self.flags = folder / sanitiser, ["-O1", *SANITISERS[sanitiser]]
        self.arguments = [] if sanitiser == "thread" else ["thorough"]
        self.cpu = objects(CPU_SOURCES, self.folder / "cpu", self.flags)
        self.parts = {part.name: part for part in self.compiled(CSRC, self.folder, "device graph weights stages")}

    def compiled(self, csrc: Path, folder: Path, names: str) -> list[Path]:
        sources = [TESTS / "cuda/stages.cpp" if n == "stages" else csrc / f"cuda/{n}.cu" for n in names.split()]
        return objects(sources, folder, self.flags, csrc)

    def catches(self, csrc: Path, file: str, worker: str) -> str:
        """How the break of `file` shows, or nothing."""
        again = {"dbscan.cu": "stages"}.get(file, file.removesuffix(".cu"))
        if file.endswith(".h"):
            again = "device graph weights stages"
        folder = self.folder / worker
        try:
            parts = self.parts | {part.name: part for part in self.compiled(csrc, folder, again)}
            mutant = program(folder / "stages", [*self.cpu, *parts.values()], self.flags)
            finished = run(mutant, *self.arguments, seconds=100)
        except subprocess.CalledProcessError:
            return "does not compile"
        except subprocess.TimeoutExpired:
            return "hangs"
        return reason(finished.stderr) if finished.returncode else ""


def reason(text: str) -> str:
    """The line of a failed run that says what happened."""
    marks = "Assertion", "runtime error", "what():", "SUMMARY"
    lines = [line.strip() for mark in marks for line in text.splitlines() if mark in line]
    return lines[0].replace(str(TESTS), "")[:150] if lines else "fails"


def verdict(mutation: Mutation, benches: dict[str, Bench], folder: Path) -> str:
    """How the tests see the mutation, or nothing."""
    worker = current_thread().name
    csrc = folder / worker / "csrc"
    shutil.rmtree(csrc, ignore_errors=True)
    shutil.copytree(CSRC, csrc)
    path = csrc / "cuda" / mutation.file
    path.write_text(mutated(path.read_text(), mutation))
    for sanitiser, bench in benches.items():
        if caught := bench.catches(csrc, mutation.file, worker):
            return f"{sanitiser}: {caught}"
    return ""


def main() -> None:
    """Print a line for each mutation."""
    words = sys.argv[1:]
    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.file} {m.old}" for word in words)]
    with TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(name)
        benches = {sanitiser: Bench(sanitiser, folder) for sanitiser in SANITISERS}
        caught = 0
        for mutation, how in zip(chosen, pool.map(lambda m: verdict(m, benches, folder), chosen), strict=True):
            caught += bool(how)
            change = f"{mutation.old} → {mutation.new or '(nothing)'}"
            print(f"{mutation.file} [{mutation.place}] {change} | {how or 'NOT CAUGHT'}", flush=True)
    print(f"{caught} of {len(chosen)} caught")


if __name__ == "__main__":
    main()
