"""Images in tar files, against `tarfile`."""

import io
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from inputs import JPEG, TAR_FORMATS, encoded, pack, records, write

from reid_fast.data.sets import Paths, check_images, load_set, read_image
from reid_fast.data.sets.tar import TarFile
from reid_fast.errors import UserError

UNDECODED = os.fsdecode(b"\xff.jpg")


def image(number):
    """Bytes that differ in content and length."""
    return JPEG + bytes([number]) * number


def fact(**known):
    return json.dumps(known).encode()


@pytest.mark.parametrize("form", TAR_FORMATS)
def test_every_file_is_found_where_tarfile_finds_it(tmp_path, form):
    long = [f"{'d' * 90}/{'f' * 90}.jpg", *([f"{'g' * 120}/{'h' * 180}/{'i' * 150}.jpg", "é.jpg"] * (form != "ustar"))]
    files = {name: image(i) for i, name in enumerate(["a.jpg", "b/c.jpg", "empty", *long, UNDECODED, "z" * 100])}
    path = pack(tmp_path / "a.tar", {"b": None, **files, "block": b"x" * 512, "large": b"y" * 5000}, form)
    with tarfile.open(path, "a", format=TAR_FORMATS[form]) as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "n" * (50 if form == "ustar" else 200)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("last"))
    with tarfile.open(path) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    with TarFile(path) as tar:
        assert list(tar) == expected


