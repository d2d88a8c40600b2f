"""The machine: processor, memory, GPUs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from reid_fast.doctor.finding import Finding, probed


def machine() -> list[Finding]:
    """Processor and memory, then the GPUs, or why there are none."""
    return [probed("processor", _processor, ""), probed("memory", _memory, ""), *_gpus()]


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", listed.read_text()) if listed.exists() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model[1] if model else platform.machine()}, {cores} cores for this process, {platform.system()}"


def _memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"


def _gpus() -> Iterator[Finding]:
    driver = _driver()
    try:
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception:  # what is wrong with torch is said where torch is
        count = 0
    for number in range(count):
        yield probed(f"cuda:{number}", lambda number=number: _gpu(number, driver), "")  # type: ignore[misc]
    if not count and driver:
        said = f"the driver {driver} is there, but torch cannot use it"
        way_out = "pip install a torch built for a CUDA version that this driver runs: see pytorch.org"
        yield Finding("GPU", "broken", said, way_out)
    elif not count:
        yield Finding("GPU", "missing", "none: everything runs on the processor")


def _gpu(number: int, driver: str) -> str:
    import torch

    about = torch.cuda.get_device_properties(number)
    torch.ones(1, device=f"cuda:{number}").sum().item()
    return (
        f"{about.name}, {about.total_memory / 2**30:.1f} GiB, compute capability {about.major}.{about.minor}, "
        f"driver {driver or 'unknown'}, torch's CUDA {torch.version.cuda}"
    )


def _driver() -> str:
    """The version of NVIDIA's driver; empty where there is none."""
    if not (program := shutil.which("nvidia-smi")):
        return ""
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout.splitlines()[0].strip() if said.returncode == 0 and said.stdout.strip() else ""
