"""Absurd settings end in one sentence: a sample, or `--attack N` of them. The seed is in what is printed."""

import subprocess
import sys
from pathlib import Path

import pytest
from attack.conftest import drawn_seed

SAMPLE = ["--cases", "1000", "--seconds", "5", "--seed", "13"]


@pytest.mark.attack
def test_no_setting_ends_a_command_otherwise(cases, tried):
    limit = ["--cases", str(cases // 5), "--seed", str(drawn_seed())] if cases else SAMPLE
    program = [sys.executable, Path(__file__).with_name("flags.py"), *limit]
    done = subprocess.run(program, capture_output=True, text=True)
    tried("settings", int(done.stdout.splitlines()[-1].split()[0]))
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-2000:]}"
