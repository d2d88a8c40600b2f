"""Runs commands with absurd settings, each in a forked process: `python tests/attack/flags.py --cases 500 --seed 1`.

Settings and their types are those of the commands' dataclasses, so a new setting is attacked without being listed. A
run may succeed, or end in exit code 2 and one sentence; whatever else it does is printed, one JSON line a case.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from conftest import save_encoder  # noqa: E402
from inputs import TINY, argv  # noqa: E402

from reid_fast.marks import Positional, marks  # noqa: E402

TEXTS = "", "x" * 5000, "né\u202e", "a\0b", "nowhere", "-1", "(a+)+$", "[", "/proc/version"
VALUES = {
    int: ("0", "-1", "1", "2", "3", "1000", "1000000", str(2**31), str(2**64), "9" * 40, "nan", "1.5"),
    float: ("0", "-1", "1", "0.5", "1e-300", "1e300", "inf", "-inf", "nan", "1e6", "1e-9"),
    bool: ("", "3"),
}
LONG = {"iters", "epochs"}  # a run of so many may well take longer
SECONDS = 60  # of a case, before it counts as one that hangs
MEMORY = 12 << 30  # bytes of address space that a case may map more than the process that it is forked from
LINES = 12  # of stderr


class Case(NamedTuple):
    """A command, and settings that are given beside those with which it works: name -> text."""

    command: str
    settings: dict[str, str]


@dataclass(frozen=True)
class Command:
    """What is called, the dataclass of its settings and a command line with which it works."""

    main: Callable[[list[str]], Any]
    settings: type
    works: list[str]


def texts_of(kind: Any) -> tuple[str, ...]:
    """What a setting of this type is given."""
    if get_origin(kind) is Annotated:
        return texts_of(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return *get_args(kind), *TEXTS
    if get_args(kind):  # of unions and tuples, whatever their parts are given
        parts = [part for part in get_args(kind) if part not in (type(None), Ellipsis)]
        return sum(map(texts_of, parts), ())
    return *VALUES.get(kind, ()), *TEXTS


def draw(commands: dict[str, Command], rng: random.Random) -> Case:
    """One setting, or two."""
    name = rng.choice(sorted(commands))
    settings = commands[name].settings
    hints = get_type_hints(settings)
    chosen = rng.sample([f.name for f in fields(settings) if f.name != "method"], rng.choice((1, 2)))
    return Case(name, {one: rng.choice(texts_of(hints[one])) for one in chosen})


def all_single(commands: dict[str, Command]) -> Iterator[Case]:
    """Each setting of each command with each of its values."""
    for name, command in commands.items():
        hints = get_type_hints(command.settings)
        for one in fields(command.settings):
            yield from (Case(name, {one.name: text}) for text in texts_of(hints[one.name]) if one.name != "method")


def flags(command: Command, case: Case) -> list[str]:
    """The command line of a case."""
    found, hints = list(command.works), get_type_hints(command.settings)
    for name, text in case.settings.items():
        flag = "--" + name.replace("_", "-")
        if Positional in marks(command.settings, name):
            found[0] = text
        else:
            found.append(flag if hints[name] is bool and not text else f"{flag}={text}")
    return found


def outcome(command: Command, line: list[str], scratch: Path) -> str:
    """What is wrong with how a command ends; nothing where it is as it should be."""
    with open(scratch / "stderr", "w+b") as said:
        os.dup2(said.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        signal.alarm(SECONDS)
        code: object = 0
        try:
            command.main(line)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = next((f for f in reversed(frames) if "reid_fast" in f.filename), frames[-1])
            return f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[-160:]}"
        signal.alarm(0)
        sys.stderr.flush()
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
    if code == 2:
        return (
            ""
            if len(lines) == 1 and lines[0].startswith("error: ")
            else f"not one sentence: {lines[:3]} … {lines[-3:]}"
        )
    if code not in (0, None):
        return f"exit code {code}: {lines[-3:]}"
    return f"{len(lines)} lines on stderr, such as {lines[0]}" if len(lines) > LINES else ""


def forked(command: Command, case: Case, scratch: Path) -> str:
    """The outcome in a process of its own."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.setpgid(0, 0)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        os.chdir(scratch)
        verdict = outcome(command, flags(command, case), scratch)
        os.write(write, verdict.encode(errors="replace")[:4000] + b"\n")
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        deadline = time.monotonic() + SECONDS + 5
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        _, status = os.waitpid(pid, 0)
        verdict = pipe.read().decode().strip("\n")
    code = os.waitstatus_to_exitcode(status)
    if code in (-signal.SIGALRM, -signal.SIGKILL):
        return "" if case.settings.keys() & LONG else f"hangs: more than {SECONDS} s"
    return verdict if code == 0 else f"dies of {code}: {(scratch / 'stderr').read_bytes()[-300:]!r}"


