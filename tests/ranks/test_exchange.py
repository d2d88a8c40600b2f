"""What ranks exchange: parts of a batch, statistics of groups that span them, what the first one makes."""

import os
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks.runs import start_together

from reid_fast.data.sets import ImageSet, TrainingSet
from reid_fast.errors import UserError
from reid_fast.methods.cc import CcConfig
from reid_fast.metrics import rank_scores
from reid_fast.models.norm import GroupedBatchNorm2d, share_groups
from reid_fast.ranks import ALONE, Ranks, Split
from reid_fast.run import describe_ranks, split_batches

CPU = torch.device("cpu")
SHAPES = [(), (3,), (2, 4), (17,), (1,)]
# images, images that stay together, BatchNorm group
BATCHES = [(12, 4, 0), (20, 4, 8), (21, 3, 6), (9, 1, 4), (24, 2, 24)]


def a_batch(B):
    generator = torch.Generator().manual_seed(B)
    x = torch.randn(B, 5, 3, 2, generator=generator, dtype=torch.float64).float() * 3 + 10
    return x, torch.randn(x.shape, generator=generator)


def normalised(norm, x, by_y):
    x = x.clone().requires_grad_()
    y = norm(x, relu=True)
    y.backward(by_y)
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def new_norm(group):
    norm = GroupedBatchNorm2d(5)
    norm.group = group
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 5))
        norm.bias.copy_(torch.linspace(1, -1, 5))
    return norm


def exchange(rank, size, folder):
    torch.set_num_threads(1)
    ranks = Ranks(rank, size, rank, size, dist.FileStore(str(folder / "store"), size))
    with ranks.connected(CPU):
        found = {"spanned": [spanned(ranks, *sizes) for sizes in BATCHES], "gathered": gathered(ranks)}
        found["first"] = ranks.from_first(lambda: ("made by", rank, torch.get_num_threads()))
        found["any"] = [ranks.any(rank == size - 1), ranks.any(False)]
        found["refused"] = [refused(lambda: ranks.from_first(fail)), refused(lambda: agree(ranks))]
        found["scores"] = rank_scores(*retrieval(), block=3, ranks=ranks)
        rows = torch.full((10, 3), -1.0).t().contiguous().t().contiguous()
        shares = ranks.shares(10, 4)
        rows[shares[rank]] = rank
        ranks.complete(rows, shares)
        strided = torch.full((2, 3, 4, 4), float(rank)).contiguous(memory_format=torch.channels_last)
        # More than one parcel of each type, and one tensor that is larger than a parcel.
        several = [torch.full(shape, rank, dtype=kind) for kind in (torch.int64, torch.float32) for shape in SHAPES]
        several += [strided, strided.new_full((5, 4), rank).t(), torch.full((2, 6), float(rank))[:, ::2]]
        with mock.patch("reid_fast.ranks._PARCEL", 10):
            ranks.adopt([torch.empty(0, 3), *several])
            ordered = torch.arange(12.0).view(3, 4).t().add(100 * rank)
            ranks.adopt([ordered, torch.tensor(float(rank))])
        found["complete"], found["adopted"] = rows, several
        found["values"] = ordered.t().flatten().tolist()
    torch.save(found, folder / f"{rank}.pt")


def spanned(ranks, B, unit, group):
    x, by_y = a_batch(B)
    split = Split(ranks, B, unit, 1, CPU)
    norm = new_norm(group)
    share_groups(norm, split)
    return split.share, normalised(norm, x[split.share], by_y[split.share])


def gathered(ranks):
    """Rows of two domains, their whole, and the gradient of this rank's."""
    split = Split(ranks, 7, 2, 2, CPU)
    whole = torch.arange(28.0).view(14, 2)
    own = split.own(whole).requires_grad_()
    split.gather(own).mul(whole + 1).sum().backward()
    return split.rows, split.gather(own).detach(), own.grad


def fail():
    raise UserError("the first rank cannot")


def agree(ranks):
    with ranks.agreed():
        if ranks.rank == ranks.size - 1:
            raise UserError("the last rank cannot")


def refused(work):
    with pytest.raises(UserError) as error:
        work()
    return str(error.value)


def retrieval():
    generator = torch.Generator().manual_seed(0)
    pids, cams = torch.arange(40) % 8, torch.arange(40) // 8 % 3
    rows = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator) + pids[:, None])
    return rows[:11], pids[:11], cams[:11], rows, pids, cams


@pytest.fixture(scope="module", params=[2, 3])
def found(request, tmp_path_factory):
    """What each rank found."""
    folder = tmp_path_factory.mktemp("exchange")
    start_together(exchange, request.param, request.param, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]


