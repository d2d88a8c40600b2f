"""Benchmarks of the ops: reference, torch.compile of it and fused op side by side; `--static`: what the compiler says.

python bench/ops.py [--only NAME] [--smoke] [--eager]     correctness first, then seconds; rows go to bench/results/
python bench/ops.py --static                    registers, spills, occupancy, pipelining, widths; no GPU needed
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from op_cases import Case, cases
from report import Row, card, save, spread
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

RESULTS = Path(__file__).parent / "results"


class Launches(TorchDispatchMode):
    """Counts the operations that are not views: about the launches an eager program makes on CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def both(function: Callable[[], Tensor], leaf: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(value, gradient of the leaf)."""
    value = function()
    if leaf is None:
        return value, None
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def check(case: Case) -> int:
    """Stop unless the fused op agrees with the reference; the launches of the reference."""
    with Launches() as counter:
        expected = both(case.reference, case.leaf)
    for wanted, actual in zip(expected, both(case.fused, case.leaf) if case.fused else (), strict=False):
        if wanted is not None:
            error = (actual.double() - wanted.double()).norm() / wanted.double().norm()
            if not error <= case.tolerance:
                raise SystemExit(f"{case.name} {case.sizes}: off by {error:.2e} from the reference")
    return counter.count


def row(case: Case, device: str, dtype: torch.dtype, n: int, eager: bool = False) -> Row:
    """Times of the three forms, and how far the fused one is from what the hardware must spend."""
    launches = check(case)
    name, limits = card()
    out = {
        "op": case.name,
        "sizes": case.sizes,
        "device": device,
        "dtype": str(dtype)[6:],
        "n": n,
        "threads": torch.get_num_threads(),
        "bytes": case.bytes,
        "operations": case.operations,
        "floor_us": round(1e6 * limits.floor(case.bytes, case.operations, dtype), 1),
        "floor_of": name,
        "launches_before": launches,
        "launches_after": case.launches,
    }
    forms = {"reference": case.reference, "fused": case.fused}
    if case.compiled and not eager:
        forms["compiled"] = torch.compile(case.reference)
    for name, form in forms.items():
        if form is not None:
            out[name] = _times(form, case.leaf, n)
    last = "both" if case.leaf is not None else "forward"
    for name in ("reference", "compiled"):
        if name in out and "fused" in out:
            out[f"times_faster_than_{name}"] = round(out[name][last]["us"] / out["fused"][last]["us"], 2)
    return out


def _times(form: Callable[[], Tensor], leaf: Tensor | None, n: int) -> dict[str, dict[str, float]]:
    def forward() -> Tensor:
        with torch.no_grad():
            return form()

    calls = {"forward": forward} | ({"both": lambda: both(form, leaf)} if leaf is not None else {})
    seconds = {name: spread(call, n) for name, call in calls.items()}
    return {name: {"us": round(1e6 * m, 1), "spread": round(1e6 * s, 1)} for name, (m, s) in seconds.items()}


def show(out: dict[str, Any]) -> str:
    """One line a row: microseconds forward / forward and backward of each form."""
    shown = [f"{out['op']:22} {out['sizes']:34} {out['device']:4} {out['dtype']:8}"]
    for name in ("reference", "compiled", "fused"):
        times = [f"{t['us']:.0f}±{t['spread']:.0f}" for t in out.get(name, {}).values()]
        shown.append(f"{name} {' / '.join(times) or '-'} us")
    shown.append(
        f"floor {out['floor_us']} us ({out['floor_of']}); launches {out['launches_before']} -> {out['launches_after']}"
    )
    shown += [f"{out[key]}x {key[6:]}" for key in out if key.startswith("times_")]
    return " | ".join(shown)


def run(only: str | None, smoke: bool, eager: bool) -> Iterator[dict[str, Any]]:
    """Every case on the CPU in float32; with a GPU there instead, in float32 and bfloat16."""
    cuda = torch.cuda.is_available()
    for dtype in (torch.float32, torch.bfloat16) if cuda else (torch.float32,):
        for case in cases("cuda" if cuda else "cpu", dtype, large=cuda):
            if only is None or case.name.startswith(only):
                torch.compiler.reset()
                yield row(case, "cuda" if cuda else "cpu", dtype, 3 if smoke else 20, eager)


def compiled() -> list[Row]:
    """What the compiler says of every kernel: the rows that the tests judge."""
    program = Path(__file__).parents[1] / "tests/ops/compiled.py"
    return json.loads(subprocess.run([sys.executable, program], stdout=subprocess.PIPE, check=True).stdout)


def table(rows: list[Row]) -> Iterator[str]:
    """The lines of a table of `compiled`."""
    yield (f"{'kernel':58} {'type':9} arch  regs spill  shared warps blocks/SM products buffers ahead copy load store")
    for row in rows:
        yield (
            f"{row['kernel']:58} {row['dtype']:9} {row['arch']:4} {row['registers']:5} {row['spilled_bytes']:5} "
            f"{row['shared_bytes']:7} {row['warps']:5} {row['blocks_per_sm']:9} {row['products']:8} {row['buffers']:7} "
            f"{row['ahead']:5} {row['copy_bytes']:4} {row['load_bytes']:4} {row['store_bytes']:5}"
        )


def main() -> None:
    """Print the rows, and keep them unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="only ops whose name starts so; nothing is kept")
    parser.add_argument("--smoke", action="store_true", help="three calls each, nothing kept")
    parser.add_argument("--static", action="store_true", help="compile every kernel for sm_80, sm_90 and sm_100")
    parser.add_argument("--eager", action="store_true", help="without torch.compile of the references: it takes long")
    parser.add_argument("--threads", type=int, help="CPU threads; 1 keeps a busy machine's waits out of the times")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.static:
        rows = compiled()
        print(*table(rows), sep="\n")
        print(f"kept in {save('ops-static', rows, RESULTS)}", file=sys.stderr)
        return
    rows, kept = [], not (arguments.only or arguments.smoke)
    for out in run(arguments.only, arguments.smoke, arguments.eager):
        rows.append(out)
        print(show(out), flush=True)
        if kept:  # as they come: whoever is stopped keeps what there is
            path = save("ops", rows, RESULTS)
    if kept:
        print(f"kept in {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
