"""What file names and lists say of their images, layout by layout."""

import numpy as np
import pytest
from inputs import MARKET, MARKET_FOLDERS, records, write, write_splits

from reid_fast.data.sets import load_set
from reid_fast.errors import UserError

MSMT_LISTS = {
    "train": ["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_000_15_0303noon_0015_0.jpg 1"],
    "val": ["0000/0000_001_02_0303morning_0016_0.jpg 0"],
    "query": ["0000/0000_000_03_0303morning_0015_0.jpg 0"],
    "gallery": ["0000/0000_001_04_0303morning_0015_0.jpg 0", "0009/0009_000_05_0303noon_0015_1_ex.jpg 9"],
}


def write_msmt(root, folders):
    for split, lines in MSMT_LISTS.items():
        folder = root / folders[split in ("query", "gallery")]
        (root / f"list_{split}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"list_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write(folder / line.split()[0])
    return root


def test_market_file_names_give_identity_and_camera(tmp_path):
    data = load_set("market1501", write_splits(tmp_path / "market1501"))
    assert records(data.train) == [
        ("0002_c1s1_000001_00.jpg", 0, 0),
        ("0007_c2s1_000001_00.jpg", 1, 1),
        ("0007_c6s3_000009_01.jpg", 1, 5),
    ]
    assert records(data.query) == [("0001_c1s1_000001_00.jpg", 1, 0)]
    assert records(data.gallery) == [("0000_c3s1_000001_00.jpg", 0, 2), ("0001_c2s1_000001_00.jpg", 1, 1)]
    assert data.layout == "Market-style"
    assert data.train.pids.dtype == data.train.cams.dtype == np.int64


def test_junk_and_distractors_are_not_trained_on(tmp_path):
    splits = ([*MARKET[0], "-1_c1s1_000001_00.jpg", "0000_c1s1_000001_00.jpg"], *MARKET[1:])
    data = load_set("market1501", write_splits(tmp_path, splits))
    assert len(data.train) == 3


@pytest.mark.parametrize(
    ("title", "folders"),
    [("MSMT17 V1 lists", ("train", "test")), ("MSMT17 V2 lists", ("mask_train_v2", "mask_test_v2"))],
)
def test_msmt17s_own_lists_are_read(tmp_path, title, folders):
    write(tmp_path / "__MACOSX" / folders[0] / "._0000.jpg")
    write_msmt(tmp_path / "MSMT17_V2" / "MSMT17_V2", folders)
    data = load_set("msmt17", tmp_path)
    assert data.layout == title
    assert [(pid, cam) for _, pid, cam in records(data.train)] == [(0, 0), (0, 1), (1, 14)]
    assert [(pid, cam) for _, pid, cam in records(data.query)] == [(0, 2)]
    assert [(pid, cam) for _, pid, cam in records(data.gallery)] == [(0, 3), (9, 4)]


def test_msmt17_as_a_market_style_copy_keeps_identity_0(tmp_path):
    splits = (["0000_c1_0001.jpg", "0003_c15_0001.jpg"], ["0000_c2_0000.jpg"], ["0000_c14_0001.jpg"])
    data = load_set("msmt17", write_splits(tmp_path / "MSMT17_V1", splits))
    assert data.layout == "Market-style"
    assert [(pid, cam) for _, pid, cam in records(data.train)] == [(0, 0), (1, 14)]
    assert records(data.query) == [("0000_c2_0000.jpg", 0, 1)]


def test_a_list_that_names_a_missing_image_is_an_error_with_its_line(tmp_path):
    root = write_msmt(tmp_path, ("train", "test"))
    (root / "test/0009/0009_000_05_0303noon_0015_1_ex.jpg").unlink()
    with pytest.raises(UserError, match=r"list_gallery.txt:2 names .*0009_000_05.*missing"):
        load_set("msmt17", root)


def test_a_list_that_is_none_is_an_error_with_its_line(tmp_path):
    root = write_msmt(tmp_path, ("train", "test"))
    (root / "list_val.txt").write_text("no identity here\n")
    with pytest.raises(UserError, match=r"list_val.txt:1 is not"):
        load_set("msmt17", root)


PERSONX = ([f"0001_c{c}_0.jpg" for c in (3, 4, 8, 10, 11, 12)], ["0002_c3_0.jpg"], ["0002_c12_0.jpg"])


def test_personx_numbers_its_six_cameras_from_0(tmp_path):
    train = load_set("personx", write_splits(tmp_path / "PersonX", PERSONX)).train
    assert {name: cam for name, _, cam in records(train)} == {name: cam for cam, name in enumerate(PERSONX[0])}


def test_personx_has_no_other_cameras(tmp_path):
    write(write_splits(tmp_path / "PersonX", PERSONX) / "query" / "0002_c5_0.jpg")
    with pytest.raises(UserError, match="camera 5"):
        load_set("personx", tmp_path)


def test_veri776_has_its_own_folders(tmp_path):
    splits = (["0002_c020_00030600_0.jpg"], ["0005_c001_00030600_0.jpg"], ["0005_c002_00030600_0.jpg"])
    root = write_splits(tmp_path / "VeRi", splits, ("image_train", "image_query", "image_test"))
    (root / "image_train" / "name_train.txt").touch()
    assert records(load_set("veri776", tmp_path).train) == [("0002_c020_00030600_0.jpg", 0, 19)]


def test_litter_is_ignored(tmp_path):
    root = write_splits(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "._0002_c1s1_000001_00.jpg", "README.md", "notes.txt", "x.mat"):
        (root / MARKET_FOLDERS[0] / name).touch()
    (root / MARKET_FOLDERS[0] / "@eaDir").mkdir()
    assert len(load_set("market1501", root).train) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("person.jpg", "person.jpg is not named like 0002_c1s1_000451_03.jpg"),
        ("0002_c7s1_000001_00.jpg", "camera 7"),
        ("0002_c12s1_000001_00.jpg", "camera 12"),
        ("1502_c1s1_000001_00.jpg", r"identity 1502, outside 0\.\.1501"),
        ("0002_c1s1_000001_00.gif", "0002_c1s1_000001_00.gif is not an image"),
    ],
)
def test_a_name_that_does_not_fit_is_an_error(tmp_path, name, message):
    root = write_splits(tmp_path)
    write(root / MARKET_FOLDERS[0] / name)
    with pytest.raises(UserError, match=message):
        load_set("market1501", root)


def test_a_gallery_of_junk_alone_is_an_empty_split(tmp_path):
    root = write_splits(tmp_path, (MARKET[0], MARKET[1], ["-1_c1s1_000001_00.jpg"]))
    with pytest.raises(UserError, match=r"the gallery split in .* is empty"):
        load_set("market1501", root)


def test_a_split_without_files_is_an_error(tmp_path):
    root = write_splits(tmp_path)
    (root / "query" / MARKET[1][0]).unlink()
    with pytest.raises(UserError, match="query holds no images"):
        load_set("market1501", root)
