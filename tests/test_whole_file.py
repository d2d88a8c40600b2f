"""Files replaced whole, whoever else writes them and whatever fails; files kept for one process alone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from reid_fast import whole_file
from reid_fast.errors import UserError
from reid_fast.whole_file import is_called, locked, replace_file, write_whole

HOLD = """
import sys
file = open(sys.argv[1], "ab")
from reid_fast.whole_file import locked
print(locked(file), flush=True)
sys.stdin.read()
"""


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    path, halfway = tmp_path / "page.html", threading.Barrier(2)

    def write(letter: bytes) -> None:
        def halves(file) -> None:
            file.write(letter * 50_000)
            file.flush()
            if letter == b"a":
                halfway.wait(10)  # the other one is about to start
            file.write(letter * 50_000)

        if letter == b"b":
            halfway.wait(10)
        replace_file(path, halves)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in (b"a" * 100_000, b"b" * 100_000)
    assert os.listdir(tmp_path) == ["page.html"]


def test_what_a_killed_writer_has_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".x.json.part").write_bytes(b"much more than what comes now")
    replace_file(tmp_path / "x.json", lambda file: file.write(b"{}"))
    assert (tmp_path / "x.json").read_bytes() == b"{}"
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), ValueError])
def test_nothing_is_left_of_a_writer_that_fails(tmp_path: Path, error) -> None:
    (tmp_path / "x").write_bytes(b"old")

    def fails(file) -> None:
        file.write(b"new")
        raise error

    with pytest.raises(error if isinstance(error, type) else OSError):
        replace_file(tmp_path / "x", fails)
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_that_fails_altogether_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    """PyTorch tells a full disk as a position in its file, and what is left cannot be removed either."""

    class Full:
        def __init__(self, file) -> None:
            self.written = 0

        def write(self, data: bytes) -> int:
            self.written += len(data)
            if self.written > 300:
                raise OSError(28, "No space left on device")
            return len(data)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"could not write .*x\.pt \(No space left on device\): free some space and"):
        write_whole(tmp_path / "x.pt", lambda file: torch.save({"x": torch.zeros(9999)}, Full(file)))


def test_a_lock_ends_with_its_process_and_only_then(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        with path.open("ab") as file:
            assert not locked(file)
            other.kill()
            other.wait()
            assert locked(file)


def test_where_there_are_no_locks_nobody_is_kept_out(tmp_path: Path, monkeypatch) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(whole_file.fcntl, "flock", none)
    with (tmp_path / "lock").open("ab") as file:
        assert locked(file)
    replace_file(tmp_path / "x", lambda file: file.write(b"x"))
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_file_that_was_renamed_has_another_name(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        assert is_called(file, tmp_path / "a")
        (tmp_path / "a").rename(tmp_path / "b")
        assert not is_called(file, tmp_path / "a")
        assert is_called(file, tmp_path / "b")
