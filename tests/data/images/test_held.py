"""Whether decoded images fit: the two bounds, and what is said where one forbids it."""

import pytest
import torch

from reid_fast.data.images import held
from reid_fast.data.images.held import Held

CPU = torch.device("cpu")
GIB = 2**30
BYTES = 7 * 9 * 8 * 3  # of seven images of 9×8 pixels


@pytest.mark.parametrize(("limit", "fits"), [(BYTES, True), (BYTES - 1, False), (0, False)])
def test_images_are_held_up_to_the_limit(limit, fits):
    assert bool(Held.judge(7, (9, 8), limit / GIB, CPU)) == fits


@pytest.mark.parametrize(("memory", "fits"), [(2 * BYTES, True), (2 * BYTES - 2, False)])
def test_half_of_the_memory_is_left(monkeypatch, memory, fits):
    monkeypatch.setattr(held, "_memory", lambda device: memory / GIB)
    assert bool(Held.judge(7, (9, 8), 1, CPU)) == fits


def test_the_limit_that_forbids_it_is_named():
    line = "images are decoded at every use: 12,936 of them take 1.18 GiB, more than --cache 0.5"
    assert str(Held.judge(12_936, (256, 128), 0.5, CPU)) == line


def test_the_memory_that_forbids_it_is_named(monkeypatch):
    monkeypatch.setattr(held, "_memory", lambda device: 1.5)
    line = "images are decoded at every use: 12,936 of them take 1.18 GiB, more than the 0.75 GiB that cpu can spare"
    assert str(Held.judge(12_936, (256, 128), 6, CPU)) == line


def test_held_images_say_where_they_are():
    line = "images are held decoded on cpu: 1,000 of them take 0.01 GiB"
    assert str(Held.judge(1000, (64, 32), 6, CPU)) == line


def test_the_machine_tells_its_memory():
    assert 0.1 < held._memory(CPU) < 2**15


def test_on_cuda_what_torch_can_hand_out_counts(monkeypatch):
    monkeypatch.setattr(held, "free_bytes", lambda device: 2 * BYTES)
    assert Held.judge(7, (9, 8), 1, torch.device("cuda", 0))
    assert not Held.judge(8, (9, 8), 1, torch.device("cuda", 0))


@pytest.mark.gpu
def test_gpu_without_room_holds_nothing(monkeypatch):
    monkeypatch.setattr(held, "free_bytes", lambda device: 1000)
    judged = Held.judge(7, (9, 8), 1, torch.device("cuda"))
    assert not judged
    assert "cuda can spare" in str(judged)
