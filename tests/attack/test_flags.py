"""Absurd settings end in one sentence: a sample, or `--attack N` of them. The seed is in what is printed."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.attack
def test_no_setting_ends_a_command_otherwise(cases):
    limit = ["--cases", str(cases)] if cases else ["--cases", "1000", "--seconds", "12"]
    program = [sys.executable, Path(__file__).with_name("flags.py"), *limit, "--seed", "13"]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-2000:]}"
