"""`reid-fast`: commands are found, listed and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from inputs import refused

import reid_fast
from reid_fast import commands
from reid_fast.__main__ import main

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT / "reid_fast/commands").with_suffix("").parts
    for path in (ROOT / "reid_fast/commands").rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("flags", [[], ["--help"], ["-h"], ["data"], ["data", "--help"], ["--version"]])
def test_the_list_of_commands_costs_nothing(flags: list[str]) -> None:
    code = (
        "import sys; from reid_fast.__main__ import main; main(sys.argv[1:]);"
        "assert not {'torch', 'numpy', 'tyro', 'rich', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_file_is_listed_with_what_it_says_of_itself(capsys) -> None:
    main([])
    shown = capsys.readouterr().out
    main(["data"])
    shown += capsys.readouterr().out
    for words in FILES:
        name = words[-1].replace("_", "-")
        (line,) = [line for line in shown.splitlines() if line.startswith(f"  {name} ")]
        said = (ROOT / "reid_fast/commands").joinpath(*words).with_suffix(".py").read_text().splitlines()[0]
        assert line.removeprefix(f"  {name}").strip() == said.strip('"')
        assert len(line) < 80, line


@pytest.mark.parametrize("words", FILES, ids=" ".join)
def test_every_command_says_its_own_name_in_its_help(words: tuple[str, ...], capsys) -> None:
    name = [word.replace("_", "-") for word in words]
    with pytest.raises(SystemExit) as stop:
        main([*name, "--help"])
    assert stop.value.code == 0
    assert " ".join(["usage: reid-fast", *name]) in capsys.readouterr().out


def test_a_command_runs_with_its_own_arguments(capsys, monkeypatch, people: Path) -> None:
    from reid_fast.data.synthetic import command

    seen = []

    def folder(root: Path, seed: int) -> Path:
        seen.append((list(sys.argv), root, seed))
        return people

    monkeypatch.setattr(command, "synthetic_folder", folder)
    before = sys.argv
    main(["data", "synthetic", "--root", "somewhere", "--seed", "3"])
    assert seen == [(["reid-fast data synthetic", "--root", "somewhere", "--seed", "3"], Path("somewhere"), 3)]
    assert capsys.readouterr().out.strip() == str(people)
    assert sys.argv is before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "reid-fast has no command 'trian': did you mean train?"),
        (["data", "synthetics"], "reid-fast data has no command 'synthetics': did you mean synthetic?"),
        (["xyz"], "reid-fast has no command 'xyz': reid-fast --help lists what there is"),
        (["__init__"], "reid-fast has no command '__init__'"),
        (["--verbose"], "reid-fast has no command '--verbose'"),
        ([""], "reid-fast has no command ''"),
    ],
)
def test_an_unknown_command_is_one_sentence_with_the_nearest_name(capsys, words: list[str], sentence: str) -> None:
    assert sentence in refused(capsys, main, *words)


def test_a_new_file_is_a_new_command(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "say_it.py").write_text('"""Say what was said."""\n\ndef main(argv):\n    print(argv)\n')
    monkeypatch.setattr(sys, "modules", dict(sys.modules))  # it is forgotten again
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert "say-it" in commands.command_names()
    main(["say-it", "--loud"])
    assert capsys.readouterr().out == "['--loud']\n"
    main([])
    assert ["say-it", "Say", "what", "was", "said."] in map(str.split, capsys.readouterr().out.splitlines())


def test_the_version_and_the_module(capsys) -> None:
    done = subprocess.run([sys.executable, "-m", "reid_fast", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"reid-fast {reid_fast.__version__}\n"
