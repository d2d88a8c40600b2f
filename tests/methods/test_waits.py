"""What waits for a GPU: in a step nothing, at the start of an epoch what is listed here with its reason."""

from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pytest
import torch
from inputs import TINY, argv, sampled
from on_device import CPU, CUDA, Device, Event, on_device

from reid_fast import clustering
from reid_fast import epoch as stages
from reid_fast import run as parts
from reid_fast.command_line import parse
from reid_fast.data.images import held, store
from reid_fast.data.images import open as opening
from reid_fast.methods import method_names, settings_class
from reid_fast.methods.cc import ClusterContrast
from reid_fast.models import fold, norm
from reid_fast.ops.grouped_bn import Norms, fused

SYSTEMS = [*method_names(), "cc with a source", "spcl with a source", "cc by a transformer"]
STEPS = 3


@pytest.fixture(scope="module")
def flags(people, market_folder, tmp_path_factory, tiny_arch):
    """The settings of the smallest run of a system on a device."""

    def settings(system, device):
        name, source = system.split()[0], "source" in system
        more = {"camera_epoch": 0} if "camera_epoch" in settings_class(name).__dataclass_fields__ else {}
        if source:
            more |= {"source": "market1501", "source_dir": market_folder}
        more |= {"data_dir": people, "logs_dir": tmp_path_factory.mktemp("run"), "device": device}
        tiny = TINY | {"arch": "tiny", "iters": STEPS, "epochs": 1, "workers": 1}
        if "transformer" in system:
            tiny |= {"arch": "tiny_vit", "drop_path": 0.5, "optimizer": "sgd"}
        return parse(argv(**tiny | more, method=name.replace("_", "-")))[0]

    return settings


@contextmanager
def the_device():
    """A device that is not there, in place of what would start a real one."""
    decode, find_neighbours, jaccard_graph = opening.decode, stages.find_neighbours, clustering.jaccard_graph

    def neighbours(features, *arguments, **options):
        with device.unwatched():  # the clustering has tests of its own
            return find_neighbours(features.plain, *arguments, **options)

    def graph(features, *arguments, **options):
        with device.unwatched():
            return jaccard_graph(features.plain, *arguments, **options)

    def decoded(*arguments, device, memory, **options):
        pixels = decode(*arguments, device=CPU, **options)
        return on_device(pixels) if memory == CUDA else pixels

    with pytest.MonkeyPatch.context() as patch, Device() as device:
        patch.setattr(opening, "decode", decoded)
        patch.setattr(stages, "find_neighbours", neighbours)
        patch.setattr(clustering, "jaccard_graph", graph)
        patch.setattr(parts, "pick_device", lambda name, local_rank: CUDA)
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
        yield device


def labelled(config):
    """A run whose next thing is the first step of its first epoch."""
    run = parts.build(config)
    run.at.labels = torch.from_numpy(stages.label_images(run))
    return run


class Epoch(NamedTuple):
    """An epoch on the device."""

    system: str
    run: parts.Run
    labelling: list[Event]
    training: list[Event | str]  # "step" where one has ended
    steps: list[list[str]]  # the operations of each


@pytest.fixture(scope="module", params=sampled(SYSTEMS, "cc with a source", "cap", "ice", "rcl"))
def epoch(request, flags):
    step, steps = stages.train_step, []

    def marked(run, batch):
        device.operations.clear()
        loss = step(run, batch)
        steps.append(device.operations[:])
        device.events.append("step")
        return loss

    with pytest.MonkeyPatch.context() as patch, the_device() as device:
        patch.setattr(stages, "train_step", marked)
        run = parts.build(flags(request.param, "cuda"))
        device.events.clear()
        run.at.labels = torch.from_numpy(stages.label_images(run))
        labelling = device.events[:]
        device.events.clear()
        stages.train_epoch(run)
    return Epoch(request.param, run, labelling, device.events[:], steps)


