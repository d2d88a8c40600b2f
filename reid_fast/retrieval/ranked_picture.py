"""Ranked lists as one picture."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from reid_fast.retrieval.shown_lists import ShownLists, pictures

_HEIGHT, _WIDTH = 160, 80  # of an image's box, in pixels
_FRAME, _GAP, _TEXT = 4, 8, 18  # thickness of a frame; between boxes; of a line of text
_DASH = 9
_INK, _PAPER, _PANEL = "#1a1c20", "#ffffff", "#f4f5f7"
_FRAMES = {"right": "#14803c", "wrong": "#c62828", "unknown": "#d5d9df", "query": "#1f5fbf"}


def ranked_picture(lists: ShownLists, queries: int) -> Image.Image:
    """The lists of some queries, evenly spread over all: a row each, the query first, its matches behind it.

    The right person has a solid green frame, another one a dashed red frame; below stands the similarity. Names are not
    written, so that any font will do.

    Args:
        lists: all of them.
        queries: at most so many are shown.
    """
    chosen = lists.chosen(queries)
    step, row = _WIDTH + 2 * _FRAME + _GAP, _HEIGHT + 2 * _FRAME + _GAP + _TEXT
    k = lists.index.shape[1]
    sheet = Image.new("RGB", ((1 + k) * step + 2 * _GAP, len(chosen) * row + _TEXT + 2 * _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, text in enumerate(["query", *map(str, range(1, k + 1))]):
        draw.text((_x(column) + step // 2 - _GAP, _GAP), text, _INK, font, anchor="mt")
    for line, query in enumerate(chosen):
        top = _GAP + _TEXT + line * row
        matches = lists.matches(query)
        asked = pictures(lists.query.paths, [query])
        found = pictures(lists.gallery.paths, [match.row for match in matches])
        for column, (_, image) in enumerate((*asked, *found)):
            match = matches[column - 1] if column else None
            _paste(sheet, image, _x(column), top)
            _frame(draw, _x(column), top, match.verdict if match else "query")
            if match:
                middle = _x(column) + _FRAME + _WIDTH // 2
                draw.text((middle, top + _HEIGHT + 2 * _FRAME + 3), f"{match.similarity:.3f}", _INK, font, anchor="mt")
    return sheet


def _x(column: int) -> int:
    """The left edge of a column; behind the query there is room for a glance."""
    return _GAP + column * (_WIDTH + 2 * _FRAME + _GAP) + (_GAP if column else 0)


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """The whole image in the middle of its box."""
    scale = min(_WIDTH / image.width, _HEIGHT / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    box = Image.new("RGB", (_WIDTH, _HEIGHT), _PANEL)
    box.paste(image.resize(size, Image.Resampling.BICUBIC), ((_WIDTH - size[0]) // 2, (_HEIGHT - size[1]) // 2))
    sheet.paste(box, (left + _FRAME, top + _FRAME))


def _frame(draw: ImageDraw.ImageDraw, left: int, top: int, kind: str) -> None:
    right, bottom = left + _WIDTH + 2 * _FRAME - 1, top + _HEIGHT + 2 * _FRAME - 1
    if kind != "wrong":
        draw.rectangle((left, top, right, bottom), outline=_FRAMES[kind], width=_FRAME)
        return
    for x in range(left, right, 2 * _DASH):
        for y in (top, bottom - _FRAME + 1):
            draw.rectangle((x, y, min(x + _DASH, right), y + _FRAME - 1), _FRAMES[kind])
    for y in range(top, bottom, 2 * _DASH):
        for x in (left, right - _FRAME + 1):
            draw.rectangle((x, y, x + _FRAME - 1, min(y + _DASH, bottom)), _FRAMES[kind])
