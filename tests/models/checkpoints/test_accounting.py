"""Every tensor of a file is used, left out for a reason, or named in an error; none that is needed may lack."""

import random
import re

import pytest
import torch
from published_layouts import TORCHVISION, below, bn, by_formula, in_sequence, linear, resnet_shapes

from reid_fast.errors import UserError
from reid_fast.models.archs import ARCHS, Options
from reid_fast.models.archs.resnet import BasicBlock, ResNetArch
from reid_fast.models.checkpoints import checkpoint as reader
from reid_fast.models.checkpoints import read_checkpoint
from reid_fast.models.encoder import Encoder
from reid_fast.models.weights import load_weights

D = 64
SEQUENCE = in_sequence("base", 0, 1, 4, 5, 6, 7)
FILES = {
    "torchvision": resnet_shapes(TORCHVISION) | linear("fc", D, 10),
    "Cluster Contrast": resnet_shapes(SEQUENCE) | bn("feat_bn", D) | linear("classifier", D, 9) | {"gap.p": (1,)},
    "embedding layer": resnet_shapes(SEQUENCE) | linear("feat", D, 16) | bn("feat_bn", 16),
    "CAP": resnet_shapes(in_sequence("resnet_conv", 0, 1, 3, 4, 5, 6))
    | bn("bottleneck", D)
    | linear("embeding_memo", D, 8)
    | bn("embeding_memo_bn", 8),
    "strong baseline": resnet_shapes(below("base")) | bn("bottleneck", D) | linear("classifier", D, 9),
    "fast-reid": resnet_shapes(below("backbone"))
    | bn("heads.bottleneck.0", D)
    | {"heads.weight": (9, D), "heads.pool_layer.p": (1,), "pixel_mean": (1, 3, 1, 1), "pixel_std": (1, 3, 1, 1)},
    "reid-fast": resnet_shapes(below("backbone")) | bn("neck", D) | {"pool.p": (1,)},
}


@pytest.fixture(scope="module")
def encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "basic", ResNetArch(BasicBlock, (2, 1, 1, 1), width=8))
        yield Encoder("basic", "gem")


@pytest.mark.parametrize("shapes", FILES.values(), ids=FILES)
def test_every_tensor_of_a_file_is_used_or_left_out_for_a_reason(encoder, tmp_path, shapes):
    torch.save(by_formula(shapes), tmp_path / "file.pth")
    found = read_checkpoint(tmp_path / "file.pth")
    assert sorted([*found.names.values(), *found.left_out]) == sorted(shapes)
    assert found.names.keys() == found.tensors.keys() <= encoder.state_dict().keys()
    assert all(found.left_out.values())
    assert len(found.left_out) < len(shapes) / 8


DAMAGES = ("missing", "unknown", "of another shape")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("shapes", FILES.values(), ids=FILES)
def test_a_damaged_file_is_refused_with_the_name_or_the_damage_was_to_what_is_left_out(
    encoder, tmp_path, monkeypatch, shapes, damage
):
    (tmp_path / "file.pth").touch()
    whole = by_formula(shapes)
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    monkeypatch.setattr(reader, "read_tensors", lambda path: whole)
    left_out = read_checkpoint(tmp_path / "file.pth").left_out
    for name in random.Random(0).sample(list(shapes), 8):
        state = dict(whole)
        if damage == "missing":
            del state[name]
            harmless = name in left_out or name.endswith(("num_batches_tracked", "gap.p", "pool_layer.p", "pool.p"))
        elif damage == "unknown":
            beside, name = name, name.rpartition(".")[0] + ".more"
            state[name] = torch.ones(3)
            harmless = beside in left_out and "." in beside
        else:
            state[name] = torch.ones(2, 3, 5)
            harmless = name in left_out
        monkeypatch.setattr(reader, "read_tensors", lambda path, state=state: state)
        if harmless:
            load_weights(encoder, "basic", str(tmp_path / "file.pth"))
            encoder.load_state_dict(before)
            continue
        with pytest.raises(UserError, match=rf"{damage}: {re.escape(name)}[);]"):
            load_weights(encoder, "basic", str(tmp_path / "file.pth"))
        assert all(torch.equal(before[key], tensor) for key, tensor in encoder.state_dict().items())


def test_a_file_of_another_architecture_names_the_one_that_fits(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHS, "other", ResNetArch(BasicBlock, (2, 1, 1, 1), width=4))
    torch.save(by_formula(FILES["Cluster Contrast"]), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"does not fit --arch other .*: take --arch basic$"):
        load_weights(Encoder("other", "gem"), "other", str(tmp_path / "file.pth"))


def test_a_value_that_is_not_finite_is_refused_with_its_tensor(encoder, tmp_path):
    state = by_formula(FILES["Cluster Contrast"])
    state["base.4.0.conv2.weight"][1, 2, 0, 0] = torch.nan
    state["classifier.weight"][0, 0] = torch.inf  # left out
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"\(not finite: base\.4\.0\.conv2\.weight\)"):
        load_weights(encoder, "basic", str(tmp_path / "file.pth"))


def test_a_transformers_file_names_its_architecture_to_a_resnet(encoder, tmp_path):
    vit = Encoder("vit_small_ics", options=Options((32, 16)))
    torch.save(vit.backbone.state_dict(), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"ViT under timm's names.*: take --arch vit_small_ics$"):
        load_weights(encoder, "basic", str(tmp_path / "file.pth"))


def test_a_file_with_gem_pooling_names_the_flag(encoder, tmp_path):
    torch.save(by_formula(FILES["Cluster Contrast"]), tmp_path / "file.pth")
    with pytest.raises(UserError, match="GeM pooling: add --pooling-type gem"):
        load_weights(Encoder("basic"), "basic", str(tmp_path / "file.pth"))


def test_two_names_of_one_tensor_are_refused_with_both(tmp_path):
    torch.save(by_formula(FILES["fast-reid"] | bn("heads.bnneck", D)), tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"both heads\.bottleneck\.0\.weight and heads\.bnneck\.weight"):
        read_checkpoint(tmp_path / "file.pth")


def test_a_copy_of_another_domain_without_the_targets_is_unknown(encoder, tmp_path):
    state = by_formula(FILES["Cluster Contrast"])
    state = {name.replace("base.1.", "base.1.BN_S."): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"missing: base\.1\.weight.*unknown: base\.1\.BN_S\.weight"):
        load_weights(encoder, "basic", str(tmp_path / "file.pth"))
