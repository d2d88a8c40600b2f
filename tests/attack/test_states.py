"""Files of a run, of settings and of the cache, spoilt: what is taken is what was written; nothing in them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from inputs import JPEG, encoded, pack, planted, write
from safetensors.torch import save as as_safetensors
from spoilt import spoilt

from reid_fast import run_folder
from reid_fast.commands.report import ReportConfig, report
from reid_fast.config import Config
from reid_fast.console import Console
from reid_fast.data.images.store_file import open_store_file
from reid_fast.data.sets import Manifest, Paths, load_set, place_of
from reid_fast.errors import UserError
from reid_fast.evaluate import load_encoder
from reid_fast.metrics_log import MetricsLog
from reid_fast.models.checkpoints.files import read_tensors
from reid_fast.models.encoder import Encoder
from reid_fast.models.weights import load_weights
from reid_fast.retrieval import load_index, save_index
from reid_fast.settings_file import read_settings

SEEDS = st.integers(0, 2**63)
TENSORS = {"conv1.weight": torch.arange(6.0).view(2, 3), "bn1.bias": torch.ones(2)}
STATE = {"config": {"method": "cc"}, "method": TENSORS, "at": {"epoch": 3, "labels": torch.arange(9)}, "images": {}}
DESCRIPTION = {
    "arch": "resnet18_half",
    "pooling_type": "avg",
    "stem_relu": True,
    "height": 32,
    "width": 16,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
ROW = {"epoch": 1, "loss": 2.5, "mAP": 0.5, "silhouette": 0.1, "seconds": {"train": 1.5}}
JSON_PIECES = (b"[" * 10**5, b"9" * 5000, b"NaN", b"1e999", b"null", b'"', b"\xff", b"{}", b"\\ud800", b"true")


def taken(file: Path, read: Callable[[], Any]) -> Any:
    """What is read; None where one sentence with the file's name, or its folder's, refuses it."""
    sentence = str(file.parent)
    found = None
    try:
        found = read()
    except UserError as error:
        sentence = str(error)
    assert str(file.parent) in sentence
    assert "\n" not in sentence
    return found


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, tensors too."""
    return pickle.dumps(run_folder_state(one)) == pickle.dumps(run_folder_state(other))


