"""What was found in a set beside what was published."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from reid_fast.data.sets.known import KNOWN
from reid_fast.data.sets.records import ReidSet


@dataclass(frozen=True)
class CountRow:
    """One split's counts; the published ones are None where there are none."""

    split: str
    identities: int
    images: int
    cameras: int
    published_identities: int | None
    published_images: int | None
    published_cameras: int | None


def count_rows(data: ReidSet) -> list[CountRow]:
    """One row for each split that the set has: train, query, gallery."""
    spec = KNOWN.get(data.name)
    rows = []
    for split, images in data.splits.items():
        published = spec.published[split] if spec else None
        rows.append(
            CountRow(
                split,
                images.identities,
                len(images),
                images.cameras,
                published.identities if published else None,
                published.images if published else None,
                spec.cameras if spec else None,
            )
        )
    return rows


def counts_table(data: ReidSet) -> Table:
    """`count_rows` for the console; unlike what was published: `3,871 of 12,936 published`."""
    table = Table("split", title=f"{data.name} ({data.layout})")
    for column in ("identities", "images", "cameras"):
        table.add_column(column, justify="right")
    for row in count_rows(data):
        table.add_row(
            row.split,
            _beside(row.identities, row.published_identities),
            _beside(row.images, row.published_images),
            _beside(row.cameras, row.published_cameras),
        )
    return table


def _beside(found: int, published: int | None) -> str:
    if published is None or found == published:
        return f"{found:,}"
    return f"{found:,} of {published:,} published"
