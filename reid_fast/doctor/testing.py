"""Every compiled stage and every op on small numbers, beside what they should give."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from reid_fast.doctor.finding import Finding, probed


def self_test() -> list[Finding]:
    """Test all kernels of this machine, on the processor and on the GPU if there is one, in some seconds.

    Returns:
        A finding for each; one alone where nothing can be imported.
    """
    try:
        import torch

        from reid_fast.doctor.clustering_cases import clustering_cases
        from reid_fast.doctor.op_cases import op_cases

        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        cases = [
            (f"{name} on {device}", case)
            for device in devices
            for name, case in [*clustering_cases(device), *op_cases(device)]
        ]
    except Exception as error:
        return [Finding("self test", "broken", " ".join(str(error).split())[:300], "mend what is broken above first")]
    return list(_tested(cases))


def _tested(cases: list[tuple[str, Callable[[], float]]]) -> Iterator[Finding]:
    for name, case in cases:

        def run(case: Callable[[], float] = case) -> str:
            start = time.perf_counter()
            apart = case()
            if not apart <= 1e-3:  # NaN, too
                raise ArithmeticError(f"its result is off by {apart:.2g} of the largest value")
            near = f"to {apart:.0e} of the largest value" if apart else "equal"
            return f"{near}, {1000 * (time.perf_counter() - start):.0f} ms"

        way_out = "install reid-fast again; if that does not help, report it with the output of doctor --json"
        yield probed(name, run, way_out, promised=True)
