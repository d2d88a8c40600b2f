"""CAP and CAP with Cluster Contrast's memory: golden values, proxies, batches."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from inputs import assert_settings, phi, unit_phi
from stubs import assert_near, new_method, stepped

from reid_fast.command_line import parse
from reid_fast.errors import UserError

pytestmark = pytest.mark.usefixtures("raw_encoder")
CAMS = np.repeat([0, 1, 2], 4)
LABELS = np.array([0, 0, 1, 2, 0, 1, 1, -1, 2, 2, 3, 0])
BATCH = [0, 1, 5, 6, 8, 11]


def started(name="cap", **options):
    method = new_method(name, cams=CAMS, negatives=3, **options)
    method.fill_memory(unit_phi(12, 0.5), LABELS)
    return method


def step(method, epoch=0):
    return stepped(method, [phi(6, 2.0)], LABELS[BATCH], index=BATCH, cams=CAMS[BATCH], epoch=epoch)


def test_there_is_a_proxy_per_camera_and_cluster():
    method = started()
    assert method.proxies.labels.tolist() == [0, 1, 2, 0, 1, 0, 2, 3]
    assert method.proxies.spans.tolist() == [[0, 3], [3, 5], [5, 8]]
    x = unit_phi(12, 0.5).double()
    expected = [
        x[(c == CAMS) & (k == LABELS)].mean(0)
        for c in range(3)
        for k in range(4)
        if ((c == CAMS) & (k == LABELS)).any()
    ]
    assert_near(method.proxies.rows, F.normalize(torch.stack(expected)), atol=1e-6)


@pytest.mark.parametrize(
    ("epoch", "loss", "norm"),
    [(0, 21.405336, 10.051166), (4, 21.405336, 10.051166), (5, 34.255642, 12.358289)],
)
def test_golden_loss_gradient_and_update(epoch, loss, norm):
    method = started()
    before = method.proxies.rows.clone()
    losses, (gradient,) = step(method, epoch)
    assert_near(sum(losses.values()), loss, atol=3e-5)
    assert_near(gradient.norm(), norm)
    row = [-0.159295, -0.552367, -0.191506, 0.390261, 0.394419, -0.175182, -0.524292, -0.139286]
    assert_near(method.proxies.rows[0], row)
    # The batch holds (camera, cluster) (0, 0), (0, 0), (1, 1), (1, 1), (2, 2), (2, 0): rows 0, 4, 6 and 5.
    assert torch.equal(method.proxies.rows[[1, 2, 3, 7]], before[[1, 2, 3, 7]])


def test_a_camera_that_no_cluster_has_seen():
    method = new_method("cap", cams=[0, 0, 3, 3, 1])
    method.fill_memory(unit_phi(5, 0.5), np.array([0, 0, 0, 0, -1]))
    assert method.proxies.labels.tolist() == [0, 0]
    assert method.proxies.rows_of(torch.arange(4), torch.zeros(4, dtype=torch.int64)).tolist() == [0, -1, -1, 1]


def test_batches_hold_whole_proxies():
    rng = np.random.default_rng(0)
    cams, labels = rng.integers(0, 3, 400), rng.integers(-1, 6, 400)
    method = new_method("cap", cams=cams, batch_size=16, num_instances=4)
    plan = method.plan_epoch(labels, 0)
    assert len(plan) == (labels >= 0).sum() // 16
    assert (labels[plan] >= 0).all()
    for batch in plan:
        proxies = [set(zip(cams[group], labels[group], strict=True)) for group in batch.reshape(-1, 4)]
        assert all(len(proxy) == 1 for proxy in proxies)
        assert len(set.union(*proxies)) == 4
        assert all(count == 1 for count in Counter(batch.tolist()).values())
    assert new_method("cap", cams=cams, batch_size=16, num_instances=4, iters=3).plan_epoch(labels, 0).shape == (
        3,
        16,
    )


def test_the_learning_rate_rises_from_a_hundredth_and_falls_twice():
    method = new_method("cap")
    expected = {0: 3.5e-6, 5: 1.7675e-4, 10: 3.5e-4, 19: 3.5e-4, 20: 3.5e-5, 40: 3.5e-6, 49: 3.5e-6}
    assert {e: method.lr(e) for e in expected} == pytest.approx(expected)


def test_the_papers_settings():
    for dataset in ("market1501", "msmt17", "dukemtmcreid"):
        config, _ = parse(["--method", "cap", "-d", dataset])
        assert_settings(
            config,
            "iters 0, batch_size 32, num_instances 4, bn_group 32, epochs 50, eps 0.5, k1 20, momentum 0.2, "
            "camera_temp 0.07, camera_weight 0.5, camera_epoch 5, negatives 50, stem_relu False",
        )
    method = new_method("cap")
    (view,) = method.views
    assert (view.erase_area, view.erase_aspect, view.erase_across) == ((0.02, 0.2), (0.3, 3.0), True)


@pytest.mark.parametrize("name", ["cap", "cap_cc"])
def test_unknown_cameras_are_refused(name):
    with pytest.raises(UserError, match="camera"):
        new_method(name, cams=[0, 1, -1])


def test_with_cluster_contrast_both_losses_and_both_updates():
    both, cap, cc = started("cap_cc"), started("cap"), new_method("cc", cams=CAMS)
    cc.fill_memory(unit_phi(12, 0.5), LABELS)
    losses, (gradient,) = step(both, epoch=5)
    cap_losses, (cap_gradient,) = step(cap, epoch=5)
    cc_losses, (cc_gradient,) = step(cc)
    assert losses == {**cc_losses, **cap_losses}
    assert_near(gradient, cap_gradient + cc_gradient)
    assert torch.equal(both.memory.rows, cc.memory.rows)
    assert torch.equal(both.proxies.rows, cap.proxies.rows)
    assert set(step(started("cap_cc"), epoch=4)[0]) == {"contrast", "intra"}
    assert set(step(started("cap_cc", intra=False), epoch=5)[0]) == {"contrast", "inter"}


def test_both_memories_are_saved():
    method = started("cap_cc")
    step(method)
    other = new_method("cap_cc", cams=CAMS)
    other.load_state_dict(method.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.state_dict().items())


def test_the_name_on_the_command_line():
    for name in ("cap-cc", "cap_cc"):
        config, origin = parse(["--method", name, "-d", "msmt17"])
        assert config.method == "cap_cc"
        assert (config.iters, config.batch_size, config.stem_relu) == (400, 256, True)
        assert origin["iters"] == "cap_cc on msmt17"
