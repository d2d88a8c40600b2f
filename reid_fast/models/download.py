"""A file from the network, whole or not at all: the only place of the project that asks a server for something."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, BinaryIO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from reid_fast.console import Console
from reid_fast.errors import UserError, printable

_PATIENCE = 30.0  # seconds without a byte
_TRIES = 5  # requests for one file, as long as each brings more of it
_LARGEST = 2 << 30  # bytes of a file: a server may send without end
_PIECE = 1 << 20


def download(url: str, path: Path) -> None:
    """Bring a file whose name ends in the first digits of its SHA-256, as in NAME-0123ABCD.pth, to its place.

    What has come lies in `.NAME.part` beside it. A connection that breaks off is taken up where it did, a few times by
    this call and then by the next one. Of several processes one downloads, the others wait for it.

    Args:
        url: where the file is.
        path: its place; a folder that is missing is made.

    Raises:
        UserError: no network, a server that stalls, fails, sends something else or leads to another protocol, no room.
    """
    console = Console()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(path, console) as part:
            if part is not None:
                console.say(f"downloading {url} to {path}")
                with console.progress("downloading", "MiB") as report:
                    _fill(part, url, _digits(path), report)
                os.fsync(part.fileno())
                os.replace(part.name, path)
    except (OSError, HTTPException, ValueError) as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__)
        raise UserError(
            f"could not download {url} ({reason}): start again, which goes on from what has come, fetch it elsewhere "
            f"and put it at {path}, or train from scratch with --weights none"
        ) from None


def _digits(path: Path) -> str:
    return path.stem.rsplit("-", 1)[1]


@contextmanager
def _unfinished(path: Path, console: Console) -> Iterator[BinaryIO | None]:
    """What has come of a file, locked for this process; None once the file is whole."""
    name, waiting = path.with_name(f".{path.name}.part"), False
    while not path.is_file():
        with name.open("a+b") as part:
            try:
                fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    console.say(f"another process downloads {path}: waiting for it")
                waiting = True
                fcntl.flock(part, fcntl.LOCK_EX)
            # The process that had it may have renamed or removed it.
            if name.exists() and os.path.samestat(os.fstat(part.fileno()), name.stat()):
                yield part
                return
    yield None


def _fill(part: BinaryIO, url: str, digits: str, report: Callable[..., None]) -> None:
    """
    Raises:
        OSError, HTTPException, ValueError: the file is not complete, or not the one; what is not of it is removed.
    """
    if _complete(part, url, report) and not _sha256(part).startswith(digits):  # perhaps it began as another file
        part.truncate(0)
        _complete(part, url, report)
    if not (found := _sha256(part)).startswith(digits):
        os.unlink(part.name)
        raise OSError(f"its SHA-256 is {found[:16]}… and should begin with {digits}")


def _complete(part: BinaryIO, url: str, report: Callable[..., None]) -> bool:
    """Ask for what is missing until nothing is; whether something had come before the last request."""
    tries = 0
    while True:
        before, tries = _size(part), tries + 1
        try:
            _request(part, url, report)
            return before > 0
        except (OSError, HTTPException):
            if tries == _TRIES or _size(part) == before:
                raise


def _request(part: BinaryIO, url: str, report: Callable[..., None]) -> None:
    """One request for what is missing.

    Raises:
        OSError, HTTPException: it was not answered to the end.
    """
    done = _size(part)
    wanted = {"Range": f"bytes={done}-"} if done else {}
    try:
        response = _OPENER.open(Request(url, headers={"User-Agent": "reid-fast"} | wanted), timeout=_PATIENCE)
    except HTTPError as error:
        if error.code == 416:  # no such range: what has come is no beginning of this file
            part.truncate(0)
        raise
    with response:
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if response.status != 206 or start is None or int(start[1]) != done:
            part.truncate(0)
            if response.status == 206:
                raise OSError("the server sent another part than it was asked for")
            done = 0
        total = None if response.length is None else done + response.length
        while done != total:
            piece = response.read1(_PIECE if total is None else min(_PIECE, total - done))
            if not piece:
                if total is not None:
                    raise OSError("the connection broke off")
                return
            done += len(piece)
            if done > _LARGEST:
                part.truncate(0)
                raise OSError(f"more than {_LARGEST >> 30} GiB came")
            part.write(piece)
            report(done >> 20, total and total >> 20)


def _size(part: BinaryIO) -> int:
    return part.seek(0, os.SEEK_END)


def _sha256(part: BinaryIO) -> str:
    digest = hashlib.sha256()
    part.seek(0)
    while piece := part.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


class _SameProtocol(HTTPRedirectHandler):
    """Follows no redirection from https to something else."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme != req.type:
            raise URLError(f"the server leads from {req.type} to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = build_opener(_SameProtocol)
