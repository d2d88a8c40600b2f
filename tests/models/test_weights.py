"""Pretrained weights: files of several kinds, and ImageNet's."""

import copy

import pytest
import torch

from reid_fast.errors import UserError
from reid_fast.models import weights
from reid_fast.models.archs.resnet import ARCHS, ResNet
from reid_fast.models.encoder import Encoder
from reid_fast.models.weights import load_weights


def saved_like_torchvision(arch):
    torch.manual_seed(1)
    state = ResNet(ARCHS[arch]).state_dict()
    state = {name: torch.rand(t.shape) if t.is_floating_point() else t for name, t in state.items()}
    return state | {"fc.weight": torch.rand(1000, 256), "fc.bias": torch.rand(1000)}


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "data_parallel", "without counters", "safetensors"])
def test_weights_with_torchvisions_names_load(tiny, tmp_path, wrapping):
    state = saved_like_torchvision("resnet18_half")
    path, content = tmp_path / "weights.pth", state
    if wrapping == "state_dict":
        content = {"state_dict": state, "epoch": 3}
    elif wrapping == "data_parallel":
        content = {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    elif wrapping == "without counters":
        content = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    if wrapping == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        torch.save(content, path)
    load_weights(tiny, "resnet18_half", str(path))
    loaded = tiny.backbone.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)


def test_without_weights_the_encoder_stays_as_it_is(tiny):
    before = copy.deepcopy(tiny.state_dict())
    load_weights(tiny, "resnet18_half", "none")
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("layer2.0.conv1.weight"), "missing: layer2.0.conv1.weight"),
        (lambda state: state.update(head=torch.ones(1)), "unknown: head"),
        (lambda state: state.update({"bn1.bias": torch.ones(9)}), "of another shape: bn1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_name(tiny, tmp_path, change, named):
    state = saved_like_torchvision("resnet18_half")
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    before = copy.deepcopy(tiny.state_dict())
    with pytest.raises(UserError, match=named) as caught:
        load_weights(tiny, "resnet18_half", str(tmp_path / "weights.pth"))
    assert "weights.pth" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.state_dict().items())


def test_another_architectures_weights_name_a_few_keys_and_count_the_rest(tiny, tmp_path):
    torch.save(saved_like_torchvision("resnet34"), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"unknown: layer1\.2\.conv1\.weight.* and \d+ more"):
        load_weights(tiny, "resnet18_half", str(tmp_path / "weights.pth"))


def test_a_missing_weights_file_is_named(tiny, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth: there is no such file"):
        load_weights(tiny, "resnet18_half", str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 half an archive"])
def test_a_file_that_holds_no_weights_is_named_in_one_line(tiny, tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"weights\.{suffix} is not a file of") as caught:
        load_weights(tiny, "resnet18_half", str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), {"layer": "text"}, {1: torch.ones(2)}])
def test_a_file_of_something_else_than_weights_is_a_user_error(tiny, tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights\.pth"):
        load_weights(tiny, "resnet18_half", str(tmp_path / "weights.pth"))


def test_imagenet_weights_are_downloaded_once_into_the_hubs_cache(tmp_path, monkeypatch):
    def download(url, path):
        assert url.startswith("https://download.pytorch.org/models/resnet18-")
        assert not path.exists()
        path.parent.mkdir()
        torch.save(saved_like_torchvision("resnet18"), path)

    monkeypatch.setattr(weights, "download", download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for _ in range(2):
        encoder = Encoder("resnet18")
        load_weights(encoder, "resnet18", "imagenet")
        assert torch.equal(encoder.backbone.conv1.weight, saved_like_torchvision("resnet18")["conv1.weight"])
    assert (tmp_path / "checkpoints/resnet18-f37072fd.pth").exists()


def test_an_architecture_without_published_weights_says_so(tiny):
    with pytest.raises(UserError, match="resnet18_half"):
        load_weights(tiny, "resnet18_half", "imagenet")
