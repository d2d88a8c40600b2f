"""Clusters and ranked lists as pictures of a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from reid_fast.data.sets import picture
from reid_fast.pages import shown, thumbnail
from reid_fast.report.clusters import Cluster, Member
from reid_fast.report.mistakes import Found, Mistake
from reid_fast.report.seen import Seen

_HEIGHT = 104  # pixels of a thumbnail
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def cluster_section(seen: Seen) -> str:
    """The clusters, or why there are none."""
    if isinstance(seen.clusters, str):
        return f'<p class="muted">{shown(seen.clusters)}</p>'
    return "\n".join(_clusters(seen))


def _clusters(seen: Seen) -> Iterator[str]:
    found = seen.clusters
    assert not isinstance(found, str)
    kinds = ("pure", found.pure, found.pure_count), ("mixed", found.mixed, found.mixed_count)
    if found.unknown:
        behind = f"behind epoch {seen.epoch - 1}"
        yield f"<p>The largest clusters found {behind}. The identities of these images are not known.</p>"
        yield from map(_cluster, found.unknown)
        return
    yield (
        f"<p>The clusters found behind epoch {seen.epoch - 1}: {found.pure_count:,} of one person and "
        f"{found.mixed_count:,} of several, by the identities of the training images, which training does not see. "
        "In each, A is the person with the most images; frames of others are dashed. Cameras count from 1.</p>"
    )
    for kind, some, number in kinds:
        if some:
            yield f"<h3>The largest {kind} clusters: {len(some)} of {number:,}</h3>"
            yield from map(_cluster, some)


def _cluster(cluster: Cluster) -> str:
    people = ", ".join(f"{images} of {_letter(rank)}" for rank, images in enumerate(cluster.identities[:6]))
    more = f" and {len(cluster.identities) - 6} more people" if len(cluster.identities) > 6 else ""
    of = f": {people}{more}" if len(cluster.identities) > 1 else ""
    cameras = f", {cluster.cameras} cameras" if cluster.cameras else ""
    told = len(cluster.identities) > 0
    images = "".join(_member(one, told) for one in cluster.members)
    return f'<p>Cluster {cluster.label}, {cluster.images} images{cameras}{of}</p>\n<div class="images">{images}</div>'


def _member(one: Member, told: bool) -> str:
    kind = "" if not told or one.identity < 0 else "right" if one.identity == 0 else "wrong"
    person = _letter(one.identity) if one.identity >= 0 else "?" if told else ""
    return _image(one.path, kind, " ".join(filter(None, (person, _camera(one.camera)))))


def _letter(rank: int) -> str:
    return _LETTERS[rank] if rank < len(_LETTERS) else f"#{rank + 1}"


def _camera(number: int) -> str:
    return f"cam {number + 1}" if number >= 0 else ""


def mistake_section(seen: Seen) -> str:
    """The ranked lists, or why there are none."""
    if isinstance(seen.mistakes, str):
        return f'<p class="muted">{shown(seen.mistakes)}</p>'
    if not seen.mistakes:
        return "<p>None: the first image of every query is of the same person.</p>"
    rule = (
        "<p>Queries of the test set whose first correct image comes last, with what comes before it. Images of the "
        "query's person from its own camera are hidden, as the field's rule has it. Dashed frames are mistakes; below "
        "each image stand its camera, from 1, and its similarity to the query.</p>"
    )
    return "\n".join([rule, *map(_mistake, seen.mistakes)])


def _mistake(mistake: Mistake) -> str:
    first = next(found.rank for found in mistake.found if found.right)
    said = f"first correct at rank {first}, AP {100 * mistake.average_precision:.1f} %, {mistake.matches} to be found"
    query = _image(mistake.path, "query", " ".join(filter(None, ("query", _camera(mistake.camera)))))
    images = "".join(map(_found, mistake.found))
    return f'<p><code>{shown(mistake.path.name)}</code>: {said}</p>\n<div class="images">{query}{images}</div>'


def _found(found: Found) -> str:
    camera = _camera(found.camera)
    verdict = "right" if found.right else "wrong"
    caption = " ".join(filter(None, (f"{found.rank}:", verdict, camera, f"{found.similarity:.3f}")))
    return _image(found.path, verdict, caption)


def _image(path: Path, kind: str, caption: str) -> str:
    name, of = shown(path.name), f' class="{kind}"' if kind else ""
    source = _thumbnail(path)
    said = shown(caption)
    return (
        f'<figure{of}><img src="{source}" alt="{said}: {name}" title="{name}"><figcaption>{said}</figcaption></figure>'
    )


def _thumbnail(path: Path) -> str:
    return thumbnail(picture(path), _HEIGHT)
