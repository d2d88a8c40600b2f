"""How many cases an attack tries: a sample with all tests, as many as are asked for by `--attack N`."""

import os
import random
import time
from functools import cache

import pytest
from attack.attacked import Server
from attack.whole_runs import KINDS, Undisturbed, settings_of, training
from hypothesis import HealthCheck, given, settings


def pytest_addoption(parser):
    parser.addoption("--attack", type=int, default=0, metavar="N", help="cases of each attack; 0: a sample")


@pytest.fixture
def attack(request):
    """attack(test, sample, **strategies): call a test with what is drawn, the same sample each time."""
    asked = request.config.getoption("attack", 0)

    def run(test, sample, **strategies):
        options = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
        settings(max_examples=asked or sample, derandomize=not asked, **options)(given(**strategies)(test))()

    return run


@pytest.fixture
def cases(request):
    """How many cases are asked for; 0: a sample."""
    return request.config.getoption("attack", 0)


@pytest.fixture
def chance():
    """Another draw each time: whichever fails is a defect."""
    seed = int(os.environ.get("ATTACK_SEED", time.time_ns() % 2**32))
    print(f"ATTACK_SEED={seed} draws these cases again")
    return random.Random(seed)


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
