"""ResNets as torchvision names them, which timm, torchreid and IBN-Net do too."""

from __future__ import annotations

from reid_fast.models.checkpoints.layout import BACKBONE, Layout

LAYOUTS = (
    Layout(
        name="ResNet under torchvision's names",
        mark=r"layer\d\.\d+\.conv1\.",
        used={"": BACKBONE},
        left_out={
            "fc.": "classifier",  # of torchvision and timm; in torchreid's resnet50_fc512 an embedding layer
            "classifier.": "classifier",  # torchreid's
        },
    ),
)
