"""Exported files against the encoder they come from: under onnxruntime, by names, through the readers of other code."""

import json
import sys
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from inputs import refused, sampled
from safetensors import safe_open
from torch import nn

from reid_fast import run_folder
from reid_fast.__main__ import main as reid_fast
from reid_fast.command_line import parse
from reid_fast.evaluate import describe, load_encoder
from reid_fast.export import onnx_file
from reid_fast.models.archs import ARCHS, Arch, Backbone, Options
from reid_fast.models.archs.resnet import BasicBlock, ResNetArch
from reid_fast.models.encoder import Encoder
from reid_fast.models.norm import GroupedBatchNorm2d
from reid_fast.models.weights import load_weights

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALVES = ([0.5] * 3, [0.5] * 3)


class Pooling(Backbone):
    """What makes features itself, as OSNet and ViTs do."""

    pools, c_out = True, 12

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = GroupedBatchNorm2d(8)
        self.fc = nn.Sequential(nn.Linear(8, 12))

    def forward(self, x):
        return self.fc(self.bn1(self.conv1(x), relu=True).mean((2, 3)))


class Counting(Pooling):
    """What knows its batch as a number of Python's."""

    def forward(self, x):
        return super().forward(x) + torch.zeros(1, 12).expand(len(x), -1)


@dataclass(frozen=True, kw_only=True)
class PoolingArch(Arch):
    backbone: type[Pooling] = Pooling

    def build(self, options):
        return self.backbone()


@pytest.fixture(scope="module", autouse=True)
def archs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "tiny_ibn", ResNetArch(BasicBlock, (1, 1, 1, 1), width=8, ibn=True))
        patch.setitem(ARCHS, "osnet_x0_1", PoolingArch())
        patch.setitem(ARCHS, "counting", PoolingArch(backbone=Counting))
        yield


@pytest.fixture
def exported(tmp_path):
    """A run folder's encoder, none of whose numbers is a default: (folder, encoder, description)."""

    def of(arch, height=48, width=24, normalised=IMAGENET, **options):
        flags = ["--arch", arch, "--weights", "none", "--height", str(height), "--width", str(width)]
        config, _ = parse([*flags, *(text for pair in options.items() for text in pair)])
        torch.manual_seed(0)
        encoder = Encoder(arch, config.pooling_type, options=Options((height, width), config.stem_relu))
        for name, value in encoder.state_dict().items():
            if name.endswith("running_mean") or name.endswith("bias"):
                value.normal_(0, 0.2)
            elif name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.uniform_(0.5, 1.5)
        description = describe(config) | {"mean": normalised[0], "std": normalised[1]}
        run_folder.export(tmp_path, encoder.state_dict(), description)
        return tmp_path, encoder.eval(), description

    return of


