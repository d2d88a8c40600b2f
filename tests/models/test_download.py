"""The download of weights, from servers that break off, stall, lie, lead elsewhere or send something else."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request

import numpy as np
import pytest

from reid_fast.errors import UserError
from reid_fast.models import download

CONTENT = np.random.default_rng(0).bytes(300_000)
HALF = len(CONTENT) // 2
NAME = f"weights-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Answers each request with the next of its replies, the last one again and again."""

    daemon_threads = True
    replies = ()
    asked = ()

    def ask(self, *replies):
        """Download to `path` from these replies."""
        self.replies, self.asked = list(replies), []
        download.download(self.url, self.path)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append(self.headers["Range"])
        (server.replies.pop(0) if len(server.replies) > 1 else server.replies[0])(self)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PATIENCE", 0.3)
    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{server.server_port}/{NAME}"
        server.path = tmp_path / "checkpoints" / NAME
        yield server
        server.shutdown()


def reply(content, status=200, length=None, **headers):
    """A reply of these bytes, which says `length` of them (None: the truth, "": nothing), and then ends."""

    def send(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if length != "":
            handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.end_headers()
        handler.wfile.write(content)

    return send


def rest(handler):
    """A good server's reply, to a range or without."""
    start = int((handler.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    ranged = {"status": 206, "Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
    reply(CONTENT[start:], **ranged)(handler)


def stall(handler):
    reply(CONTENT[:HALF], length=len(CONTENT))(handler)
    time.sleep(1)


def not_http(handler):
    handler.wfile.write(b"hello\n")


def endless(handler):
    reply(b"", length="")(handler)
    for _ in range(50):
        handler.wfile.write(CONTENT)


whole, broken = reply(CONTENT), reply(CONTENT[:HALF], length=len(CONTENT))


@pytest.mark.parametrize(
    ("replies", "asked"),
    {  # by what happens; requests with the ranges they ask for
        "at once": ([whole], [None]),
        "without a length": ([reply(CONTENT, length="")], [None]),
        "broken off": ([broken, rest], [None, f"bytes={HALF}-"]),
        "broken off in a chunk": (
            [reply(b"8\r\n" + CONTENT[:8] + b"\r\nffff\r\nxx", length="", Transfer_Encoding="chunked"), whole],
            None,
        ),
        "stalled": ([stall, rest], [None, f"bytes={HALF}-"]),
        "from a server without ranges": ([broken, whole], [None, f"bytes={HALF}-"]),
        "another part": ([broken, reply(CONTENT[9:], 206, Content_Range="bytes 9-299999/300000"), whole], None),
        "no such range": ([reply(CONTENT + b"more", length=len(CONTENT) + 9), reply(b"", 416), whole], None),
        "a part of another file": ([reply(bytes(HALF), length=len(CONTENT)), rest, rest], None),
        "length is nonsense": ([reply(CONTENT, length="abc")], [None]),
        "moved": ([reply(b"", 302, Location="/elsewhere"), whole], [None, None]),
    }.values(),
)
def test_the_file_is_whole_in_the_end(server, replies, asked):
    server.ask(*replies)
    assert server.path.read_bytes() == CONTENT
    assert list(server.path.parent.iterdir()) == [server.path]
    if asked is not None:
        assert server.asked == asked


@pytest.mark.parametrize(
    ("replies", "said", "left"),
    [
        ([reply(b"<html>log in</html>")], "its SHA-256 is", 0),
        ([reply(CONTENT[:-1] + b"x")], "its SHA-256 is", 0),
        ([reply(CONTENT, length=HALF)], "its SHA-256 is", 0),
        ([reply(b"", 404)], "HTTP Error 404", 0),
        ([broken, reply(b"", 503)], "HTTP Error 503", HALF),
        ([broken, reply(b"", length=HALF)], "broke off", 0),
        ([stall, stall], "timed out|broke off", HALF),
        ([not_http], "hello", 0),
        ([endless], "more than", 0),
        ([reply(b"", 302, Location="ftp://127.0.0.1/weights")], "leads from http to ftp", 0),
        ([reply(b"", 302, Location="http://[::1/weights")], "could not download", 0),
        ([reply(b"", 302, Location="/round")], "redirect", 0),
    ],
)
def test_what_fails_is_one_sentence_and_leaves_no_file_that_looks_whole(server, monkeypatch, replies, said, left):
    monkeypatch.setattr(download, "_LARGEST", 4 * len(CONTENT))
    with pytest.raises(UserError, match=said) as caught:
        server.ask(*replies)
    assert "\n" not in str(caught.value)
    assert str(server.path) in str(caught.value)
    assert not server.path.exists()
    assert sum(path.stat().st_size for path in server.path.parent.iterdir()) == left


def test_the_next_call_goes_on_from_what_has_come(server):
    with pytest.raises(UserError):
        server.ask(broken, reply(b"", 503))
    server.ask(rest)
    assert server.asked == [f"bytes={HALF}-"]
    assert server.path.read_bytes() == CONTENT


def test_of_two_at_once_one_downloads(server, capsys):
    def slow(handler):
        time.sleep(0.2)
        whole(handler)

    with ThreadPoolExecutor(2) as two:  # locks belong to the opened file, in one process as in two
        server.replies, server.asked = [slow], []
        list(two.map(lambda _: download.download(server.url, server.path), range(2)))
    assert server.asked == [None]
    assert "another process downloads" in capsys.readouterr().out


def test_without_a_network_or_a_folder_the_sentence_says_where_the_file_belongs(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "file").touch()
    for path, url in ((tmp_path / NAME, "http://127.0.0.1:9/x"), (tmp_path / "file" / NAME, "http://127.0.0.1:9/x")):
        with pytest.raises(UserError, match=f"put it at {path}"):
            download.download(url, path)
    assert not (tmp_path / NAME).exists()


def test_https_is_not_left():
    for url in ("http://there/x", "ftp://there/x", "file:///etc/passwd"):
        with pytest.raises(URLError, match="leads from https"):
            download._SameProtocol().redirect_request(Request("https://here/x"), None, 302, "", {}, url)


def test_every_published_file_has_its_sha256_in_its_name():
    from reid_fast.models.archs import ARCHS

    urls = [arch.weights for arch in ARCHS.values() if arch.weights]
    assert all(url.startswith("https://") and int(download._digits(Path(url)), 16) for url in urls)
