"""What a family of checkpoints is to the reader: a table of names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BACKBONE, NECK, POOL = "backbone.", "neck.", "pool."  # how names begin in an `Encoder`
WITHOUT_STEM_RELU = "it was trained without the stem's ReLU, as --no-stem-relu computes"  # a layout's note


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a code base names the tensors of an encoder.

    Of the beginnings in `used` and `left_out` the longest that a name has decides.
    """

    name: str  # as the console says it
    mark: str  # a regular expression that matches the beginning of at least one name
    used: Mapping[str, str]  # beginning of a name in the file -> its beginning in an `Encoder`
    left_out: Mapping[str, str] = field(default_factory=dict)  # beginning of a name -> what that is
    note: str = ""  # what the encoder computes otherwise than the published one

    def recognises(self, names: Iterable[str]) -> bool:
        """Whether a file with these names has this layout."""
        mark = re.compile(self.mark)
        return any(mark.match(name) for name in names)

    def reason(self, name: str) -> str | None:
        """What a tensor is that no encoder has a place for; None for one that is used, or not known."""
        return self.left_out.get(self._beginning(name) or "")

    def in_encoder(self, name: str) -> str:
        """The name in an `Encoder`; one that the layout does not know stays."""
        beginning = self._beginning(name)
        return name if beginning is None else self.used[beginning] + name.removeprefix(beginning)

    def in_file(self, name: str) -> str:
        """The name in the file of what an `Encoder` calls `name`."""
        here = [(theirs, ours) for theirs, ours in self.used.items() if name.startswith(ours)]
        theirs, ours = max(here, key=lambda pair: len(pair[1]), default=("", ""))
        return theirs + name.removeprefix(ours)

    def _beginning(self, name: str) -> str | None:
        found = [beginning for beginning in (*self.used, *self.left_out) if name.startswith(beginning)]
        return max(found, key=len, default=None)
