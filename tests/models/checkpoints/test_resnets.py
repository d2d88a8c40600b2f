"""Files of published code through `load_weights`, against what its own module computes."""

import pytest
import torch
import torch.nn.functional as F
from published_layouts import (
    TORCHVISION,
    average,
    below,
    bn,
    by_formula,
    gem,
    images,
    in_sequence,
    linear,
    normed,
    resnet,
    resnet_shapes,
)

from reid_fast.models.archs import ARCHS, Options
from reid_fast.models.archs.resnet import BasicBlock, Bottleneck, ResNetArch
from reid_fast.models.encoder import Encoder
from reid_fast.models.weights import load_weights

D, WIDE = 64, 256  # features of a ResNet of basic blocks, of bottlenecks
SEQUENCE = in_sequence("base", 0, 1, 4, 5, 6, 7)
CAP = in_sequence("resnet_conv", 0, 1, 3, 4, 5, 6)


@pytest.fixture(autouse=True)
def small_archs(monkeypatch):
    layers = (2, 1, 1, 1)
    monkeypatch.setitem(ARCHS, "basic", ResNetArch(BasicBlock, layers, width=8))
    monkeypatch.setitem(ARCHS, "wide", ResNetArch(Bottleneck, layers, width=8))
    monkeypatch.setitem(ARCHS, "ibn", ResNetArch(Bottleneck, layers, width=8, ibn=True))


def loaded(path, arch, content, **options):
    """The encoder with what a file of this content holds, in evaluation."""
    torch.save(content, path / "file.pth")
    torch.manual_seed(0)
    pooling = options.pop("pooling", "avg")
    encoder = Encoder(arch, pooling, options=Options(**options))
    load_weights(encoder, arch, str(path / "file.pth"))
    return encoder.eval()


@torch.no_grad()
def assert_computes(encoder, expected):
    """`expected`: [B, D] features that are not normalised."""
    assert F.pdist(F.normalize(expected)).min() > 1e-3  # the images are told apart
    torch.testing.assert_close(encoder(images()), F.normalize(expected), atol=1e-5, rtol=0)


