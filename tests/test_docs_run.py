"""The commands and the Python of README and manual run: with a small set in place of the reader's, cut short."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
import torch
from inputs import sampled
from ranks.runs import command_together
from test_docs import PAGES, ROOT, code_blocks, commands, named

from reid_fast.__main__ import main
from reid_fast.commands import doctor
from reid_fast.data import open as opening
from reid_fast.data.synthetic import command as drawing
from reid_fast.models.encoder import Encoder

# What no test can run as it stands, and why. `.ci/run` is `make test`.
NOT_RUN = {
    "make ": "calls the tests",
    "pip install ": "installs into the environment that this runs in",
    "python bench/gpu.py": "needs a GPU",
    "python bench/page.py": "writes into the manual; tests/test_bench.py calls what it calls",
    "python bench/run.py": "tests/test_bench.py runs it",
    "torchrun --nnodes 2 ": "needs two machines; tests/ranks has restarts by torchrun",
    "srun ": "needs SLURM",
    "head=$(scontrol ": "needs SLURM",
    "#SBATCH ": "needs SLURM",
    "torchrun --standalone --nproc-per-node 4 -m reid_fast.train --recipe small …": "no whole command",
    "reid-fast report RUN RUN … ": "no whole command; tests/report has several runs",
}
SAID = (
    "weights: ",
    "epoch  7/50",
    "training images are held",
    "path,cam,pid",
    "crops/0000",
    "--recipe small --optimizer",
)
# By page: files that it says its commands leave.
MADE = {
    "docs/quick-start.md": ("ranked.html", "report.html", "encoder.onnx", "features.npy", "scored/model.safetensors"),
    "docs/search.md": ("features.safetensors", "features.json", "lists.png", "lists.json", "gallery.faiss"),
}
SIZES = {"docs/export.md": (256, 128)}  # of the run's images, where a page depends on them
# What stands in for what a reader has. MSMT17's own layout is read in tests/data.
STANDS_FOR = {"msmt17": "market1501", "DIR": "DATA", "IMAGES": "crops", "RUN_FOLDER": "RUN"}
SHORT = ("--epochs", "1", "--iters", "2", "--batch-size", "16", "--num-instances", "4", "--bn-group", "16")
SHORT = (*SHORT, "--k1", "8", "--k2", "3", "--threads", "1", "--workers", "1", "--height", "64", "--width", "32")


def backbone(arch):
    """The weights of a published file, made up."""
    return Encoder(arch).backbone.state_dict()


@pytest.fixture(scope="module")
def desk(people, tmp_path_factory):
    """A folder with what the pages speak of."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for module in (opening, drawing):
            patch.setattr(module, "synthetic_folder", lambda *place, **options: people)
        for name in ("self_test", "parts"):  # the same in every command of the page
            patch.setattr(doctor, name, cache(getattr(doctor, name)))
        for name in ("DATA", "synthetic-v1-seed0"):
            Path(name).symlink_to(people)
        Path("crops").symlink_to(people / "query")
        Path("CROPS").symlink_to(people / "bounding_box_train")
        Path("person.jpg").symlink_to(sorted((people / "query").glob("*.jpg"))[0])
        train = ("train", "--recipe", "small", "--data-dir", "DATA", "-d", "market1501", "--logs-dir", "RUN")
        main([*train, *SHORT, "--epochs", "2", "--save-best"])
        Path("logs").mkdir()
        for name in ("cc-msmt17-001", "cc-market1501-001", "cc-synthetic-001"):
            Path("logs", name).symlink_to(folder / "RUN")
        places = {"conv1": 0, "bn1": 1} | {f"layer{stage}": 3 + stage for stage in range(1, 5)}
        parts = [(*name.partition("."), tensor) for name, tensor in backbone("resnet50").items()]
        state = {f"module.base.{places[part]}.{rest}": tensor for part, _, rest, tensor in parts}
        torch.save({"state_dict": state, "epoch": 49, "best_mAP": 0.8}, "model_best.pth.tar")
        torch.save({"teacher": backbone("vit_small_ics")}, "vit_small_ics_cfs_lup.pth")
        torch.save({"teacher": backbone("vit_small_ics")}, "checkpoint.pth")
        torch.save(backbone("osnet_x0_25"), "osnet_x0_25_msmt17.pt")
        (yaml,) = (block for language, block in code_blocks(ROOT / "docs/training.md") if language == "yaml")
        Path("mine.yaml").write_text(yaml.replace("/data/market1501", "DATA"))
        yield folder


def as_trained_at(height, width):
    """Let the encoders of the run say so; to train them at 256×128 would take much longer."""
    for path in (Path("RUN/model.json"), Path("RUN/best/model.json")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"height": height, "width": width}))


def lines(page):
    """The commands of a page that are run."""
    return [line for line in commands(page) if line and not line.startswith((*NOT_RUN, *SAID))]


def snippets(page):
    """The Python of a page that stands on its own."""
    code = [block for language, block in code_blocks(page) if language == "python" and "…\n" not in block]
    return [block for block in code if re.search(r"^(import|from) ", block)]


def run_ranks(name, flags, folder, as_it_stands):
    """What a command by two ranks ends with and says: as torchrun starts them or, with less to import, forked."""
    if as_it_stands:
        start = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*start, f"reid_fast.{name}", *flags], env=environment, capture_output=True, text=True)
        return [done.returncode], done.stderr
    codes, _, said = command_together(2, folder, import_module(f"reid_fast.{name}").main, flags)
    return codes, said


def run(line, folder, as_it_stands):
    """A line of the manual, with what stands for the reader's."""
    words = [STANDS_FOR.get(word, word) for word in shlex.split(line)]
    name = next(i for i, word in enumerate(words) if word in ("reid-fast", "-m"))
    command = [word.removeprefix("reid_fast.") for word in words[name + 1 :]]
    if command[0] == "train":
        # What a page leaves to the defaults is a ResNet-50 with weights to be downloaded.
        command[1:] = ([] if "--recipe" in command else ["--recipe", "small"]) + command[1:] + [*SHORT]
    if words[0] == "torchrun":
        codes, said = run_ranks(command[0], command[1:], folder, as_it_stands)
        assert set(codes) == {0}, f"{line}\n{said[-2000:]}"
        return
    try:
        main(command)
    except SystemExit as end:
        if end.code:
            raise AssertionError(f"{line}: exit code {end.code}") from end


RUNNING = [page for page in PAGES if lines(page) or snippets(page)]


@pytest.mark.parametrize("page", sampled(RUNNING, ROOT / "README.md", ROOT / "docs/quick-start.md"), ids=named)
def test_a_page_runs(page, desk, request, tmp_path):
    as_trained_at(*SIZES.get(named(page), (64, 32)))
    for line in dict.fromkeys(lines(page)):
        run(line, tmp_path, request.config.getoption("thorough"))
    for block in snippets(page):
        exec(compile(block, named(page), "exec"), {"paths": sorted(Path("crops").glob("*.jpg"))})
    for made in MADE.get(named(page), ()):
        assert (desk / made).stat().st_size > 0, made


def test_what_is_not_run_is_still_there():
    said = [line for page in PAGES for line in commands(page)]
    assert not [start for start in (*NOT_RUN, *SAID) if not any(line.startswith(start) for line in said)]
