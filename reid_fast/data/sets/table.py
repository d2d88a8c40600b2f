"""The `folder` set as a table that lists its images: CSV or Parquet."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from reid_fast.data.sets.numbering import Numbering
from reid_fast.data.sets.paths import Paths
from reid_fast.data.sets.records import ImageSet, ReidSet
from reid_fast.errors import UserError

_COLUMNS = ("path", "cam", "pid")
_REPORTED = 1024  # rows between reports
Row: TypeAlias = tuple[int, tuple[str | None, ...]]  # its number in the file; path, cam, pid


def load_table(file: Path, *, progress: Callable[[int, None], None] | None = None) -> ReidSet:
    """The images that a table lists, as a training split; there is no query or gallery.

    Args:
        file: CSV in UTF-8 whose first line names its columns, or Parquet. The column `path` names images, relative to
            the table's own folder or absolute; `cam` and `pid` may be missing. Cameras and identities are any texts or
            numbers, numbered from 0 in the sorted order of their texts; an empty cell is unknown. Other columns are
            passed over.
        progress: called with (rows read so far, None).

    Raises:
        UserError: not such a table, no rows, an image that is missing or listed twice: with the line (of a Parquet
            file, the row, from 1).
    """
    rows = _parquet_rows(file) if file.suffix.lower() == ".parquet" else _csv_rows(file)
    texts, lines, cams, pids = _columns(file, rows, progress)
    if not texts:
        raise UserError(f"{file} lists no images: write one a line, behind a first line path,cam,pid")
    order = np.array(sorted(range(len(texts)), key=texts.__getitem__))
    paths = Paths.of(texts[row] for row in order)
    _refuse_repeated(file, paths, lines, order)
    train = ImageSet(paths, pids.numbers()[order], cams.numbers()[order])
    return ReidSet("folder", train, None, None, "table", file)


def _columns(
    file: Path, rows: Iterable[Row], progress: Callable[[int, None], None] | None
) -> tuple[list[str], array[int], Numbering, Numbering]:
    """Path and line of every row, cameras and identities."""
    texts: list[str] = []
    lines, cams, pids = array("q"), Numbering(), Numbering()
    for line, (path, cam, pid) in rows:
        if not path:
            raise UserError(f"{file}:{line} names no image: give it a path or remove the line")
        image = file.parent / path
        if not os.path.isfile(image):
            raise UserError(f"{file}:{line} names {image}, which is missing: restore it or remove the line")
        texts.append(str(image))
        lines.append(line)
        cams.add(cam or None)
        pids.add(pid or None)
        if progress is not None and len(texts) % _REPORTED == 0:
            progress(len(texts), None)
    return texts, lines, cams, pids


def _refuse_repeated(file: Path, paths: Paths, lines: array[int], order: np.ndarray) -> None:
    before = None
    for place, text in enumerate(paths.texts()):
        if text == before:
            first, second = sorted(lines[row] for row in order[place - 1 : place + 1])
            raise UserError(f"{file}:{second} names {text}, which line {first} has already: remove one of them")
        before = text


def _csv_rows(file: Path) -> Iterator[Row]:
    try:
        with open(file, "rb") as content:
            reader = csv.reader(_lines(file, content), skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(reader, [])]
            at = [header.index(name) if name in header else None for name in _known(file, header)]
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{file}:{reader.line_num} has {len(cells)} cells below {len(header)} columns: "
                        "mend the line, with quotes around a comma"
                    )
                if cells:
                    yield reader.line_num, tuple(None if i is None else cells[i].strip() for i in at)
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num} is not CSV ({error}): mend the line") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from None


def _lines(file: Path, content: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(content, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{file}:{number} is not UTF-8: save the table in that encoding") from None


def _parquet_rows(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{file} needs the extra: pip install 'reid-fast[parquet]', or save the table as CSV") from None
    try:
        with parquet.ParquetFile(file) as table:
            known = _known(file, table.schema_arrow.names)
            present = [name for name in known if name in table.schema_arrow.names]
            number = 0
            for batch in table.iter_batches(columns=present):
                columns = {name: batch.column(name).to_pylist() for name in present}
                nothing = [None] * batch.num_rows
                for values in zip(*(columns.get(name, nothing) for name in known), strict=True):
                    number += 1
                    yield number, tuple(map(_text, values))
    except UserError:  # which is a ValueError too
        raise
    except (pyarrow.ArrowException, OSError, OverflowError, ValueError) as error:  # the latter from Python's own types
        reason = str(error).split("\n")[0]
        raise UserError(f"{file} is not a whole Parquet file ({reason}): write it again, or as CSV") from None


def _text(value: Any) -> str | None:
    return None if value is None or value != value else str(value)  # NaN, pandas' empty cell, is unlike itself


def _known(file: Path, header: list[str]) -> tuple[str, ...]:
    """The columns that are read, once it is clear that the file has the first."""
    if "path" not in header:
        raise UserError(f"{file}:1 names no column `path`: its columns must be path and, if known, cam and pid")
    return _COLUMNS
