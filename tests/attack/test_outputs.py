"""What commands write is whole or not there, whatever fails or kills them; the next time, all of it is there."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from attack.attacked import Fault, faults

FLAGS = ["--device", "cpu"]
COMMANDS = {
    "embed": "embed RUN DATA/query -o OUT/x.npy",
    "embed in one file": "embed RUN DATA/query -o OUT/x.safetensors",
    "search": "search RUN --query DATA/query --gallery DATA/bounding_box_test "
    "--html OUT/x.html --png OUT/x.png --json OUT/x.json --index OUT/x.faiss",
    "evaluate": "evaluate RUN -d market1501 --data-dir DATA --output OUT/x.json",
    "report": "report RUN -o OUT/x.html --png OUT/charts --data-dir DATA",
    "export": "export RUN --to safetensors -o OUT/x.safetensors",
    "export to onnx": "export RUN --to onnx -o OUT/x.onnx",
    "data synthetic": "data synthetic --root OUT --sheet OUT/sheet.png",
}


def written(folder: Path) -> dict[str, bytes]:
    """The files that have their names, and what is in them."""
    files = (file for file in folder.rglob("*") if file.is_file())
    found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return {name: content for name, content in found.items() if not any(p[0] == "." for p in name.split("/"))}


def command(name: str, undisturbed, data: Path, out: Path) -> list[str]:
    """The command line of this name."""
    text = COMMANDS[name]
    for word, place in {"RUN": undisturbed.run, "DATA": data, "OUT": out}.items():
        text = text.replace(word, str(place))
    return text.split() + (FLAGS if not name.startswith(("export", "data")) else [])


def afresh(*folders: Path) -> None:
    """Empty folders."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()


@pytest.mark.parametrize("way", ["at a call", "at a time"])
def test_outputs_are_whole_or_not_there(
    server, undisturbed, market_folder, tmp_path, cases, chance, tried, way
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    for name in list(COMMANDS) if cases else [chance.choice(list(COMMANDS))]:
        flags = command(name, undisturbed, market_folder, out)

        def run(**disturbed: object):
            return server.run(flags, out, cache, XDG_CACHE_HOME=str(cache), **disturbed)  # noqa: B023

        afresh(out, cache)
        whole = run()
        whole.assert_said(0)
        expected = written(out)
        count = max(1, cases // 50)
        drawn = faults(whole.calls, chance, count)
        times = [chance.uniform(0, whole.seconds) for _ in range(count)]
        for disturbed in [{"fault": fault} for fault in drawn] if way == "at a call" else [{"after": t} for t in times]:
            afresh(out, cache)
            ended = run(**disturbed)
            tried("faults and kills of other commands")
            print(name, disturbed, ended.code, ended.err, flush=True)
            assert ended.code in (0, 2, -signal.SIGKILL), ended
            ended.assert_said(ended.code)
            assert written(out).items() <= expected.items(), (name, disturbed)
            run().assert_said(0)
            assert written(out) == expected
            assert not list(out.rglob(".*")), name


def test_a_picture_is_whole_where_the_disk_takes_its_first_half_alone(
    server, undisturbed, market_folder, tmp_path
) -> None:
    """The rest has to be written by another call, which Pillow does not make."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    flags = command("data synthetic", undisturbed, market_folder, out)
    afresh(out, cache)
    calls = server.run(flags, out, cache).calls
    expected = written(out)
    for end in (".jpg", ".sheet.png.part"):
        afresh(out, cache)
        first = next(n for n, call in enumerate(calls, 1) if call.startswith("write") and call.endswith(end))
        server.run(flags, out, cache, fault=Fault("short", first)).assert_said(0)
        assert written(out) == expected
