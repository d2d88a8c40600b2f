"""OSNet as torchreid names it: its model zoo, and what BoxMOT takes from there."""

from __future__ import annotations

from reid_fast.models.checkpoints.layout import BACKBONE, Layout

LAYOUTS = (
    Layout(
        name="OSNet under torchreid's names",
        mark=r"conv[234]\.\d\.conv2(a|\.\d)\.",  # streams a to d, in osnet_ain 0 to 3
        used={"": BACKBONE},
        left_out={"classifier.": "classifier"},
    ),
)
