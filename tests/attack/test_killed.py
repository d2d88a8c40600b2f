"""Runs of every method, killed at random times, twice in a row."""

from __future__ import annotations

import signal

from attack.whole_runs import assert_readable, left_by, training

from reid_fast.methods import method_names


def test_killed_at_random_times_and_resumed_a_run_ends_with_the_same_bits(
    server, market_folder, tmp_path, cases, chance, tried
) -> None:
    names = method_names()
    for number in range(max(len(names), cases // 20) if cases else 1):
        method = names[number % len(names)] if cases else chance.choice(names)
        whole, killed = (tmp_path / f"{what}-{method}-{number}" for what in ("whole", "killed"))
        flags = training(market_folder, killed, method=method)
        undisturbed = server.run(training(market_folder, whole, method=method), XDG_CACHE_HOME=str(tmp_path))
        undisturbed.assert_said(0)
        for _ in range(2):
            after = chance.uniform(0.1, undisturbed.seconds)
            ended = server.run(flags, after=after, XDG_CACHE_HOME=str(tmp_path))
            tried("kills of runs")
            print(method, after, ended.code, flush=True)
            ended.assert_said(0, -signal.SIGKILL)
            assert_readable(killed)
        server.run(flags, XDG_CACHE_HOME=str(tmp_path)).assert_said(0)
        assert left_by(killed) == left_by(whole), method
