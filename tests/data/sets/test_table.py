"""Images listed in a table."""

import sys

import pytest
from inputs import records, write

from reid_fast.data.sets import load_set
from reid_fast.errors import UserError


@pytest.fixture
def listed(tmp_path):
    """Writes a table beside six images, and reads it."""
    for i in range(6):
        write(tmp_path / f"crops/{i}.jpg")

    def read(content, name="list.csv"):
        write(tmp_path / name, content if isinstance(content, bytes) else content.encode())
        return load_set("folder", tmp_path / name).train

    return read


def test_a_table_names_images_cameras_and_identities(listed, tmp_path):
    train = listed(
        "pid, path ,cam,note\n"
        '"ann, b",crops/2.jpg,10,x\n'
        f"zoe,{tmp_path}/crops/0.jpg,9,\n"
        "\n"
        ",./crops/4.jpg,,\n"
        '"ann, b",crops/1.jpg,10,"two\nlines"\n'
    )
    assert records(train) == [("0.jpg", 1, 1), ("1.jpg", 0, 0), ("2.jpg", 0, 0), ("4.jpg", -1, -1)]
    assert train.paths[3] == tmp_path / "crops/4.jpg"


@pytest.mark.parametrize(
    "content", [b"path\ncrops/1.jpg\r\ncrops/0.jpg", b"\xef\xbb\xbfpath\r\ncrops/0.jpg\r\ncrops/1.jpg\r\n"]
)
def test_cameras_and_identities_may_be_missing(listed, content):
    assert records(listed(content)) == [("0.jpg", -1, -1), ("1.jpg", -1, -1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"list.csv:1 names no column `path`"),
        ("cam,pid\n1,2\n", r"list.csv:1 names no column `path`: its columns must be path"),
        ("path,cam\n", r"list.csv lists no images"),
        ("path\ncrops/0.jpg\ncrops/9.jpg\n", r"list.csv:3 names .*crops/9.jpg, which is missing"),
        ("path\ncrops\n", r"list.csv:2 names .*crops, which is missing"),
        ("path,cam\ncrops/1.jpg,a\ncrops/0.jpg,a\n./crops/1.jpg,b\n", r"list.csv:4 names .*1.jpg, which line 2 has"),
        ("path,cam\ncrops/0.jpg,a\n,b\n", r"list.csv:3 names no image"),
        ("path,cam\ncrops/0.jpg,a,b\n", r"list.csv:2 has 3 cells below 2 columns"),
        ("path,cam\ncrops/0.jpg\n", r"list.csv:2 has 1 cells below 2 columns"),
        (b"path\ncrops/0.jpg\ncrops/\xe9.jpg\n", r"list.csv:3 is not UTF-8"),
        ("path\ncrops/0.jpg\n".encode("utf-16"), r"list.csv:1 is not UTF-8"),
        ('path\n"crops/0.jpg\n', r"list.csv:2 is not CSV"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_an_error_with_its_line(listed, content, message):
    with pytest.raises(UserError, match=message):
        listed(content)


def test_reading_reports_how_far_it_is(listed, tmp_path, monkeypatch):
    monkeypatch.setattr("reid_fast.data.sets.table._REPORTED", 2)
    listed("path\n" + "".join(f"crops/{i}.jpg\n" for i in range(5)))
    seen = []
    load_set("folder", tmp_path / "list.csv", progress=lambda *read: seen.append(read))
    assert seen == [(2, None), (4, None)]


@pytest.mark.parametrize(("name", "message"), [("list.txt", "is no folder and no"), ("no.csv", "does not exist")])
def test_another_file_is_an_error(tmp_path, name, message):
    write(tmp_path / "list.txt")
    with pytest.raises(UserError, match=message):
        load_set("folder", tmp_path / name)


def test_a_pattern_is_not_for_a_table(listed, tmp_path):
    listed("path\ncrops/0.jpg\n")
    with pytest.raises(UserError, match="--pattern is for folders"):
        load_set("folder", tmp_path / "list.csv", pattern="(?P<cam>.)")


def test_parquet_without_pyarrow_is_one_clear_sentence(listed, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"list.parquet needs the extra: pip install .reid-fast\[parquet\]"):
        listed(b"PAR1", "list.parquet")


class TestParquet:
    """With pyarrow alone."""

    @pytest.fixture(autouse=True)
    def arrow(self):
        self.pyarrow = pytest.importorskip("pyarrow")
        self.parquet = pytest.importorskip("pyarrow.parquet")

    def read(self, listed, tmp_path, **columns):
        self.parquet.write_table(self.pyarrow.table(columns), tmp_path / "made.parquet", row_group_size=2)
        return listed((tmp_path / "made.parquet").read_bytes(), "list.parquet")

    def test_a_table_names_images_cameras_and_identities(self, listed, tmp_path):
        paths = [f"crops/{i}.jpg" for i in (2, 0, 1)]
        train = self.read(listed, tmp_path, pid=[7, None, 3], path=paths, other=[0, 0, 0], cam=["b", "a", ""])
        assert records(train) == [("0.jpg", -1, 0), ("1.jpg", 0, -1), ("2.jpg", 1, 1)]
        train = self.read(listed, tmp_path, path=paths, pid=[1.0, float("nan"), 1.0])
        assert records(train) == [("0.jpg", -1, -1), ("1.jpg", 0, -1), ("2.jpg", 0, -1)]

    def test_a_table_that_does_not_fit_is_an_error(self, listed, tmp_path):
        with pytest.raises(UserError, match="names no column `path`"):
            self.read(listed, tmp_path, cam=[1])
        with pytest.raises(UserError, match=r"list.parquet:3 names .*9.jpg, which is missing"):
            self.read(listed, tmp_path, path=["crops/0.jpg", "crops/1.jpg", "crops/9.jpg"])
        with pytest.raises(UserError, match="is not a whole Parquet file"):
            listed(b"PAR1", "list.parquet")

    @pytest.mark.parametrize(
        "spoilt",
        [
            lambda arrow: {"path": arrow.array([b"\xc3("]).view(arrow.string())},
            lambda arrow: {"path": ["crops/0.jpg"], "cam": arrow.array([2**62], arrow.timestamp("us"))},
            lambda arrow: {"path": ["crops/0.jpg"], "pid": arrow.array([2**62], arrow.duration("s"))},
        ],
        ids=["no UTF-8", "a time beyond all years", "a duration beyond all days"],
    )
    def test_a_value_that_python_cannot_hold_is_an_error(self, listed, tmp_path, spoilt):
        with pytest.raises(UserError, match=r"list.parquet is not a whole Parquet file \("):
            self.read(listed, tmp_path, **spoilt(self.pyarrow))
