"""camera_nce against the formula row by row, its kernels, ties, and golden values of CAP and ICE."""

import pytest
import torch
import torch.nn.functional as F
from contrast import on, with_gradient
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import camera_nce as kernel
from reid_fast.ops import _numerics, camera_nce, camera_weights, cluster_nce, memory_update
from reid_fast.ops.camera_nce import _op, camera_nce_ref

SHAPES = [(1, 1, 1, 1), (5, 23, 7, 9), (17, 53, 20, 33), (2, 61, 2, 130)]  # B, C, identities, D


def literal(x, memory, memory_labels, labels, temperature, negatives, weights=None, normalize=True):
    x = F.normalize(x) if normalize else x
    loss = 0
    for i in range(len(x)):
        a = memory @ x[i]
        positive = (memory_labels == labels[i]).nonzero()[:, 0].tolist()
        if not positive:
            continue
        others = [c for c in range(len(memory)) if c not in positive]
        hardest = sorted(others, key=lambda c: (-a[c].item(), c))[:negatives]
        log_z = torch.logsumexp(a[positive + hardest] / temperature, 0)
        weight = 1 / len(x) if weights is None else weights[i]
        loss = loss - weight * (a[positive] / temperature - log_z).mean()
    return loss


def problem(B, C, identities, D, dtype=torch.float32):
    memory_labels = torch.arange(C) % identities
    return (
        torch.randn(B, D, dtype=dtype),
        F.normalize(torch.randn(C, D, dtype=dtype)),
        memory_labels[torch.randperm(C)],
        torch.randint(min(C, identities), (B,)),
    )


@pytest.mark.parametrize("held", [_numerics._LOGITS, 100])
@pytest.mark.parametrize(("negatives", "normalize"), [(3, True), (20, False)])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_literal_loss(shape, negatives, normalize, held, device, monkeypatch):
    monkeypatch.setattr(_numerics, "_LOGITS", held)
    case = (*problem(*shape, torch.float64), 0.3, negatives)
    more = {"weights": torch.rand(shape[0], dtype=torch.float64), "normalize": normalize}
    expected, gradient = with_gradient(literal, *case, **more)
    for loss in (camera_nce, camera_nce_ref):
        value, by_x = with_gradient(loss, *case, **more)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(by_x, gradient)


@pytest.mark.parametrize(("negatives", "normalize"), [(3, True), (20, False)])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_match_the_literal_loss(shape, negatives, normalize, device):
    case, weights = (*problem(*shape), 0.3, negatives), torch.rand(shape[0])
    exact = [t.double() if torch.is_tensor(t) and t.is_floating_point() else t for t in (*case, weights, normalize)]
    expected, gradient = with_gradient(literal, *exact)
    loss, by_x = kernel.camera_nce(*on(device, *case, weights, normalize, True))
    torch.testing.assert_close(loss.cpu(), expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_x.cpu(), gradient.float(), atol=5e-6, rtol=1e-4)


def test_ties_take_the_lower_row_and_few_negatives_are_enough(device):
    """Rows 1 and 2 score the same, and so do 3 and 4. Only the gradient tells which was taken."""
    memory = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.6, 0.0, 0.8], [-0.6, 0.8, 0], [-0.6, 0, 0.8]])
    memory_labels, labels, x = (
        torch.tensor([0, 1, 1, 2, 2]),
        torch.tensor([0]),
        torch.tensor([[1.0, 0.0, 0.0]]),
    )
    for negatives in (1, 2, 3, 4, 9):
        case = (memory, memory_labels, labels, 0.5, negatives)
        expected = with_gradient(literal, x, *case)
        actual = with_gradient(camera_nce, x, *case)
        loss, by_x = kernel.camera_nce(*on(device, x, *case, None, True, True))
        for value, gradient in (actual, (loss.cpu(), by_x.cpu())):
            torch.testing.assert_close(value, expected[0])
            torch.testing.assert_close(gradient, expected[1])


@pytest.mark.parametrize("negatives", [1, 130, 1100, 5000])
def test_ties_over_many_columns(negatives, device):
    """Small whole numbers: exact products of both signs, each of them many times."""
    x, memory = torch.randint(-2, 3, (3, 4)).float(), torch.randint(-2, 3, (2500, 4)).float()
    case = (memory, torch.randint(900, (2500,)), torch.randint(900, (3,)), 2.0, negatives)
    expected, gradient = with_gradient(literal, x.double(), memory.double(), *case[1:], normalize=False)
    loss, by_x = kernel.camera_nce(*on(device, x, *case, None, False, True))
    for value, by in (with_gradient(camera_nce, x, *case, normalize=False), (loss.cpu(), by_x.cpu())):
        torch.testing.assert_close(value, expected.float())
        torch.testing.assert_close(by, gradient.float(), atol=1e-6, rtol=1e-5)


