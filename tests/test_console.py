"""What is said without a terminal while something takes long."""

import os

import pytest

from reid_fast.console import Console


@pytest.fixture
def clock(monkeypatch):
    """Each look at the time is 20 seconds later."""
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr("reid_fast.console.time.monotonic", lambda: next(now))


def test_a_line_tells_how_long_it_will_take(clock, capsys):
    with Console().progress("decoding") as report:
        for done in (0, 1000, 4000):
            report(done, 4000)
    assert capsys.readouterr().out == "  decoding 1,000/4,000, 50 images/s, 1:00 left\n"


def test_a_line_tells_how_much_there_was_where_nobody_knows_the_end(clock, capsys):
    with Console().progress("listing", "files") as report:
        for done in (1024, 2048):
            report(done, None)
    assert capsys.readouterr().out == "  listing 2,048, 51 files/s\n"


def test_each_pass_of_a_stage_has_its_own_speed(clock, capsys):
    with Console().progress("graph", "parts") as report:
        for done in (2600, 2640, 300, 700):  # where the first report comes late, and the second pass begins
            report(done, 3900)
    assert capsys.readouterr().out.splitlines() == [
        "  graph 2,640/3,900, 2 parts/s, 10:30 left",
        "  graph 700/3,900, 20 parts/s, 2:40 left",
    ]


def test_a_file_name_that_is_no_utf8_is_said(capsys):
    Console().say("left out " + os.fsdecode(b"caf\xe9 [bold].jpg"))
    assert capsys.readouterr().out == "left out caf\\udce9 [bold].jpg\n"
