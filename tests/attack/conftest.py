"""How many cases an attack tries: a sample with all tests, as many as are asked for by `--attack N`."""

import pytest
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
