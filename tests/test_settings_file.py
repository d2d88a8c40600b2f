"""Files of settings: what they may say, what lies over them, and that a run's config.json repeats the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from inputs import TINY, argv, refused

from reid_fast.command_line import parse
from reid_fast.config import to_json
from reid_fast.train import main as train

WRITTEN = """
# Everything that a file may say.
method: spcl
dataset: market1501
recipe: gem
batch-size: 48         # as the flag is written
num_instances: 4       # as config.json has it
lr: 1e-4               # to YAML 1.1, text
eps: 0.55
temp: 1                # a whole number where any number may stand
cam: false
data_dir: /somewhere
cache_dir: null
weights: none
"""


def test_a_file_lies_over_recipes_and_under_flags(tmp_path: Path, capsys) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(WRITTEN)
    config, origin = parse(["--config", str(path), "--eps", "0.7", "--recipe", "small"])
    found = {name: getattr(config, name) for name in ("method", "batch_size", "lr", "eps", "temp", "cam", "weights")}
    assert found == {
        "method": "spcl",
        "batch_size": 48,
        "lr": 1e-4,
        "eps": 0.7,
        "temp": 1.0,
        "cam": False,
        "weights": "none",
    }
    assert type(config.temp) is float  # type: ignore[attr-defined]
    assert config.data_dir == Path("/somewhere")
    assert config.recipe == ("small",)
    assert config.arch == "resnet18_half"  # the flag's recipe, in place of the file's
    file = f"file {path}"
    assert [origin[name] for name in ("method", "batch_size", "lr", "eps", "arch")] == [
        *[file] * 3,
        "flag",
        "recipe small",
    ]
    train(["--config", str(path), "--show-config"])
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert shown["lr"].endswith(file)
    assert shown["pooling_type"].endswith("recipe gem")


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    (tmp_path / "empty.json").write_text("{}")
    for name in ("empty.yaml", "empty.json"):
        config, origin = parse([f"--config={tmp_path / name}"])
        assert to_json(config) | {"config": None} == to_json(parse([])[0])
        assert not any(layer.startswith("file") for name, layer in origin.items() if name != "config")


@pytest.mark.parametrize("method", ["cc", "rcl", "cap-cc"])
def test_the_settings_of_a_run_are_those_of_its_config(method: str, tmp_path: Path) -> None:
    config, _ = parse(["--method", method, "--recipe", "gem", "-d", "msmt17", "--lr", "2e-4", "--logs-dir", "x"])
    path = tmp_path / "config.json"
    content = {"config": to_json(config), "versions": {"torch": "0"}, "machine": {}, "command": ["--lr", "2e-4"]}
    path.write_text(json.dumps(content))
    again, _ = parse(["--config", str(path)])
    assert to_json(again) == to_json(config) | {"config": str(path), "logs_dir": None}


def test_the_config_of_a_run_repeats_it(people: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(argv(**TINY, method="cc", iters=2, epochs=1, data_dir=people, logs_dir=first))
    train(["--config", str(first / "config.json"), "--logs-dir", str(second)])
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("batch_sise: 64", "batch_sise is no setting: did you mean batch_size?"),
        ("quux: 64", "quux is no setting: --help lists them"),
        ("config: other.yaml", "config is no setting"),
        ("hps_guard: 0.5", "hps_guard is a setting of rcl, which --method cc does not read"),
        ("batch_size: many", 'batch_size must be a whole number, not "many"'),
        ("batch_size: 64.0", "batch_size must be a whole number, not 64.0"),
        ("batch_size: true", "batch_size must be a whole number, not true"),
        ("eps: true", "eps must be a number, not true"),
        ("eps: [0.5]", "eps must be a number, not [0.5]"),
        ("eps: 1.5", "--eps must lie between"),
        ("eps: .nan", "--eps must lie between"),
        ("amp: 1", "amp must be true or false, not 1"),
        ("arch: 50", "arch must be text, not 50"),
        ("arch: null", "arch must be text, not null"),
        ("arch: 2026-01-01", 'arch must be text, not "2026-01-01"'),
        ("pooling_type: max", 'pooling_type must be avg or gem, not "max"'),
        ("data_dir: 5", "data_dir must be a path or null, not 5"),
        ("recipe: [gem, 5]", "recipe must be a list of names"),
        ("recipe: huge", "--recipe huge is not known"),
        ("method: xyz", "--method xyz is not known"),
        ("- eps\n- 0.5", "must have a line for each setting"),
        ("5: 0.5", "must have a line for each setting"),
        ("eps: [0.5", "is not YAML"),
        ("eps: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_what_a_file_may_not_say(content: str, sentence: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    assert sentence in refused(capsys, train, "--config", path, "--show-config")


def test_files_that_cannot_be_read(tmp_path: Path, capsys) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "latin.json").write_bytes(b'{"arch": "\xe9"}')
    (tmp_path / "mine.toml").write_text("eps = 0.5")
    for name, sentence in {
        "nothing.yaml": "cannot be read (No such file or directory)",
        "broken.json": "is not JSON",
        "latin.json": "is not JSON",
        "mine.toml": "must be a .yaml or a .json file",
    }.items():
        assert sentence in refused(capsys, train, "--config", tmp_path / name)


def test_without_pyyaml_a_file_is_refused_in_one_sentence(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "mine.yaml").write_text("eps: 0.5")
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "pip install pyyaml" in refused(capsys, train, "--config", tmp_path / "mine.yaml")
