"""What torchrun starts ends together: bad input, SIGTERM, a rank that is killed; and goes on by itself."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from inputs import argv, rows_of
from ranks.runs import SMALL, train_together

from reid_fast.command_line import parse
from reid_fast.evaluate import main as evaluate
from reid_fast.metrics_log import SCORES

RUNS = Path(__file__).with_name("runs.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def start(ranks, program, flags, *options, **environment):
    """A process of torchrun's, whose ranks run a program."""
    command = [*TORCHRUN, str(ranks), *options, *program, *map(str, flags)]
    environment = os.environ | {"PYTHONPATH": str(RUNS.parents[2])} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def exit_codes(err):
    """Of the ranks that torchrun lists, which are those that ended by themselves."""
    return {int(code) for code in re.findall(r"exitcode\s*: (-?\d+)", err)}


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
    run = start(2, [str(RUNS)], flags, FAULT="0 0 0 0")
    _, err = run.communicate(timeout=300)
    assert run.returncode != 0
    assert err.count("epoch 1 found no cluster") == 1
    assert exit_codes(err) == {2}
    assert 'Traceback (most recent call last):\n  File "' + str(RUNS) not in err


def test_a_wrong_flag_is_said_once(tmp_path):
    run = start(2, ["-m", "reid_fast.train"], ["--method", "nonsense"])
    _, err = run.communicate(timeout=300)
    assert err.count("error: --method nonsense is not known") == 1
    assert exit_codes(err) <= {2, -signal.SIGTERM}  # which torchrun sends to one that is still starting


def test_a_killed_rank_ends_the_others_and_torchrun_finishes_the_run(whole, people, tmp_path):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 2**32))
    print(f"KILL_SEED={seed} draws this kill again")
    draw = random.Random(seed)
    fault = f"{draw.randrange(2)} {draw.randrange(1, 20)} {int(signal.SIGKILL)} 0"
    flags = [*argv(**SMALL | {"epochs": 2, "data_dir": people, "logs_dir": tmp_path, "save_steps": 3}), "--resume"]
    run = start(2, ["--max-restarts", "2", str(RUNS)], flags, FAULT=fault, TIMES=str(tmp_path / "times"))
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert out.count("epoch 2/2") == 1  # by the first rank alone
    assert "another process of the run has ended" in err or "SIGTERM" in err
    started, killed = [], []
    for line in (tmp_path / "times").read_text().splitlines():
        what, at = line.split()
        (started if what == "1" else killed if what == "fault" else []).append(float(at))
    assert min(started) - killed[0] < 30  # by then the one that was left has ended
    assert_same_run(tmp_path, whole)


def test_sigterm_saves_and_leaves_with_its_exit_code(whole, people, tmp_path):
    flags = [*argv(**SMALL | {"epochs": 2, "data_dir": people, "logs_dir": tmp_path}), "--resume"]
    run = start(2, [str(RUNS)], flags, FAULT=f"1 13 {int(signal.SIGTERM)} 0")
    _, err = run.communicate(timeout=300)
    assert exit_codes(err) == {143}
    assert err.count("stopped by SIGTERM") == 1
    assert torch.load(tmp_path / "last.pt")["at"]["step"] == 3
    config, _ = parse(flags)
    train_together(2, tmp_path, [("resumed", config, None, None)])
    assert_same_run(tmp_path, whole)


def test_evaluation_is_shared(whole, people):
    flags = [whole, "-d", "market1501", "--data-dir", people, "--device", "cpu", "-j", "1", "--rerank"]
    run = start(3, [str(RUNS.with_name("scored.py"))], flags)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert out.count("written to") == 1
    scores = json.loads((whole / "evaluate-market1501.json").read_text())
    assert {name: scores[name] for name in SCORES} == {name: rows_of(whole)[-1][name] for name in SCORES}
    evaluate([*map(str, flags), "--output", str(whole / "alone.json")])
    assert scores["reranked"] == json.loads((whole / "alone.json").read_text())["reranked"]
