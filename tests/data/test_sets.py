"""Folder layouts, file names, counts and the check of image files."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from reid_fast.data.sets.check import check_images
from reid_fast.data.sets.counts import count_table, render_counts
from reid_fast.data.sets.load import load_set, market_style
from reid_fast.errors import UserError

REAL = Path(__file__).parents[3] / "shared/data"
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
MARKET = (
    ["0007_c2s1_000001_00.jpg", "0002_c1s1_000001_00.jpg", "0007_c6s3_000009_01.jpg"],
    ["0001_c1s1_000001_00.jpg"],
    ["0001_c2s1_000001_00.jpg", "0000_c3s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"],
)
MSMT_LISTS = {
    "train": ["0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_000_15_0303noon_0015_0.jpg 1"],
    "val": ["0000/0000_001_02_0303morning_0016_0.jpg 0"],
    "query": ["0000/0000_000_03_0303morning_0015_0.jpg 0"],
    "gallery": ["0000/0000_001_04_0303morning_0015_0.jpg 0", "0009/0009_000_05_0303noon_0015_1_ex.jpg 9"],
}


def encoded(kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 8), (200, 30, 90)).save(buffer, kind)
    return buffer.getvalue()


JPEG = encoded()


def write(path, content=JPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_splits(root, splits=MARKET, folders=FOLDERS):
    for folder, names in zip(folders, splits, strict=True):
        for name in names:
            write(root / folder / name)
    return root


def write_msmt(root, folders):
    for split, lines in MSMT_LISTS.items():
        folder = root / folders[split in ("query", "gallery")]
        (root / f"list_{split}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"list_{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            write(folder / line.split()[0])
    return root


def rows(images):
    return [(p.name, *ids) for p, *ids in zip(images.paths, images.pids.tolist(), images.cams.tolist(), strict=True)]


def test_market_rows(tmp_path):
    data = load_set("market1501", write_splits(tmp_path / "market1501"))
    assert rows(data.train) == [
        ("0002_c1s1_000001_00.jpg", 0, 0),
        ("0007_c2s1_000001_00.jpg", 1, 1),
        ("0007_c6s3_000009_01.jpg", 1, 5),
    ]
    assert rows(data.query) == [("0001_c1s1_000001_00.jpg", 1, 0)]
    assert rows(data.gallery) == [("0000_c3s1_000001_00.jpg", 0, 2), ("0001_c2s1_000001_00.jpg", 1, 1)]
    assert (data.size, data.layout) == ((256, 128), "Market-style")
    assert data.train.pids.dtype == data.train.cams.dtype == np.int64


def test_junk_and_distractors_are_not_trained_on(tmp_path):
    splits = ([*MARKET[0], "-1_c1s1_000001_00.jpg", "0000_c1s1_000001_00.jpg"], *MARKET[1:])
    data = load_set("market1501", write_splits(tmp_path, splits))
    assert len(data.train) == 3


@pytest.mark.parametrize("above", ["", "market1501", "Market-1501-v15.09.15", "sets/0001_c2/anything"])
def test_the_folder_is_found_by_its_content(tmp_path, above):
    write_splits(tmp_path / above)
    data = load_set("market1501", tmp_path)
    assert data.train.paths[0].parent == tmp_path / above / FOLDERS[0]
    assert data.train.cams.tolist() == [0, 1, 5]


def test_a_folder_with_the_sets_name_goes_first(tmp_path):
    write_splits(tmp_path / "a_copy")
    write_splits(tmp_path / "b" / "Market1501")
    assert load_set("market1501", tmp_path).train.paths[0].parts[-4:-2] == ("b", "Market1501")


def test_another_set_under_the_name_is_passed_over(tmp_path):
    duke = (["0001_c2_f0046182.jpg"], ["0005_c8_f0046985.jpg"], ["0005_c1_f0046985.jpg"])
    write_splits(tmp_path / "market1501", duke)
    write_splits(tmp_path / "other")
    assert "other" in load_set("market1501", tmp_path).train.paths[0].parts
    data = load_set("dukemtmcreid", tmp_path)
    assert rows(data.query) == [("0005_c8_f0046985.jpg", 5, 7)]


@pytest.mark.parametrize(
    ("title", "folders"),
    [("MSMT17 V1 lists", ("train", "test")), ("MSMT17 V2 lists", ("mask_train_v2", "mask_test_v2"))],
)
def test_msmt17_lists(tmp_path, title, folders):
    write(tmp_path / "__MACOSX" / folders[0] / "._0000.jpg")
    write_msmt(tmp_path / "MSMT17_V2" / "MSMT17_V2", folders)
    data = load_set("msmt17", tmp_path)
    assert data.layout == title
    assert [(pid, cam) for _, pid, cam in rows(data.train)] == [(0, 0), (0, 1), (1, 14)]
    assert [(pid, cam) for _, pid, cam in rows(data.query)] == [(0, 2)]
    assert [(pid, cam) for _, pid, cam in rows(data.gallery)] == [(0, 3), (9, 4)]


def test_msmt17_as_a_market_style_copy_keeps_identity_0(tmp_path):
    splits = (["0000_c1_0001.jpg", "0003_c15_0001.jpg"], ["0000_c2_0000.jpg"], ["0000_c14_0001.jpg"])
    data = load_set("msmt17", write_splits(tmp_path / "MSMT17_V1", splits))
    assert data.layout == "Market-style"
    assert [(pid, cam) for _, pid, cam in rows(data.train)] == [(0, 0), (1, 14)]
    assert rows(data.query) == [("0000_c2_0000.jpg", 0, 1)]


def test_msmt17_list_errors_name_the_line(tmp_path):
    root = write_msmt(tmp_path, ("train", "test"))
    missing = root / "test/0009/0009_000_05_0303noon_0015_1_ex.jpg"
    missing.unlink()
    with pytest.raises(UserError, match=r"list_gallery.txt:2 names .*0009_000_05.*missing"):
        load_set("msmt17", root)
    write(missing)
    (root / "list_val.txt").write_text("no identity here\n")
    with pytest.raises(UserError, match=r"list_val.txt:1 is not"):
        load_set("msmt17", root)


def test_personx_cameras(tmp_path):
    splits = ([f"0001_c{c}_0.jpg" for c in (3, 4, 8, 10, 11, 12)], ["0002_c3_0.jpg"], ["0002_c12_0.jpg"])
    data = load_set("personx", write_splits(tmp_path / "PersonX", splits))
    assert {name: cam for name, _, cam in rows(data.train)} == {name: cam for cam, name in enumerate(splits[0])}
    write(tmp_path / "PersonX" / "query" / "0002_c5_0.jpg")
    with pytest.raises(UserError, match="camera 5"):
        load_set("personx", tmp_path)


def test_veri776(tmp_path):
    splits = (["0002_c020_00030600_0.jpg"], ["0005_c001_00030600_0.jpg"], ["0005_c002_00030600_0.jpg"])
    root = write_splits(tmp_path / "VeRi", splits, ("image_train", "image_query", "image_test"))
    (root / "image_train" / "name_train.txt").touch()
    data = load_set("veri776", tmp_path)
    assert data.size == (224, 224)
    assert rows(data.train) == [("0002_c020_00030600_0.jpg", 0, 19)]


def test_market_style_has_any_number_of_identities_and_cameras(tmp_path):
    splits = (["99999_c1_0.png", "0004_c31_1.jpg"], ["123456_c2_0.jpg"], ["123456_c3_0.jpg"])
    data = market_style("synthetic", write_splits(tmp_path, splits), size=(64, 32))
    assert (data.name, data.size) == ("synthetic", (64, 32))
    assert [(pid, cam) for _, pid, cam in rows(data.train)] == [(0, 30), (1, 0)]
    with pytest.raises(UserError, match="is not a Market-style set: looked for folders bounding_box_train"):
        market_style("synthetic", tmp_path / "query")


def test_litter_is_ignored(tmp_path):
    root = write_splits(tmp_path)
    for name in ("Thumbs.db", ".DS_Store", "._0002_c1s1_000001_00.jpg", "README.md", "notes.txt", "x.mat"):
        (root / FOLDERS[0] / name).touch()
    (root / FOLDERS[0] / "@eaDir").mkdir()
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
    write(root / FOLDERS[0] / name)
    with pytest.raises(UserError, match=message):
        load_set("market1501", root)


def test_what_is_not_the_set_is_described(tmp_path):
    with pytest.raises(UserError, match="unknown data set 'market': choose one of market1501"):
        load_set("market", tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_set("market1501", tmp_path / "nowhere")
    write(tmp_path / "photos" / "cat.jpg")
    with pytest.raises(UserError, match=r"does not hold VeRi-776.*image_train.*found photos"):
        load_set("veri776", tmp_path)
    with pytest.raises(UserError, match="--pattern is for --dataset folder"):
        load_set("veri776", tmp_path, pattern="x")


def test_empty_splits_are_errors(tmp_path):
    root = write_splits(tmp_path, (MARKET[0], MARKET[1], ["-1_c1s1_000001_00.jpg"]))
    with pytest.raises(UserError, match=r"the gallery split in .* is empty"):
        load_set("market1501", root)
    (root / "query" / MARKET[1][0]).unlink()
    with pytest.raises(UserError, match="query holds no images"):
        load_set("market1501", root)


def test_folder_without_a_pattern(tmp_path):
    for name in ("b/2.PNG", "b/1.jpg", "a.jpeg", "b/deep/er/0.webp", "b/labels.json"):
        write(tmp_path / name)
    data = load_set("folder", tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in data.train.paths] == [
        "a.jpeg", "b/1.jpg", "b/2.PNG", "b/deep/er/0.webp",
    ]  # fmt: skip
    assert data.train.pids.tolist() == data.train.cams.tolist() == [-1] * 4
    assert data.query is data.gallery is None
    assert (data.train.identities, data.train.cameras) == (0, 0)


def test_folder_with_patterns(tmp_path):
    for name in ("north/p9_door.jpg", "north/p1_hall.jpg", "east/p9_hall.jpg"):
        write(tmp_path / name)
    data = load_set("folder", tmp_path, pattern=r"(?P<pid>p\d)_(?P<cam>[a-z]+)")
    assert rows(data.train) == [("p9_hall.jpg", 1, 1), ("p1_hall.jpg", 0, 1), ("p9_door.jpg", 1, 0)]
    data = load_set("folder", tmp_path, pattern=r"(?P<cam>\w+)/")
    assert rows(data.train) == [("p9_hall.jpg", -1, 0), ("p1_hall.jpg", -1, 1), ("p9_door.jpg", -1, 1)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        (r"\d+", "names no group"),
        (r"(?P<cam>door)", r"p1_hall.jpg does not match"),
        (r"hall(?P<cam>x)?", r"p1_hall.jpg does not match"),
    ],
)
def test_folder_pattern_errors(tmp_path, pattern, message):
    write(tmp_path / "p1_hall.jpg")
    with pytest.raises(UserError, match=message):
        load_set("folder", tmp_path, pattern=pattern)


def test_folder_errors(tmp_path):
    with pytest.raises(UserError, match="holds no images"):
        load_set("folder", tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match="links back"):
        load_set("folder", tmp_path)


def test_folder_follows_links(tmp_path):
    write(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "cam1").symlink_to(tmp_path / "elsewhere")
    assert load_set("folder", tmp_path / "set").train.paths == (tmp_path / "set" / "cam1" / "1.jpg",)


def test_select(tmp_path):
    train = load_set("market1501", write_splits(tmp_path)).train
    assert rows(train.select([2, 0])) == [rows(train)[2], rows(train)[0]]
    assert rows(train.select(train.pids == 0)) == rows(train)[:1]
    assert len(train.select([])) == 0


def test_counts_stand_beside_the_published_ones(tmp_path):
    data = load_set("market1501", write_splits(tmp_path))
    row = count_table(data)[0]
    assert (row.split, row.identities, row.images, row.cameras) == ("train", 2, 3, 3)
    assert (row.published_identities, row.published_images, row.published_cameras) == (751, 12936, 6)
    console = Console(width=120, file=io.StringIO())
    console.print(render_counts(data))
    assert "3 of 12,936 published" in console.file.getvalue()


def test_counts_of_a_folder_have_nothing_beside_them(tmp_path):
    write(tmp_path / "1.jpg")
    (row,) = count_table(load_set("folder", tmp_path))
    assert (row.images, row.published_images) == (1, None)


def test_records_are_read_without_torch_or_an_image_library():
    heavy = "{'torch', 'PIL', 'nvidia'} & set(sys.modules)"
    code = f"import sys, reid_fast.data.sets.load, reid_fast.data.sets.check; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not (REAL / "market1501").is_dir(), reason="needs the 200-identity part of Market-1501")
def test_the_real_part_of_market1501():
    data = load_set("market1501", REAL)
    counts = [(row.identities, row.images, row.cameras) for row in count_table(data)]
    assert counts == [(200, 3871, 6), (200, 906, 6), (201, 4121, 6)]
    assert check_images(data.query.paths) == []


def test_bad_images_are_found_and_named(tmp_path):
    png = encoded("PNG")
    good = [write(tmp_path / f"{i}.jpg") for i in range(5)]
    good += [write(tmp_path / "0.png", png), write(tmp_path / "trailer.jpg", JPEG + b"x" * 100)]
    good += [write(tmp_path / f"0.{kind}", encoded(kind.upper())) for kind in ("bmp", "webp")]
    good += [write(tmp_path / "0.tif", encoded("TIFF"))]
    bad = {
        write(tmp_path / "empty.jpg", b""): "empty file",
        write(tmp_path / "png.jpg", png): "a PNG named .jpg",
        write(tmp_path / "cut.jpg", JPEG[:-2]): "truncated JPEG",
        write(tmp_path / "cut.png", png[:-12]): "truncated PNG",
        write(tmp_path / "text.jpg", b"<html>"): "not an image",
        tmp_path / "gone.jpg": "unreadable: No such file",
    }
    found = check_images([*good, *bad], workers=2)
    assert [path for path, _ in found] == list(bad)
    for (_, reason), expected in zip(found, bad.values(), strict=True):
        assert reason.startswith(expected)


def test_check_reports_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("reid_fast.data.sets.check._CHUNK", 2)
    seen = []
    check_images([write(tmp_path / f"{i}.jpg") for i in range(5)], progress=lambda *step: seen.append(step))
    assert seen == [(2, 5), (4, 5), (5, 5)]
