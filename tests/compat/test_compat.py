"""The parts for other code bases against what the published loops compute."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import planted
from on_device import Device
from sklearn.metrics import average_precision_score
from torch import nn

import reid_fast
from reid_fast import ops
from reid_fast.compat import ClusterMemory, Evaluator, HybridMemory, compute_jaccard_distance
from reid_fast.errors import UserError


def unit(n, width, seed):
    return torch.from_numpy(planted(n, width, seed))


def raw(n, width, seed):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def published_cluster_step(x, labels, rows, temp, momentum, use_hard):
    """Loss, gradient and moved rows of Cluster Contrast's memory, one sample after the other."""
    x, rows = x.double().requires_grad_(), rows.double()
    normalised = F.normalize(x)
    loss = F.cross_entropy(normalised @ rows.T / temp, labels)
    loss.backward()
    moved, normalised = rows.clone(), normalised.detach()
    if use_hard:
        for label in dict.fromkeys(labels.tolist()):
            members = normalised[labels == label]
            hardest = members[int((members @ rows[label]).argmin())]
            moved[label] = momentum * rows[label] + (1 - momentum) * hardest
            moved[label] /= moved[label].norm()
    else:
        for feature, label in zip(normalised, labels.tolist(), strict=True):
            moved[label] = momentum * moved[label] + (1 - momentum) * feature
            moved[label] /= moved[label].norm()
    return loss.item(), x.grad.float(), moved.float()


def published_hybrid_step(x, index, rows, labels, temp, momentum):
    """The same of SpCL's memory: similarities to all rows, then means over the rows of each class."""
    x, rows = x.double().requires_grad_(), rows.double()
    similarity = x @ rows.T / temp
    present = labels.unique()
    scores = torch.stack([similarity[:, labels == label].mean(1) for label in present], dim=1).exp()
    share = scores / (scores.sum(1, keepdim=True) + 1e-6)
    own = torch.stack([share[i, (present == labels[row]).nonzero()[0, 0]] for i, row in enumerate(index)])
    loss = -(own + 1e-6).log().mean()
    loss.backward()
    moved = rows.clone()
    for feature, row in zip(x.detach(), index.tolist(), strict=True):
        moved[row] = momentum * moved[row] + (1 - momentum) * feature
        moved[row] /= moved[row].norm()
    return loss.item(), x.grad.float(), moved.float()


