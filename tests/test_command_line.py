"""The command line: layers of settings, their ranges, flags of other methods, help."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from inputs import TINY, argv, assert_settings, refused

from reid_fast.command_line import _help, parse
from reid_fast.config import RECIPES
from reid_fast.data.sets import SIZES
from reid_fast.marks import flag_of
from reid_fast.methods import method_class, method_names, settings_class
from reid_fast.train import main as train

RUN = argv(**TINY, method="cc", iters=8, epochs=2, amp=True)


def test_show_config_names_the_origin_of_each_setting(capsys) -> None:
    train(["--recipe", "small", "--eps", "0.55", "--show-config"])
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "flag" in shown["eps"]
    assert "recipe small" in shown["arch"]
    assert "method cc" in shown["temp"]
    assert "default" in shown["k2"]


def test_the_synthetic_set_is_trained_with_the_small_recipe(capsys) -> None:
    shown = []
    for flags in (["-d", "synthetic"], ["-d", "market1501", "--recipe", "small"]):
        train(["--method", "ice", *flags, "--show-config"])
        lines = capsys.readouterr().out.splitlines()
        shown.append([line for line in lines if line.split()[0] not in ("dataset", "recipe")])
    assert shown[0] == shown[1]
    assert any("ice with small" in line for line in shown[0])


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--method", "xyz"], "--method xyz is not known"),
        (["-d", "xyz"], "--dataset xyz is not known"),
        (["--recipe", "xyz"], "--recipe xyz is not known"),
        (["-b", "15"], "not a multiple"),
        (["--bn-group", "1"], "--bn-group must hold at least 2 images"),
        (["-b", "1", "--num-instances", "1"], "--bn-group must hold at least 2 images"),
        (["--cluster", "hdbscan", "--min-cluster", "1"], "--min-cluster must lie between 2 and 1,000,000,000"),
        (["-b", "72", "--bn-group", "64"], "not a multiple of --bn-group"),
        (["--iters", "-1"], "--iters must lie between 0 and 1,000,000,000"),
        (["--epochs", "0"], "--epochs must lie between 1"),
        (["--eps", "1.5"], "--eps must lie between"),
        (["--k2", "40"], "--k2 40"),
        (["--momentum", "1"], "--momentum"),
        (["--lr", "-1"], "--lr"),
        (["--drop-path", "1"], "--drop-path must lie between 0 and 1, 1 excluded"),
        (["--arch", "vit_small", "--width", "24"], "32×24 is not made of"),
        (["--cache", "-0.5"], "--cache must lie between 0 and 1e+06, not -0.5"),
        (["--cache", "nan"], "--cache must lie between 0 and 1e+06, not nan"),
        (["--arch", "vgg"], "--arch vgg"),
        (["--height", "100000"], "--height must lie between 1 and 4,096, not 100000"),
        (["--width", str(2**40)], "--width must lie"),
        (["--pad", str(2**31)], "--pad must lie between 0 and 4,096"),
        (["--workers", "1000000"], "--workers must lie between 1 and 1,024"),
        (["--threads", "1000000"], "--threads must lie between 0 and 1,024"),
        (["--seed", str(2**64)], "--seed must lie between 0 and 9,223,372,036,854,775,807"),
        (["--min-samples", str(2**64)], "--min-samples must lie"),
        (["--weight-decay", "nan"], "--weight-decay must lie between 0 and 1e+06, not nan"),
        (["--iters", "1000000000"], "--iters and --batch-size need 953.7 GiB of memory at least"),
        (["-b", "1000000000", "--bn-group", "0", "--num-instances", "1"], "--batch-size, --height and --width need"),
        (["--height", "4096", "--width", "4096"], "--batch-size, --height and --width need"),
        (["--data-dir", "x" * 256], "--data-dir is no path: it, or a name in it, is too long"),
        (["--logs-dir", "a\0b"], "a setting has a NUL character in it"),
        (["--epochs", "many"], "--epochs: invalid literal for int() with base 10: 'many' (--help lists"),
        (["--image-norm", "x"], "invalid choice 'x' for argument '--image-norm'"),
        (["--epochs"], "Missing value for argument '--epochs'"),
        (["--device", "tpu"], "--device tpu"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--weights", "x" * 5000], "there is no such file or run folder"),
    ],
)
def test_settings_out_of_range(capsys, people: Path, tmp_path: Path, flags: list[str], text: str) -> None:
    assert text in refused(capsys, train, *RUN, "--data-dir", people, "--logs-dir", tmp_path / "run", *flags)


@pytest.mark.parametrize(
    "line",
    [
        "--epochs 50 --recipe gem small -d market1501 --lr 0.01",
        "-d=market1501 --recipe=gem --lr=0.01 --recipe gem small --epochs=50 --no-amp",
        "--lr 0.01 --dataset msmt17 -b64 --epochs 50 -d market1501 --recipe gem small",
    ],
)
def test_layers_and_the_flags_above_them_stand_in_any_order(line):
    """Fifty epochs are also the default, below the recipe that has thirty."""
    config, origin = parse(line.split())
    assert_settings(config, "dataset market1501, epochs 50, lr 0.01, pooling_type gem, arch resnet18_half")
    assert [origin[name] for name in ("arch", "pooling_type", "lr", "epochs")] == [*2 * ["recipe small"], *2 * ["flag"]]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--logs-dir", "-d", "market1501"], "Missing value for argument '--logs-dir'"),
        (["-d"], "Missing value for argument '-d/--dataset'"),
        (["--recipe", "small", "nothing"], "--recipe nothing is not known"),
        (["nothing", "--recipe", "small"], "Unrecognized options: nothing"),
    ],
)
def test_what_is_wrong_about_the_layers_or_beside_them_is_said_of_the_right_flag(capsys, flags, said):
    assert said in refused(capsys, train, "--method", "cc", *flags)


def test_help_shows_the_defaults_below_the_recipe_that_is_asked_for(capsys):
    for recipe, arch in (("small", "resnet18_half"), ("vit", "vit_small")):
        with pytest.raises(SystemExit):
            train(["-d", "market1501", "--recipe", recipe, "--help"])
        assert f"(default: {arch})" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("flag", ["--threads", "--workers"])
def test_threads_are_bounded_by_the_cores(monkeypatch, capsys, flag):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    said = f"error: {flag} must be at most 48 on this machine, 16 for each of its cores, not 49"
    assert refused(capsys, train, "--show-config", flag, "49") == said
    train(["--show-config", flag, "48"])


def test_a_flag_of_another_method_is_refused(people, tmp_path, capsys):
    text = refused(
        capsys, train, *argv(**TINY, method="cc", data_dir=people, logs_dir=tmp_path / "run"), "--hps-guard", "0.5"
    )
    assert text == "error: --hps-guard is a setting of rcl, which --method cc does not read"
    assert not (tmp_path / "run").exists()


def test_a_flag_that_nobody_knows_is_refused(people, tmp_path, capsys):
    text = refused(
        capsys, train, *argv(**TINY, method="cc", data_dir=people, logs_dir=tmp_path / "run"), "--num-instance=4"
    )
    assert "--num-instance is no setting: did you mean --num-instances?" in text


@pytest.mark.parametrize(
    ("name", "more", "text"),
    [
        ("spcl", ["--eps-gap", "0.7"], "--eps-gap 0.7"),
        ("cacl", ["--eps", "0.999"], "--eps-gap 0.005"),
        ("cap", ["--negatives", "0"], "--negatives must lie between 1"),
        ("ice", ["--camera-temp", "0"], "--camera-temp must lie between 1e-09 and 1e+06"),
        ("dccc", ["--ema", "1"], "--ema must lie between 0 and 1, 1 excluded"),
        ("dccc", ["--smoothing", "1.5"], "--smoothing"),
        ("rcl", ["--saa-lr", "nan"], "--saa-lr must lie between 1e-09 and 1e+06, not nan"),
        ("rcl", ["--saa-lr", "1e300"], "--saa-lr must lie"),
        ("cc", ["--update-temp", "inf"], "--update-temp must lie between 1e-09 and 1e+06, not inf"),
    ],
)
def test_settings_out_of_range_of_a_method(name, more, text, people, tmp_path, capsys):
    assert text in refused(capsys, train, *argv(**TINY, method=name, data_dir=people, logs_dir=tmp_path / "run"), *more)


@pytest.mark.parametrize("name", method_names())
def test_a_recipe_sets_what_the_method_reads(name):
    known = {field.name for field in dataclasses.fields(settings_class(name))}
    for place, overlay in method_class(name).recipes.items():
        assert set(place.split(" on ")) <= {*SIZES, *RECIPES}
        assert set(overlay) <= known


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-d", "market1501"], "eps 0.6, update hard, iters 200, bn_group 64"),
        (["-d", "msmt17"], "eps 0.7, update hard, iters 200, bn_group 128"),
        (["-d", "msmt17", "--method", "rcl"], "eps 0.7, iters 200, bn_group 128"),
        (["-d", "msmt17", "--method", "dccc"], "eps 0.8, update weighted, iters 200, bn_group 64"),
        (["-d", "market1501", "--method", "ice"], "eps 0.55, iters 400, bn_group 64"),
    ],
)
def test_the_published_settings_of_a_transformer(flags, expected):
    config, origin = parse([*flags, "--recipe", "vit"])
    shared = "arch vit_small, optimizer sgd, lr 0.00035, weight_decay 0.0005, drop_path 0.3, image_norm half"
    assert_settings(config, f"{shared}, batch_size 256, num_instances 8, {expected}")
    if config.method in ("cc", "rcl", "dccc"):
        assert_settings(config, "momentum 0.2, temp 0.05")
    if flags == ["-d", "msmt17"]:
        assert origin["eps"] == "cc with vit on msmt17"


@pytest.mark.parametrize("name", method_names())
def test_every_setting_is_documented_and_grouped(name, capsys):
    with pytest.raises(SystemExit):
        train(["--method", name, "--help"])
    shown = capsys.readouterr().out
    for field in dataclasses.fields(settings_class(name)):
        assert re.search(rf"--{field.name.replace('_', '-')}\b", shown), field.name
        assert _help(settings_class(name), field.name), field.name


@pytest.mark.parametrize("name", method_names())
def test_every_switch_can_be_turned_off(name):
    switches = [key for key, kind in get_type_hints(settings_class(name)).items() if kind is bool]
    assert {"resume", "amp"} <= set(switches)
    config, _ = parse(["--method", name, *(flag_of(f"no_{key}") for key in switches)])
    assert not any(getattr(config, key) for key in switches)


@pytest.mark.parametrize("name", method_names())
def test_the_page_of_a_method_names_flags_that_it_reads(name):
    page = (Path(__file__).parents[1] / f"docs/methods/{name}.md").read_text()
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(settings_class(name))}
    flags |= {flag.replace("--", "--no-", 1) for flag in flags}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", page)) <= flags
