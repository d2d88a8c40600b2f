"""Tests marked `gpu` run where there is a CUDA device; elsewhere kernels run in Triton's interpreter."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import GOLDEN
from offline import asked
from PIL import Image

import reid_fast  # noqa: F401  before a test imports what would send telemetry

ROOT = Path(__file__).parents[1]

# Triton decides when a kernel is defined, so this stands before the first kernel import of the whole run.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# oneDNN's AMX kernels (torch 2.13) read past the input of strided convolutions of maps at most two columns wide, which
# the 16 pixels of the tests' images become: see `reid_fast.device.amp_dtype`. It is read before the first kernel.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

# torch notes down once, at the first use, which functions make tensors on the device of a context. Where that is while
# it compiles, it notes down others, and from then on such a context changes nothing.
with torch.device("meta"):
    torch.empty(0)


def pytest_addoption(parser):
    parser.addoption(
        "--thorough", action="store_true", help="also what builds, compiles or times, and each combination"
    )


def pytest_collection_modifyitems(config, items):
    if not config.getoption("thorough"):
        left_out = [item for item in items if "thorough" in item.keywords]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if "thorough" not in item.keywords]
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def offline():
    """Nothing in the test asks a network: see offline.py."""
    yield
    said = list(asked)
    asked.clear()
    assert not said


@pytest.fixture(scope="session")
def shared():
    """Golden values and specifications that lie beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder shared/ does not lie beside the project")
    return folder


@pytest.fixture(scope="session")
def market_folder(tmp_path_factory):
    """Market-1501's layout, tiny: 6 people in training, 3 to look for, 2 cameras, 40×20 pixels."""
    folder = tmp_path_factory.mktemp("market")
    rng = np.random.default_rng(0)
    for part, pids, shots in (
        ("bounding_box_train", range(1, 7), 3),
        ("query", range(7, 10), 1),
        ("bounding_box_test", range(7, 10), 2),
    ):
        (folder / part).mkdir()
        for pid in pids:
            coarse = rng.integers(0, 256, (5, 3, 3), dtype=np.uint8)
            person = Image.fromarray(coarse).resize((20, 40), Image.Resampling.BICUBIC)
            for cam in (1, 2):
                for shot in range(shots):
                    pixels = np.asarray(person, dtype=int) + rng.integers(-20, 21, (40, 20, 3))
                    name = f"{pid:04d}_c{cam}s1_{shot:06d}_00.jpg"
                    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                    image.save(folder / part / name, quality=95)
    return folder


@pytest.fixture(scope="session")
def golden():
    """Features of 200 identities, and the published code's distances and pseudo labels of them."""
    return dict(np.load(GOLDEN))


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """A small set with the layout and the camera count of Market-1501."""
    from reid_fast.data.synthetic import synthetic_folder

    return synthetic_folder(tmp_path_factory.mktemp("people"), train_ids=12, test_ids=4)


@pytest.fixture
def copied(people, tmp_path):
    """The same, to be spoilt."""
    for path in people.rglob("*.jpg"):
        target = tmp_path / "data" / path.relative_to(people)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def tiny_arch():
    """--arch tiny: one block of eight channels a stage; tiny_vit, tiny_ics, tiny_osnet: as small, of other families."""
    from reid_fast.models.archs import ARCHS
    from reid_fast.models.archs.osnet import OSNetArch
    from reid_fast.models.archs.resnet import BasicBlock, ResNetArch
    from reid_fast.models.archs.vit import ViTArch

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHS, "tiny", ResNetArch(BasicBlock, (1, 1, 1, 1), width=8))
        patch.setitem(ARCHS, "tiny_vit", ViTArch(16, depth=2, heads=2))
        patch.setitem(ARCHS, "tiny_ics", ViTArch(16, depth=2, heads=2, stem=True))
        patch.setitem(ARCHS, "tiny_osnet", OSNetArch((8, 64, 64, 64)))
        yield


def save_encoder(folder, seed):
    """An encoder as a run leaves it, of a size that no image of `market_folder` has."""
    from reid_fast import run_folder
    from reid_fast.config import Config
    from reid_fast.evaluate import describe
    from reid_fast.models.encoder import Encoder

    torch.manual_seed(seed)
    encoder = Encoder("resnet18_half")
    encoder(torch.randn(16, 3, 48, 24))  # other running averages than 0 and 1
    run_folder.export(folder, encoder.state_dict(), describe(Config(arch="resnet18_half", height=48, width=24)))
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run folder with an encoder for images of 48×24 pixels."""
    return save_encoder(tmp_path_factory.mktemp("trained"), 0)


@pytest.fixture(scope="session")
def other_trained(tmp_path_factory):
    """The same with other weights."""
    return save_encoder(tmp_path_factory.mktemp("other"), 1)


@pytest.fixture(params=["medium", "high", "allow_tf32", "tf32", "bf16"])
def lowered_precision(request):
    """Float32 products less exact for a test, in one of the ways in which a caller may have chosen that."""
    cuda, cpu = libraries = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    if request.param == "allow_tf32":
        cuda.allow_tf32 = True
    elif request.param in ("medium", "high"):
        torch.set_float32_matmul_precision(request.param)
    else:
        (cuda if request.param == "tf32" else cpu).fp32_precision = request.param
    yield request.param
    for library in libraries:
        library.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for library in libraries:
        library.fp32_precision = "none"