@pytest.mark.parametrize("case", range(len(BATCHES)), ids=str)
def test_groups_that_span_ranks_are_normalised_as_in_one_process(found, case):
    B, _, group = BATCHES[case]
    y, by_x, by_weight, by_bias, *running = normalised(new_norm(group), *a_batch(B))
    parts = [rank["spanned"][case] for rank in found]
    for whole, column in ((y, 0), (by_x, 1)):
        torch.testing.assert_close(torch.cat([part[column] for _, part in parts]), whole, rtol=1e-5, atol=2e-5)
    for whole, column in ((by_weight, 2), (by_bias, 3)):
        torch.testing.assert_close(sum(part[column] for _, part in parts), whole, rtol=1e-4, atol=1e-4)
    for _, part in parts:
        torch.testing.assert_close(list(part[4:]), running)


def test_all_ranks_get_the_whole_batch_and_the_gradient_of_their_own(found):
    whole = torch.arange(28.0).view(14, 2)
    rows = torch.cat([torch.from_numpy(rank["gathered"][0]) for rank in found])
    assert sorted(rows.tolist()) == list(range(14))
    for rank in found:
        own, together, gradient = rank["gathered"]
        assert (own < 7).sum() == (own >= 7).sum()  # as much of either domain
        assert torch.equal(together, whole)
        # The mean over ranks, which DistributedDataParallel takes, is the gradient of the one sum.
        assert torch.equal(gradient / len(found), whole[own] + 1)


def test_what_the_first_rank_makes_and_refuses_reaches_all(found):
    for rank in found:
        assert rank["first"] == ("made by", 0, len(found))  # with the cores of those that wait
        assert rank["any"] == [True, False]
        assert rank["refused"] == ["the first rank cannot", "the last rank cannot"]


def test_shares_are_completed_and_tensors_adopted(found):
    rows = [0] * 4 + [1] * 4 + [2 if len(found) == 3 else 0] * 2
    if len(found) == 2:
        rows = [0] * 8 + [1] * 2
    for rank in found:
        assert rank["complete"][:, 0].tolist() == rows
        assert all((tensor == 0).all() for tensor in rank["adopted"])
        assert rank["values"] == list(range(12))


def test_scores_are_shared(found):
    alone = rank_scores(*retrieval())
    for rank in found:
        assert rank["scores"] == alone


@pytest.mark.parametrize(("n", "unit", "size"), [(0, 1, 3), (1, 1, 3), (10, 1, 3), (10, 4, 3), (10, 256, 3), (7, 2, 2)])
def test_shares_cover_everything_once(n, unit, size):
    shares = Ranks(0, size).shares(n, unit)
    assert [i for share in shares for i in range(share.start, share.stop)] == list(range(n))
    assert len(shares) == size
    assert all(share.start % unit == 0 or share.start == n for share in shares)
    lengths = [-(-(share.stop - share.start) // unit) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_one_process_is_left_alone():
    x = torch.randn(3, 2)
    assert ALONE.from_first(lambda: x) is x
    assert ALONE.any(True)
    assert ALONE.shares(5) == [slice(0, 5)]
    with pytest.raises(UserError, match="says why"), ALONE.agreed():
        raise UserError("it says why")


def test_what_torchrun_sets_is_read(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.from_environment().size == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Ranks.from_environment().group is None
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="start them with torchrun"):
        Ranks.from_environment()
    assert "RANK" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "-1"),
        ("RANK", "5"),
        ("RANK", ""),
        ("LOCAL_RANK", "7"),
        ("LOCAL_WORLD_SIZE", "0"),
        ("MASTER_PORT", "abc"),
        ("MASTER_PORT", "99999999"),
        ("MASTER_ADDR", ""),
    ],
)
def test_nonsense_in_the_environment_is_one_sentence(monkeypatch, name, value):
    sound = {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    for key, text in {**sound, "MASTER_PORT": 29500, name: value}.items():
        monkeypatch.setenv(key, str(text))
    with pytest.raises(UserError, match="start them with torchrun"):
        Ranks.from_environment()


@pytest.mark.parametrize(
    ("ranks", "group", "counts", "shared"),
    [(2, 8, "16 + 8", False), (3, 8, "8 + 8 + 8", False), (2, 0, "12 + 12", True), (4, 8, "8 + 8 + 4 + 4", True)],
)
def test_a_batch_goes_to_ranks_by_groups_or_by_identities(ranks, group, counts, shared):
    config = CcConfig(batch_size=24, num_instances=4, bn_group=group)
    split = split_batches(config, TrainingSet(ImageSet([], np.empty(0, int), np.empty(0, int))), Ranks(0, ranks), CPU)
    said = describe_ranks(config, split)
    assert f"{ranks} processes: {counts} images" in said
    assert ("statistics ranks share" in said) == shared == split.spans(group)


def test_more_ranks_than_identities_are_refused():
    config = CcConfig(batch_size=24, num_instances=4)
    with pytest.raises(UserError, match="holds 6 identities, too few for 7 processes: start at most 6"):
        split_batches(config, TrainingSet(ImageSet([], np.empty(0, int), np.empty(0, int))), Ranks(0, 7), CPU)
