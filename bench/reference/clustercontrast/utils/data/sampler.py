"""Batches of identities, each seen by several cameras."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler


class RandomMultipleGallerySampler(Sampler):
    """Of every identity, in random order, an anchor and others: from other cameras where there are any."""

    def __init__(self, data_source: Sequence[tuple[str, int, int]], num_instances: int = 4) -> None:
        self.data_source, self.num_instances = data_source, num_instances
        self.members: dict[int, list[int]] = defaultdict(list)
        for place, (_, pid, _) in enumerate(data_source):
            self.members[pid].append(place)

    def __len__(self) -> int:
        return len(self.members) * self.num_instances

    def __iter__(self) -> Iterator[int]:
        for pid in random.sample(list(self.members), len(self.members)):
            anchor = random.choice(self.members[pid])
            yield anchor
            cam = self.data_source[anchor][2]
            others = [place for place in self.members[pid] if self.data_source[place][2] != cam]
            others = others or [place for place in self.members[pid] if place != anchor]
            wanted = self.num_instances - 1
            enough = len(others) > wanted
            yield from random.sample(others, wanted) if enough else random.choices(others, k=wanted) if others else ()
