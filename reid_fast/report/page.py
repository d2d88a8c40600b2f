"""The page of a report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reid_fast.drawing import INK, svg
from reid_fast.marks import flag_of
from reid_fast.pages import page, shown
from reid_fast.report.axes import FAINT, LIGHT, SERIES
from reid_fast.report.charts import Chart, count, curves, percent, plain, stage_times
from reid_fast.report.runs import RunRecord
from reid_fast.report.seen import Seen
from reid_fast.report.sheets import cluster_section, mistake_section

# The colours of the charts as the page has them, by day and by night.
_COLOURS = {INK: "var(--ink)", FAINT: "var(--muted)", LIGHT: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}
_NIGHT = ("#5aaee8", "#f0975a", "#62c481", "#ee7ba6", "#a994ee", "#d1b442", "#4fc1cc", "#c2a396")


def _variables(colours: Sequence[str]) -> str:
    return " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(colours))


STYLE = f"""
:root {{ {_variables(SERIES)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(_NIGHT)} }} }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); gap: .75rem; }}
.charts > div {{ background: var(--panel); border-radius: .5rem; padding: .25rem; }}
.charts svg {{ display: block; width: 100%; height: auto; }}
h3 {{ margin: 1.25rem 0 .25rem; font-size: 1rem; overflow-wrap: anywhere; }}
.images {{ display: flex; flex-wrap: wrap; gap: .4rem; margin: .25rem 0 .75rem; }}
.images figure {{ margin: 0; width: 4.1rem; font-size: .7rem; line-height: 1.25; text-align: center; }}
.images img {{ display: block; width: 100%; height: 6.5rem; object-fit: contain; background: var(--panel); }}
.images figure {{ border: 3px solid var(--line); border-radius: .25rem; overflow: hidden; }}
.images .right {{ border-color: var(--right); }}
.images .wrong {{ border-color: var(--wrong); border-style: dashed; }}
.images .query {{ border-color: var(--accent); margin-right: .6rem; }}
details {{ margin: .75rem 0; }}
summary {{ cursor: pointer; }}
td {{ vertical-align: top; }}
td.number {{ white-space: nowrap; }}
table.settings td {{ overflow-wrap: anywhere; max-width: 24rem; }}
"""
_SUMMARY: dict[str, tuple[str, Callable[[float], str]]] = {
    "clusters": ("clusters", count),
    "outliers": ("outliers", count),
    "silhouette": ("silhouette", plain),
    "nmi": ("NMI †", percent),
    "ari": ("ARI †", percent),
    "mAP": ("mAP ‡", percent),
    "rank1": ("rank-1 ‡", percent),
    "rank5": ("rank-5 ‡", percent),
    "rank10": ("rank-10 ‡", percent),
    "mINP": ("mINP ‡", percent),
}
_NOTES = (
    "Numbers of the last epoch that has them. † by the identities of the training images, ‡ by those of the test set: "
    "they tell how good a run is, and choosing settings or an epoch by them is training on labels. What may be chosen "
    "by is the silhouette, which uses no identities."
)


def report_page(runs: Sequence[RunRecord], seen: Sequence[Seen | None]) -> str:
    """One self-contained page; the same runs and images give the same bytes.

    Args:
        runs: in the order in which they are shown.
        seen: what the images of each show; None leaves these parts out.
    """
    names = ", ".join(run.name for run in runs)
    body = "\n".join(_body(runs, seen))
    return page(f"Report: {names}", body, STYLE)


def _body(runs: Sequence[RunRecord], seen: Sequence[Seen | None]) -> Iterator[str]:
    yield _summary(runs)
    yield f'<p class="muted">{_NOTES}</p>'
    yield "<h2>Curves</h2>"
    yield _charts(curves(runs))
    times = [chart for number, run in enumerate(runs, 1) if (chart := stage_times(run, number)) is not None]
    if times:
        yield "<h2>Where the time goes</h2>"
        yield _charts(times)
    for run, some in zip(runs, seen, strict=True):
        if some is not None:
            of = f": {shown(run.name)}" if len(runs) > 1 else ""
            yield f"<h2>Clusters{of}</h2>"
            yield cluster_section(some)
            yield f"<h2>Hardest mistakes{of}</h2>"
            yield mistake_section(some)
    yield "<h2>Settings</h2>"
    yield from _settings(runs)
    yield "<h2>Epochs</h2>"
    for run in runs:
        yield _epochs(run)


def _summary(runs: Sequence[RunRecord]) -> str:
    """A column a run: narrow screens scroll sideways only where there are many."""
    rows: list[list[str]] = []
    for title, name in (("method", "method"), ("data set", "dataset"), ("encoder", "arch")):
        rows.append([title, *(str(run.settings.get(name, "–")) for run in runs)])
    rows.append(["epoch", *(f"{run.last('epoch')} of {run.settings.get('epochs', '–')}" for run in runs)])
    rows.append(["time", *(_time(sum(sum(row["seconds"].values()) for row in run.rows)) for run in runs)])
    for key, (title, write) in _SUMMARY.items():
        values = [run.last(key) for run in runs]
        if any(value is not None for value in values):
            rows.append([title, *("–" if value is None else write(value) for value in values)])
    return _table(["", *(run.name for run in runs)], rows, text=1)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]], *, text: int, name: str = "") -> str:
    """The first `text` columns hold text, the others numbers."""
    kinds = [""] * text + [' class="number"'] * (len(titles) - text)

    def row(cell: str, values: Sequence[Any]) -> str:
        cells = (f"<{cell}{kind}>{shown(value)}</{cell}>" for kind, value in zip(kinds, values, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    lines = "\n".join(row("td", values) for values in rows)
    of = f' class="{name}"' if name else ""
    head = f"<thead>{row('th', titles)}</thead>"
    return f'<div class="scroll"><table{of}>{head}<tbody>\n{lines}\n</tbody></table></div>'


def _charts(charts: Sequence[Chart]) -> str:
    drawn = (f"<div>{svg(chart.figure, _COLOURS, background=None, label=chart.label)}</div>" for chart in charts)
    return f'<div class="charts">\n{"".join(drawn)}</div>'


def _settings(runs: Sequence[RunRecord]) -> Iterator[str]:
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    names += [f"version of {name}" for name in dict.fromkeys(name for run in runs for name in run.versions)]
    values = {name: [_value(run, name) for run in runs] for name in names}
    differing = [name for name in names if len(set(values[name])) > 1]
    if len(runs) > 1:
        yield f"<p>{len(differing)} of {len(names)} settings and versions differ.</p>"
        if differing:
            rows = [[_called(name), *values[name]] for name in differing]
            yield _table(["setting", *(run.name for run in runs)], rows, text=1 + len(runs), name="settings")
    alike = [[_called(name), values[name][0]] for name in names if name not in differing]
    title = "What all runs share" if len(runs) > 1 else f"All {len(alike)}"
    yield f"<details{'' if len(runs) > 1 else ' open'}><summary>{title}</summary>"
    yield _table(["setting", "value"], alike, text=2, name="settings") + "</details>"


def _called(name: str) -> str:
    return name if name.startswith("version of ") else flag_of(name)


def _value(run: RunRecord, name: str) -> str:
    if name.startswith("version of "):
        return str(run.versions.get(name.removeprefix("version of ")) or "–")
    value = run.settings.get(name, "–")
    return value if isinstance(value, str) else json.dumps(value)


def _epochs(run: RunRecord) -> str:
    keys = list(dict.fromkeys(key for row in run.rows for key in row if key != "seconds"))
    rows = [[_number(row.get(key)) for key in keys] + [f"{sum(row['seconds'].values()):.1f}"] for row in run.rows]
    table = _table([*keys, "seconds"], rows, text=0)
    return f"<details><summary>{shown(run.name)}, as metrics.jsonl has them</summary>{table}</details>"


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
