"""Files of timm, DeiT, DINO and TransReID-SSL through `load_weights`, against what the definition computes."""

import json

import pytest
import torch
import torch.nn.functional as F
from published_layouts import bn, by_formula, images, instance_norm, linear, normed

from reid_fast.errors import UserError
from reid_fast.models.archs import ARCHS, Options
from reid_fast.models.archs.vit import ViTArch
from reid_fast.models.checkpoints import resized
from reid_fast.models.encoder import Encoder
from reid_fast.models.weights import load_weights
from reid_fast.run_folder import export

D, DEPTH, HEADS = 48, 2, 3
SIZE = (64, 32)  # of the images here: 4×2 patches


@pytest.fixture(autouse=True)
def small_archs(monkeypatch):
    monkeypatch.setitem(ARCHS, "vit", ViTArch(D, DEPTH, HEADS))
    monkeypatch.setitem(ARCHS, "vit_ics", ViTArch(D, DEPTH, HEADS, stem=True))


def vit_shapes(positions, stem=False):
    shapes = {"cls_token": (1, 1, D), "pos_embed": (1, positions, D)}
    if stem:
        shapes |= {f"patch_embed.conv.{i}.weight": (64, c, k, k) for i, c, k in ((0, 3, 7), (3, 64, 3), (6, 64, 3))}
        for i in (1, 4):
            shapes |= instance_norm(f"patch_embed.conv.{i}.IN", 32) | bn(f"patch_embed.conv.{i}.BN", 32)
        shapes |= bn("patch_embed.conv.7", 64)
    shapes |= {"patch_embed.proj.weight": (D, 64, 8, 8) if stem else (D, 3, 16, 16), "patch_embed.proj.bias": (D,)}
    for i in range(DEPTH):
        block = f"blocks.{i}"
        shapes |= instance_norm(f"{block}.norm1", D) | instance_norm(f"{block}.norm2", D)  # LayerNorms have the same
        shapes |= linear(f"{block}.attn.qkv", D, 3 * D) | linear(f"{block}.attn.proj", D, D)
        shapes |= linear(f"{block}.mlp.fc1", D, 4 * D) | linear(f"{block}.mlp.fc2", 4 * D, D)
    return shapes | instance_norm("norm", D)