def test_labels_without_a_proxy_take_no_part(device):
    x, memory, memory_labels, labels = problem(5, 23, 7, 9)
    labels[1], labels[3] = -1, 7
    case = (memory, memory_labels, labels, 0.3, 4)
    expected, gradient = with_gradient(literal, x, *case)
    assert gradient[1].norm() == gradient[3].norm() == 0 != gradient[0].norm()
    fused = kernel.camera_nce(*on(device, x, *case, None, True, True))
    for loss, by_x in (with_gradient(camera_nce, x, *case), with_gradient(camera_nce_ref, x, *case), fused):
        torch.testing.assert_close(loss.cpu(), expected)
        torch.testing.assert_close(by_x.cpu(), gradient, atol=1e-6, rtol=1e-5)


def test_a_proxy_that_is_no_number_is_not_passed_over(device):
    x, memory, memory_labels, labels = problem(5, 23, 7, 9)
    memory[11] = torch.nan
    case = (x, memory, memory_labels, labels, 0.3, 4)
    for loss in (camera_nce(*case), camera_nce_ref(*case), kernel.camera_nce(*on(device, *case, None, True, True))[0]):
        assert loss.isnan()


@pytest.mark.parametrize(("B", "C"), [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_contrast_is_no_loss(B, C, device):
    x, memory, memory_labels, labels = torch.randn(B, 4), torch.randn(C, 4), torch.arange(C), torch.arange(B)
    case = (memory, memory_labels, labels, 0.3, 4)
    fused = kernel.camera_nce(*on(device, x, *case, None, True, True))
    for loss, by_x in (with_gradient(camera_nce, x, *case), with_gradient(camera_nce_ref, x, *case), fused):
        assert loss == 0
        assert torch.equal(by_x.cpu(), torch.zeros(B, 4))


def proxies():
    """Camera proxies of the golden CAP case: (memory, labels, spans of the cameras)."""
    features, cams = unit_phi(12, 0.5), torch.arange(12) // 4
    labels = torch.tensor([0, 0, 1, 2, 0, 1, 1, -1, 2, 2, 3, 0])
    keys = sorted({(c, k) for c, k in zip(cams.tolist(), labels.tolist(), strict=True) if k >= 0})
    memory = F.normalize(torch.stack([features[(cams == c) & (labels == k)].mean(0) for c, k in keys]))
    return memory, torch.tensor([k for _, k in keys]), [c for c, _ in keys], labels, cams


def test_golden_cap():
    memory, memory_labels, proxy_cams, all_labels, all_cams = proxies()
    assert memory_labels.tolist() == [0, 1, 2, 0, 1, 0, 2, 3]
    batch = torch.tensor([0, 1, 5, 6, 8, 11])
    labels, cams, raw = all_labels[batch], all_cams[batch], phi(6, 2.0).requires_grad_()
    numbers = list(zip(proxy_cams, memory_labels.tolist(), strict=True))
    rows = [numbers.index((int(c), int(k))) for c, k in zip(cams, labels, strict=True)]
    spans = torch.tensor([[proxy_cams.index(c), proxy_cams.index(c) + proxy_cams.count(c)] for c in cams])
    rows, weights = torch.tensor(rows), camera_weights(cams)
    intra = cluster_nce(raw, memory, rows, 0.07, spans=spans, weights=weights)
    inter = camera_nce(raw, memory, memory_labels, labels, 0.07, 3, weights=weights)
    near(intra.detach(), 21.405336)
    near(torch.autograd.grad(intra, raw, retain_graph=True)[0].norm(), 10.051166)
    near((intra + 0.5 * inter).detach(), 34.255642)
    near(torch.autograd.grad(intra + 0.5 * inter, raw)[0].norm(), 12.358289)
    near(0.5 * inter.detach(), 12.850306)  # ICE's camera loss, proxies normalised by row
    by_column = F.normalize(memory, dim=0)  # as its published code does
    near(0.5 * camera_nce(raw, by_column, memory_labels, labels, 0.07, 3, weights=weights).detach(), 12.660404)
    memory_update(memory, F.normalize(raw), rows, 0.2)
    near(memory[0], [-0.159295, -0.552367, -0.191506, 0.390261, 0.394419, -0.175182, -0.524292, -0.139286])


def test_opcheck():
    x, *rest = problem(4, 12, 5, 6, torch.float64)
    opcheck(_op, (x.requires_grad_(), *rest, 0.3, 3, None, True, True))


@pytest.mark.parametrize("loss", [camera_nce, camera_nce_ref])
def test_gradcheck(loss):
    x, *rest = problem(4, 12, 5, 6, torch.float64)
    assert torch.autograd.gradcheck(lambda x: loss(x, *rest, 0.3, 3), x.requires_grad_())


@pytest.mark.parametrize("negatives", [0, -3])
def test_no_negatives_are_refused(negatives):
    with pytest.raises(ValueError, match="negatives must be at least 1"):
        camera_nce(*problem(4, 12, 5, 6), 0.3, negatives)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_training_size_and_bits(dtype):
    x, memory, memory_labels, labels = (t.cuda() for t in problem(32, 3300, 700, 2048))
    low = (x.to(dtype), memory.to(dtype), memory_labels, labels, 0.07)
    exact = (low[0].double(), low[1].double(), *low[2:])
    expected, gradient = with_gradient(camera_nce_ref, *exact)
    runs = [with_gradient(camera_nce, *low) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    assert abs(runs[0][0] - expected) <= tolerance * expected
    assert (runs[0][1].double() - gradient).norm() <= tolerance * gradient.norm()
