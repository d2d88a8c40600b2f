"""Show runs on one page: curves, times, clusters, mistakes, settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from reid_fast import run_folder
from reid_fast.command_line import read
from reid_fast.console import Console
from reid_fast.data.sets import encoded
from reid_fast.drawing import png
from reid_fast.errors import UserError, exit_on_user_error
from reid_fast.marks import Positional, Short, Threads, check_ranges
from reid_fast.report import Chart, RunRecord, Seen, curves, look, read_runs, report_page, stage_times
from reid_fast.whole_file import write_whole

_MOST = 8  # as many as there are colours


@dataclass(frozen=True)
class ReportConfig:
    """Show one run, or several side by side, on one page that needs nothing but a browser.

    Curves, stage times and settings come from the run folders. Clusters and the hardest mistakes of the evaluation need
    the images: the data set is opened, and features are extracted again.
    """

    runs: Annotated[tuple[Path, ...], Positional]
    """run folders: what `--logs-dir` was, or was chosen, in training"""
    output: Annotated[Path | None, Short("-o")] = None
    """the page to write; by default report.html in the run folder, or of several runs in this folder"""
    png: Path | None = None
    """also write every chart as a PNG file into this folder"""
    pictures: bool = True
    """show clusters and mistakes where the data set is at hand"""
    data_dir: Path | None = None
    """the data set's folder, if it is not where it was in training"""
    source_dir: Path | None = None
    """the same of a run's --source"""
    workers: Annotated[Threads, Short("-j")] = 2
    """CPU threads that decode images"""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    with exit_on_user_error():
        config = read(ReportConfig, argv)
        check_ranges(config)
        report(config)


def report(config: ReportConfig) -> Path:
    """Write the page, and the PNG files if they are asked for.

    Returns:
        The page's file.

    Raises:
        UserError: a folder that is no run folder, `data_dir` without the set, a file that cannot be written.
    """
    if not 0 < len(config.runs) <= _MOST:
        raise UserError(f"name 1 to {_MOST} run folders, not {len(config.runs)}")
    console = Console()
    runs = read_runs(config.runs)
    output = config.output or (runs[0].folder if len(runs) == 1 else Path()) / "report.html"
    run_folder.check_output(output)

    folders = {"data_dir": config.data_dir, "source_dir": config.source_dir}

    def seen_of(run: RunRecord) -> Seen:
        return look(run, folders, device=config.device, threads=config.workers, console=console)

    seen = [seen_of(run) if config.pictures else None for run in runs]
    text = report_page(runs, seen)
    write_whole(output, lambda file: file.write(text.encode()))
    console.say(f"written to {output}")
    if config.png is not None:
        _draw(runs, config.png)
        console.say(f"charts are in {config.png}")
    return output


def _draw(runs: Sequence[RunRecord], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--png {folder} cannot be made ({error.strerror})") from None
    times = (stage_times(run, number) for number, run in enumerate(runs, 1))
    for chart in filter(None, [*curves(runs), *times]):
        _write_png(chart, folder)


def _write_png(chart: Chart, folder: Path) -> None:
    content = encoded(png(chart.figure), "PNG")
    write_whole(folder / f"{chart.name}.png", lambda file: file.write(content))
