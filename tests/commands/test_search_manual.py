"""docs/search.md: its commands and its Python run, as they stand, on the synthetic set."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from reid_fast.__main__ import main
from reid_fast.data import open as opening

PAGE = (Path(__file__).parents[2] / "docs/search.md").read_text()


@pytest.fixture
def somewhere(trained: Path, people: Path, tmp_path: Path, monkeypatch) -> Path:
    """A folder with what the page speaks of; the synthetic set is a small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "synthetic_folder", lambda root, progress: people)
    Path("logs").mkdir()
    Path("logs/cc-synthetic-001").symlink_to(trained)
    Path("crops").symlink_to(people / "query")
    return tmp_path


def test_the_page_runs_from_top_to_bottom(somewhere: Path, capsys) -> None:
    pytest.importorskip("faiss")
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python", "bash", "bash", "python"]
    for kind, block in blocks:
        if kind == "python":
            exec(block, {})
            continue
        for line in block.splitlines():
            program, *flags = shlex.split(line)
            assert program == "reid-fast"
            main([*flags, "--threads", "1"])
    written = {path.name for path in somewhere.iterdir()} - {"logs", "crops"}
    assert written == {
        *("features.safetensors", "features.npy", "features.json"),
        *("lists.html", "lists.png", "lists.json", "reranked.html"),
        *("gallery.faiss", "gallery.faiss.json"),
    }
    assert "right person" in capsys.readouterr().out
