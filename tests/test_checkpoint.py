"""The writer of last.pt: what is written, when it is waited for, and what a kill, an error or Ctrl-C leaves."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from on_device import Device, on_device

from reid_fast import run_folder
from reid_fast.checkpoint import CheckpointWriter, copied
from reid_fast.errors import Stopped, UserError

ROOT = Path(__file__).parents[1]


def state_of(number, n=5):
    """A state all of whose numbers are this one."""
    weights = torch.full((2, 3, 2, 2), float(number)).to(memory_format=torch.channels_last)
    method = {"weights": weights, "memory": torch.full((n, 2), float(number)), "scalar": torch.tensor(number)}
    optimizer = {"state": {0: {"step": torch.tensor(float(number))}}, "param_groups": [{"lr": number, "params": [0]}]}
    return {"method": method, "optimizer": optimizer, "at": {"step": number, "labels": None}}


def assert_is(state, number, n=5):
    expected = state_of(number, n)
    assert state.pop("format") == run_folder.FORMAT
    for name, tensor in expected["method"].items():
        assert torch.equal(state["method"][name], tensor)
        assert state["method"][name].stride() == tensor.stride()
    assert state["optimizer"] == expected["optimizer"]
    assert state["at"] == expected["at"]


@pytest.fixture
def slow_disk(monkeypatch):
    """Writing begins when it is let: (set when a write has begun, lets it go on)."""
    begun, go_on = threading.Event(), threading.Event()
    save = run_folder.save

    def slowly(folder, state):
        begun.set()
        assert go_on.wait(10)
        save(folder, state)

    monkeypatch.setattr(run_folder, "save", slowly)
    return begun, go_on


@pytest.mark.parametrize(("ended_by", "said"), [(Stopped(15), UserError), (KeyError("first"), KeyError)])
def test_a_stopped_run_says_when_it_is_not_saved(tmp_path, monkeypatch, ended_by, said):
    def full(folder, state):
        raise UserError("the disk is full")

    monkeypatch.setattr(run_folder, "save", full)

    def saves():
        with CheckpointWriter(tmp_path) as writer:
            writer.save(state_of(1))
            raise ended_by

    with pytest.raises(said):
        saves()


def test_the_state_is_written_as_it_was_while_training_changes_it(tmp_path, slow_disk):
    begun, go_on = slow_disk
    state = state_of(1)
    with CheckpointWriter(tmp_path) as writer:
        writer.save(state)
        assert begun.wait(10)
        for tensor in (*state["method"].values(), state["optimizer"]["state"][0]["step"]):
            tensor.zero_()
        state["optimizer"]["param_groups"][0]["lr"] = state["at"]["step"] = 0
        assert not (tmp_path / "last.pt").exists()
        go_on.set()
    assert_is(run_folder.load(tmp_path), 1)


def test_one_checkpoint_is_written_at_a_time_and_the_last_one_stays(tmp_path, monkeypatch):
    turns, save = [], run_folder.save

    def listed(folder, state):
        turns.append(("begins", state["at"]["step"]))
        save(folder, state)
        turns.append(("ends", state["at"]["step"]))

    monkeypatch.setattr(run_folder, "save", listed)
    with CheckpointWriter(tmp_path) as writer:
        for number in range(5):
            writer.save(state_of(number, n=3 + number % 2))
    assert turns == [(what, number) for number in range(5) for what in ("begins", "ends")]
    assert_is(run_folder.load(tmp_path), 4, n=3)


def test_waiting_ends_when_the_checkpoint_is_on_the_disk(tmp_path, slow_disk):
    _, go_on = slow_disk
    writer = CheckpointWriter(tmp_path)
    writer.save(state_of(1))
    threading.Timer(0.05, go_on.set).start()
    writer.wait()
    assert_is(run_folder.load(tmp_path), 1)
    writer.wait()  # for nothing


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
@pytest.mark.parametrize("comes", ["at the next save", "at the end"])
def test_what_stops_the_thread_stops_the_run_and_the_checkpoint_before_stays(tmp_path, monkeypatch, error, comes):
    run_folder.save(tmp_path, state_of(1))

    def full(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.torch, "save", full)
        writer = CheckpointWriter(tmp_path)
        writer.save(state_of(2))
        with pytest.raises(UserError, match=f"could not write .*{error.strerror}"):
            writer.save(state_of(3)) if comes == "at the next save" else writer.__exit__(None)
    assert_is(run_folder.load(tmp_path), 1)
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError, RuntimeError])
def test_what_stops_the_run_leaves_a_whole_checkpoint_and_no_thread(tmp_path, slow_disk, stop):
    begun, go_on = slow_disk
    timer, threads = threading.Timer(0.05, go_on.set), set(threading.enumerate())

    def stopped():
        with CheckpointWriter(tmp_path) as writer:
            writer.save(state_of(1))
            assert begun.wait(10)
            timer.start()
            raise stop

    with pytest.raises(stop):
        stopped()
    assert_is(run_folder.load(tmp_path), 1)
    assert os.listdir(tmp_path) == ["last.pt"]
    timer.join()
    assert set(threading.enumerate()) <= threads


KILLED = """
import os, sys, time
from pathlib import Path
import torch
from reid_fast.checkpoint import CheckpointWriter

sync, writer = os.fsync, CheckpointWriter(Path(sys.argv[1]))

def slow(file):
    print("syncing", flush=True)
    time.sleep(0.2)
    sync(file)

os.fsync = slow
for number in range(100):
    writer.save({"number": number, "values": torch.full((1 << 20,), number)})
"""


def test_killed_while_the_thread_writes_the_checkpoint_before_is_whole(tmp_path):
    """Each is synced twice: its file, and once that has its name, its folder."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    for synced, number in ((3, 0), (4, 1)):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
            for _ in range(synced):
                assert process.stdout.readline() == b"syncing\n"
            process.send_signal(signal.SIGKILL)
        state = run_folder.load(tmp_path)
        assert state["number"] == number
        assert (state["values"] == number).all()


def test_the_memory_of_the_copy_is_used_again():
    first = copied(state_of(1))
    addresses = {name: tensor.data_ptr() for name, tensor in first["method"].items()}
    second = copied(state_of(2, n=7), first)
    assert second["method"]["weights"].data_ptr() == addresses["weights"]
    assert second["method"]["scalar"].data_ptr() == addresses["scalar"]
    assert second["method"]["memory"].shape == (7, 2)
    assert (second["method"]["memory"] == 2).all()


def test_a_copy_from_the_device_is_queued_and_the_thread_alone_waits_for_it(tmp_path, monkeypatch):
    waited = []

    class Queued:
        def record_event(self):
            return self

        def synchronize(self):
            waited.append(threading.current_thread().name)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", Queued)
    state = state_of(1)
    with Device() as device, CheckpointWriter(tmp_path) as writer:
        state["method"] = {name: on_device(tensor) for name, tensor in state["method"].items()}
        writer.save(state)
    assert device.waits == []
    assert waited == ["checkpoint_0"]
    assert_is(run_folder.load(tmp_path), 1)


@pytest.mark.gpu
def test_gpu_a_save_waits_for_nothing(tmp_path):
    state = {name: tensor.cuda() for name, tensor in state_of(1)["method"].items()}
    with CheckpointWriter(tmp_path) as writer:
        writer.save({"method": state})
        torch.cuda.set_sync_debug_mode("error")
        try:
            writer.save({"method": {name: tensor + 1 for name, tensor in state.items()}})
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for name, tensor in run_folder.load(tmp_path)["method"].items():
        assert torch.equal(tensor, state[name].cpu() + 1)