def pixels(count, height, width):
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def normalised(images, mean, std):
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W], as torchvision's ToTensor and Normalize do."""
    return ((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def test_an_onnx_file_makes_the_features_of_the_encoder_of_any_number_of_images(exported, capsys):
    folder, encoder, description = exported("tiny_ibn", **{"--pooling-type": "gem"})
    reid_fast(["export", str(folder), "--to", "onnx", "--normalise", "inside"])
    said = " ".join(capsys.readouterr().out.split())
    assert "images [B, 3, 48, 24] float32 (RGB in 0..1) to features [B, 64], of norm 1" in said
    assert "checked under onnxruntime" in said
    path = folder / "model.onnx"
    for count in (1, 7):
        images = pixels(count, 48, 24)
        with torch.no_grad():
            expected = encoder(torch.from_numpy(normalised(images, *IMAGENET)))
        plain = (images / 255).transpose(0, 3, 1, 2).astype(np.float32)
        np.testing.assert_allclose(run(path, plain), expected.numpy(), atol=1e-5)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (norm,) = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert "encoder.neck.weight" in norm.input  # all others lie in the convolutions
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["encoder"]) == json.loads(json.dumps(description))
    assert json.loads(said["expects"])["std"] == [1, 1, 1]
    assert not list(folder.glob(".*.part"))


FAMILIES = ("tiny_osnet", 64, 32), ("tiny_ics", 32, 16)
WHOLE = ("osnet_x0_25", 64, 32), ("osnet_ain_x1_0", 64, 32), ("vit_small_ics", 32, 16)


@pytest.mark.usefixtures("tiny_arch")
@pytest.mark.parametrize(("arch", "height", "width"), sampled([*FAMILIES, *WHOLE], FAMILIES[1]))
def test_onnx_of_the_other_families(exported, arch, height, width):
    folder, encoder, description = exported(arch, height, width)
    reid_fast(["export", str(folder), "--to", "onnx"])
    for count in (1, 5):
        images = normalised(pixels(count, height, width), description["mean"], description["std"])
        with torch.no_grad():
            expected = encoder(torch.from_numpy(images))
        np.testing.assert_allclose(run(folder / "model.onnx", images), expected.numpy(), atol=1e-4)


def test_boxmot_gets_what_it_feeds_whatever_the_encoder_was_trained_on(exported, capsys):
    folder, encoder, _ = exported("osnet_x0_1", 256, 128, HALVES)
    reid_fast(["export", str(folder), "--to", "boxmot"])
    images = pixels(3, 256, 128)
    fed = normalised(images, *IMAGENET)  # by BoxMOT, whose features are then L2-normalised
    with torch.no_grad():
        expected = encoder(torch.from_numpy(normalised(images, *HALVES))).numpy()
    found = run(folder / "osnet_x0_25_reid_fast.onnx", fed)
    np.testing.assert_allclose(found / np.linalg.norm(found, axis=-1, keepdims=True), expected, atol=1e-5)


@pytest.mark.parametrize("difference", [1e-3, float("nan")])
def test_a_file_that_makes_other_features_is_not_put_in_place(exported, capsys, monkeypatch, difference):
    folder, *_ = exported("osnet_x0_1")
    (folder / "model.onnx").write_bytes(b"the one before")
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: difference)
    assert "makes other features of the exported file" in refused(capsys, reid_fast, "export", folder)
    assert (folder / "model.onnx").read_bytes() == b"the one before"


def test_a_file_for_one_number_of_images_is_not_put_in_place(exported, capsys):
    folder, *_ = exported("counting")
    assert "counting was exported for 2 images at a time alone" in refused(capsys, reid_fast, "export", folder)
    assert not (folder / "model.onnx").exists()


def test_the_check_sees_a_wrong_weight(exported):
    folder, encoder, description = exported("osnet_x0_1")
    other, _ = load_encoder(folder)
    onnx_file.write_onnx(folder / "model.onnx", encoder, description, onnx_file.IMAGENET)
    next(other.backbone.parameters()).data[0, 0, 0, 0] += 0.5
    content, same = (folder / "model.onnx").read_bytes(), (onnx_file.IMAGENET, onnx_file.IMAGENET)
    assert onnx_file._difference(onnxruntime, content, encoder, (48, 24), *same) < 1e-5
    assert onnx_file._difference(onnxruntime, content, other, (48, 24), *same) > 1e-4


def torchvision_resnet(block, layers):
    """Names and shapes of torchvision's ResNet without fc, written from its documentation's structure."""
    norm = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    shapes = {"conv1.weight": (64, 3, 7, 7)}

    def add_norm(name, channels):
        shapes.update({f"{name}.{part}": () if part.endswith("tracked") else (channels,) for part in norm})

    add_norm("bn1", 64)
    expansion = {"basic": 1, "bottleneck": 4}[block]
    channels = 64
    for stage, count in enumerate(layers):
        width = 64 << stage
        for i in range(count):
            at = f"layer{stage + 1}.{i}"
            convs = [(width, 3), (width, 3)] if block == "basic" else [(width, 1), (width, 3), (4 * width, 1)]
            before = channels
            for number, (out, kernel) in enumerate(convs, 1):
                shapes[f"{at}.conv{number}.weight"] = (out, before, kernel, kernel)
                add_norm(f"{at}.bn{number}", out)
                before = out
            if channels != width * expansion or (stage and i == 0):
                shapes[f"{at}.downsample.0.weight"] = (width * expansion, channels, 1, 1)
                add_norm(f"{at}.downsample.1", width * expansion)
            channels = width * expansion
    return shapes


