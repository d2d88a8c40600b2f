"""Learning from a labelled source too: BatchNorm by domain, joint memories, whole runs."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import argv, phi, unit_phi
from stubs import assert_near, batch_of, images, new_method

from reid_fast.data.synthetic import synthetic_folder
from reid_fast.evaluate import main as evaluate
from reid_fast.methods import method_class
from reid_fast.models.archs import ARCHS
from reid_fast.models.archs.resnet import BasicBlock, ResNetArch
from reid_fast.train import main as train

PIDS = np.array([0, 0, 1, 1, 2, 2])  # S = 3
LABELS = np.array([0, 0, 1, 1, -1, 2, 2, 0])  # N = 8
TARGET, SOURCE = unit_phi(8, 0.5), unit_phi(6, 1.3)
INDEX = [0, 1, 2, 4, 6, 8, 13, 11]  # four images of the source, then four of the target


@pytest.fixture
def make(raw_encoder):
    def make(name, labels=LABELS, **options):
        source = images(0 * PIDS, PIDS, "s")
        method = new_method(name, cams=0 * labels, source=source, **options)
        found = method.extract_features(lambda encoder, source=False: SOURCE if source else TARGET)
        assert torch.equal(found, TARGET)
        method.fill_memory(found, labels)
        return method

    return make


def stepped(method, raw, labels):
    raw = raw.clone().requires_grad_()
    batch = batch_of([raw], method.images.classes(labels)[INDEX], INDEX)
    (loss,) = method.training_step(batch).values()
    loss.backward()
    method.finish_step(batch)
    return loss.item(), raw.grad


def blended(row, members, momentum):
    for x in members:
        row = F.normalize(momentum * row + (1 - momentum) * x, dim=0)
    return row


def test_classes_number_the_target_after_the_source(make):
    classes = make("cc").images.classes(LABELS)
    assert classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, -1, 5, 5, 3]


def test_a_refill_keeps_what_the_source_has_learnt(make):
    method = make("spcl", refill=True)
    stepped(method, phi(8, 2.0), LABELS)
    learnt = method.memory.rows[:3].clone()
    assert not torch.equal(learnt, torch.stack([F.normalize(SOURCE[k == PIDS].mean(0), dim=0) for k in range(3)]))
    again = unit_phi(8, 0.9)
    assert torch.equal(method.extract_features(lambda encoder: again), again)
    assert torch.equal(method.memory.rows, torch.cat([learnt, again]))


def test_cluster_contrast_over_a_joint_memory(make):
    method = make("cc")
    centroids = [F.normalize(SOURCE[k == PIDS].mean(0), dim=0) for k in range(3)]
    clusters = [F.normalize(TARGET[k == LABELS].mean(0), dim=0) for k in range(3)]
    rows = torch.stack(centroids + clusters)
    assert_near(method.memory.rows, rows)
    raw = phi(8, 2.0)
    loss, gradient = stepped(method, raw, LABELS)
    literal = raw.clone().requires_grad_()
    scores, y = F.normalize(literal) @ rows.T / 0.05, torch.tensor([0, 0, 1, 2, 3, 4, 3, 5])
    expected = F.cross_entropy(scores[:4], y[:4]) + F.cross_entropy(scores[4:], y[4:])
    expected.backward()
    assert_near(loss, expected.item())
    assert_near(gradient, literal.grad)
    x = F.normalize(raw)
    updated = [blended(rows[k], x[y == k], 0.1) for k in range(6)]
    assert_near(method.memory.rows, torch.stack(updated))
    method.fill_memory(TARGET, LABELS)
    assert_near(method.memory.rows, torch.stack(updated[:3] + clusters))  # the source's rows live on


def test_self_paced_contrast_over_a_joint_memory(make):
    labels = np.array([0, 0, 1, 1, 3, 2, 2, 0])
    method = make("spcl", labels)
    centroids = torch.stack([F.normalize(SOURCE[k == PIDS].mean(0), dim=0) for k in range(3)])
    rows = torch.cat([centroids, TARGET])
    assert_near(method.memory.rows, rows)
    assert method.memory.labels.tolist() == [0, 1, 2, 3, 3, 4, 4, 6, 5, 5, 3]
    raw = phi(8, 2.0)
    loss, _ = stepped(method, raw, labels)
    means = torch.stack([rows[method.memory.labels == k].mean(0) for k in range(7)])
    exp = (F.normalize(raw) @ means.T / 0.05).double().exp()
    p = (exp / (exp.sum(1, keepdim=True) + 1e-6))[range(8), [0, 0, 1, 2, 3, 4, 3, 5]]
    assert_near(loss, -(p + 1e-6).log()[:4].mean() - (p + 1e-6).log()[4:].mean())
    x = F.normalize(raw)
    assert_near(method.memory.rows[0], blended(rows[0], x[:2], 0.2))
    assert_near(method.memory.rows[3 + 7], blended(rows[10], x[6:7], 0.2))
    assert torch.equal(method.memory.rows[[3 + 1, 3 + 3]], TARGET[[1, 3]])
    assert torch.equal(method.extract_features(None), method.memory.rows[3:])


def test_a_batch_is_half_source_half_target(make):
    plan = make("cc", batch_size=4, num_instances=2, iters=5).plan_epoch(LABELS, 0)
    assert plan.shape == (5, 8)
    assert (plan[:, :4] < 6).all()
    assert (plan[:, 4:] >= 6).all()
    assert (LABELS[plan[:, 4:] - 6] >= 0).all()


@pytest.mark.parametrize("trained", [False, True])
def test_the_bias_of_the_neck(trained):
    options = {"arch": "resnet18_half", "weights": "none", "domain_bias": trained}
    neck = new_method("cc", cams=[0], source=images([0], [0], "s"), **options).encoder.neck
    assert neck.source.bias.requires_grad == neck.target.bias.requires_grad == trained


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    return [synthetic_folder(root, seed=seed, train_ids=12, test_ids=4) for seed in (0, 1)]


TINY = argv(
    recipe="small",
    arch="tiny",
    height=32,
    width=16,
    batch_size=16,
    iters=4,
    epochs=2,
    k1=8,
    k2=3,
    device="cpu",
    workers=1,
    dataset="market1501",
    source="market1501",
)


def flags(folders, logs, *more):
    target, source = folders
    return [*TINY, *argv(data_dir=target, source_dir=source, logs_dir=logs), *more]


@pytest.fixture
def tiny_arch(monkeypatch):
    monkeypatch.setitem(ARCHS, "tiny", ResNetArch(BasicBlock, (1, 1, 1, 1), width=8))


@pytest.mark.parametrize("name", ["cc", "spcl"])
def test_it_trains_and_resumes_and_its_export_scores_alike(name, folders, tmp_path, monkeypatch, tiny_arch):
    more = ["--method", name, "--save-steps", "2", "--eval-step", "2"]
    train(flags(folders, tmp_path / "whole", *more, "--cache", "0"))
    cls = method_class(name)
    finish_step = cls.finish_step

    def killed(self, batch):
        if batch.step == 7:
            raise InterruptedError
        finish_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(cls, "finish_step", killed)
        with pytest.raises(InterruptedError):
            train(flags(folders, tmp_path / "killed", *more))
    train(flags(folders, tmp_path / "killed", *more, "--resume"))
    whole, resumed = (torch.load(tmp_path / run / "last.pt", weights_only=True) for run in ("whole", "killed"))
    for key, tensor in whole["method"].items():
        assert torch.equal(tensor.nan_to_num(), resumed["method"][key].nan_to_num()), key

    evaluate([str(tmp_path / "whole"), "-d", "market1501", "--data-dir", str(folders[0]), "--device", "cpu"])
    scores = json.loads((tmp_path / "whole/evaluate-market1501.json").read_text())
    last = json.loads((tmp_path / "whole/metrics.jsonl").read_text().splitlines()[-1])
    assert scores["mAP"] == pytest.approx(last["mAP"])
    assert np.isfinite(last["loss"])


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--method", "ice"], "--source is a setting of cc and spcl, which --method ice does not read"),
        (["--source", "nowhere"], "--source nowhere is not known"),
        (["--source", "folder", "--source-pattern", r"_c(?P<cam>\d)"], "--source folder has no labels"),
    ],
)
def test_a_source_that_cannot_be_used(more, text, folders, tmp_path, capsys, tiny_arch):
    with pytest.raises(SystemExit) as stop:
        train(flags(folders, tmp_path / "run", *more))
    assert stop.value.code == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_the_target(folders, tmp_path, capsys, tiny_arch):
    with pytest.raises(SystemExit) as stop:
        train(flags([folders[0], folders[0]], tmp_path / "run"))
    assert stop.value.code == 2
    assert "--source and --dataset share images" in capsys.readouterr().err