def test_a_step_waits_for_nothing_and_copies_nothing(epoch):
    """From the second one on: with the first, what the whole epoch needs is copied."""
    events = epoch.training
    first = events.index("step")
    assert [str(event) for event in events[first:]] == [*STEPS * ["step"], "tolist in read_losses"]
    assert {(event.function, event.waits) for event in events[:first]} == {("to_device", False)}
    assert (
        first <= 4 + 5 * len(epoch.run.method.views) + 1
    )  # index, classes, cameras, keys; parameters by view; ICE's shuffles


def test_images_that_the_host_holds_train_alike_and_their_copies_are_queued(flags, monkeypatch):
    ends = []
    for room, tier in ((2**40, "device"), (0, "host")):
        monkeypatch.setattr(held, "free_bytes", lambda device, room=room: room)
        monkeypatch.setattr(store, "pinned", pinned)
        with the_device() as device:
            run = labelled(flags("cc", "cuda"))
            assert run.loader.held.tier == tier
            device.events.clear()
            stages.train_epoch(run)
            copies = Counter(event.function for event in device.events if not event.waits)
            assert copies["_brought"] == (STEPS if tier == "host" else 0)
            assert {event.function for event in device.waits} == {"read_losses"}
        ends.append((run.at.loss, run.method.state_dict()))
    (loss, state), (other_loss, other_state) = ends
    assert loss == other_loss
    assert all(torch.equal(tensor.plain, other_state[name].plain) for name, tensor in state.items())


def pinned(*shape):
    """Memory of the host that the device takes for pinned."""
    pixels = torch.empty(shape, dtype=torch.uint8)
    pixels.pinned = True
    return pixels


def test_what_the_device_computes_is_what_the_cpu_computes(epoch, flags, monkeypatch):
    """So nothing has slipped past it. The CPU takes the device's way past BatchNorm here."""
    monkeypatch.setattr(fold, "adds_bias", lambda device: False)
    monkeypatch.setattr(norm, "grouped_bn", fused_bn)
    there = epoch.run.method.state_dict()
    here = labelled(flags(epoch.system, "cpu"))
    stages.train_epoch(here)
    assert here.at.loss == epoch.run.at.loss
    for name, tensor in here.method.state_dict().items():
        assert there[name].is_cuda, name
        assert torch.equal(tensor.nan_to_num(), there[name].plain.nan_to_num()), name


def fused_bn(x, weight, bias, mean, var, *numbers, residual, relu):
    return fused(x, Norms(weight, bias, mean, var), *numbers, residual, relu)


def test_a_step_does_what_the_one_before_did(epoch):
    """With other images, and nothing else that the host knows: what a step asks of being captured as a graph."""
    _, before, last = epoch.steps
    assert last == before


EVERY_EXTRACTION = {"nonzero in extract": 1}  # whether the features are finite
EVERY_MEAN = {"bincount in class_means": 1}  # how many classes there are
EVERY_SILHOUETTE = {"bincount in class_means": 1, "item in silhouette": 1}  # the number that metrics.jsonl gets
LABEL_STAGE = {
    "cacl": [EVERY_EXTRACTION, EVERY_EXTRACTION, EVERY_MEAN, EVERY_MEAN],
    "cap": [EVERY_EXTRACTION, EVERY_MEAN],
    "cap_cc": [EVERY_EXTRACTION, EVERY_MEAN, EVERY_MEAN],
    "cc": [EVERY_EXTRACTION, EVERY_MEAN],
    "cc by a transformer": [EVERY_EXTRACTION, EVERY_MEAN],
    "cc with a source": [EVERY_EXTRACTION, EVERY_EXTRACTION, EVERY_MEAN, EVERY_MEAN],
    "dccc": [EVERY_EXTRACTION, EVERY_MEAN],
    "ice": [EVERY_EXTRACTION, EVERY_MEAN, EVERY_MEAN],
    # The attention is trained for 20 steps and applied once; each checks the clusters' sizes.
    "rcl": [EVERY_EXTRACTION, {"segment_reduce in cluster_attention": 21}],
    # Whether the first epoch has set its threshold.
    "spcl": [EVERY_EXTRACTION, {"item in assign_labels": 1}, EVERY_MEAN],
    "spcl with a source": 2 * [EVERY_EXTRACTION, EVERY_MEAN] + [{"item in assign_labels": 1}],
}