def test_torchvision_finds_its_names_and_the_engine_reads_them_back(exported, tmp_path, capsys):
    folder, encoder, _ = exported("resnet18")
    reid_fast(["export", str(folder), "--to", "torchvision", "-o", str(tmp_path / "mine.pth")])
    assert "without fc: its last stage has stride 1 here" in " ".join(capsys.readouterr().out.split())
    state = torch.load(tmp_path / "mine.pth", weights_only=True)
    assert {name: tuple(value.shape) for name, value in state.items()} == torchvision_resnet("basic", (2, 2, 2, 2))
    again = Encoder("resnet18")
    load_weights(again, "resnet18", str(tmp_path / "mine.pth"))
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[name], value), name


@pytest.mark.parametrize(("arch", "layers"), [("resnet50", (3, 4, 6, 3)), ("resnet101", (3, 4, 23, 3))])
def test_the_larger_resnets_have_torchvisions_names(arch, layers):
    with torch.device("meta"):
        state = Encoder(arch).backbone.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == torchvision_resnet("bottleneck", layers)


def test_torchreid_gets_the_names_of_an_osnet_and_the_features_before_the_neck(exported, capsys):
    folder, encoder, _ = exported("osnet_x0_1")
    reid_fast(["export", str(folder), "--to", "torchreid"])
    assert "torchreid has no BNNeck" in capsys.readouterr().out
    state = torch.load(folder / "osnet_x0_1-torchreid.pth", weights_only=True)
    assert set(state) == set(Pooling().state_dict())
    theirs = Pooling().eval()
    theirs.load_state_dict(state)
    images = torch.from_numpy(normalised(pixels(2, 48, 24), *IMAGENET))
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), encoder.pooled(images))


def test_one_safetensors_file_has_everything(exported):
    folder, encoder, description = exported("resnet18_half")
    reid_fast(["export", str(folder), "--to", "safetensors"])
    with safe_open(folder / "resnet18_half.safetensors", "pt") as file:
        assert json.loads(file.metadata()["encoder"]) == json.loads(json.dumps(description))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    again = Encoder("resnet18_half", "gem")
    again.load_state_dict(tensors)
    images = torch.from_numpy(normalised(pixels(2, 48, 24), *IMAGENET))
    with torch.no_grad():
        assert torch.equal(again.eval()(images), encoder(images))


@pytest.mark.parametrize(
    ("arch", "flags", "sentence"),
    [
        ("resnet18_half", ["--to", "torchvision"], "torchvision has no resnet18_half"),
        ("resnet18", ["--to", "torchreid"], "torchreid's ResNets have stride 2"),
        ("tiny_ibn", ["--to", "torchreid"], "torchreid has no tiny_ibn"),
        ("tiny_ibn", ["--to", "boxmot"], "BoxMOT cuts boxes to 256×128 and this encoder takes 48×24"),
        ("tiny_ibn", ["--to", "safetensors", "--normalise", "inside"], "--normalise inside is for --to onnx"),
        ("tiny_ibn", ["-o", "nowhere/model.onnx"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be(exported, capsys, arch, flags, sentence):
    folder, *_ = exported(arch)
    before = set(folder.iterdir())
    assert sentence in refused(capsys, reid_fast, "export", folder, *flags)
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("name", ["mine.onnx", "resnet50.pt", "osnet_x1_0_veri.onnx"])
def test_a_name_that_boxmot_would_misread(exported, capsys, tmp_path, name):
    folder, *_ = exported("tiny_ibn", 256, 128)
    sentence = refused(capsys, reid_fast, "export", folder, "--to", "boxmot", "-o", tmp_path / name)
    assert f"would not take {name}: name it such as osnet_x0_25_reid_fast.onnx" in sentence


def test_folders_and_packages_that_are_not_there(exported, capsys, tmp_path, monkeypatch):
    assert "there is no run folder" in refused(capsys, reid_fast, "export", tmp_path / "nothing")
    folder, *_ = exported("tiny_ibn")
    assert f"{tmp_path} is a folder" in refused(capsys, reid_fast, "export", folder, "-o", tmp_path)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    sentence = refused(capsys, reid_fast, "export", folder)
    assert sentence == "error: ONNX files need onnxscript: pip install 'reid-fast[onnx]'"
