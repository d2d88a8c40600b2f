"""The rows of runs as charts: a curve for each number of an epoch, bars for the seconds of its stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, cycle
from typing import NamedTuple

from reid_fast.drawing import Box, Dot, Figure, Line, Mark
from reid_fast.report.axes import SERIES, WIDTH, at, frame, legend, round_scale
from reid_fast.report.runs import RunRecord

TEST_LABELS = "by the test set's identities: not for choosing"
TRAINING_LABELS = "by the training set's identities: not for choosing"
NO_LABELS = "without identities: what one may choose by"
STAGES = ("extract", "knn", "jaccard", "dbscan", "silhouette", "memory", "train", "evaluate")


class Chart(NamedTuple):
    """A figure, its file's name without the ending, and what it shows in words."""

    name: str
    label: str
    figure: Figure


class _Curve(NamedTuple):
    title: str
    note: str
    write: Callable[[float], str]
    whole: bool = False


def share(value: float) -> str:
    """0.123 -> 12.3 %, and 0.1 -> 10 %: for ticks."""
    return f"{100 * value:.3g} %"


def percent(value: float) -> str:
    """0.1 -> 10.0 %."""
    return f"{100 * value:.1f} %"


def count(value: float) -> str:
    """12345 -> 12,345."""
    return f"{value:,.0f}"


def plain(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


CURVES = {
    "loss": _Curve("Loss", "mean over the steps of an epoch", plain),
    "lr": _Curve("Learning rate", "", plain),
    "clusters": _Curve("Clusters", "of at least two images", count, whole=True),
    "outliers": _Curve("Outliers", "images in no cluster", count, whole=True),
    "silhouette": _Curve("Silhouette of the clusters", NO_LABELS, plain),
    "nmi": _Curve("NMI of the pseudo labels", TRAINING_LABELS, share),
    "ari": _Curve("ARI of the pseudo labels", TRAINING_LABELS, share),
    "mAP": _Curve("mAP", TEST_LABELS, share),
    "rank1": _Curve("Rank-1", TEST_LABELS, share),
    "mINP": _Curve("mINP", TEST_LABELS, share),
    "images_per_second": _Curve("Training speed", "images/s of the training steps", count),
    "peak_memory_mb": _Curve("Peak memory", "MiB, of the GPU where there is one", count),
}


def curves(runs: Sequence[RunRecord]) -> list[Chart]:
    """A chart of each number that a run has, over the epochs; runs in their colours, other encoders beside them."""
    charts = []
    for key, curve in CURVES.items():
        lines = list(_lines(runs, key))
        if lines:
            charts.append(_chart(key, curve, lines, len(runs) > 1))
    return charts


class _Points(NamedTuple):
    name: str
    colour: str
    points: list[tuple[int, float]]


def _lines(runs: Sequence[RunRecord], key: str) -> Iterator[_Points]:
    """A line of each run in its colour, and behind them those of other encoders that are scored: `teacher_mAP`."""
    others = [(run, name) for run in runs for name in sorted({*chain(*run.rows)}) if name.endswith(f"_{key}")]
    for colour, (run, name) in zip(cycle(SERIES), [*((run, key) for run in runs), *others], strict=False):
        points = [(row["epoch"], row[name]) for row in run.rows if name in row and math.isfinite(row[name])]
        encoder = name.removesuffix(key).rstrip("_")
        if points:
            yield _Points(f"{run.name}, {encoder}" if encoder else run.name, colour, points)


def _chart(key: str, curve: _Curve, lines: Sequence[_Points], several: bool) -> Chart:
    across = round_scale([epoch for line in lines for epoch, _ in line.points], count, whole=True)
    up = round_scale([value for line in lines for _, value in line.points], curve.write, whole=curve.whole)
    marks = frame(curve.title, curve.note, across, up)
    for line in lines:
        places = [at(across.share(epoch), up.share(value)) for epoch, value in line.points]
        if len(places) > 1:
            marks.append(Line(tuple(places), line.colour, 1.8))
        for (x, y), (epoch, value) in zip(places, line.points, strict=True):
            said = f"{line.name}, epoch {epoch}: {curve.write(value)}"
            marks.append(Dot(x, y, line.colour, 2.6, said))
    named = several or len(lines) > 1
    below, height = legend([(line.colour, line.name) for line in lines] if named else [])
    ends = "; ".join(f"{line.name}: {curve.write(line.points[-1][1])} at epoch {line.points[-1][0]}" for line in lines)
    return Chart(key, f"{curve.title} by epoch. {ends}.", Figure(WIDTH, height, [*marks, *below]))


def stage_times(run: RunRecord, number: int = 1) -> Chart | None:
    """Bars of the seconds of an epoch, stage over stage; None before the first epoch.

    Args:
        run: whose.
        number: of the run among those of a page, from 1; part of the chart's name.
    """
    rows = run.trained
    if not rows:
        return None
    names = dict.fromkeys([*STAGES, *(name for row in rows for name in row["seconds"])])
    totals = {name: sum(row["seconds"].get(name, 0.0) for row in rows) for name in names}
    used = [name for name in names if totals[name] > 0]
    colours = {name: SERIES[place % len(SERIES)] for place, name in enumerate(names)}
    whole = sum(totals.values())
    across = round_scale([rows[0]["epoch"] - 1, rows[-1]["epoch"] + 1], count, whole=True)
    up = round_scale([0.0, *(sum(row["seconds"].values()) for row in rows)], plain)
    marks = frame(f"Seconds of an epoch: {run.name}", f"{whole:,.0f} s in all", across, up)
    marks += [bar for row in rows for bar in _bars(row["epoch"], row["seconds"], used, colours, across.share, up.share)]
    entries = [(colours[name], f"{name} {totals[name]:,.1f} s, {percent(totals[name] / whole)}") for name in used]
    below, height = legend(entries, columns=2)
    said = ", ".join(text for _, text in entries)
    return Chart(f"seconds-{number}", f"Seconds by stage of {run.name}: {said}.", Figure(WIDTH, height, marks + below))


def _bars(
    epoch: int,
    seconds: dict[str, float],
    names: Sequence[str],
    colours: dict[str, str],
    across: Callable[[float], float],
    up: Callable[[float], float],
) -> Iterator[Mark]:
    left, right = (at(across(epoch + side), 0)[0] for side in (-0.4, 0.4))
    tops = list(accumulate(seconds.get(name, 0.0) for name in names))
    for name, top in zip(names, tops, strict=True):
        own = seconds.get(name, 0.0)
        low, high = at(0, up(top - own))[1], at(0, up(top))[1]
        if own > 0:
            yield Box(left, high, right - left, low - high, colours[name], f"epoch {epoch}, {name}: {own:.2f} s")