def with_prefix(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_torchvision(tmp_path):
    state = by_formula(resnet_shapes(TORCHVISION, bottleneck=True) | linear("fc", WIDE, 1000))
    encoder = loaded(tmp_path, "wide", state)
    assert_computes(encoder, average(resnet(state, TORCHVISION, images())))
    assert (
        encoder.origin == f"ResNet under torchvision's names, {len(state) - 2} tensors used; left out: classifier (2)"
    )


def test_ibn_net_and_torchreid(tmp_path):
    state = by_formula(resnet_shapes(TORCHVISION, bottleneck=True, ibn=True) | linear("classifier", WIDE, 751))
    encoder = loaded(tmp_path, "ibn", {"state_dict": with_prefix(state, "module."), "epoch": 60, "rank1": 0.9})
    assert_computes(encoder, average(resnet(state, TORCHVISION, images())))


@pytest.mark.parametrize(("arch", "shape"), [("wide", {"bottleneck": True}), ("basic", {})])
def test_cluster_contrast_spcl_and_ice(tmp_path, arch, shape):
    width = WIDE if arch == "wide" else D
    state = by_formula(resnet_shapes(SEQUENCE, **shape) | bn("feat_bn", width))
    content = {"state_dict": with_prefix(state, "module."), "epoch": 50, "best_mAP": torch.tensor(0.83).numpy()[()]}
    encoder = loaded(tmp_path, arch, content)
    assert_computes(encoder, normed(state, "feat_bn", average(resnet(state, SEQUENCE, images()))))
    assert encoder.origin == f"Cluster Contrast, SpCL or ICE checkpoint, {len(state)} tensors used"


def test_cluster_contrast_with_gem_and_a_classifier(tmp_path):
    state = by_formula(resnet_shapes(SEQUENCE) | bn("feat_bn", D) | linear("classifier", D, 9, bias=False))
    state["gap.p"] = torch.tensor([2.3])
    encoder = loaded(tmp_path, "basic", state, pooling="gem")
    assert_computes(encoder, normed(state, "feat_bn", gem(resnet(state, SEQUENCE, images()), 2.3)))
    assert encoder.origin.endswith("; left out: classifier (1)")


def test_an_embedding_layer_of_the_wrappers_is_left_out_with_its_neck(tmp_path):
    state = by_formula(resnet_shapes(SEQUENCE) | linear("feat", D, 16) | bn("feat_bn", 16))
    encoder = loaded(tmp_path, "basic", state)
    assert_computes(encoder, average(resnet(state, SEQUENCE, images())))
    assert encoder.origin.endswith(
        "left out: embedding layer (2), neck behind it (5); features are those before the embedding layer"
    )


DOMAINS = {
    "SpCL": ("BN_S", "BN_T"),
    "IDM": ("BN_S", "BN_T", "BN_mix"),
    "OpenUnReID": ("dsbn.0", "dsbn.1"),
    "others": ("S_bn", "T_bn"),
}


@pytest.mark.parametrize("copies", DOMAINS.values(), ids=DOMAINS)
def test_of_batch_norm_by_domain_the_targets_is_taken(tmp_path, copies):
    plain = resnet_shapes(SEQUENCE, bottleneck=True, ibn=True) | bn("feat_bn", WIDE)
    shapes, norms = {}, 0
    for name, shape in plain.items():
        layer, _, key = name.rpartition(".")
        domains = copies if f"{layer}.running_mean" in plain else ("",)
        shapes |= {".".join(filter(None, (layer, domain, key))): shape for domain in domains}
        norms += len(domains) > 1
    state = by_formula(shapes)
    encoder = loaded(tmp_path, "ibn", {"state_dict": with_prefix(state, "module.")})
    assert_computes(encoder, normed(state, "feat_bn", average(resnet(state, SEQUENCE, images()))))
    assert encoder.origin.endswith(f"left out: BatchNorm of other domains ({norms * (len(copies) - 1)})")


def test_cap(tmp_path):
    shapes = resnet_shapes(CAP, bottleneck=True) | bn("bottleneck", WIDE)
    state = by_formula(shapes | linear("embeding_memo", WIDE, 8) | bn("embeding_memo_bn", 8))
    encoder = loaded(tmp_path, "wide", with_prefix(state, "module."), stem_relu=False)
    expected = resnet(state, CAP, images(), stem_relu=False)
    assert_computes(encoder, normed(state, "bottleneck", average(expected)))
    assert "left out: embedding layer of training (7)" in encoder.origin
    assert "--no-stem-relu" in encoder.origin


def test_strong_baseline(tmp_path):
    names = below("base")
    shapes = resnet_shapes(names) | bn("bottleneck", D)
    state = by_formula(shapes | linear("base.fc", D, 10) | linear("classifier", D, 751, bias=False))
    encoder = loaded(tmp_path, "basic", state)
    assert_computes(encoder, normed(state, "bottleneck", average(resnet(state, names, images()))))
    assert encoder.origin.endswith("left out: classifier (3)")


FAST_REID = {
    "EmbeddingHead": ("heads.bottleneck.0", {"heads.weight": (751, D)}),
    "BNneckHead": ("heads.bnneck", linear("heads.classifier", D, 751, bias=False)),
}


@pytest.mark.parametrize(("neck", "classifier"), FAST_REID.values(), ids=FAST_REID)
def test_fast_reid(tmp_path, neck, classifier):
    names = below("backbone")
    pixels = {"pixel_mean": (1, 3, 1, 1), "pixel_std": (1, 3, 1, 1)}
    state = by_formula(resnet_shapes(names) | bn(neck, D) | classifier | pixels)
    state["heads.pool_layer.p"] = torch.tensor([3.7])
    encoder = loaded(tmp_path, "basic", {"model": state, "iteration": 9}, pooling="gem")
    # Its max-pooling is without padding, which the encoder has not: see the line that is said of it.
    assert_computes(encoder, normed(state, neck, gem(resnet(state, names, images()), 3.7)))
    assert "left out: classifier (1), pixel statistics (2)" in encoder.origin
    assert "max-pooling" in encoder.origin


def test_an_embedding_layer_of_fast_reid_is_left_out_with_its_neck(tmp_path):
    names = below("backbone")
    shapes = {"heads.bottleneck.0.weight": (16, D, 1, 1)} | bn("heads.bottleneck.1", 16)
    state = by_formula(resnet_shapes(names) | shapes)
    encoder = loaded(tmp_path, "basic", {"model": state})
    assert_computes(encoder, average(resnet(state, names, images())))
    assert "left out: embedding layer (1), neck behind it (5)" in encoder.origin


@pytest.mark.parametrize("through", ["folder", "file", "file alone"])
def test_a_run_folder_gives_back_its_encoder(tmp_path, through):
    from reid_fast.run_folder import export

    torch.manual_seed(1)
    trained = Encoder("basic", "gem", options=Options(stem_relu=False))
    state = by_formula({name: tuple(tensor.shape) for name, tensor in trained.state_dict().items()})
    state["pool.p"] = torch.tensor([2.5])
    trained.load_state_dict(state)
    description = {"height": 64, "width": 32, "mean": [0.5, 0.4, 0.3], "stem_relu": False}
    export(tmp_path, state, description)
    if through == "file alone":
        (tmp_path / "model.json").unlink()
    path = tmp_path if through == "folder" else tmp_path / "model.safetensors"
    encoder = Encoder("basic", "gem", options=Options(stem_relu=False))
    load_weights(encoder, "basic", str(path))
    assert_computes(encoder.eval(), trained.eval().necked(trained.pooled(images())))
    said = f"encoder of reid-fast, {len(state)} tensors used"
    if through != "file alone":
        said += "; made for images of 64×32 with mean 0.5, 0.4, 0.3; it was trained without the stem's ReLU"
        said += ", as --no-stem-relu computes"
    assert encoder.origin == said
