"""Two and three ranks train as one process does: every method, with a source, with groups that span ranks."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from inputs import argv, sampled
from ranks.runs import SMALL, train_together

from reid_fast.command_line import parse
from reid_fast.methods import method_names, settings_class

SYSTEMS = [*method_names(), "cc with a source", "spcl with a source", "cc with approximate neighbours"]
# One BatchNorm group lies on all ranks; so does one of each domain; three ranks hold parts of two.
SPANNING = {"cap in one group": 0, "cc with a source in one group": 0, "cc in groups of twelve": 12}
# Whose images skip branches, in each half of a batch; with a teacher, whose images skip none.
TRANSFORMERS = ["cc with a source by a transformer", "ice by a transformer"]

ALL = [*SYSTEMS, *SPANNING, *TRANSFORMERS]
BY_TWO = ["cc", "spcl with a source", "cap in one group", "ice by a transformer"]
CASES = sampled(list(product(ALL, (2, 3))), *product(ALL, [3]), *product(BY_TWO, [2]))


@pytest.fixture(scope="module")
def settings(people, others, tmp_path_factory):
    """The settings of a system's smallest run."""

    def of(system, **more):
        method = system.split()[0]
        flags = SMALL | {"data_dir": people, "logs_dir": tmp_path_factory.mktemp("run")}
        if "camera_epoch" in settings_class(method).__dataclass_fields__:
            flags |= {"camera_epoch": 0}
        if "source" in system:
            flags |= {"source": "market1501", "source_dir": others}
        if "approximate" in system:
            flags |= {"knn": "ivf"}
        if system in TRANSFORMERS:
            flags |= {"arch": "tiny_vit", "drop_path": 0.5, "optimizer": "sgd"}
        if system in SPANNING:
            flags |= {"bn_group": SPANNING[system]}
        # From its third step on Adam makes rounding visible: a gradient of nearly nothing moves a weight by --lr.
        return parse(argv(**flags | {"method": method.replace("_", "-"), "lr": 1e-4} | more))[0]

    return of


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory, request):
    """What one, two and three ranks saw: [system][ranks][rank]; two only of some systems, unless it is thorough."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {system: {} for system in ALL}
    configs = {system: settings(system) for system in found}
    for size in (1, 2, 3):
        jobs = [
            (f"{system} by {size}", replace(config, logs_dir=folder / str(size) / system), None, None)
            for system, config in configs.items()
            if size != 2 or system in BY_TWO or request.config.getoption("thorough")
        ]
        for name, seen in train_together(size, folder, jobs).items():
            found[name.rpartition(" by ")[0]][size] = seen
    return found


def update(seen):
    return torch.cat([(seen["end"][f"{name}"] - value).flatten() for name, value in seen["start"].items()]).double()


@pytest.mark.parametrize(("system", "size"), CASES)
def test_losses_and_updates_are_those_of_one_process(runs, system, size):
    (alone,), together = runs[system][1], runs[system][size]
    assert len(alone["losses"]) == 10
    torch.testing.assert_close(together[0]["losses"], alone["losses"], rtol=1e-5, atol=0)
    assert torch.cosine_similarity(update(alone), update(together[0]), dim=0) > 0.9999


@pytest.mark.parametrize(("system", "size"), CASES)
def test_all_ranks_hold_the_same_bits(runs, system, size):
    first, *others = runs[system][size]
    for other in others:
        assert other["losses"] == first["losses"]
        # Of the first group's running statistics too: they are adopted before they are used.
        assert all(torch.equal(other["end"][name], value) for name, value in first["end"].items())


@pytest.mark.parametrize("system", SYSTEMS)
def test_memories_have_the_rows_of_one_process(runs, system):
    (alone,), (first, *_) = runs[system][1], runs[system][3]
    memories = [name for name in alone["end"] if name.split(".")[0] in ("memory", "proxies", "colour", "grey")]
    assert memories
    for name in memories:
        torch.testing.assert_close(first["end"][name], alone["end"][name], rtol=0, atol=1e-3)


def test_a_rerun_and_a_resumed_run_have_the_same_bits_and_other_ranks_may_go_on(settings, tmp_path):
    """Three ranks, because the sum of three depends on its order."""

    config = settings("rcl", epochs=2)

    def job(name, *, stop=(None, None)):
        folder, _, then = name.partition(" then ")
        return name, replace(config, logs_dir=tmp_path / folder, resume=bool(then)), *stop

    whole = train_together(3, tmp_path, [job("whole"), job("again"), job("stopped", stop=(1, 14))])
    # The epoch's fourth step: SIGTERM reaches one rank, and all end behind the same one.
    assert {len(seen["losses"]) for seen in whole["stopped"]} == {14}
    assert torch.load(tmp_path / "stopped/last.pt")["at"]["step"] == 4
    for name in ("two", "one"):
        (tmp_path / name).mkdir()
        for file in (tmp_path / "stopped").iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    resumed = train_together(3, tmp_path, [job("stopped then resumed")])["stopped then resumed"]
    fewer = train_together(2, tmp_path, [job("two then resumed")])["two then resumed"]
    (alone,) = train_together(1, tmp_path, [job("one then resumed")])["one then resumed"]

    end = whole["whole"][0]["end"]
    for seen in (*whole["again"], *resumed):
        assert seen["end"].keys() == end.keys()
        assert all(torch.equal(seen["end"][name], value) for name, value in end.items())
    for seen in (*fewer, alone):
        torch.testing.assert_close(seen["losses"], whole["whole"][0]["losses"][14:], rtol=1e-4, atol=0)
    assert len({(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "two", "one")}) == 1
    rows = [json.loads(line) for line in (tmp_path / "stopped/metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [0, 1, 2]


def test_ranks_agree_on_the_best_epoch_and_when_to_end(settings, tmp_path):
    config = settings("cc", epochs=4, iters=2, patience=1, save_best=True, logs_dir=tmp_path / "run")
    both = train_together(2, tmp_path, [("run", config, None, None)])["run"]
    (alone,) = train_together(1, tmp_path, [("alone", replace(config, logs_dir=tmp_path / "1"), None, None)])["alone"]
    assert both[0]["losses"] == both[1]["losses"]
    assert len(both[0]["losses"]) == len(alone["losses"])
    kept = [json.loads((tmp_path / name / "best/model.json").read_text()) for name in ("run", "1")]
    assert kept[0]["epoch"] == kept[1]["epoch"]
    assert kept[0]["silhouette"] == pytest.approx(kept[1]["silhouette"], abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("system", ["cc", "ice", "cap in one group"])
def test_two_ranks_share_a_gpu(settings, tmp_path, system):
    """NCCL refuses that; gloo exchanges through the host."""
    config = settings(system, device="cuda:0")
    (alone,) = train_together(1, tmp_path, [("one", replace(config, logs_dir=tmp_path / "1"), None, None)])["one"]
    both = train_together(2, tmp_path, [("two", replace(config, logs_dir=tmp_path / "2"), None, None)])["two"]
    assert both[0]["losses"] == both[1]["losses"]
    torch.testing.assert_close(both[0]["losses"], alone["losses"], rtol=1e-3, atol=0)
