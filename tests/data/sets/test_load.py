"""Finding a set below a folder, and the names and sizes of the sets."""

import subprocess
import sys

import pytest
from inputs import MARKET_FOLDERS, records, write, write_splits

from reid_fast.data.sets import SIZES, load_set, market_style
from reid_fast.errors import UserError


@pytest.mark.parametrize("above", ["", "market1501", "Market-1501-v15.09.15", "sets/0001_c2/anything"])
def test_the_folder_is_found_by_its_content(tmp_path, above):
    write_splits(tmp_path / above)
    data = load_set("market1501", tmp_path)
    assert data.train.paths[0].parent == tmp_path / above / MARKET_FOLDERS[0]
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
    assert records(data.query) == [("0005_c8_f0046985.jpg", 5, 7)]


def test_market_style_has_any_number_of_identities_and_cameras(tmp_path):
    splits = (["99999_c1_0.png", "0004_c31_1.jpg"], ["123456_c2_0.jpg"], ["123456_c3_0.jpg"])
    data = market_style("synthetic", write_splits(tmp_path, splits))
    assert data.name == "synthetic"
    assert [(pid, cam) for _, pid, cam in records(data.train)] == [(0, 30), (1, 0)]


def test_what_is_not_market_style_is_described(tmp_path):
    write(tmp_path / "photos" / "cat.jpg")
    with pytest.raises(
        UserError, match=r"is not a Market-style set: looked for folders bounding_box_train.*found photos"
    ):
        market_style("synthetic", tmp_path)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_set("market1501", tmp_path / "nowhere")


def test_what_is_not_the_set_is_described(tmp_path):
    write(tmp_path / "photos" / "cat.jpg")
    with pytest.raises(UserError, match=r"does not hold VeRi-776.*image_train.*found photos"):
        load_set("veri776", tmp_path)


def test_a_pattern_is_for_a_folder_alone(tmp_path):
    with pytest.raises(UserError, match="--pattern is for --dataset folder"):
        load_set("veri776", tmp_path, pattern="x")


def test_records_are_read_without_torch_or_an_image_library():
    heavy = "{'torch', 'PIL', 'nvidia', 'tyro'} & set(sys.modules)"
    code = f"import sys, reid_fast.data.sets; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_vehicles_are_square_and_people_twice_as_high_as_wide():
    assert SIZES == {
        "synthetic": (256, 128),
        "market1501": (256, 128),
        "dukemtmcreid": (256, 128),
        "msmt17": (256, 128),
        "personx": (256, 128),
        "veri776": (224, 224),
        "folder": (256, 128),
    }