def prepare(scratch: Path) -> dict[str, Command]:
    """The commands, with something small to work on."""
    os.environ |= {"XDG_CACHE_HOME": str(scratch / "cache"), "TRITON_INTERPRET": "1", "WANDB_MODE": "disabled"}
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    import torch

    import reid_fast
    from reid_fast import evaluate, train
    from reid_fast.commands import embed, report, search
    from reid_fast.commands.data import verify
    from reid_fast.data.synthetic import synthetic_folder
    from reid_fast.export import command as export
    from reid_fast.methods import method_names, settings_class
    from reid_fast.models.archs import ARCHS
    from reid_fast.models.archs.resnet import BasicBlock, ResNetArch

    for module in walk_packages(reid_fast.__path__, "reid_fast."):  # once, not in each fork
        if not module.name.endswith(("__main__", "_process", "._C")):
            import_module(module.name)
    torch.set_num_threads(1)
    ARCHS["tiny"] = ResNetArch(BasicBlock, (1, 1, 1, 1), width=8)
    people = synthetic_folder(scratch / "people", train_ids=5, test_ids=2)
    encoder = save_encoder(scratch / "encoder", 0)
    data, run = {"data_dir": people}, {"arch": "tiny", "epochs": 1, "iters": 2, "threads": 1, "workers": 1}
    run |= {"num_instances": 4, "bn_group": 8, "logs_dir": scratch / "run"}
    small = {"workers": 1, "device": "cpu", "batch_size": 16}
    one = {"threads": 1}
    images = [str(path) for path in sorted((people / "query").iterdir())[:4]]
    commands = {
        f"train {name}": Command(
            train.main, settings_class(name), argv(**TINY, **run, **data, method=name.replace("_", "-"))
        )
        for name in method_names()
    }
    return commands | {
        "evaluate": Command(
            evaluate.main, evaluate.EvaluateConfig, [str(encoder), *argv(**small, **data, dataset="market1501")]
        ),
        "embed": Command(
            embed.main,
            embed.EmbedConfig,
            [str(encoder), *images, *argv(**small, **one, output=scratch / "features.npy")],
        ),
        "search": Command(
            search.main,
            search.SearchConfig,
            [str(encoder), *argv(**small, **one), "--query", *images, "--gallery", *images],
        ),
        "report": Command(report.main, report.ReportConfig, [str(scratch / "done"), "--no-pictures"]),
        "export": Command(export.main, export.ExportConfig, [str(encoder), "--to", "safetensors"]),
        "data verify": Command(verify.main, verify.VerifyConfig, [str(people), *argv(dataset="market1501")]),
    }


def attack(cases: list[Case], commands: dict[str, Command], scratch: Path, seconds: float) -> tuple[int, list[str]]:
    """Run cases, as many as the time allows: how many those were, and a line for each that ended as it should not."""
    found, end = [], time.monotonic() + seconds
    for done, case in enumerate(cases):
        if time.monotonic() > end:
            return done, found
        shutil.rmtree(scratch / "run", ignore_errors=True)
        if verdict := forked(commands[case.command], case, scratch):
            short = {
                name: text if len(text) < 50 else f"{text[:9]}… ({len(text)})" for name, text in case.settings.items()
            }
            found.append(json.dumps([case.command, short, verdict]))
            print(found[-1], flush=True)
    return len(cases), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--every", action="store_true", help="each setting with each value, in place of drawn ones")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        commands = prepare(Path(folder))
        for name in commands if asked.seconds == float("inf") else ["train cc"]:
            command = commands[name]
            if wrong := forked(command, Case(name, {}), Path(folder)):
                sys.exit(f"{name} does not work: {wrong}")
            if name.startswith("train") and not (Path(folder) / "done").exists():
                (Path(folder) / "run").rename(Path(folder) / "done")
            shutil.rmtree(Path(folder) / "run", ignore_errors=True)
        rng = random.Random(asked.seed)
        cases = list(all_single(commands)) if asked.every else [draw(commands, rng) for _ in range(asked.cases)]
        done, found = attack(cases, commands, Path(folder), asked.seconds)
    commands_met = Counter(case.command for case in cases[:done])
    print(f"{done} cases of {len(commands_met)} commands, seed {asked.seed}: {len(found)} ended as they should not")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