def vit(state, x, positions):
    """The class token of a pre-norm transformer: [B, 3, H, W] and [1, 1 + n, D] -> [B, D]."""

    def layer_norm(x, name):
        return F.layer_norm(x, (D,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def dense(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    if "patch_embed.conv.0.weight" in state:
        for i in (0, 3, 6):
            kernel = state[f"patch_embed.conv.{i}.weight"]
            x = F.conv2d(x, kernel, stride=2 if i == 0 else 1, padding=kernel.shape[-1] // 2)
            x = normed(state, f"patch_embed.conv.{i + 1}", x).relu()
    kernel = state["patch_embed.proj.weight"]
    x = F.conv2d(x, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(x), 1, D), x], dim=1) + positions
    for i in range(DEPTH):
        block = f"blocks.{i}"
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in dense(layer_norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=2)
        )
        weights = (q @ k.transpose(2, 3) / (D / HEADS) ** 0.5).softmax(dim=-1)
        x = x + dense((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + dense(F.gelu(dense(layer_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    return layer_norm(x, "norm")[:, 0]


def at_size(positions, h, w):
    """[1, 1 + h·w, D] -> [1, 1 + 4·2, D]."""
    maps = positions[0, 1:].T.reshape(1, D, h, w)
    patches = F.interpolate(maps, size=(4, 2), mode="bilinear").reshape(D, 8).T
    return torch.cat([positions[:, :1], patches[None]], dim=1)


def loaded(path, arch, content):
    torch.save(content, path / "file.pth")
    torch.manual_seed(0)
    encoder = Encoder(arch, options=Options(SIZE))
    load_weights(encoder, arch, str(path / "file.pth"))
    return encoder.eval()


@torch.no_grad()
def assert_computes(encoder, expected):
    assert F.pdist(F.normalize(expected)).min() > 1e-3
    torch.testing.assert_close(encoder(images()), F.normalize(expected), atol=1e-5, rtol=0)


def with_prefix(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def test_timm_pretrained_on_squares(tmp_path):
    state = by_formula(vit_shapes(1 + 196) | linear("head", D, 1000))
    encoder = loaded(tmp_path, "vit", state)
    assert_computes(encoder, vit(state, images(), at_size(state["pos_embed"], 14, 14)))
    assert encoder.origin == (
        f"ViT under timm's names, {len(state) - 2} tensors used; left out: classifier (2); "
        "position grid 14×14 resized to 4×2"
    )


def test_a_distilled_deit(tmp_path):
    shapes = vit_shapes(2 + 196) | {"dist_token": (1, 1, D)} | linear("head", D, 10) | linear("head_dist", D, 10)
    state = by_formula(shapes)
    encoder = loaded(tmp_path, "vit", {"model": state})
    positions = torch.cat([state["pos_embed"][:, :1], state["pos_embed"][:, 2:]], dim=1)
    assert_computes(encoder, vit(state, images(), at_size(positions, 14, 14)))
    assert "distillation token (1), classifier (2), classifier of the distillation token (2)" in encoder.origin


@pytest.mark.parametrize(("arch", "stem"), [("vit", False), ("vit_ics", True)])
def test_dino_pretrained_on_people(tmp_path, arch, stem):
    state = by_formula(vit_shapes(1 + 128, stem))
    head = by_formula(linear("head.mlp.0", D, 16) | linear("head.last_layer", 16, 99, bias=False))
    teacher = with_prefix(with_prefix(state, "backbone.") | head, "module.")
    encoder = loaded(tmp_path, arch, {"student": teacher, "teacher": teacher, "epoch": 100})
    assert_computes(encoder, vit(state, images(), at_size(state["pos_embed"], 16, 8)))
    assert encoder.origin.startswith(f"DINO checkpoint, {len(state)} tensors used; left out: projection head (3)")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_transreid_ssl_trained_with_cluster_contrast(tmp_path, prefix):
    state = by_formula(vit_shapes(1 + 8, stem=True) | bn("bottleneck", D))
    encoder = loaded(tmp_path, "vit_ics", {"state_dict": with_prefix(state, prefix), "best_mAP": 0.9})
    assert_computes(encoder, normed(state, "bottleneck", vit(state, images(), state["pos_embed"])))
    assert encoder.origin == f"ViT under timm's names, {len(state)} tensors used"


def test_transreid_fine_tuned(tmp_path):
    network = by_formula(vit_shapes(1 + 128) | linear("fc", D, 1000))
    rest = by_formula(bn("bottleneck", D) | linear("classifier", D, 751, bias=False))
    encoder = loaded(tmp_path, "vit", with_prefix(network, "base.") | rest)
    assert_computes(encoder, normed(rest, "bottleneck", vit(network, images(), at_size(network["pos_embed"], 16, 8))))
    assert "TransReID checkpoint" in encoder.origin
    assert "left out: classifier (3)" in encoder.origin


def test_positions_of_no_known_grid_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"192 positions.*--height and --width"):
        loaded(tmp_path, "vit", by_formula(vit_shapes(1 + 192)))


def test_a_run_folder_knows_its_grid(tmp_path):
    state = by_formula(vit_shapes(1 + 192) | bn("neck", D))
    tensors = {name if name.startswith("neck.") else f"backbone.{name}": tensor for name, tensor in state.items()}
    export(tmp_path, tensors, {"height": 384, "width": 128, "mean": [0.5, 0.5, 0.5], "stem_relu": True})
    encoder = Encoder("vit", options=Options(SIZE))
    load_weights(encoder, "vit", str(tmp_path))
    assert_computes(encoder.eval(), normed(state, "neck", vit(state, images(), at_size(state["pos_embed"], 24, 8))))
    (tmp_path / "model.json").write_text(json.dumps({"arch": "vit"}))
    with pytest.raises(UserError, match=r"model\.json lacks height, width, mean, stem_relu; restore"):
        load_weights(encoder, "vit", str(tmp_path))


def test_as_many_patches_that_lie_otherwise_are_resized(tmp_path):
    lying, standing = (Encoder("vit", options=Options(size)) for size in ((32, 64), (64, 32)))
    export(tmp_path, lying.state_dict(), {"height": 32, "width": 64, "mean": [0.5, 0.5, 0.5], "stem_relu": True})
    load_weights(standing, "vit", str(tmp_path))
    positions = resized(lying.backbone.pos_embed, (2, 4), (4, 2))
    assert not torch.equal(positions, lying.backbone.pos_embed)
    torch.testing.assert_close(standing.backbone.pos_embed, positions)
