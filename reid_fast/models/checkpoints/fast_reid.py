"""fast-reid's `Baseline`: a backbone, heads, and the pixel statistics of its images."""

from __future__ import annotations

from reid_fast.models.checkpoints.layout import BACKBONE, NECK, POOL, Layout

_LEFT_OUT = {
    "heads.weight": "classifier",
    "heads.classifier.": "classifier",
    "pixel_mean": "pixel statistics",
    "pixel_std": "pixel statistics",
}
# JDAI-CV/fast-reid, modeling/backbones/resnet.py: MaxPool2d(3, stride=2, ceil_mode=True), so without padding.
_NOTE = "fast-reid's max-pooling of ResNets lies one pixel further down and right, so features differ slightly"

LAYOUTS = (
    Layout(
        name="fast-reid checkpoint with an embedding layer",
        mark=r"heads\.bottleneck\.1\.",
        used={"backbone.": BACKBONE, "heads.pool_layer.": POOL},
        left_out=_LEFT_OUT | {"heads.bottleneck.0.": "embedding layer", "heads.bottleneck.1.": "neck behind it"},
        note=f"features are those before the embedding layer; {_NOTE}",
    ),
    Layout(
        name="fast-reid checkpoint",
        mark=r"heads\.(bottleneck|bnneck|weight|classifier)",
        # `bnneck` in older versions, whose heads were one class for each kind
        used={"backbone.": BACKBONE, "heads.bottleneck.0.": NECK, "heads.bnneck.": NECK, "heads.pool_layer.": POOL},
        left_out=_LEFT_OUT,
        note=_NOTE,
    ),
)
