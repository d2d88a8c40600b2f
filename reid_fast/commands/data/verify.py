"""Read every file of a data set and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from reid_fast import run_folder
from reid_fast.command_line import read
from reid_fast.console import Console
from reid_fast.data.sets import SIZES, counts_table
from reid_fast.data.survey import findings, survey, to_json
from reid_fast.errors import UserError, exit_on_user_error, printable
from reid_fast.marks import Positional, Short


@dataclass(frozen=True)
class VerifyConfig:
    """Read every file of a data set: counts, unreadable and equal files, names that do not parse, lonely queries.

    Exit code 2 says that training or evaluation could not work on it as it is.
    """

    data_dir: Annotated[Path, Positional]
    """the set's folder, or one that holds it; of a folder set also a .csv, .parquet or .tar file"""
    dataset: Annotated[str | None, Short("-d")] = None
    """a name from the list above; by default the one whose layout is found, else folder"""
    pattern: str | None = None
    """folder only: a regular expression on file names with a group `cam` (and `pid`, where identities are known)"""
    json: Path | None = None
    """also write everything that was found to this file"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input or a set that does not work."""
    with exit_on_user_error():
        description = f"{VerifyConfig.__doc__}\n\nData sets: {', '.join(SIZES)}."
        verify(read(VerifyConfig, argv, description=description))


def verify(config: VerifyConfig) -> None:
    """Print what was found, and write it.

    Raises:
        UserError: the set cannot be read, or training or evaluation could not work on it.
    """
    if config.dataset is not None and config.dataset not in SIZES:
        raise UserError(f"--dataset {config.dataset} is not known: choose from {', '.join(SIZES)}")
    if config.json is not None:
        run_folder.check_output(config.json)
    console = Console()
    try:
        found = survey(config.data_dir, config.dataset, config.pattern, console=console)
    except UserError as error:
        if config.json is not None:
            run_folder.write_json(config.json, {"root": str(config.data_dir), "training": [str(error)]})
        raise
    console.say(counts_table(found.data))
    console.say(findings(found))
    if config.json is not None:
        run_folder.write_json(config.json, to_json(found))
    for purpose, reasons in (("training", found.training), ("evaluation", found.evaluation)):
        if reasons:
            raise UserError(f"{purpose} could not work: {printable('; '.join(reasons))}")
    console.say("training can work" + (", and so can evaluation" if found.scored else ""))
