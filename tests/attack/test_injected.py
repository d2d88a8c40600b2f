"""Calls on files that fail, or that the process does not outlive: nothing is half-written, and a resumed run ends with
the same bits.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from attack.attacked import Ended, Fault, faults
from attack.whole_runs import KINDS, assert_readable, left_by, settings_of, training

SAMPLE = 3


def test_the_injector_sees_every_file_of_a_run(undisturbed) -> None:
    whole, ended = left_by(undisturbed.run), undisturbed.ended
    renamed = {call.partition("/run/")[2] for call in ended.calls if call.startswith("rename")}
    assert whole["files"] - {"lock"} == renamed - {""}
    assert any("/cache/" in call for call in ended.calls)


def test_a_file_gets_its_name_when_it_is_on_the_disk_and_then_its_folder_is_synced(undisturbed) -> None:
    """What a power cut would lose cannot be tried: the order of calls decides it."""
    written, synced, renamed = set(), set(), set()
    for call, path in (call.split(" ", 1) for call in undisturbed.ended.calls):
        if call in ("write", "truncate"):
            written.add(path)
            synced.discard(path)
        elif call == "sync":
            synced.add(path)
            renamed -= {name for name in renamed if str(Path(name).parent) == path}
        elif call == "rename":
            part = str(Path(path).with_name(f".{Path(path).name}.part"))
            assert part in written & synced, path
            renamed.add(path)
    assert not renamed


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_fails_a_resumed_run_ends_with_the_same_bits(
    server, ran_undisturbed, market_folder, tmp_path, cases, chance, tried, kind
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    flags, variables = training(market_folder, run, **settings_of(kind, cache)), {"XDG_CACHE_HOME": str(cache)}
    undisturbed = ran_undisturbed(kind)
    whole = left_by(undisturbed.run)

    def disturbed(fault: Fault) -> Ended:
        ended = server.run(flags, run, cache, fault=fault, **variables)
        tried("faults")
        print(fault, *ended.calls[fault.n - 1 : fault.n], ended.code, ended.err, flush=True)
        assert ended.in_time
        ended.assert_said(0, 2, *([-signal.SIGKILL] if fault.kind in ("kill", "torn") else []))
        assert_readable(run)
        return ended

    for fault in faults(undisturbed.ended.calls, chance, cases or SAMPLE):
        for folder in (run, cache):
            shutil.rmtree(folder, ignore_errors=True)
        first = disturbed(fault)
        if chance.random() < 0.25:
            disturbed(Fault(chance.choice(("kill", "full")), chance.randint(1, max(2, len(first.calls)))))
        server.run(flags, **variables).assert_said(0)
        assert left_by(run) == whole, fault
        assert not list(cache.rglob(".*"))
