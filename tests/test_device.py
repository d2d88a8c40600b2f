"""Where a run computes: devices and types that are not there, or not sound."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reid_fast.clock import Clock
from reid_fast.device import amp_dtype, free_bytes, full_precision, host_memory, pick_device
from reid_fast.errors import UserError

CPU = torch.device("cpu")
ISA = "ONEDNN_MAX_CPU_ISA"


@pytest.fixture
def two_gpus(monkeypatch):
    """Stand-ins for CUDA with two devices, of which only the second computes in bfloat16; what is asked of them."""
    asked = []

    def empty(_, device):
        return SimpleNamespace(device=torch.device("cuda", device.index or 0))

    def current_computes_bfloat16(including_emulation):
        return asked[-1] == ("current", torch.device("cuda", 1))

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(("current", device)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", current_computes_bfloat16)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: asked.append(("wait", device)))
    return asked


def test_the_device_of_a_run_is_the_current_one(two_gpus):
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert two_gpus == [("current", torch.device("cuda", 1))]
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device("cuda").index == 0


@pytest.mark.parametrize(("name", "expected"), [("cuda:1", torch.bfloat16), ("cuda", torch.float16)])
def test_the_autocast_type_is_that_of_the_device_of_the_run(two_gpus, name, expected):
    assert amp_dtype(pick_device(name), True, 128) is expected


def test_a_stage_waits_for_the_device_that_it_is_measured_on(two_gpus):
    clock = Clock(torch.device("cuda", 1), {"train": 60.0})
    with clock.stage("train"):
        assert two_gpus == [("wait", torch.device("cuda", 1))]
    assert two_gpus == 2 * [("wait", torch.device("cuda", 1))]
    assert 60 < clock["train"] < 120
    with Clock(CPU).stage("train"):
        pass
    assert len(two_gpus) == 2


def test_laps_add_up_to_the_stage(monkeypatch):
    ticks = iter([1.0, 2.0, 4.0, 8.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    clock = Clock(CPU, {"knn": 0.5})
    with clock.stage("train") as lap:
        lap()
        assert clock == {"knn": 0.5, "train": 1.0}
        lap()
    assert clock == {"knn": 0.5, "train": 7.0}


@pytest.fixture
def processor_with_amx(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv(ISA, raising=False)


def test_narrow_images_are_refused_where_their_convolutions_are_wrong(processor_with_amx):
    with pytest.raises(UserError, match="--width 16 wrongly"):
        amp_dtype(CPU, True, 16)
    assert amp_dtype(CPU, False, 16) is None
    assert amp_dtype(CPU, True, 17) is torch.bfloat16


def test_narrow_images_without_amx(processor_with_amx, monkeypatch):
    monkeypatch.setenv(ISA, "AVX512_CORE_BF16")
    assert amp_dtype(CPU, True, 16) is torch.bfloat16


def test_a_processor_that_emulates_bfloat16_computes_in_float32(processor_with_amx, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx2_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert amp_dtype(CPU, True, 128) is amp_dtype(CPU, True, 16) is None


CONVOLVE = """
import torch
from reid_fast.device import amp_dtype, full_precision

torch.manual_seed(0)
cpu = torch.device("cpu")
for width in 17, 32:
    amp_dtype(cpu, True, width)  # not refused
    conv = torch.nn.Conv2d(32, 64, 3, 2, 1, bias=False).to(memory_format=torch.channels_last)  # as in the third stage
    x = torch.randn(96, 32, 4, -(-width // 8)).to(memory_format=torch.channels_last).requires_grad_()
    expected = conv(x)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (x, conv.weight), upstream)
    for _ in range(4):
        torch.full((4_000_000,), torch.nan)  # freed at once, and handed out again: a read past the end would meet it
        with torch.autocast("cpu", torch.bfloat16):
            found = conv(x)
        found = (found, *torch.autograd.grad(found, (x, conv.weight), upstream.bfloat16()))
        for ours, theirs in zip(found, (expected, *gradients)):
            assert (ours.float() - theirs).norm() < 0.03 * theirs.norm(), width
"""


def test_what_is_not_refused_is_computed_in_bfloat16_as_in_float32():
    """In a process of its own, where nothing keeps oneDNN from this processor's instructions."""
    environment = {name: value for name, value in os.environ.items() if name != ISA}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", CONVOLVE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def precision():
    """By library, and for all; None where torch calls the two contradictory."""
    libraries = [library.fp32_precision for library in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]
    try:
        return libraries, torch.get_float32_matmul_precision()
    except RuntimeError:
        return libraries, None


def test_full_precision_and_afterwards_what_was_there(lowered_precision):
    before = precision()
    assert before != (["none", "none"], "highest")
    with torch.autocast("cpu", torch.bfloat16):
        with full_precision(CPU):
            assert precision() == (["ieee", "ieee"], "highest")
            assert not torch.backends.cuda.matmul.allow_tf32
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")
    assert precision() == before


def test_an_error_restores_the_precision_too(lowered_precision):
    before = precision()
    with pytest.raises(RuntimeError, match="shapes"), full_precision(CPU):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert precision() == before


def test_products_have_the_bits_of_full_precision(lowered_precision):
    x = torch.randn(200, 200, generator=torch.Generator().manual_seed(0))
    with full_precision(CPU):
        found = x @ x.T
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(found, x @ x.T)


def test_what_torch_holds_unused_is_free_too(monkeypatch):
    for name, value in {"mem_get_info": (100, 10**6), "memory_reserved": 70, "memory_allocated": 40}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda", 1)) == 130


GROUPS = {  # /proc/self/cgroup, then files of the groups: v2, v1, and a job's group within a container's
    "v2": (
        "0::/job\n",
        {"job/memory.max": "1000", "job/memory.current": "700", "job/memory.stat": "inactive_file 200\n"},
    ),
    "v1": (
        "5:cpu,cpuacct:/\n4:memory:/docker/abc\n",
        {
            "memory/memory.limit_in_bytes": "1000",
            "memory/memory.usage_in_bytes": "700",
            "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
        },
    ),
    "outer": (
        "0::/outer/inner\n",
        {
            "outer/inner/memory.max": "max",
            "outer/inner/memory.current": "1",
            "outer/memory.max": "1000",
            "outer/memory.current": "500",
        },
    ),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_the_memory_of_a_control_group_is_all_there_is(kind, tmp_path):
    own, files = GROUPS[kind]
    for name, text in {
        "proc/self/cgroup": own,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert host_memory(tmp_path) == (1000, 500)


def test_without_a_limit_memory_is_the_machines(tmp_path):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:      3 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    assert host_memory(tmp_path) == (whole, 3 << 10)