def test_sizes_and_names_may_stand_in_extended_headers(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("one", "two"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, {"path": f"{name}.jpg", "size": "3", "comment": "x=y\nz"}
            tar.addfile(info, io.BytesIO(b"abc"))
    with TarFile(tmp_path / "a.tar") as tar:
        assert [(name, size) for name, _, size in tar] == [("one.jpg", 3), ("two.jpg", 3)]


@pytest.fixture
def shards(tmp_path):
    """Two shards, named so that they sort otherwise than their paths."""
    pack(
        tmp_path / "set/a.tar",
        {
            "./cam2/7.jpg": image(1),
            "./cam2/7.json": fact(cam="hall", pid=7, note=[]),
            "./cam2/8.json": fact(cam="door", pid=None),
            "./cam2/8.jpg": image(2),
            "cam1/9.jpg": image(3),
            "._9.jpg": b"",
            "notes": b"",
        },
    )
    pack(
        tmp_path / "set/a.tar-1.tar",
        {"x.png": encoded("PNG"), "x.cls": b" 12\n", "x.cam": b"hall", "y.b.jpg": image(4), "y.pid": b"", "x.txt": b""},
    )
    write(tmp_path / "set/README.md")
    return tmp_path / "set"


def test_images_cameras_and_identities_are_found(shards):
    train = load_set("folder", shards).train
    assert records(train) == [
        ("x.png", 0, 1),
        ("y.b.jpg", -1, -1),
        ("9.jpg", -1, -1),
        ("7.jpg", 1, 1),
        ("8.jpg", -1, 0),
    ]
    assert train.paths[3] == shards / "a.tar/cam2/7.jpg"
    assert list(map(str, train.paths)) == sorted(map(str, train.paths))


def test_images_are_read_where_they_lie(shards):
    paths = load_set("folder", shards).train.paths
    expected = [encoded("PNG"), image(4), image(3), image(1), image(2)]
    assert [read_image(path).tobytes() for path in paths] == expected
    order = np.array([3, 0, 4])
    for some in (paths.select(order), Paths.of([paths[i] for i in order]), pickle.loads(pickle.dumps([*paths[::-1]]))):
        assert {read_image(path).tobytes() for path in some} >= {expected[i] for i in order}
    assert read_image(pickle.loads(pickle.dumps(paths))[4]).tobytes() == image(2)


def test_images_of_shards_and_files_stand_in_one_list(shards, tmp_path):
    plain = Paths.of([write(tmp_path / "1.jpg", image(9))])
    packed = load_set("folder", shards).train.paths
    for both, place in ((plain + packed, 0), (packed + plain, 5)):
        assert read_image(both[place]).tobytes() == image(9)
        assert read_image(both[2 if place else 3]).tobytes() == image(3)
        assert both.isin(packed).tolist() == [row != place for row in range(6)]


def test_one_shard_is_a_set(shards):
    assert records(load_set("folder", shards / "a.tar").train) == [("9.jpg", -1, -1), ("7.jpg", 0, 1), ("8.jpg", -1, 0)]


def test_a_pattern_is_searched_in_names_and_goes_before_neighbours(shards):
    train = load_set("folder", shards / "a.tar", pattern=r"(?P<pid>\d)\.jpg").train
    assert records(train) == [("9.jpg", 2, -1), ("7.jpg", 0, 1), ("8.jpg", 1, 0)]
    train = load_set("folder", shards / "a.tar", pattern=r"^a.tar/cam(?P<cam>\d)/").train
    assert train.cams.tolist() == [0, 1, 1]


def test_the_check_names_what_is_broken_in_a_shard(tmp_path):
    files = {"a.jpg": JPEG, "b.jpg": b"", "c.jpg": JPEG[:-2], "d.jpg": encoded("PNG"), "e.png": encoded("PNG")[:-12]}
    paths = load_set("folder", pack(tmp_path / "a.tar", files)).train.paths
    found = {paths[row].name: reason for row, reason in check_images(paths)}
    assert found == {
        "b.jpg": "empty file",
        "c.jpg": "truncated JPEG: no EOI marker at its end",
        "d.jpg": "a PNG named .jpg",
        "e.png": "truncated PNG: no IEND marker at its end",
    }


def test_a_shard_is_read_again_once_it_has_changed(shards, monkeypatch):
    opened = []
    monkeypatch.setattr("reid_fast.data.sets.shards.TarFile", lambda path: opened.append(path.name) or TarFile(path))
    for shard in shards.glob("*.tar"):
        os.utime(shard, ns=(10**9, 10**9))
    expected = records(load_set("folder", shards).train)
    assert opened == ["a.tar-1.tar", "a.tar"]
    assert records(load_set("folder", shards).train) == expected
    assert len(opened) == 2
    pack(shards / "a.tar", {"1.jpg": JPEG})
    assert records(load_set("folder", shards).train)[2:] == [("1.jpg", -1, -1)]
    assert opened[2:] == ["a.tar"]


def test_a_spoilt_index_is_made_again(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for shard in shards.glob("*.tar"):
        os.utime(shard, ns=(10**9, 10**9))
    expected = records(load_set("folder", shards).train)
    (index,) = (tmp_path / "cache/reid-fast/manifests").iterdir()
    content = index.read_bytes()
    for place in range(0, len(content), 7):
        index.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert records(load_set("folder", shards).train) == expected
    for length in (0, 1, 20, 45, len(content) - 2):
        index.write_bytes(content[:length])
        assert records(load_set("folder", shards).train) == expected
        assert index.read_bytes() == content


def compressed(path):
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))


def spoilt(path):
    content = bytearray(pack(path, {"a.jpg": JPEG, "b.jpg": JPEG}).read_bytes())
    content[content.index(b"b.jpg")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (compressed, "a.tar is compressed, .* unpack it"),
        (lambda path: write(path, pack(path, {"a.jpg": JPEG * 9}).read_bytes()[:1000]), "a.tar is cut short"),
        (lambda path: write(path, pack(path, {"a.jpg": JPEG}).read_bytes()[:600]), "a.tar is cut short"),
        (spoilt, "a.tar is damaged at byte [1-9]"),
        (write, "a.tar is damaged at byte 0, or no tar file"),
        (lambda path: write(path, b""), "a.tar is damaged at byte 0, or no tar file"),
        (lambda path: pack(path, {}), "hold no images"),
        (lambda path: pack(path, {"a.jpg": JPEG, "a.json": b"{"}), "a.tar/a.json is not JSON"),
        (lambda path: pack(path, {"a.jpg": JPEG, "a.cam": b"\xff"}), "a.tar/a.cam is not JSON or text in UTF-8"),
        (lambda path: pack(path, {"a.jpg": JPEG, "a.json": b'{"cam": [1]}'}), "a.tar/a.json has a cam or pid that is"),
        (lambda path: pack(path, {"a.jpg": JPEG, "./a.jpg": JPEG}), "a.tar/a.jpg is there twice"),
    ],
)
def test_a_shard_that_does_not_fit_is_an_error(tmp_path, make, message):
    make(tmp_path / "a.tar")
    with pytest.raises(UserError, match=message):
        load_set("folder", tmp_path)


def test_a_folder_of_images_and_tar_files_is_a_folder_of_images(shards):
    write(shards / "1.jpg")
    assert records(load_set("folder", shards).train) == [("1.jpg", -1, -1)]
