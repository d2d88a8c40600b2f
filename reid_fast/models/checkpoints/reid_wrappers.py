"""The unsupervised systems' wrappers around torchvision's ResNet: its parts in a sequence, a neck behind them."""

from __future__ import annotations

from reid_fast.models.checkpoints.layout import BACKBONE, NECK, POOL, WITHOUT_STEM_RELU, Layout


def _stages(sequence: str, parts: dict[int, str]) -> dict[str, str]:
    return {f"{sequence}.{place}.": f"{BACKBONE}{part}." for place, part in parts.items()}


# `ResNet.base` of alibaba/cluster-contrast-reid, yxgeee/SpCL and chenhao2345/ICE; 2 and 3 are ReLU and max-pooling.
_BASE = _stages("base", {0: "conv1", 1: "bn1", 4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"})
# `MemoryBankModel.resnet_conv` of Terminator8758/CAP-master has no ReLU, so later parts stand one place earlier.
_RESNET_CONV = _stages("resnet_conv", {0: "conv1", 1: "bn1", 3: "layer1", 4: "layer2", 5: "layer3", 6: "layer4"})

LAYOUTS = (
    Layout(
        name="Cluster Contrast, SpCL or ICE checkpoint with an embedding layer",
        mark=r"feat\.",
        used=_BASE | {"gap.": POOL},
        left_out={"feat.": "embedding layer", "feat_bn.": "neck behind it", "classifier.": "classifier"},
        note="features are those before the embedding layer",
    ),
    Layout(
        name="Cluster Contrast, SpCL or ICE checkpoint",
        mark=r"base\.\d\.",
        used=_BASE | {"feat_bn.": NECK, "gap.": POOL},
        left_out={"classifier.": "classifier"},
    ),
    Layout(
        name="CAP checkpoint",
        mark=r"resnet_conv\.\d\.",
        used=_RESNET_CONV | {"bottleneck.": NECK},
        left_out={
            "embeding_memo.": "embedding layer of training",
            "embeding_memo_bn.": "embedding layer of training",
            "classifier.": "classifier",
        },
        note=WITHOUT_STEM_RELU,
    ),
    # `Backbone` of TransReID's transreid_pytorch, and of the strong baseline that it descends from.
    Layout(
        name="strong-baseline checkpoint",
        mark=r"base\.(conv1|layer\d)\.",
        used={"base.": BACKBONE, "bottleneck.": NECK},
        left_out={"classifier.": "classifier", "base.fc.": "classifier"},
    ),
)
