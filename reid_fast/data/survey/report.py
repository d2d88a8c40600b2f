"""A survey for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.markup import escape
from rich.table import Table

from reid_fast.data.sets import Paths
from reid_fast.data.survey.facts import Duplicate, Fault, SplitFacts, Spread, Survey
from reid_fast.errors import printable


def findings(found: Survey) -> Table:
    """A table of what was found, beside `counts_table`: how many of each, and the first one."""
    table = Table("finding", title=escape(printable(found.data.root)))
    table.add_column("", justify="right")
    table.add_column("the first one", overflow="fold")
    for name, value, example in _rows(found):
        table.add_row(name, value, escape(printable(example)))
    return table


def _rows(found: Survey) -> Iterator[tuple[str, str, object]]:
    for facts in found.splits:
        if facts.per_identity is not None:
            yield f"images of an identity, {facts.counts.split}", _shown(facts.per_identity), ""
    for name, spread in (("height in pixels", found.heights), ("width in pixels", found.widths)):
        if spread is not None:
            yield name, _shown(spread), ""
    yield "names that do not parse", *_faults(found.unparsed)
    yield "unreadable images", *_faults(found.unreadable)
    for name, some in _kinds(found.duplicates):
        yield name, f"{len(some):,}", " = ".join(map(str, some[0].paths[:2])) if some else ""
    for facts in found.splits:
        if facts.per_identity is not None and facts.counts.split != "query":
            yield f"identities of one camera, {facts.counts.split}", *_paths(facts.one_camera)
    if found.scored is not None:
        yield "queries with a match", f"{found.scored:,}", ""
        yield "queries without a match", *_paths(found.unmatched)


def _kinds(duplicates: Iterable[Duplicate]) -> Iterator[tuple[str, list[Duplicate]]]:
    """Groups of equal files, and those among them that do harm."""
    every = list(duplicates)
    yield "groups of equal files", every
    yield "of them in several splits", [one for one in every if len(one.splits) > 1]
    yield "of them under several identities", [one for one in every if one.contradictory]


def _shown(spread: Spread) -> str:
    return f"{spread.least:,} to {spread.most:,}, median {spread.median:,g}"


def _faults(faults: tuple[Fault, ...]) -> tuple[str, str]:
    return f"{len(faults):,}", f"{faults[0].path} ({faults[0].reason})" if faults else ""


def _paths(paths: Paths) -> tuple[str, object]:
    return f"{len(paths):,}", paths[0] if len(paths) else ""


def to_json(found: Survey) -> dict[str, Any]:
    """Everything, as JSON's types; a path whose name is not UTF-8 as `os.fsdecode` has it."""
    return {
        "dataset": found.data.name,
        "layout": found.data.layout,
        "root": str(found.data.root),
        "splits": {facts.counts.split: _split(facts) for facts in found.splits},
        "heights": found.heights and found.heights._asdict(),
        "widths": found.widths and found.widths._asdict(),
        "unparsed": [{"path": str(fault.path), "reason": fault.reason} for fault in found.unparsed],
        "unreadable": [{"path": str(fault.path), "reason": fault.reason} for fault in found.unreadable],
        "duplicates": [
            {"paths": list(one.paths.texts()), "splits": list(one.splits), "contradictory": one.contradictory}
            for one in found.duplicates
        ],
        "queries_scored": found.scored,
        "queries_without_match": list(found.unmatched.texts()),
        "training": list(found.training),
        "evaluation": list(found.evaluation),
    }


def _split(facts: SplitFacts) -> dict[str, Any]:
    counts = facts.counts
    return {
        "images": counts.images,
        "identities": counts.identities,
        "cameras": counts.cameras,
        "published": None
        if counts.published_images is None
        else {
            "images": counts.published_images,
            "identities": counts.published_identities,
            "cameras": counts.published_cameras,
        },
        "images_per_identity": facts.per_identity and facts.per_identity._asdict(),
        "identities_of_one_camera": list(facts.one_camera.texts()),
    }
