"""What files may hold, and that nothing in them runs."""

import argparse
import pickle
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from reid_fast.errors import UserError
from reid_fast.models.checkpoints.files import read_tensors

TENSORS = {"conv1.weight": torch.arange(6.0).view(2, 3), "bn1.bias": torch.ones(2)}


def assert_tensors(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.bool_])
def test_numbers_of_numpy_may_lie_beside_the_tensors(tmp_path, kind):
    torch.save({"state_dict": TENSORS, "best_mAP": kind(1)}, tmp_path / "file.pth")
    assert_tensors(read_tensors(tmp_path / "file.pth"))


def test_numbers_of_numpy_1_too(tmp_path):
    torch.save({"state_dict": TENSORS, "best_mAP": np.float64(0.83)}, tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(name, content)
    assert_tensors(read_tensors(tmp_path / "old.pth"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": {"state_dict": tensors}, "epoch": 1},
        lambda tensors: {"teacher": {f"module.{name}": t for name, t in tensors.items()}, "student": {}},
        lambda tensors: {"state_dict": {f"module._orig_mod.{name}": t for name, t in tensors.items()}},
        lambda tensors: {name: torch.nn.Parameter(t) for name, t in tensors.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappings_are_taken_off(tmp_path, wrap, zipped):
    torch.save(wrap(TENSORS), tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "file.pth")
    assert_tensors(found)
    assert not any(tensor.requires_grad for tensor in found.values())


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "file.pth")
    assert read_tensors(tmp_path / "file.pth").keys() == {"module.a", "b"}


def test_the_settings_of_a_command_line_may_lie_beside_the_tensors(tmp_path):
    nested = argparse.Namespace(lr=1e-3, data=argparse.Namespace(crops=[8, 2]))
    torch.save(
        {"teacher": {f"module.backbone.{name}": t for name, t in TENSORS.items()}, "args": nested}, tmp_path / "f"
    )
    assert {name.removeprefix("backbone.") for name in read_tensors(tmp_path / "f")} == TENSORS.keys()


def test_objects_beside_the_tensors_are_named_with_the_way_out(tmp_path):
    torch.save({"state_dict": TENSORS, "args": types.SimpleNamespace(lr=1)}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"types\.SimpleNamespace .*weights_only=False\)\['state_dict'\]") as caught:
        read_tensors(tmp_path / "file.pth")
    assert "\n" not in str(caught.value)


class Hostile:
    """Runs something when it is unpickled as usual."""

    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("write", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize(
    "place", [lambda x: x, lambda x: {"state_dict": TENSORS, "x": x}, lambda x: TENSORS | {"x": x}]
)
def test_what_a_hostile_file_would_run_does_not(tmp_path, write, place):
    mark, path = tmp_path / "mark", tmp_path / "file.pth"
    for call, *arguments in (
        (Path.touch, mark),
        (eval, f"open({str(mark)!r}, 'w')"),
        (np.float64(0).__reduce__()[0], np.dtype("O"), Hostile(Path.touch, mark)),
    ):
        content = place(Hostile(call, *arguments))
        if write == "pickle":
            path.write_bytes(pickle.dumps(content, protocol=2))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=write == "zip")
        with pytest.raises(UserError, match=r"file\.pth (holds more than tensors|is not a file of)") as caught:
            read_tensors(path)
        assert "\n" not in str(caught.value)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(Path.touch, mark)))
    assert mark.exists()  # it would have run


def test_the_state_of_a_run_is_told_from_its_weights(tmp_path):
    torch.save({"format": 2, "method": TENSORS, "at": {}, "config": {}}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=f"give its folder, {tmp_path}"):
        read_tensors(tmp_path / "last.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": {}}, "holds nothing"),
        ({"a": torch.ones(1), "note": "text"}, "note is not a tensor but a str"),
        ([torch.ones(1)], "no tensors by name but a list"),
    ],
)
def test_what_is_no_tensor_is_named(tmp_path, content, said):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(UserError, match=said):
        read_tensors(tmp_path / "file.pth")