def run_folder_state(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    return {key: run_folder_state(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_a_spoilt_state_is_never_continued_from(attack, tmp_path: Path) -> None:
    run_folder.save(tmp_path, STATE)
    file, expected = tmp_path / "last.pt", run_folder.load(tmp_path)
    content = file.read_bytes()

    def read(seed: int) -> None:
        file.write_bytes(spoilt(content, random.Random(seed)))
        found = taken(file, lambda: run_folder.load(tmp_path))
        assert found is None or same(found, expected)

    attack(read, 150, seed=SEEDS)


def test_a_spoilt_model_is_never_taken(attack, tmp_path: Path) -> None:
    run_folder.export(tmp_path, TENSORS, DESCRIPTION)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()

    def read(seed: int) -> None:
        file.write_bytes(made := spoilt(content, random.Random(seed)))
        found = taken(file, lambda: run_folder.load_export(tmp_path))
        assert (
            found is None
            or b'"crc32":' not in made
            or sorted(map(str, found[0].values())) == sorted(map(str, TENSORS.values()))
        )

    attack(read, 150, seed=SEEDS)


def test_a_description_says_what_an_encoder_needs_or_is_refused(attack, trained: Path, tmp_path: Path) -> None:
    for path in trained.iterdir():
        write(tmp_path / path.name, path.read_bytes())
    file = tmp_path / "model.json"
    content = file.read_bytes()

    def read(seed: int) -> None:
        file.write_bytes(spoilt(content, random.Random(seed), JSON_PIECES))
        found = taken(file, lambda: load_encoder(tmp_path))
        if found is not None:
            assert all(type(found[1][side]) is int and found[1][side] > 0 for side in ("height", "width"))

    attack(read, 15, seed=SEEDS)


@pytest.mark.parametrize(
    "spoil",
    [
        {"height": "48"},
        {"height": 0},
        {"width": 10**30},
        {"height": True},
        {"arch": ["resnet18_half"]},
        {"arch": "resnet9000"},
        {"pooling_type": "max"},
        {"stem_relu": 1},
        {"mean": 0.5},
        {"mean": [0.5, 0.5]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.5, 0.5, 0.0]},
        {"std": [0.5, 0.5, "x"]},
    ],
    ids=str,
)
def test_a_description_with_a_value_of_another_kind_is_refused(trained: Path, tmp_path: Path, spoil: dict) -> None:
    write(tmp_path / "model.safetensors", (trained / "model.safetensors").read_bytes())
    description = json.loads((trained / "model.json").read_text())
    write(tmp_path / "model.json", json.dumps(description | spoil).encode())
    with pytest.raises(UserError, match=r"is damaged|do not fit each other"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"[" * 10**5, b"null", b"\xff\xfe", b"", b"1" * 5000])
def test_a_description_that_is_none_is_refused(trained: Path, tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "model.safetensors", (trained / "model.safetensors").read_bytes())
    write(tmp_path / "model.json", content)
    with pytest.raises(UserError, match="damaged"):
        load_encoder(tmp_path)


def weights(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": TENSORS, "epoch": 3}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


WEIGHTS = {"zip.pth": weights(True), "legacy.pth": weights(False), "x.safetensors": as_safetensors(TENSORS)}


def test_spoilt_weights_are_tensors_or_refused(attack, tmp_path: Path) -> None:
    def read(seed: int) -> None:
        chance = random.Random(seed)
        name = chance.choice(list(WEIGHTS))
        file = write(tmp_path / name, spoilt(WEIGHTS[name], chance, (b"model", b"q\x01h\x01", b"}", b"R.", b"(")))
        found = taken(file, lambda: read_tensors(file))
        assert found is None or all(isinstance(tensor, torch.Tensor) for tensor in found.values())

    attack(read, 150, seed=SEEDS)


def test_a_wrapping_in_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "round.pth")
    with pytest.raises(UserError, match="its model is not a tensor but a dict"):
        read_tensors(tmp_path / "round.pth")


ODD_TENSORS = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "meta": lambda: torch.ones(3, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_numbers_are_named(tmp_path: Path, kind: str) -> None:
    torch.save(TENSORS | {"odd": ODD_TENSORS[kind]()}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"file\.pth is not a file of .* weights"):
        read_tensors(tmp_path / "file.pth")


def test_a_spoilt_settings_file_is_a_mapping_or_refused(attack, tmp_path: Path) -> None:
    contents = {".yaml": b"eps: 0.5\nbatch-size: 64\nrecipe: [gem, small]\n", ".json": b'{"eps": 0.5, "amp": true}'}
    pieces = (*JSON_PIECES, b"&a [*a]", b"!!python/name:os.system", b"!!float ''", b"!!int ''", b"!!timestamp x", b"? ")

    def read(seed: int) -> None:
        chance = random.Random(seed)
        suffix = chance.choice(list(contents))
        file = write(
            tmp_path / f"mine{suffix}", spoilt(contents[suffix], chance, (*pieces, b"!!bool x", b"0x" + b"f" * 9000))
        )
        found = taken(file, lambda: read_settings(file))
        assert found is None or all(isinstance(name, str) for name in found)

    attack(read, 100, seed=SEEDS)


def test_a_spoilt_log_has_its_rows_or_is_named(attack, tmp_path: Path) -> None:
    """The last line alone may be cut short: a kill does that."""
    file = tmp_path / "metrics.jsonl"
    content = b"".join(json.dumps(ROW | {"epoch": epoch}).encode() + b"\n" for epoch in range(3))

    def read(seed: int) -> None:
        file.write_bytes(spoilt(content, random.Random(seed), (*JSON_PIECES, b"\n")))
        rows = taken(file, MetricsLog(tmp_path, writes=False).rows)
        for row in rows or ():
            assert isinstance(row["epoch"], int)
            assert all(isinstance(value, int | float) for key, value in row.items() if key != "seconds")

    attack(read, 150, seed=SEEDS)


NUMBER = re.compile(rb"(?<=: )-?\d[\d.e-]*")


def test_a_report_is_written_of_any_rows_that_are_taken(attack, tmp_path: Path) -> None:
    run_folder.describe(tmp_path, Config(data_dir=tmp_path))
    file, page = tmp_path / "metrics.jsonl", tmp_path / "page.html"
    content = b"".join(json.dumps(ROW | {"epoch": epoch}).encode() + b"\n" for epoch in range(3))
    odd = (b"NaN", b"-Infinity", b"1e59", b"-1e59", b"1e-59", b"0", b"-3", b"1e300", b"9" * 400, b"{}", b"2147483647")

    def read(seed: int) -> None:
        chance = random.Random(seed)
        at = chance.choice([match.span() for match in NUMBER.finditer(content)])
        file.write_bytes(content[: at[0]] + chance.choice(odd) + content[at[1] :])
        taken(file, lambda: report(ReportConfig((tmp_path,), output=page, pictures=False)))

    attack(read, 25, seed=SEEDS)


@pytest.mark.parametrize(
    "line",
    [
        *(b"{}", b"[1]", b"null", b"\xff", b"x", b'{"epoch": 1}', b'{"epoch": "1", "seconds": {}}'),
        *(b'{"epoch": 1, "seconds": {"train": %s}}' % odd for odd in (b"NaN", b"-1", b"1e300", b"null", b"{}")),
        *(b'{"epoch": 1, "seconds": {}, "loss": %s}' % odd for odd in (b"1e-300", b"9" * 400, b"{}", b'"x"', b"true")),
    ],
)
def test_a_damaged_row_is_named_and_the_file_stays(tmp_path: Path, line: bytes) -> None:
    good = json.dumps(ROW).encode() + b"\n"
    file = write(tmp_path / "metrics.jsonl", good + line + b"\n" + good)
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is damaged"):
        MetricsLog(tmp_path, last_epoch=9)
    assert file.read_bytes() == good + line + b"\n" + good


def test_a_spoilt_index_is_never_searched(attack, tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    gallery = Paths.of(write(tmp_path / f"{row}.jpg", JPEG) for row in range(6))
    path, rows = tmp_path / "gallery.faiss", torch.from_numpy(planted(6, 10))
    save_index(path, "0123", gallery, rows)
    content = path.read_bytes()

    def read(seed: int) -> None:
        path.write_bytes(spoilt(content, random.Random(seed)))
        found = taken(path, lambda: load_index(path, "0123", gallery))
        assert found is None or torch.equal(found, rows)

    attack(read, 100, seed=SEEDS)
    sidecar = tmp_path / "gallery.faiss.json"
    for other in (faiss.IndexHNSWFlat(10, 4), faiss.IndexFlatL2(10)):  # whose readers are never called
        faiss.write_index(other, str(path))
        with pytest.raises(UserError, match="no IndexFlatIP"):
            load_index(path, "0123", gallery)
    path.write_bytes(content)
    for said in (b"[]", b"{}", b"null", b"[" * 10**5):
        sidecar.write_bytes(said)
        with pytest.raises(UserError, match="is damaged or not of reid-fast"):
            load_index(path, "0123", gallery)


def test_a_spoilt_manifest_knows_what_was_written_or_less(attack, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    stamps = np.arange(1, 9, dtype=np.uint64)
    manifest = Manifest(tmp_path, "folder")
    manifest.learn("whole", stamps)
    manifest.save(stamps)
    (file,) = (tmp_path / "cache").rglob("*.npz")
    content = file.read_bytes()

    def read(seed: int) -> None:
        file.write_bytes(spoilt(content, random.Random(seed)))
        found = Manifest(tmp_path, "folder")
        assert not found.knows("whole", stamps + np.uint64(100)).any()

    attack(read, 100, seed=SEEDS)


def test_a_spoilt_store_is_made_again(attack, tmp_path: Path) -> None:
    images = Paths.of(write(tmp_path / f"{row}.png", encoded("PNG")) for row in range(3))
    (tmp_path / "cache").mkdir()

    def pixels() -> torch.Tensor:
        store = open_store_file(
            tmp_path / "cache", images, (8, 8), device=torch.device("cpu"), threads=1, console=Console(quiet=True)
        )
        return next(store.plain(np.arange(3), 3))

    expected = pixels()
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()

    def read_back(spoilt_content: bytes) -> None:
        file.unlink()
        file.write_bytes(spoilt_content)
        assert torch.equal(pixels(), expected)
        assert file.read_bytes() == content

    read_back(content[:3090] + b"\x10" + content[3091:])  # between checksums and pixels
    attack(lambda seed: read_back(spoilt(content, random.Random(seed))), 4, seed=SEEDS)


def test_a_spoilt_index_of_tar_files_is_made_again(attack, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tar = pack(tmp_path / "0.tar", {"a.jpg": JPEG, "a.json": b'{"cam": "hall"}', "b.jpg": JPEG})
    os.utime(tar, (1, 1))  # what is new is not remembered
    expected = [place_of(path) for path in load_set("folder", tar).train.paths]
    (file,) = (tmp_path / "cache").rglob("*.shards")
    content = file.read_bytes()

    def read(seed: int) -> None:
        file.write_bytes(spoilt(content, random.Random(seed), (b"\n", b" ", b"\r")))
        assert [place_of(path) for path in load_set("folder", tar).train.paths] == expected

    attack(read, 60, seed=SEEDS)


@pytest.mark.parametrize(
    "value", [torch.full((64,), 1e300, dtype=torch.float64), torch.full((64,), float("nan"))], ids=["large", "nan"]
)
def test_numbers_that_no_weight_can_be_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    """Float64 holds what becomes infinite in float32."""
    encoder = Encoder("resnet18_half")
    state = encoder.state_dict()
    name = next(name for name, tensor in state.items() if tensor.dtype == torch.float32 and tensor.ndim == 1)
    torch.save(state | {name: value[: len(state[name])].clone()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"not finite: {name}"):
        load_weights(encoder, "resnet18_half", str(tmp_path / "w.pth"))


class Hostile:
    """Leaves a mark when it is unpickled as usual."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def npz(content: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, version=np.array([content], object), whole=np.array([content], object), allow_pickle=True)
    return file.getvalue()


def torch_file(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"format": 4, "x": content}, file)
    return file.getvalue()


def test_nothing_runs_that_a_file_brings_along(tmp_path: Path, monkeypatch) -> None:
    """By every reader of files from outside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mark = tmp_path / "mark"
    pickled = pickle.dumps(Hostile(mark))
    pickle.loads(pickled)
    assert mark.exists()  # the enemy is one
    mark.unlink()
    call = f"!!python/object/apply:os.mknod ['{mark}']"
    gallery = Paths.of([write(tmp_path / "0.jpg", JPEG)])
    manifest = Manifest(tmp_path, "folder")
    manifest.learn("whole", np.ones(1, np.uint64))
    manifest.save(np.ones(1, np.uint64))
    (known,) = (tmp_path / "cache").rglob("*.npz")
    for content in (pickled, torch_file(Hostile(mark)), npz(Hostile(mark)), f"eps: {call}".encode(), call.encode()):
        for name in (
            "last.pt",
            "model.json",
            "model.safetensors",
            "w.pth",
            "w.safetensors",
            "s.yaml",
            "s.json",
            "i.faiss",
        ):
            write(tmp_path / name, content)
        write(tmp_path / "i.faiss.json", b'{"crc32": 0}')
        known.write_bytes(content)
        assert not Manifest(tmp_path, "folder").knows("whole", np.ones(1, np.uint64)).any()
        for read in (
            lambda: run_folder.load(tmp_path),
            lambda: run_folder.load_export(tmp_path),
            lambda: read_tensors(tmp_path / "w.pth"),
            lambda: read_tensors(tmp_path / "w.safetensors"),
            lambda: read_settings(tmp_path / "s.yaml"),
            lambda: read_settings(tmp_path / "s.json"),
            lambda: load_index(tmp_path / "i.faiss", "0123", gallery),
        ):
            with pytest.raises(UserError):
                read()
    assert not mark.exists()


def test_a_zip_that_grows_is_refused_by_its_form(tmp_path: Path) -> None:
    """torch.save packs nothing: what is packed is no state, and is not unpacked whole to find out."""
    with zipfile.ZipFile(tmp_path / "last.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(2**24))
        file.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        run_folder.load(tmp_path)
