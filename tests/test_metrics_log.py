"""What a run says of its epochs, and how long it still takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from reid_fast.console import clock_time
from reid_fast.metrics_log import MetricsLog, epoch_line

SCORED = {"mAP": 0.5, "rank1": 0.7}


def row_of(epoch: int, train: float, evaluate: float | None = None) -> dict[str, object]:
    seconds = {"extract": 1.0, "train": train}
    found = {"clusters": 9, "outliers": 1, "silhouette": 0.2, "loss": 1.0, "images_per_second": 100.0}
    if evaluate is None:
        return {"epoch": epoch, **found, "seconds": seconds}
    return {"epoch": epoch, **found, "seconds": seconds | {"evaluate": evaluate}, **SCORED}


def test_the_time_left_counts_epochs_and_the_evaluations_that_are_due(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, last_epoch=-1)
    left = []
    log.add({"epoch": 0, "seconds": {"evaluate": 50.0}, **SCORED})
    left.append(log.seconds_left(7, 3))
    log.add(row_of(1, 99))  # 6 epochs of 100 s and the evaluations of epochs 3, 6 and 7
    left.append(log.seconds_left(7, 3))
    log.add(row_of(2, 19))  # of 60 s, on average
    left.append(log.seconds_left(7, 3))
    log.add(row_of(3, 29, evaluate=10))  # the latest evaluation counts
    left.append(log.seconds_left(7, 3))
    log.add(row_of(4, 39))  # the latest three epochs count
    left.append(log.seconds_left(7, 3))
    log.add(row_of(7, 39, evaluate=10))
    left.append(log.seconds_left(7, 3))
    assert left == [None, 600 + 150, 300 + 150, 200 + 20, 90 + 20, 0]


def test_a_resumed_run_judges_by_its_own_epochs(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, last_epoch=-1)
    log.add(row_of(1, 999, evaluate=999))
    resumed = MetricsLog(tmp_path, last_epoch=1)
    assert resumed.seconds_left(5, 1) is None
    resumed.add(row_of(2, 1, evaluate=3))
    assert resumed.seconds_left(5, 1) == 3 * (2 + 3)
    assert [row["epoch"] for row in resumed.rows()] == [1, 2]


def test_a_rank_that_does_not_write_counts_all_the_same(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, writes=False)
    log.add(row_of(1, 1))
    assert log.seconds_left(3, 3) == 4
    assert not log.rows()


def test_a_line_ends_with_the_time_left() -> None:
    line = epoch_line(row_of(3, 2, evaluate=1.5), 50, 3723.4)
    assert line is not None
    assert line.startswith("epoch  3/50 |    9 clusters")
    assert line.endswith("| extract 1.0, train 2.0, evaluate 1.5 s | 1:02:03 left")
    last = epoch_line(row_of(50, 2), 50, 0.0)
    assert last is not None
    assert last.endswith("train 2.0 s")


def test_nothing_is_said_of_an_untrained_network_without_scores() -> None:
    assert epoch_line({"epoch": 0, "seconds": {}}, 50) is None
    assert epoch_line({"epoch": 0, "seconds": {"evaluate": 1.0}, **SCORED}, 50) is not None


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")]
)
def test_times_are_said_as_clocks_show_them(seconds: float, said: str) -> None:
    assert clock_time(seconds) == said
