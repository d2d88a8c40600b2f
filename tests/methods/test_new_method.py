"""The manual's example of a method with a setting of its own: one file, which is listed, documented and trained."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from inputs import TINY, argv, refused, rows_of

from reid_fast import methods
from reid_fast.train import main as train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    """The file that docs/adding-a-method.md shows."""
    (text,) = re.findall(
        r"```python\n(# reid_fast/methods/mine.py\n.*?)```", (ROOT / "docs/adding-a-method.md").read_text(), re.DOTALL
    )
    return text


def test_it_is_listed_documented_and_trained(example, people, tmp_path, monkeypatch, capsys, tiny_arch):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/mine.py").write_text(example)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "extra")])

    def flags(folder, sharpness):
        run = {"iters": 4, "epochs": 1, "arch": "tiny", "data_dir": people, "logs_dir": tmp_path / folder}
        return argv(**TINY, **run, method="mine", sharpness=sharpness)

    for asked in (["--help"], ["--method", "mine", "--help"]):
        with pytest.raises(SystemExit):
            train(asked)
        assert "mine" in (shown := capsys.readouterr().out)
    assert "--sharpness" in shown
    assert "how much more a dissimilar member counts" in shown
    train(flags("run", 2.5))
    config = json.loads((tmp_path / "run/config.json").read_text())["config"]
    assert (config["method"], config["momentum"], config["sharpness"]) == ("mine", 0.2, 2.5)
    assert np.isfinite(rows_of(tmp_path / "run")[-1]["loss"])
    capsys.readouterr()
    assert "--sharpness must lie between 1e-09 and 1e+06, not 0.0" in refused(capsys, train, *flags("no", 0))


def test_it_passes_the_linter(example, tmp_path):
    (tmp_path / "mine.py").write_text(example)
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", tmp_path / "mine.py"]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
