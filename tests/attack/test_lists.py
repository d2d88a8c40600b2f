"""Tables, list files and tar files with anything in them: what they list is there, or one sentence names the file."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import strategies as st
from inputs import JPEG, TAR_FORMATS, pack, write
from spoilt import spoilt

from reid_fast.data.sets import load_set, place_of
from reid_fast.errors import UserError

SEEDS = st.integers(0, 2**63)
ROWS = b'path,cam,pid\na.jpg,hall,7\n"b.jpg",door,ann\nsub/c.jpg,,\n'
PIECES = (
    b'"',
    b",",
    b"\r\n",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"../",
    b"/etc/passwd",
    b"path",
    b"\xe2\x80\xa8",
    b"9" * 5000,
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        write(tmp_path / name)
    return tmp_path


def loaded(file: Path, name: str = "folder", root: Path | None = None) -> list[Path]:
    """The training images; none where one sentence with its name refuses the file."""
    train, sentence = None, str(root or file)
    try:
        train = load_set(name, root or file).train
    except UserError as error:
        sentence = str(error)
    assert str(root or file) in sentence
    return [] if train is None else list(train.paths)


def test_a_spoilt_table_lists_what_is_there(attack, images: Path) -> None:
    def read(seed: int) -> None:
        file = write(images / "list.csv", spoilt(ROWS, random.Random(seed), PIECES))
        assert all(path.is_file() for path in loaded(file))

    attack(read, 150, seed=SEEDS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ROWS.replace(b"\n", b"\r\n"), None),
        (b"\xef\xbb\xbf" + ROWS, None),
        (ROWS.decode().encode("utf-16"), "is not UTF-8"),
        ("path\nä.jpg\n".encode("latin-1"), ":2 is not UTF-8"),
        (ROWS + b"a.jpg,x,y\n", ":5 names"),
        (ROWS + b"./a.jpg,x,y\n", ":5 names"),
        (ROWS + b"gone\0.jpg,x,y\n", ":5 names"),
        (ROWS + b"/dev/zero,x,y\n", "which is missing"),
        (b"path," + b"x," * 10**6 + b"\n", "lists no images"),
        (b"cam,pid\n1,2\n", "names no column `path`"),
        (b"path\n" + b"x" * 10**6 + b"\n", "is not CSV"),
        (b'path\n"a.jpg\n' * 3, "is not CSV"),
        (b"", "names no column"),
        (bytes(999), "names no column"),
    ],
    ids=range(14),
)
def test_tables_of_other_programs(images: Path, content: bytes, said: str | None) -> None:
    path = write(images / "list.csv", content)
    if said is None:
        assert len(load_set("folder", path).train) == 3
    else:
        with pytest.raises(UserError, match=said):
            load_set("folder", path)


def test_an_absolute_path_of_a_table_means_itself(images: Path, tmp_path_factory) -> None:
    """A table is its writer's word: it may name images anywhere that its reader may read."""
    elsewhere = write(tmp_path_factory.mktemp("elsewhere") / "d.jpg")
    listed = f"path\n{elsewhere}\n../{images.name}/a.jpg\n".encode()
    paths = load_set("folder", write(images / "list.csv", listed)).train.paths
    assert sorted(path.resolve() for path in paths) == sorted([elsewhere, images / "a.jpg"])


def test_a_spoilt_parquet_file_is_named(attack, images: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    file = io.BytesIO()
    parquet.write_table(arrow.table({"path": ["a.jpg", "b.jpg"], "cam": ["hall", None]}), file)

    def read(seed: int) -> None:
        spoilt_file = write(images / "list.parquet", spoilt(file.getvalue(), random.Random(seed)))
        assert all(path.is_file() for path in loaded(spoilt_file))

    attack(read, 100, seed=SEEDS)


LINES = b"0000/0000_000_01_0303morning_0015_0.jpg 0\n0001/0001_000_02_0303noon_0015_0.jpg 1\n"
LISTS = ("list_train.txt", "list_val.txt", "list_query.txt", "list_gallery.txt")


@pytest.fixture
def msmt(tmp_path: Path) -> Path:
    for line in LINES.decode().splitlines():
        for part in ("train", "test"):
            write(tmp_path / part / line.partition(" ")[0])
    for name in LISTS:
        write(tmp_path / name, LINES)
    return tmp_path


def test_a_spoilt_list_lists_what_lies_below_its_folder(attack, msmt: Path) -> None:
    write(msmt / "0002" / "0002_000_01_0303morning_0015_0.jpg")
    pieces = (b"\r", b"\0", b"\xff", b"../0002/0002_000_01_0303morning_0015_0.jpg 2\n", b"9" * 5000, b"-1", b" ")

    def read(seed: int) -> None:
        chance = random.Random(seed)
        file = msmt / chance.choice(LISTS)
        write(file, spoilt(LINES, chance, pieces))
        assert all(msmt / "train" in path.parents for path in loaded(file, "msmt17", msmt))
        write(file, LINES)

    attack(read, 100, seed=SEEDS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LINES.replace(b"\n", b"\r\n"), None),
        (b"\xef\xbb\xbf" + LINES, None),
        (LINES.decode().encode("utf-16"), "list_train.txt cannot be read as UTF-8"),
        (b"\xe4" + LINES, "list_train.txt cannot be read as UTF-8"),
        (b"../test/" + LINES, r"list_train.txt:1 names .* missing"),
        (b"/etc/passwd 1\n", r"list_train.txt:1 names .* missing"),
        (LINES[:-2] + b"9" * 5000, r"list_train.txt:2 is not `path identity`"),
    ],
    ids=range(7),
)
def test_list_files_of_other_editors(msmt: Path, content: bytes, said: str | None) -> None:
    write(msmt / "list_train.txt", content)
    if said is None:
        assert len(load_set("msmt17", msmt).train) == 4
    else:
        with pytest.raises(UserError, match=said):
            load_set("msmt17", msmt)


