"""How many cases an attack tries: a sample with all tests, as many as are asked for by `--attack N`."""

import os
import random
import time
from collections import Counter
from functools import cache, wraps

import pytest
from attack.attacked import Server
from attack.whole_runs import KINDS, Undisturbed, settings_of, training
from hypothesis import HealthCheck, given, seed, settings


def pytest_addoption(parser):
    parser.addoption("--attack", type=int, default=0, metavar="N", help="cases of each attack; 0: a sample")


def pytest_terminal_summary(terminalreporter):
    """How much was tried, by kind."""
    reports = (report for found in terminalreporter.stats.values() for report in found)
    said = [pair for report in reports for pair in getattr(report, "user_properties", ()) if report.when == "call"]
    total = Counter()
    for kind, count in said:
        total[kind] += count
    if total:
        terminalreporter.write_line("tried: " + ", ".join(f"{count:,} {kind}" for kind, count in total.items()))


@pytest.fixture
def tried(request):
    """tried(kind, n): that so many more were tried, for the summary."""

    def add(kind, count=1):
        request.node.user_properties.append((kind, count))

    return add


@pytest.fixture
def attack(request, tried):
    """attack(test, sample, **strategies): call a test with what is drawn, the same sample each time."""
    asked = request.config.getoption("attack", 0)

    def run(test, sample, **strategies):
        count = 0

        @wraps(test)
        def counted(*given_, **by_name):
            nonlocal count
            count += 1
            return test(*given_, **by_name)

        options = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
        drawn = given(**strategies)(counted)
        drawn = seed(drawn_seed())(drawn) if asked else drawn
        settings(max_examples=asked or sample, derandomize=not asked, **options)(drawn)()
        tried("inputs", count)

    return run


def drawn_seed():
    """ATTACK_SEED, or another one each time."""
    return int(os.environ.get("ATTACK_SEED", time.time_ns() % 2**32))


@pytest.fixture
def cases(request):
    """How many cases are asked for; 0: a sample."""
    return request.config.getoption("attack", 0)


@pytest.fixture
def chance():
    """Another draw each time: whichever fails is a defect."""
    number = drawn_seed()
    print(f"ATTACK_SEED={number} draws these cases again")
    return random.Random(number)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Runs commands in forks of a process that has imported everything."""
    with Server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="session")
def ran_undisturbed(server, market_folder, tmp_path_factory):
    """The shortest run of a kind."""

    def run_of(kind):
        folder = tmp_path_factory.mktemp("undisturbed")
        run, cached = folder / "run", folder / "cache"
        flags = training(market_folder, run, **settings_of(kind, cached))
        ended = server.run(flags, run, cached, XDG_CACHE_HOME=str(cached))
        ended.assert_said(0)
        return Undisturbed(run, ended)

    return cache(run_of)


@pytest.fixture(scope="session")
def undisturbed(ran_undisturbed):
    """The shortest run."""
    return ran_undisturbed(KINDS[0])
