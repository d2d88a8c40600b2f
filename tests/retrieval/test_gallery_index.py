"""The index on disk: what is read is what was written, or a sentence says why not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from inputs import planted, save_photos

from reid_fast.data.sets import Paths
from reid_fast.errors import UserError
from reid_fast.retrieval import load_index, save_index

ENCODER = "0123"


@pytest.fixture
def gallery(tmp_path: Path) -> Paths:
    (tmp_path / "images").mkdir()
    return Paths.of(save_photos(tmp_path / "images"))


@pytest.fixture
def index(gallery: Paths, tmp_path: Path) -> Path:
    path = tmp_path / "gallery.faiss"
    assert load_index(path, ENCODER, gallery) is None
    save_index(path, ENCODER, gallery, torch.from_numpy(planted(6, 10)))
    return path


def test_what_was_written_is_read_again(index: Path, gallery: Paths) -> None:
    found = load_index(index, ENCODER, gallery)
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), planted(6, 10))
    assert sorted(path.name for path in index.parent.glob("*faiss*")) == ["gallery.faiss", "gallery.faiss.json"]


def test_faiss_itself_finds_the_same(index: Path) -> None:
    faiss = pytest.importorskip("faiss")
    rows = planted(6, 10)
    similarity, found = faiss.read_index(str(index)).search(rows, 3)
    expected = np.argsort(-(rows @ rows.T), axis=1)[:, :3]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(similarity, np.take_along_axis(rows @ rows.T, expected, 1), atol=1e-6)


def test_an_index_of_another_encoder_or_of_other_images_is_refused(index: Path, gallery: Paths) -> None:
    with pytest.raises(UserError, match="made of another encoder: remove it"):
        load_index(index, "4567", gallery)
    for other in (gallery[:5], gallery[::-1], gallery + gallery[:1]):
        with pytest.raises(UserError, match="made of other gallery images"):
            load_index(index, ENCODER, other)
    os.utime(gallery[2], ns=(0, 0))
    with pytest.raises(UserError, match="made of other gallery images"):
        load_index(index, ENCODER, gallery)


@pytest.mark.parametrize("spoil", ["cut", "empty", "text", "no sidecar", "sidecar cut", "sidecar of another"])
def test_a_damaged_index_is_named(index: Path, gallery: Paths, spoil: str) -> None:
    sidecar = index.with_name("gallery.faiss.json")
    content = index.read_bytes()
    if spoil == "no sidecar":
        sidecar.unlink()
    elif spoil == "sidecar cut":
        sidecar.write_text(sidecar.read_text()[:20])
    elif spoil == "sidecar of another":
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"width": 11}))
    else:
        index.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"an index\n" * 9}[spoil])
    with pytest.raises(UserError, match="remove it to have it made anew") as refused:
        load_index(index, ENCODER, gallery)
    assert "gallery.faiss" in str(refused.value)


def test_without_faiss_a_sentence_says_how_to_get_it(monkeypatch, tmp_path: Path, gallery: Paths) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        load_index(tmp_path / "new", ENCODER, gallery)


def test_an_index_that_was_not_written_to_its_end_is_made_anew(gallery: Paths, tmp_path: Path, monkeypatch) -> None:
    path, replace = tmp_path / "x.faiss", Path.replace
    for ends_at in (1, 2):
        renamed = []

        def killed(self, target, renamed=renamed, ends_at=ends_at):
            renamed.append(target)
            if len(renamed) == ends_at:
                raise KeyboardInterrupt
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                save_index(path, ENCODER, gallery, torch.from_numpy(planted(6, 10)))
        assert load_index(path, ENCODER, gallery) is None
