"""The sampler against its rules, re-read from the plan it draws."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid_fast.data.images.sampler import class_uniform, epoch_plan, more_cameras, other_cameras
from reid_fast.errors import UserError


def plan_of(labels, cams, **options):
    settings = {"batch_size": 8, "num_instances": 4, "iters": 5, "seed": 1, "epoch": 0} | options
    return epoch_plan(np.asarray(labels), np.asarray(cams), **settings)


def groups_of(plan, labels, num_instances):
    """Cut a plan into passes, each a list of (identity, its images) without repeated identities."""
    order, size = plan.ravel(), plan.shape[1]
    sizes = Counter(label for label in labels.tolist() if label >= 0)
    length = {label: num_instances if count > 1 else 1 for label, count in sizes.items()}
    kept = sum(length.values()) // size * size or size  # the incomplete batch at the end of a pass is dropped
    passes = []
    for start in range(0, len(order), kept):
        rest, groups = order[start : start + kept], []
        while len(rest):
            label = labels[rest[0]]
            groups.append((label, rest[: length[label]]))
            rest = rest[length[label] :]
        assert len({label for label, _ in groups}) == len(groups), "an identity appears once in a pass"
        passes.append(groups)
    return passes


def assert_follows_the_rules(label, group, labels, cams, num_instances, use_cams, whole):
    anchor, *others = group.tolist()
    assert label >= 0
    assert (labels[group] == label).all()
    own = np.flatnonzero(labels == label)
    elsewhere = own[cams[own] != cams[anchor]] if use_cams else own[:0]
    candidates = elsewhere if len(elsewhere) else own[own != anchor]
    assert set(others) <= set(candidates.tolist())
    if len(candidates) >= num_instances:
        assert len(set(others)) == len(others), "enough candidates are drawn without replacement"
    if whole:
        assert len(others) == (num_instances - 1 if len(own) > 1 else 0)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_group_follows_the_rules(data):
    n = data.draw(st.integers(1, 60))
    labels = np.array(data.draw(st.lists(st.integers(-1, 8), min_size=n, max_size=n)))
    labels[labels >= 0] = np.unique(labels[labels >= 0], return_inverse=True)[1]
    cams = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
    num_instances, batch_size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 12))
    iters, use_cams = data.draw(st.integers(1, 7)), data.draw(st.booleans())
    arguments = {
        "batch_size": batch_size,
        "num_instances": num_instances,
        "iters": iters,
        "use_cams": use_cams,
    }
    arguments |= {name: data.draw(st.integers(0, 9)) for name in ("seed", "epoch")}
    counts = np.bincount(labels[labels >= 0])
    in_a_pass = np.where(counts > 1, num_instances, 1).sum()
    if in_a_pass == 0:
        with pytest.raises(UserError, match="no image is in a cluster"):
            epoch_plan(labels, cams, **arguments)
        return
    plan = epoch_plan(labels, cams, **arguments)
    assert plan.shape == (iters, batch_size)
    assert plan.dtype == np.int64
    if in_a_pass < batch_size:  # passes follow one another within each batch
        for batch in plan:
            for start in range(0, batch_size, in_a_pass):
                some = batch[start : start + in_a_pass]
                for groups in groups_of(some[None], labels, num_instances):
                    for label, group in groups:
                        whole = group is not groups[-1][1]
                        assert_follows_the_rules(label, group, labels, cams, num_instances, use_cams, whole)
        return
    for groups in groups_of(plan, labels, num_instances):
        for label, group in groups:
            whole = group is not groups[-1][1]
            assert_follows_the_rules(label, group, labels, cams, num_instances, use_cams, whole)


def test_full_groups_make_batches_of_distinct_identities():
    labels, cams = np.repeat(np.arange(23), 7), np.tile(np.arange(7) % 3, 23)
    plan = plan_of(labels, cams, batch_size=20, num_instances=4, iters=50)
    identities = labels[plan].reshape(50, 5, 4)
    assert (identities == identities[:, :, :1]).all()
    assert all(len(set(batch)) == 5 for batch in identities[:, :, 0].tolist())


def test_a_pass_visits_every_identity_and_the_next_begins_afresh():
    labels, cams = np.repeat(np.arange(9), 5), np.zeros(45, int)
    plan = plan_of(labels, cams, batch_size=12, num_instances=4, iters=6)  # 3 batches a pass
    first, second = labels[plan].reshape(2, 9, 4)[:, :, 0].tolist()
    assert sorted(first) == sorted(second) == list(range(9))
    assert first != second


def test_the_incomplete_batch_of_each_pass_is_dropped():
    labels, cams = np.repeat(np.arange(8), 5), np.zeros(40, int)
    plan = plan_of(labels, cams, batch_size=12, num_instances=4, iters=40)  # 2 of 2 2/3 batches a pass
    passes = labels[plan].reshape(20, 6, 4)[:, :, 0]
    assert all(len(set(p)) == 6 for p in passes.tolist())
    assert set(passes.ravel().tolist()) == set(range(8))


@pytest.mark.parametrize("rule", [other_cameras, more_cameras, class_uniform])
def test_the_steps_of_a_short_epoch_are_the_first_of_a_long_one_and_no_more_is_drawn(rule):
    labels, cams = np.arange(4000) % 1000, np.arange(4000) // 4 % 3
    calls = []

    def counted(own, *arguments):
        calls.append(own)
        return rule(own, *arguments)

    short = plan_of(labels, cams, iters=7, rule=counted)
    assert len(calls) == 7 * 8 / 4
    assert (short == plan_of(labels, cams, iters=600, rule=rule)[:7]).all()


def test_further_images_come_from_other_cameras_than_the_anchors():
    labels, cams = np.repeat(np.arange(4), 10), np.tile([0] * 8 + [1, 2], 4)
    groups = plan_of(labels, cams, iters=100).reshape(-1, 4)
    assert (cams[groups[:, 1:]] != cams[groups[:, :1]]).all()
    without = plan_of(labels, cams, iters=100, use_cams=False).reshape(-1, 4)
    assert (cams[without[:, 1:]] == cams[without[:, :1]]).any()
    assert (without[:, 1:] != without[:, :1]).all()


def test_one_camera_or_unknown_cameras_are_as_good_as_none():
    labels = np.repeat(np.arange(4), 10)
    expected = plan_of(labels, np.zeros(40, int), use_cams=False)
    assert np.array_equal(plan_of(labels, np.zeros(40, int)), expected)
    assert np.array_equal(plan_of(labels, np.full(40, -1)), expected)


@pytest.mark.parametrize(("candidates", "repeats"), [(1, True), (2, True), (3, True), (4, False), (5, False)])
def test_candidates_are_repeated_when_there_are_fewer_than_k(candidates, repeats):
    """K = 4: even K-1 = 3 candidates are drawn with replacement, as published."""
    labels, cams = np.repeat(np.arange(2), candidates + 1), np.zeros(2 * candidates + 2, int)
    groups = plan_of(labels, cams, iters=200).reshape(-1, 4)
    repeated = [len(set(others)) < 3 for others in groups[:, 1:].tolist()]
    assert any(repeated) == repeats
    assert set(groups[:, 1:].ravel().tolist()) == set(range(len(labels)))


def test_a_singleton_contributes_one_image():
    labels, cams = np.array([0, 0, 0, 0, 1, 2, -1]), np.zeros(7, int)
    plan = plan_of(labels, cams, batch_size=6, num_instances=4, iters=30)
    assert all(Counter(labels[batch].tolist()) == {0: 4, 1: 1, 2: 1} for batch in plan)


def test_anchors_and_the_others_are_drawn_uniformly():
    labels, cams = np.repeat([0, 1], 6), np.tile([0, 0, 0, 1, 1, 2], 2)
    groups = plan_of(labels, cams, num_instances=2, batch_size=4, iters=6000).reshape(-1, 2)
    pairs = Counter(map(tuple, groups.tolist()))
    for anchor in range(12):
        others = np.flatnonzero((labels == labels[anchor]) & (cams != cams[anchor]))
        for other in others:
            expected = 12000 / 12 / len(others)
            assert abs(pairs[anchor, other] - expected) < 5 * expected**0.5


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 1}, {"seed": 0, "epoch": 1}])
def test_the_plan_depends_on_seed_and_epoch_alone(change):
    labels, cams = np.repeat(np.arange(9), 7), np.tile(np.arange(7) % 3, 9)
    np.random.seed(3)  # noqa: NPY002 - the global state must not matter
    plan = plan_of(labels, cams)
    assert np.array_equal(plan, plan_of(labels, cams))
    assert not np.array_equal(plan, plan_of(labels, cams, **change))


def test_no_cluster_is_a_user_error_with_a_way_out():
    with pytest.raises(UserError, match=r"no image is in a cluster.*--eps"):
        plan_of([-1] * 9, [0] * 9)


@pytest.mark.parametrize(("labels", "kept"), [([0] * 9, 1), ([0, 0, 0, 1, -1, -1, -1, -1, -1], 2)])
def test_passes_that_fill_no_batch_are_taken_together(labels, kept):
    plan = plan_of(labels, [0] * 9, batch_size=8, num_instances=4, iters=3)
    assert plan.shape == (3, 8)
    assert {len(np.unique(np.asarray(labels)[batch])) for batch in plan} == {kept}


def drawn(rule, own, cams, K, seed=0):
    return rule(np.asarray(own), None if cams is None else np.asarray(cams), K, np.random.default_rng(seed)).tolist()


identity = st.lists(st.integers(0, 4), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(cams=identity, K=st.integers(1, 6), seed=st.integers(0, 99))
def test_more_cameras_takes_one_image_of_each_and_then_others(cams, K, seed):
    cams = np.array(cams)
    own = 10 + np.arange(len(cams))
    group = drawn(more_cameras, own, cams, K, seed)
    assert len(group) == K
    assert set(group) <= set(own.tolist())
    cameras, seen = set(cams.tolist()), [cams[i - 10] for i in group]
    rest = len(cams) - len(cameras)
    if len(cameras) >= K:
        assert len(set(seen)) == K
    elif rest == 0:  # one image a camera and too few of them: any, with repetition
        assert len(own) < K
    else:
        assert set(seen[: len(cameras)]) == cameras
        more = group[len(cameras) :]
        assert not set(more) & set(group[: len(cameras)])
        assert (len(set(more)) == len(more)) or rest < len(more)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 9), K=st.integers(1, 6), seed=st.integers(0, 99))
def test_without_cameras_any_images_are_taken(n, K, seed):
    group = drawn(more_cameras, np.arange(n), None, K, seed)
    assert len(group) == K
    assert len(set(group)) == K or n < K


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 9), K=st.integers(1, 6), seed=st.integers(0, 99))
def test_class_uniform_repeats_an_image_at_most_k_times(n, K, seed):
    group = drawn(class_uniform, np.arange(n), None, K, seed)
    assert len(group) == K
    assert set(group) <= set(range(n))
    assert len(set(group)) == K or n < K
    assert all(count <= K for count in Counter(group).values())


def test_class_uniform_draws_from_k_copies():
    """Two images and K = 3: three of (0, 1, 0, 1, 0, 1)."""
    threes = Counter(tuple(sorted(drawn(class_uniform, [0, 1], None, 3, seed))) for seed in range(4000))
    for group, share in {(0, 0, 0): 1 / 20, (0, 0, 1): 9 / 20, (0, 1, 1): 9 / 20, (1, 1, 1): 1 / 20}.items():
        assert abs(threes[group] - 4000 * share) < 5 * (4000 * share) ** 0.5


def test_a_rule_makes_the_groups_of_a_plan():
    labels, cams = np.repeat(np.arange(6), 7), np.tile([0, 0, 0, 0, 1, 2, 3], 6)
    groups = plan_of(labels, cams, rule=more_cameras, iters=20).reshape(-1, 4)
    assert all(sorted(cams[group]) == [0, 1, 2, 3] for group in groups)


@pytest.mark.parametrize(("kept", "batches"), [(5, 1), (16, 2), (23, 2), (24, 3)])
def test_as_many_batches_as_the_clustered_images_fill(kept, batches):
    labels = np.full(30, -1)
    labels[:kept] = np.arange(kept) % 5
    plan = plan_of(labels, np.zeros(30, int), iters=0, rule=class_uniform)
    assert plan.shape == (batches, 8)
