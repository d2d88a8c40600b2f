"""Ranked lists as a page."""

from __future__ import annotations

from PIL import Image

from reid_fast.pages import page, shown, thumbnail
from reid_fast.retrieval.shown_lists import Match, ShownLists, Verdict, pictures

_HEIGHT = 256  # of a thumbnail in the file, in pixels; shown at half of it, so that it is sharp on fine screens
_MARKS: dict[Verdict, str] = {"right": "✓", "wrong": "✗", "unknown": ""}
_STYLE = """
.list {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(5rem, 1fr)); gap: .75rem;
  margin: .5rem 0 1.5rem; padding: 0; list-style: none;
}
figure { margin: 0; }
figure img {
  display: block; height: 8rem; width: 100%; object-fit: contain; padding: 3px;
  border: 4px solid transparent; border-radius: 4px; background: var(--panel);
}
.query img { border-color: var(--accent); }
.right img { border-color: var(--right); }
.wrong img { border: 4px dashed var(--wrong); }
figcaption { font-size: .75rem; line-height: 1.35; overflow-wrap: anywhere; }
figcaption bdi { display: block; max-height: 5.4em; overflow: hidden; }
figcaption b { display: flex; justify-content: space-between; font-size: .8rem; }
.right b { color: var(--right); }
.wrong b { color: var(--wrong); }
"""


def ranked_page(lists: ShownLists, title: str, queries: int) -> str:
    """The lists of some queries, evenly spread over all, as one self-contained page.

    Args:
        lists: all of them.
        title: of the page.
        queries: at most so many are shown.
    """
    chosen = lists.chosen(queries)
    total = len(lists.query)
    some = f"All {total:,}" if len(chosen) == total else f"{len(chosen):,} of {total:,}"
    said = [f"{some} queries, searched for in {len(lists.gallery):,} gallery images. {lists.rule}"]
    if lists.identities_known:
        right, known = lists.first_right()
        said.append(
            f"The first image shows the right person for {right:,} of {known:,} queries of known identity. "
            "A solid frame and ✓ mark the right person, a dashed frame and ✗ another one."
        )
    said.append("Below an image: its rank, the cosine similarity of its features to the query's, its name.")
    intro = "".join(f'<p class="muted">{shown(text)}</p>\n' for text in said)
    return page(title, intro + "\n".join(_list(lists, query) for query in chosen), _STYLE)


def _list(lists: ShownLists, query: int) -> str:
    ((name, image),) = pictures(lists.query.paths, [query])
    asked = (
        f'<li class="query"><figure><img src="{thumbnail(image, _HEIGHT)}" alt="query {shown(name)}">'
        f'<figcaption><b>query</b><bdi title="{shown(name)}">{shown(name)}</bdi></figcaption></figure></li>'
    )
    matches = lists.matches(query)
    found = pictures(lists.gallery.paths, [match.row for match in matches])
    items = [_item(match, *picture) for match, picture in zip(matches, found, strict=True)]
    nothing = [] if items else ["<li>no image is left for it to be searched in</li>"]
    return f'<ol class="list">\n{chr(10).join([asked, *items, *nothing])}\n</ol>'


def _item(match: Match, name: str, image: Image.Image) -> str:
    verdict = "" if match.verdict == "unknown" else f", {match.verdict}"
    alt = f"rank {match.rank}{verdict}: {shown(name)}"
    return (
        f'<li class="{match.verdict}"><figure><img src="{thumbnail(image, _HEIGHT)}" alt="{alt}">'
        f"<figcaption><b><span>{match.rank} {_MARKS[match.verdict]}</span><span>{match.similarity:.3f}</span></b>"
        f'<bdi title="{shown(name)}">{shown(name)}</bdi></figcaption></figure></li>'
    )