def assert_step(memory, x, targets, expected):
    x = x.clone().requires_grad_()
    loss = memory(x, targets)
    loss.backward()
    value, gradient, moved = expected
    assert loss.item() == pytest.approx(value, rel=1e-6, abs=1e-6)
    torch.testing.assert_close(x.grad, gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(memory.features, moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize("use_hard", [False, True])
@pytest.mark.parametrize(("batch", "clusters", "width"), [(1, 1, 3), (13, 5, 7), (32, 41, 65)])
def test_cluster_memory_takes_the_published_steps(batch, clusters, width, use_hard):
    rng = np.random.default_rng(batch)
    memory = ClusterMemory(width, clusters, temp=0.07, momentum=0.3, use_hard=use_hard)
    memory.features = unit(clusters, width, 1)
    for step in range(4):
        x, labels = raw(batch, width, step), torch.from_numpy(rng.integers(0, clusters, batch))
        expected = published_cluster_step(x, labels, memory.features.clone(), 0.07, 0.3, use_hard)
        assert_step(memory, x, labels, expected)


@pytest.mark.parametrize(("batch", "images", "width"), [(1, 1, 3), (13, 17, 7), (24, 101, 65)])
def test_hybrid_memory_takes_the_published_steps(batch, images, width):
    rng = np.random.default_rng(batch)
    memory = HybridMemory(width, images)
    memory.features = unit(images, width, 1)
    for epoch in range(2):
        memory.labels = torch.from_numpy(rng.integers(0, max(1, images // 3), images) * (1 + epoch))  # some are empty
        for step in range(3):
            x, index = unit(batch, width, step), torch.from_numpy(rng.integers(0, images, batch))
            expected = published_hybrid_step(x, index, memory.features.clone(), memory.labels, 0.05, 0.2)
            assert_step(memory, x, index, expected)


def test_hybrid_memory_takes_features_as_they_are():
    memory = HybridMemory(7, 17)
    memory.features, memory.labels = unit(17, 7, 1), torch.arange(17) % 5
    x, index = 0.5 * raw(6, 7, 0), torch.tensor([3, 3, 0, 16, 8, 3])
    assert_step(memory, x, index, published_hybrid_step(x, index, memory.features.clone(), memory.labels, 0.05, 0.2))


@pytest.mark.parametrize("change", ["rows in place", "labels in place", "new rows", "loaded"])
def test_hybrid_memory_notices_what_others_write(change):
    memory = HybridMemory(7, 17)
    memory.features, memory.labels = unit(17, 7, 1), torch.arange(17) % 5
    x, index = unit(4, 7, 0), torch.tensor([3, 9, 0, 16])
    memory(x.clone().requires_grad_(), index).backward()
    if change == "rows in place":
        memory.features[2:6] = unit(4, 7, 8)
    elif change == "labels in place":
        memory.labels[:9] = 1
    elif change == "new rows":
        memory.features = unit(17, 7, 9)
    else:
        memory.load_state_dict({"features": unit(17, 7, 9), "labels": torch.arange(17) % 3})
    assert_step(memory, x, index, published_hybrid_step(x, index, memory.features.clone(), memory.labels, 0.05, 0.2))


def test_rows_written_between_a_loss_and_its_backward_are_noticed():
    memory = HybridMemory(7, 17)
    memory.features, memory.labels = unit(17, 7, 1), torch.arange(17) % 5
    x, index = unit(4, 7, 0), torch.tensor([3, 9, 0, 16])
    loss = memory(x.clone().requires_grad_(), index)
    memory.features[5] = unit(1, 7, 8)[0]
    loss.backward()
    assert_step(memory, x, index, published_hybrid_step(x, index, memory.features.clone(), memory.labels, 0.05, 0.2))


def both_memories():
    clusters, hybrid = ClusterMemory(7, 17), HybridMemory(7, 17)
    clusters.features, hybrid.features = unit(17, 7, 1), unit(17, 7, 1)
    hybrid.labels = torch.arange(17) % 5
    return clusters, hybrid


@pytest.mark.parametrize("memory", both_memories(), ids=["cluster", "hybrid"])
def test_the_rows_move_in_backward_as_published(memory):
    memory = copy.deepcopy(memory)
    before, x, index = memory.features.clone(), unit(4, 7, 0), torch.tensor([3, 9, 0, 16])
    with torch.no_grad():
        memory(x, index)
    memory(x, index)  # of features without a gradient
    loss = memory(x.clone().requires_grad_(), index)
    assert torch.equal(memory.features, before)
    loss.backward(retain_graph=True)
    once = memory.features.clone()
    loss.backward()
    changed = [3, 9, 0, 16]
    assert (once[changed] != before[changed]).any(1).all()
    assert (memory.features[changed] != once[changed]).any(1).all(), "a second backward moves them again"
    others = [row for row in range(17) if row not in changed]
    assert torch.equal(memory.features[others], before[others])


@pytest.mark.parametrize("memory", both_memories(), ids=["cluster", "hybrid"])
def test_two_losses_of_one_backward_see_the_rows_before_it(memory):
    """The published memory takes the gradient of the loss that goes backward later from rows that the other moved."""
    memory = copy.deepcopy(memory)
    x, index = unit(8, 7, 0), torch.tensor([3, 9, 0, 16, 1, 3, 9, 2])
    alone = [part.clone().requires_grad_() for part in x.split(4)]
    for part, rows in zip(alone, index.split(4), strict=True):
        copy.deepcopy(memory)(part, rows).backward()
    joint = [part.clone().requires_grad_() for part in x.split(4)]
    sum(memory(part, rows) for part, rows in zip(joint, index.split(4), strict=True)).backward()
    for part, expected in zip(joint, alone, strict=True):
        assert torch.equal(part.grad, expected.grad)


def test_a_weighted_loss_moves_the_rows_by_the_features_alone():
    clusters, _ = both_memories()
    x, labels = raw(6, 7, 3), torch.tensor([3, 9, 3, 0, 16, 9])
    value, gradient, moved = published_cluster_step(x, labels, clusters.features.clone(), 0.05, 0.2, False)
    leaf = x.clone().requires_grad_()
    (0.25 * clusters(leaf, labels)).backward()
    torch.testing.assert_close(leaf.grad, 0.25 * gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(clusters.features, moved, rtol=0, atol=1e-6)
    assert value > 0


def test_published_state_loads():
    clusters, hybrid = ClusterMemory(7, 5), HybridMemory(7, 9, 0.1, 0.3)
    rows = unit(9, 7, 0)
    clusters.load_state_dict({"features": rows[:5]})
    hybrid.load_state_dict({"features": rows, "labels": torch.arange(9)})
    assert list(clusters.state_dict()) == ["features"]
    assert list(hybrid.state_dict()) == ["features", "labels"]
    assert torch.equal(hybrid.features, rows)
    assert (clusters.temp, clusters.momentum, clusters.use_hard) == (0.05, 0.2, False)
    assert (hybrid.num_features, hybrid.num_samples, hybrid.temp, hybrid.momentum) == (7, 9, 0.1, 0.3)


@pytest.mark.parametrize("memory", both_memories(), ids=["cluster", "hybrid"])
def test_a_step_on_a_gpu_waits_for_nothing(memory):
    memory = copy.deepcopy(memory)
    with Device() as device:
        memory = memory.to("cuda")
        x, index = unit(4, 7, 0).to("cuda"), torch.tensor([3, 9, 0, 16]).to("cuda")
        memory(x.clone().requires_grad_(), index).backward()  # the first one of an epoch may: it sums the classes
        before = len(device.waits)
        memory(x.clone().requires_grad_(), index).backward()
        assert memory.features.is_cuda
        assert not device.waits[before:]


@pytest.mark.gpu
@pytest.mark.parametrize("memory", both_memories(), ids=["cluster", "hybrid"])
def test_cuda_equals_cpu(memory):
    memory = copy.deepcopy(memory)
    other = copy.deepcopy(memory).cuda()
    for step in range(3):
        x, index = unit(6, 7, step), torch.tensor([3, 9, 0, 16, 3, 1])
        leaves = x.clone().requires_grad_(), x.cuda().requires_grad_()
        losses = memory(leaves[0], index), other(leaves[1], index.cuda())
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(leaves[1].grad.cpu(), leaves[0].grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other.features.cpu(), memory.features, rtol=0, atol=1e-5)


@pytest.mark.parametrize("option", [0, 1, 2, 3])
def test_the_jaccard_distance_has_the_published_arguments(option, capsys):
    features = unit(83, 16, 2)
    distance = compute_jaccard_distance(features, k1=8, k2=3, print_flag=False, search_option=option)
    assert capsys.readouterr().out == ""
    assert distance.dtype == np.float32
    np.testing.assert_allclose(distance, reid_fast.jaccard_distance(features, 8, 3), rtol=0, atol=1e-6)
    half = compute_jaccard_distance(features, 8, 3, True, option, True)
    assert "83 images" in capsys.readouterr().out
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, distance.astype(np.float16))


def test_an_unknown_search_is_refused():
    with pytest.raises(ValueError, match="search_option must be 0, 1, 2 or 3, not 4"):
        compute_jaccard_distance(unit(9, 4, 0), search_option=4)


class Rows(nn.Module):
    """Images that are features already, scaled."""

    def __init__(self, length):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.length = length

    def forward(self, images):
        assert not self.training
        assert not torch.is_grad_enabled()
        features = images.flatten(1) * self.scale
        return F.normalize(features) if self.length is None else features * self.length


def retrieval(queries, images, seed=0):
    """Features of several lengths, a loader's batches of them in another sequence, and the triples of both sets."""
    rng = np.random.default_rng(seed)
    n = queries + images
    rows = torch.from_numpy(planted(n, 12, seed) * rng.uniform(0.5, 2, (n, 1)).astype(np.float32))
    pids = (rows @ rows[:9].T).argmax(1).tolist()
    triples = [(f"{i}.jpg", pid, int(rng.integers(0, 4))) for i, pid in enumerate(pids)]
    batches = [
        (rows[part].view(-1, 3, 2, 2), [triples[i][0] for i in part], None, None, None)
        for part in np.array_split(rng.permutation(n), 7)
    ]
    return rows, batches, triples[:queries], triples[queries:]


def published_scores(distance, query, gallery):
    pids, cams = (np.array([image[column] for image in gallery]) for column in (1, 2))
    precisions, curve = [], np.zeros(100)
    for row, (_, pid, cam) in zip(distance, query, strict=True):
        seen = np.argsort(row, kind="stable")
        seen = seen[(pids[seen] != pid) | (cams[seen] != cam)]
        match = pids[seen] == pid
        if match.any():
            precisions.append(average_precision_score(match, -row[seen]))
            curve[match.argmax() :] += 1
    return curve / len(precisions), np.mean(precisions)


@pytest.mark.parametrize("length", [None, 1.5])
def test_the_evaluator_ranks_by_euclidean_distance(length, capsys):
    rows, batches, query, gallery = retrieval(20, 120)
    features = (F.normalize(rows) if length is None else rows * length).double()
    curve, mAP = published_scores(torch.cdist(features[:20], features[20:]).numpy(), query, gallery)
    evaluator = Evaluator(Rows(length))
    assert evaluator.evaluate(batches, query, gallery) == pytest.approx(mAP, abs=1e-6)
    found = evaluator.evaluate(batches, query, gallery, cmc_flag=True)
    np.testing.assert_allclose(found[0], curve, atol=1e-12)
    assert found[1] == pytest.approx(mAP, abs=1e-6)
    assert f"mAP {mAP:.1%}" in capsys.readouterr().out


def test_the_evaluator_re_ranks(capsys):
    rows, batches, query, gallery = retrieval(20, 120)
    features = F.normalize(rows)
    distance = reid_fast.rerank(features[:20], features[20:]).distances(slice(None)).numpy()
    curve, mAP = published_scores(distance, query, gallery)
    found = Evaluator(Rows(None)).evaluate(batches, query, gallery, True, True)
    np.testing.assert_allclose(found[0], curve, atol=1e-12)
    assert found[1] == pytest.approx(mAP, abs=1e-6)
    assert capsys.readouterr().out.count("mAP ") == 2
    with pytest.raises(ValueError, match="re-ranking needs L2-normalised features"):
        Evaluator(Rows(2.0)).evaluate(batches, query, gallery, rerank=True)


def test_the_evaluator_names_what_is_missing():
    _, batches, query, gallery = retrieval(20, 120)
    with pytest.raises(ValueError, match=r"the loader has no image lost\.jpg"):
        Evaluator(Rows(None)).evaluate(batches, query, [*gallery, ("lost.jpg", 1, 1)])
    with pytest.raises(UserError, match="nothing can be scored"):
        Evaluator(Rows(None)).evaluate(batches, query, [(name, -5, 0) for name, _, _ in gallery])


def test_the_memories_are_on_the_ops(monkeypatch):
    called = []

    def listed(name):
        op = getattr(ops, name)
        return lambda *given, **named: (called.append(name), op(*given, **named))[1]

    for name in ("cluster_nce", "memory_update", "hybrid_nce", "hybrid_update"):
        monkeypatch.setattr(ops, name, listed(name))
    for memory in both_memories():
        memory(unit(4, 7, 0).requires_grad_(), torch.tensor([3, 9, 0, 16])).backward()
    assert called == ["cluster_nce", "memory_update", "hybrid_nce", "hybrid_update"]
