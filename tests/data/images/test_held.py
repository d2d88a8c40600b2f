"""Where decoded images are held: what fits, in which order, and what is said of it."""

from pathlib import Path

import pytest
import torch

from reid_fast.data.images import held
from reid_fast.data.images.held import Held

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
FOLDER = Path("cache")
MARKET = 12_936, (256, 128)  # 1.18 GiB
GIB = 2**30
BYTES = 7 * 9 * 8 * 3  # of seven images of 9×8 pixels


@pytest.mark.parametrize(("limit", "fits"), [(BYTES, True), (BYTES - 1, False), (0, False)])
def test_images_are_held_up_to_the_limit(limit, fits):
    assert bool(Held.judge(7, (9, 8), limit / GIB, CPU)) == fits


@pytest.fixture
def memory(monkeypatch):
    """GiB that a machine is said to have, by kind of device: what images may take is half of it."""
    sizes = {}
    monkeypatch.setattr(held, "_memory", lambda device: sizes[device.type])
    return sizes


@pytest.mark.parametrize(("has", "fits"), [(2 * BYTES, True), (2 * BYTES - 2, False)])
def test_half_of_the_memory_is_left(memory, has, fits):
    memory["cpu"] = has / GIB
    assert bool(Held.judge(7, (9, 8), 1, CPU)) == fits


@pytest.mark.parametrize(
    ("cuda", "cpu", "limit", "folder", "tier"),
    [
        (2.4, 0.0, 1.2, None, "device"),
        (2.4, 0.0, 1.2, FOLDER, "device"),
        (2.3, 2.4, 1.2, None, "host"),
        (2.3, 2.4, 1.2, FOLDER, "host"),
        (2.3, 2.3, 1.2, FOLDER, "file"),
        (2.3, 2.3, 1.2, None, "stream"),
        (9.0, 9.0, 1.1, FOLDER, "file"),
        (9.0, 9.0, 1.1, None, "stream"),
        (9.0, 9.0, 0.0, None, "stream"),
    ],
)
def test_images_are_held_in_the_first_that_takes_them(memory, cuda, cpu, limit, folder, tier):
    memory |= {"cuda": cuda, "cpu": cpu}
    judged = Held.judge(*MARKET, limit, CUDA, folder=folder)
    assert judged.tier == tier
    assert bool(judged) == (tier != "stream")
    assert judged.in_memory == (judged.needed if tier in ("device", "host") else 0)


def test_a_cpu_has_no_host_beside_it(memory):
    memory["cpu"] = 2.3
    assert Held.judge(*MARKET, 6, CPU).tier == "stream"


@pytest.mark.parametrize(("ranks", "fits"), [(1, True), (3, True), (4, False)])
@pytest.mark.parametrize(("device", "tier"), [(CPU, "device"), (CUDA, "host")])
def test_each_rank_of_a_machine_has_its_share_of_the_memory(memory, ranks, fits, device, tier):
    memory |= {"cuda": 0.0, "cpu": 7.2}
    assert Held.judge(*MARKET, 6, device, ranks=ranks).tier == (tier if fits else "stream")


def test_ranks_have_gpus_of_their_own(memory):
    memory |= {"cuda": 2.4, "cpu": 0.0}
    assert Held.judge(*MARKET, 6, CUDA, ranks=8).tier == "device"


@pytest.mark.parametrize(("beside", "fits"), [(0.0, True), (0.8, True), (0.9, False)])
@pytest.mark.parametrize(("has", "limit"), [(9.0, 2.0), (4.0, 9.0)])
def test_what_other_images_take_is_counted(memory, beside, fits, has, limit):
    memory["cpu"] = has
    assert bool(Held.judge(*MARKET, limit, CPU, beside=beside)) == fits


def test_on_cuda_what_other_images_take_is_not_free_anyway(memory):
    memory |= {"cuda": 2.4, "cpu": 0.0}
    assert Held.judge(*MARKET, 3, CUDA, beside=1.5).tier == "device"


def said(*arguments, **options):
    return str(Held.judge(*MARKET, *arguments, **options))


def test_what_forbids_memory_is_named(memory):
    memory |= {"cuda": 2.0, "cpu": 1.5}
    streamed = "images are decoded at every use: 12,936 of them take 1.18 GiB, more than "
    hint = "; --cache-dir would hold them in a file"
    assert said(0.5, CPU) == f"{streamed}--cache 0.5{hint}"
    assert said(6, CPU) == f"{streamed}the 0.75 GiB that cpu can spare{hint}"
    spared = "the 1.00 GiB that cuda:0 can spare, and the 0.75 GiB that its host can"
    assert said(6, CUDA) == f"{streamed}{spared}{hint}"
    assert said(2, CPU, beside=1.25) == f"{streamed}the 0.75 GiB left of --cache 2{hint}"


def test_held_images_say_where_they_are(memory):
    memory |= {"cuda": 9.0, "cpu": 3.0}
    assert said(6, CUDA) == "images are held decoded on cuda:0: 12,936 of them take 1.18 GiB"
    assert said(6, CPU) == "images are held decoded on cpu: 12,936 of them take 1.18 GiB"
    memory["cuda"] = 2.0
    assert said(6, CUDA) == (
        "images are held decoded in the host's memory: 12,936 of them take 1.18 GiB, "
        "more than the 1.00 GiB that cuda:0 can spare"
    )
    assert said(1, CPU, folder=FOLDER) == (
        "images are held decoded in cache: 12,936 of them take 1.18 GiB, more than --cache 1"
    )


@pytest.mark.parametrize(
    ("error", "why"), [(OSError(28, "No space left on device"), "No space left on device"), (OSError("odd"), "odd")]
)
def test_a_file_that_cannot_be_made_is_named(error, why):
    judged = Held.judge(*MARKET, 1, CPU, folder=FOLDER).without_file(error)
    assert not judged
    assert str(judged) == (
        "images are decoded at every use: 12,936 of them take 1.18 GiB, more than --cache 1; "
        f"the file in cache cannot be made ({why})"
    )


def test_the_machine_tells_its_memory():
    assert 0.1 < held._memory(CPU) < 2**15


def test_on_cuda_what_torch_can_hand_out_counts(monkeypatch):
    monkeypatch.setattr(held, "free_bytes", lambda device: 2 * BYTES)
    assert Held.judge(7, (9, 8), 1, CUDA).tier == "device"
    assert Held.judge(8, (9, 8), 1, CUDA).tier == "host"
