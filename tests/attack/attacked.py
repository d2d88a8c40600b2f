"""Commands in processes of their own, disturbed on purpose: the n-th call on a file fails, or a signal comes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
HANGS = 120.0  # seconds
# What may befall a call, by what it is.
KINDS = {
    "open": ("kill", "EACCES", "EIO", "ENOSPC", "full"),
    "look": ("EIO", "EACCES"),
    "write": ("kill", "torn", "short", "ENOSPC", "EIO", "full"),
    "sync": ("kill", "EIO"),
    "rename": ("kill", "EIO", "EACCES"),
    "mkdir": ("kill", "EACCES", "full"),
    "unlink": ("kill", "EACCES"),
    "link": ("kill", "EIO"),
    "allocate": ("kill", "full"),
    "truncate": ("kill", "EIO"),
    "lock": ("kill", "EIO"),
    "times": ("EIO",),
    "rmdir": ("kill",),
}


@dataclass(frozen=True)
class Fault:
    """The n-th call below the watched folders, from 1 on, and what becomes of it; "full": also of all after it."""

    kind: str = ""
    n: int = 0


@dataclass(frozen=True)
class Ended:
    """How a command has ended.

    Attributes:
        code: its exit code; of one that a signal has killed, the signal's number, negative.
        out, err: what it has said.
        seconds: how long it took.
        in_time: whether nothing had to end it.
        calls: on files below the watched folders, such as "write FILE".
    """

    code: int
    out: str
    err: str
    seconds: float
    in_time: bool
    calls: list[str] = field(repr=False)

    def assert_said(self, *codes: int) -> None:
        """It has ended in one of these ways, and has said one sentence where it gave up, and nothing otherwise."""
        assert self.code in codes, self
        lines = self.err.splitlines()
        assert len(lines) == (self.code == 2), self
        assert all(line.startswith("error: ") for line in lines), self


def faults(calls: list[str], chance: Random, count: int) -> list[Fault]:
    """So many of what may befall a command that makes these calls, in random order.

    A long row of writes into one file gets one fault a write, its first and last one all.
    """
    found = []
    for n, call in enumerate(calls, 1):
        kinds = KINDS[call.partition(" ")[0]]
        inside = call.startswith("write") and calls[n - 2 : n + 1] == [call] * 3
        found += [Fault(kind, n) for kind in ((kinds[n % len(kinds)],) if inside else kinds)]
    chance.shuffle(found)
    return found[:count]


class Server:
    """Runs commands, one at a time, in forks of a process that has imported everything."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        shim = scratch / "faults.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", HERE / "faults.c", "-o", shim, "-ldl"], check=True)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent))),
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
        }
        command, pipe = [sys.executable, "-m", "attack.server"], subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, cwd=scratch, text=True)
        assert self._answer() == "ready"

    def run(
        self,
        argv: list[str],
        *watched: Path,
        fault: Fault | None = None,
        after: float = HANGS,
        **environment: str,
    ) -> Ended:
        """Run `reid-fast` with these flags.

        Args:
            watched: two folders, below which calls are counted.
            fault: what happens at one of them.
            after: seconds until it is killed.
            environment: further variables.
        """
        out, err, journal = (self._scratch / name for name in ("out", "err", "journal"))
        request = {
            "argv": argv,
            "watched": [str(folder) for folder in watched or ("", "")],
            "kind": fault.kind if fault else "",
            "n": fault.n if fault else 0,
            "seconds": after,
            "environment": environment,
            "folder": str(self._scratch),
            "out": str(out),
            "err": str(err),
            "journal": str(journal),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        said, complained, calls = (file.read_text(errors="replace") for file in (out, err, journal))
        return Ended(answer["code"], said, complained, answer["seconds"], answer["in_time"], calls.splitlines())

    def _answer(self) -> dict:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