def archive(form: str) -> bytes:
    """A tar file of images with labels, long names among them."""
    names = ("a.jpg", "n" * 120 + "/" + "m" * 120 + ".jpg")
    labels = {"a.json": b'{"cam": "hall", "pid": 3}', "b.cls": b"7"}
    files = {name: content for image in names for name, content in {image: JPEG}.items()} | labels
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=TAR_FORMATS[form]) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


ARCHIVES = {form: archive(form) for form in ("gnu", "pax")}


def summed(content: bytes) -> bytes:
    """With true checksums, which an enemy writes too."""
    made = bytearray(content)
    for at in range(0, len(made) - 511, 512):
        if made[at + 257 : at + 262] == b"ustar":
            made[at + 148 : at + 156] = b" " * 8
            made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
    return bytes(made)


def test_of_a_spoilt_tar_file_nothing_outside_is_read(attack, tmp_path: Path) -> None:
    def read(seed: int) -> None:
        chance = random.Random(seed)
        content = spoilt(
            ARCHIVES[chance.choice(["gnu", "pax"])], chance, (b"99999999 size=1\n", b"\x80" + b"\xff" * 11)
        )
        file = write(tmp_path / f"{seed % 2}.tar", summed(content) if chance.random() < 0.7 else content)
        for path in loaded(file):
            place = place_of(path)
            assert place.file == str(file)
            assert 0 <= place.offset <= place.offset + place.size <= len(content)

    attack(read, 150, seed=SEEDS)


def tar_of(*entries: tuple[str, dict]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, fields in entries:
            info = tarfile.TarInfo(name)
            content = fields.pop("content", JPEG)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tar_of(("a.jpg", {}))[:700], "cut short"),
        (tar_of(("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})), "hold no images"),
        (tar_of(("a.jpg", {"type": tarfile.LNKTYPE, "linkname": "../x"})), "hold no images"),
        (tar_of(("a.jpg", {"type": tarfile.FIFOTYPE})), "hold no images"),
        (tar_of(("a.jpg", {"type": tarfile.GNUTYPE_SPARSE})), "sparse"),
        (tar_of(("a.jpg", {}), ("./a.jpg", {})), "is there twice"),
        (tar_of(("inner.tar", {"content": tar_of(("a.jpg", {}))})), "hold no images"),
        (tar_of(("a.jpg", {}), ("a.json", {"content": b"[" * 10**5})), "a.json is not JSON"),
        (tar_of(("a.jpg", {}), ("a.json", {"content": b"1" * 10**4})), "a.json is not JSON"),
        (tar_of(("a.jpg", {}), ("a.json", {"content": b'"' + b"x" * 2**20 + b'"'})), "too many for a label"),
        (tar_of(("a.jpg", {}), ("a.json", {"content": b'{"cam": [1]}'})), "neither a text nor a number"),
        (tar_of(("a.jpg", {}), ("a.cam", {"content": b"\xff"})), "UTF-8"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed"),
        (b"PK\x03\x04" + bytes(600), "no tar file"),
        (b"", "no tar file"),
    ],
    ids=range(15),
)
def test_tar_files_that_do_not_fit(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_set("folder", write(tmp_path / "0.tar", content))


def test_a_number_without_end_in_an_extended_header_ends(tmp_path: Path) -> None:
    record = b"size=" + b"9" * 6000 + b"\n"
    record = b"%d %s" % (len(record) + 5, record)
    header = tar_of(("head", {"type": tarfile.XHDTYPE, "content": record}))
    whole = header[: 512 + -(-len(record) // 512) * 512] + tar_of(("a.jpg", {}))
    with pytest.raises(UserError, match="cut short or damaged"):
        load_set("folder", write(tmp_path / "0.tar", whole))
    pack(tmp_path / "1.tar", {"b.jpg": JPEG})
    with pytest.raises(UserError, match="cut short or damaged"):
        load_set("folder", tmp_path)
