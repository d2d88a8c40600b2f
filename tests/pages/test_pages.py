"""Pages: nothing from outside is more than text in them, and they need nothing from outside."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from reid_fast.pages import page, shown, thumbnail, visible

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "'quoted' & \"double\"",
    "two\nlines\tand a tab\r\0",
    "evil\u202egpj.exe",
    "isolated \u2066 and \u2069, marks \u200e\u200f\u061c",
    "zero\u200bwidth\ufeff",
    "soft\xadhyphen, separators \u2028\u2029",
    "bytes \udcff\udc80 that are no UTF-8",
    "</title></style></body>",
    "&lt;b&gt; {curly} %s",
]


class Parsed(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def as_seen(name: str) -> str:
    """What `visible` promises a reader, said anew: printable characters and spaces as they are."""
    return "".join(c if c.isprintable() else f"⟨U+{ord(c):04X}⟩" for c in name)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_nothing_but_its_text(name: str) -> None:
    source = page(name, f"<p>{shown(name)}</p><img alt=\"{shown(name)}\" src='{shown(name)}'>")
    source.encode()  # names that are not UTF-8 have become text
    parsed = Parsed(source)
    assert parsed.tags == ["html", "head", "meta", "meta", "meta", "title", "style", "body", "h1", "p", "img"]
    assert dict(parsed.attributes)["alt"] == as_seen(name) == visible(name)
    assert dict(parsed.attributes)["src"] == as_seen(name) == visible(name)
    assert parsed.text.count(as_seen(name)) == 3


def test_what_hides_or_turns_text_is_made_visible() -> None:
    assert visible("a\u202eb\nc\udcff") == "a⟨U+202E⟩b⟨U+000A⟩c⟨U+DCFF⟩"


def test_what_people_write_stays() -> None:
    for text in ("0002_c1s1_000451_03.jpg", "Ünïcode 人物 שלום 👤", "a  b"):
        assert shown(text) == text


def test_a_page_refers_to_nothing_and_lets_nothing_run() -> None:
    parsed = Parsed(page("title", ""))
    policy = next(value for key, value in parsed.attributes if key == "content" and "default-src" in (value or ""))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert not {"link", "script", "iframe", "base"} & set(parsed.tags)
    assert not {"src", "href"} & {key for key, _ in parsed.attributes}
    assert "url(" not in parsed.text
    assert "@import" not in parsed.text
    assert "http" not in parsed.text


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@pytest.mark.parametrize(("size", "height", "expected"), [((200, 100), 50, (25, 50)), ((30, 20), 64, (20, 30))])
def test_a_thumbnail_keeps_the_aspect_ratio_and_never_grows(size, height, expected) -> None:
    pixels = np.full((*size, 3), (200, 30, 90), np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).convert("RGBA")):
        small = decoded(thumbnail(image, height))
        assert small.size == expected
        assert np.abs(np.asarray(small, int) - (200, 30, 90)).max() <= 3


def test_a_line_stays_a_line() -> None:
    assert decoded(thumbnail(Image.new("RGB", (2, 900)), 64)).size == (1, 64)


def test_a_thumbnail_carries_nothing_but_pixels() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", comment=b"where I live", exif=b"Exif\0\0secret")
    uri = thumbnail(Image.open(buffer), 64)
    content = base64.b64decode(uri.partition(",")[2])
    assert b"where I live" not in content
    assert b"secret" not in content
