"""Ranks end together: bad input, SIGTERM, a rank that is killed; and torchrun goes on by itself."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from inputs import argv, rows_of
from ranks.runs import SMALL, command_together, train_together, with_fault

from reid_fast.command_line import parse
from reid_fast.evaluate import main as evaluate
from reid_fast.metrics_log import SCORES
from reid_fast.train import main as train

RUNS = Path(__file__).with_name("runs.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture(scope="module")
def whole(people, tmp_path_factory):
    """A run of two ranks that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    config, _ = parse(argv(**SMALL | {"epochs": 2, "data_dir": people, "logs_dir": folder}))
    train_together(2, tmp_path_factory.mktemp("seen"), [("whole", config, None, None)])
    return folder


def assert_same_run(folder, whole):
    states = [torch.load(path / "last.pt") for path in (folder, whole)]
    for name, value in states[1]["method"].items():
        assert torch.equal(states[0]["method"][name], value), name
    found, expected = (
        [(row["epoch"], row.get("loss"), row.get("mAP")) for row in rows_of(path)] for path in (folder, whole)
    )
    assert found == expected
    assert not list(folder.glob(".*"))


def test_bad_input_is_said_once_and_ends_all_ranks(people, tmp_path):
    """The first rank alone finds it, the other one waits for it."""
    flags = argv(**SMALL | {"data_dir": people, "logs_dir": tmp_path / "run", "min_samples": 90})
    codes, _, err = command_together(2, tmp_path, train, flags)
    assert codes == [2, 2]
    (line,) = err.splitlines()
    assert line.startswith("error: epoch 1 found no cluster")


def test_a_wrong_flag_is_said_once(tmp_path):
    codes, _, err = command_together(2, tmp_path, train, ["--method", "nonsense"])
    assert codes == [2, 2]
    (line,) = err.splitlines()
    assert line.startswith("error: --method nonsense is not known")


def test_a_killed_rank_ends_the_others_and_torchrun_finishes_the_run(whole, people, tmp_path):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed} draws this kill again")
    draw = random.Random(seed)
    fault = f"{draw.randrange(2)} {draw.randrange(1, 20)} {int(signal.SIGKILL)} 0"
    flags = [*argv(**SMALL | {"epochs": 2, "data_dir": people, "logs_dir": tmp_path, "save_steps": 3}), "--resume"]
    command = [*TORCHRUN, "2", "--max-restarts", "2", RUNS, *flags]
    times = tmp_path / "times"
    environment = os.environ | {"PYTHONPATH": str(RUNS.parents[2]), "FAULT": fault, "TIMES": str(times)}
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("epoch 2/2") == 1  # by the first rank alone
    assert "another process of the run has ended" in run.stderr or "SIGTERM" in run.stderr
    started, killed = [], []
    for line in times.read_text().splitlines():
        what, at = line.split()
        (started if what == "1" else killed if what == "fault" else []).append(float(at))
    assert min(started) - killed[0] < 30  # by then the one that was left has ended
    assert_same_run(tmp_path, whole)


def test_sigterm_saves_and_leaves_with_its_exit_code(whole, people, tmp_path):
    flags = [*argv(**SMALL | {"epochs": 2, "data_dir": people, "logs_dir": tmp_path}), "--resume"]
    codes, _, err = command_together(2, tmp_path, with_fault, f"1 13 {int(signal.SIGTERM)} 0", flags)
    assert codes == [143, 143]
    assert err.count("stopped by SIGTERM") == 1
    assert torch.load(tmp_path / "last.pt")["at"]["step"] == 3
    config, _ = parse(flags)
    train_together(2, tmp_path, [("resumed", config, None, None)])
    assert_same_run(tmp_path, whole)


def test_evaluation_is_shared(whole, people, tmp_path):
    flags = [*map(str, [whole, "-d", "market1501", "--data-dir", people, "--device", "cpu", "-j", "1", "--rerank"])]
    codes, out, err = command_together(3, tmp_path, evaluate, flags)
    assert codes == [0, 0, 0], err
    assert out.count("written to") == 1
    scores = json.loads((whole / "evaluate-market1501.json").read_text())
    assert {name: scores[name] for name in SCORES} == {name: rows_of(whole)[-1][name] for name in SCORES}
    evaluate([*flags, "--output", str(whole / "alone.json")])
    assert scores["reranked"] == json.loads((whole / "alone.json").read_text())["reranked"]
