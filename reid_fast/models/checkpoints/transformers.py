"""Vision transformers: timm's names, which DeiT, DINO and TransReID-SSL share, and DINO's pairs of networks."""

from __future__ import annotations

from reid_fast.models.checkpoints.layout import BACKBONE, NECK, Layout

_HEADS = {
    "head.": "classifier",
    "head_dist.": "classifier of the distillation token",
    "dist_token": "distillation token",
    "pre_logits.": "layer before the classifier",
    "fc.": "classifier",
    "classifier.": "classifier",
}

LAYOUTS = (
    # facebookresearch/dino, `MultiCropWrapper`: a network and its projection head.
    Layout(
        name="DINO checkpoint",
        mark=r"head\.(mlp|last_layer)\.",
        used={"backbone.": BACKBONE},
        left_out={"head.": "projection head"},
    ),
    # damo-cv/TransReID-SSL, cluster-contrast-reid: `TransReID` is the network with its neck, `bottleneck`.
    Layout(
        name="ViT under timm's names",
        mark=r"(patch_embed|blocks\.\d+)\.",
        used={"": BACKBONE, "bottleneck.": NECK},
        left_out=_HEADS,
    ),
    # damo-cv/TransReID-SSL, transreid_pytorch: the network is `base`, pretrained heads and all.
    Layout(
        name="TransReID checkpoint",
        mark=r"base\.(patch_embed|blocks\.\d+)\.",
        used={"base.": BACKBONE, "bottleneck.": NECK},
        left_out={"classifier.": "classifier"} | {f"base.{name}": what for name, what in _HEADS.items()},
    ),
)
