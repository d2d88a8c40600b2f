"""SIGTERM: saved behind the step, or the end at once; and the end even where Python waits for a library."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from inputs import TINY, argv, rows_of

from reid_fast import epoch
from reid_fast import train as driver
from reid_fast.command_line import parse
from reid_fast.errors import Stopped
from reid_fast.ranks import Ranks
from reid_fast.run import together
from reid_fast.stop import Stop

RUN = argv(**TINY | {"arch": "tiny"}, iters=5, epochs=2, workers=1)
BLOCKED = """
import ctypes, os, signal, threading
from reid_fast.stop import Stop
mutex = ctypes.create_string_buffer(64)
lock = ctypes.CDLL(None).pthread_mutex_lock
with Stop().listening(grace=0.5):
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    lock(mutex)
    lock(mutex)  # never returns, whatever signal comes
"""


def ended_by(work, capsys):
    """The exit code of a command that says one line."""
    with pytest.raises(SystemExit) as stop:
        work()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "stopped by SIGTERM: a training run continues with the same command and --resume"
    return stop.value.code


@pytest.mark.usefixtures("tiny_arch")
@pytest.mark.parametrize("at", [1, 3, 5, 9])
def test_behind_a_step_it_saves_and_the_resumed_run_has_the_same_bits(people: Path, tmp_path, monkeypatch, capsys, at):
    def run(folder, *more):
        driver.main([*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path / folder), *more])

    run("whole")
    taken, step = [], epoch.train_step

    def train_step(run, batch):
        loss = step(run, batch)
        taken.append(batch.step)
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    monkeypatch.setattr(epoch, "train_step", train_step)
    assert ended_by(lambda: run("stopped"), capsys) == 143
    assert taken == list(range(at))
    position = torch.load(tmp_path / "stopped/last.pt")["at"]
    assert position["epoch"] * 5 + position["step"] == at
    run("stopped", "--resume")
    assert taken == list(range(10))
    assert (tmp_path / "stopped/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert [row.get("loss") for row in rows_of(tmp_path / "stopped")] == [
        row.get("loss") for row in rows_of(tmp_path / "whole")
    ]


@pytest.mark.usefixtures("tiny_arch")
def test_between_steps_it_ends_at_once(people: Path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(epoch, "find_neighbours", lambda *a, **b: os.kill(os.getpid(), signal.SIGTERM))
    flags = [*RUN, "--data-dir", str(people), "--logs-dir", str(tmp_path / "run")]
    assert ended_by(lambda: driver.main(flags), capsys) == 143
    assert not (tmp_path / "run/last.pt").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_nobody_has_dealt_with_ends_behind_the_steps():
    stop = Stop()

    def steps():
        with stop.listening(), stop.noting():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM

    with pytest.raises(Stopped) as stopped:
        steps()
    assert stopped.value.code == 143


def test_a_second_signal_does_not_cut_what_the_first_one_has_begun():
    saved = []

    def work():
        with Stop().listening() as _, saving():
            os.kill(os.getpid(), signal.SIGTERM)

    @contextmanager
    def saving():
        try:
            yield
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            saved.append(True)

    with pytest.raises(Stopped):
        work()
    assert saved


def test_one_process_alone_has_no_deadline():
    with together(parse(RUN)[0], Ranks.from_environment()):
        assert "deadline" not in {thread.name for thread in threading.enumerate()}


def test_a_process_that_waits_for_a_library_ends_when_its_time_is_over():
    start = time.monotonic()
    run = subprocess.run([sys.executable, "-c", BLOCKED], timeout=60, check=False)
    assert run.returncode == 143
    assert time.monotonic() - start < 30


def test_in_time_the_deadline_does_nothing():
    def work():
        with Stop().listening(grace=0.1):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(Stopped):
        work()
    time.sleep(0.3)  # and this process is still there
    assert signal.set_wakeup_fd(-1) == -1