def test_the_label_stage_waits_where_it_is_listed(epoch):
    waits = Counter(str(event) for event in epoch.labelling if event.waits)
    assert waits == sum(map(Counter, [*LABEL_STAGE[epoch.system], EVERY_SILHOUETTE]), Counter())


def test_a_wait_in_a_hook_is_seen(flags, monkeypatch):
    monkeypatch.setattr(ClusterContrast, "finish_step", lambda self, batch: batch.labels.sum().item())
    with the_device() as device:
        run = labelled(flags("cc", "cuda"))
        device.events.clear()
        stages.train_epoch(run)
    assert [event.what for event in device.waits] == [*STEPS * ["item"], "tolist"]


N = 6
WAITING = {
    "item": lambda x: x[0, 0].item(),
    "bool": lambda x: bool((x > 0).all()),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "copied to the host": lambda x: torch.empty_like(x, device="cpu").copy_(x, non_blocking=True),
    "copied to pinned memory": lambda x: torch.empty_like(x, device="cpu", pin_memory=True).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "masked rows": lambda x: x[x[:, 0] > 0],
    "put by a mask": lambda x: x.index_put_((x[:, 0] == x[:, 0],), x + 1),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: torch.bincount(x[0].long().abs()),
    "repeat_interleave": lambda x: torch.repeat_interleave(x[0].long().abs()),
    "equal": lambda x: torch.equal(x, x + 1),
    "list": lambda x: torch.tensor([1.0], device=x.device),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "array": lambda x: torch.from_numpy(np.zeros(3)).to(x.device, non_blocking=True),
    "pinned and waited for": lambda x: torch.zeros(3).pin_memory().to(x.device),
    "host indices": lambda x: x[torch.tensor([0, 1])],
    "listed indices": lambda x: x[[0, 1]],
    "array of indices": lambda x: x[np.array([0, 1])],
}
GOING_ON = {
    "arithmetic": lambda x: (x @ x.T + 1).softmax(1).sum(),
    "factories": lambda x: torch.arange(N, device=x.device) + torch.zeros(N, device="cuda:0") + x.new_ones(N),
    "selection": lambda x: torch.where(x > 0, x, 0.0),
    "filled by a mask": lambda x: x.masked_fill(x > 0, 1.0),
    "indices": lambda x: x[x[0].argsort()],
    "repeat_interleave": lambda x: torch.repeat_interleave(x[0].long().abs() * 0 + 1, output_size=N),
    "copied to pinned memory": lambda x: torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True),
    "pinned": lambda x: torch.zeros(3).pin_memory().to(x.device, non_blocking=True),
    "in place": lambda x: x.mul_(2).add_(x)[1:].zero_(),
    "to where it is": lambda x: x.to("cuda:0"),
    "sizes": lambda x: len(x) + x.numel() + x.shape[0],
}


@pytest.mark.parametrize("what", WAITING)
def test_what_waits_is_seen(what):
    with Device() as device:
        WAITING[what](on_device(torch.randn(N, N)))
    assert device.waits


@pytest.mark.parametrize("what", GOING_ON)
def test_what_does_not_wait_is_let_pass(what):
    with Device() as device:
        GOING_ON[what](on_device(torch.randn(N, N)))
    assert device.waits == []


@pytest.mark.gpu
@pytest.mark.parametrize("system", SYSTEMS)
def test_gpu_a_step_waits_for_nothing(system, flags):
    run = labelled(flags(system, "cuda"))
    run.method.train()
    plan = run.method.plan_epoch(run.at.epoch_labels, 0)
    batches = run.loader.batches(np.tile(plan, (3, 1)), run.at.epoch_labels, epoch=0)
    for _ in plan:
        stages.train_step(run, next(batches))  # kernels are compiled and chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            stages.train_step(run, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
