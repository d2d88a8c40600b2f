"""cluster_attention against dense attention cluster by cluster, and its kernels forward and backward."""

import pytest
import torch
import torch.nn.functional as F
from contrast import on
from torch.library import opcheck

from reid_fast.kernels import cluster_attention as kernel
from reid_fast.ops import cluster_attention, received_attention
from reid_fast.ops.cluster_attention import _backward, _op, received_attention_ref

CASES = [([2], 1, 1), ([2, 3, 7, 2], 2, 5), ([1, 40, 33, 5, 1, 2], 3, 17), ([67], 1, 131)]  # sizes, heads, D


def literal(q, k, x, offsets, scale):
    weights, prototypes = [], []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        n = stop - start
        w = torch.zeros(n, dtype=q.dtype) if n > 1 else torch.ones(1, dtype=q.dtype)
        for a in range(len(q)):
            for i in range(n if n > 1 else 0):
                others = [j for j in range(n) if j != i]
                A = (scale * k[a, start:stop][others] @ q[a, start + i]).softmax(0) / (len(q) * n)
                w = w.index_add(0, torch.tensor(others), A)
        weights.append(w)
        prototypes.append(F.normalize(w @ x[start:stop], dim=0))
    return torch.cat(weights), torch.stack(prototypes)


def problem(sizes, heads, D, dtype=torch.float32):
    N = sum(sizes)
    q, k = (F.normalize(torch.randn(heads, N, D, dtype=dtype), dim=2) for _ in range(2))
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return q, k, F.normalize(torch.randn(N, 6, dtype=dtype)), offsets, torch.tensor(3.0, dtype=dtype)


def gradients(attention, q, k, x, offsets, scale):
    leaves = [t.clone().requires_grad_() for t in (q, k, x, scale)]
    weights, prototypes = attention(*leaves[:3], offsets, leaves[3])
    seeds = (
        torch.arange(len(weights)).to(x.dtype).cos(),
        torch.linspace(-1, 1, prototypes.numel()).to(x.dtype),
    )
    ((weights * seeds[0]).sum() + (prototypes.flatten() * seeds[1]).sum()).backward()
    return weights.detach(), prototypes.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_dense_attention(case):
    inputs = problem(*case, torch.float64)
    torch.testing.assert_close(gradients(cluster_attention, *inputs), gradients(literal, *inputs))
    q, k, _, offsets, scale = inputs
    torch.testing.assert_close(received_attention_ref(q, k, offsets, scale), literal(*inputs)[0])


GAPS = torch.tensor([0, 0, 3, 3, 4, 9, 9, 9])


def test_received_attention_passes_over_empty_clusters():
    q, k, _, offsets, scale = problem([3, 1, 5], 2, 7)
    expected = received_attention_ref(q, k, offsets, scale)
    torch.testing.assert_close(received_attention(q, k, GAPS, scale), expected)


def test_kernels_pass_over_empty_clusters(device):
    q, k, _, offsets, scale = problem([3, 1, 5], 2, 7)
    expected = received_attention_ref(q, k, offsets, scale)
    received, _ = kernel.received_attention(*on(device, q, k, scale, GAPS))
    sizes = torch.tensor([3] * 3 + [1] + [5] * 5)
    torch.testing.assert_close((received.cpu() / (2 * sizes))[sizes > 1], expected[sizes > 1])


OUTSIDE = torch.tensor([2, 5, 5, 6])  # of nine rows, the first two and the last three belong to no cluster


def test_rows_of_no_cluster_take_no_part(device):
    q, k, _, offsets, scale = problem([3, 1], 2, 7)
    among = [torch.cat([torch.randn(2, 2, 7), t, torch.randn(2, 3, 7)], 1) for t in (q, k)]
    expected = F.pad(received_attention_ref(q, k, offsets, scale), (2, 3))
    for attention in (received_attention, received_attention_ref):
        torch.testing.assert_close(attention(*among, OUTSIDE, scale), expected)
    received, log_z = kernel.received_attention(*on(device, *among, scale, OUTSIDE))
    torch.testing.assert_close(received.cpu(), _op(*among, scale, OUTSIDE)[0])
    by_received = torch.randn(9)
    gradients = kernel.received_attention_backward(*on(device, by_received, *among, scale, OUTSIDE, log_z))
    for actual, gradient in zip(gradients, _backward(by_received, *among, scale, OUTSIDE, log_z.cpu()), strict=True):
        torch.testing.assert_close(actual.cpu(), gradient)


@pytest.mark.parametrize("offsets", [[-7, 3, 60], [5, 2, 9, 0], [70, 80]], ids=str)
def test_kernels_stay_inside_whatever_the_offsets(offsets, device):
    """Rows around the projections are infinite: what is read of them shows."""
    q, k = (torch.full((1, 69, 4), torch.inf)[:, 30:39] for _ in range(2))
    for t in (q, k):
        t.normal_()
    arguments = on(device, q, k, torch.tensor(3.0), torch.tensor(offsets))
    received, log_z = kernel.received_attention(*arguments)
    gradients = kernel.received_attention_backward(torch.ones_like(received), *arguments, log_z)
    assert all(t.isfinite().all() for t in (received, *gradients))


def test_no_rows(device):
    q, offsets, scale = torch.randn(2, 0, 3), torch.tensor([0, 0]), torch.tensor(3.0)
    assert received_attention(q, q, offsets, scale).shape == (0,)
    assert received_attention_ref(q, q, offsets, scale).shape == (0,)
    assert kernel.received_attention(*on(device, q, q, scale, offsets))[0].shape == (0,)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(case, device):
    q, k, _, offsets, scale = problem(*case)
    received, log_z = kernel.received_attention(*on(device, q, k, scale, offsets))
    expected, _ = _op(q, k, scale, offsets)
    torch.testing.assert_close(received.cpu(), expected, atol=1e-5, rtol=1e-5)
    leaves = [t.clone().requires_grad_() for t in (q, k)]
    by_received = torch.randn(q.shape[1])
    (_op(*leaves, scale, offsets)[0] * by_received).sum().backward()
    actual = kernel.received_attention_backward(*on(device, by_received, q, k, scale, offsets, log_z))
    for gradient, leaf in zip(actual, leaves, strict=True):
        torch.testing.assert_close(gradient.cpu(), leaf.grad, atol=1e-5, rtol=1e-4)


def test_opcheck():
    q, k, _, offsets, scale = problem([2, 4, 1], 2, 3, torch.float64)
    opcheck(_op, (*(t.requires_grad_() for t in (q, k, scale)), offsets))


def test_gradcheck():
    q, k, x, offsets, scale = problem([2, 4, 1], 2, 3, torch.float64)
    leaves = [t.requires_grad_() for t in (q, k, scale)]
    assert torch.autograd.gradcheck(lambda q, k, scale: cluster_attention(q, k, x, offsets, scale), leaves)
    assert torch.autograd.gradcheck(lambda q, k, scale: received_attention_ref(q, k, offsets, scale), leaves)


def test_compiles_whole():
    q, k, x, offsets, scale = problem([2, 4, 1], 2, 3, torch.float64)
    step = torch.compile(cluster_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(step(q, k, x, offsets, scale), cluster_attention(q, k, x, offsets, scale))


def test_an_intruder_receives_the_least():
    """What the weights are for: nineteen alike and one that resembles none of them."""
    x = F.normalize(torch.cat([torch.ones(19, 16) + 0.3 * torch.randn(19, 16), torch.randn(1, 16)]))
    weights = received_attention(x[None], x[None], torch.tensor([0, 20]), torch.tensor(10.0))
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert weights.argmin() == 19


@pytest.mark.gpu
def test_gpu_training_size_and_bits():
    """Eight heads of 256 over clusters of 2 to 4096 members."""
    sizes = [2, 4096, *torch.randint(2, 60, (200,)).tolist()]
    q, k, x, offsets, scale = (t.cuda() for t in problem(sizes, 8, 256))
    runs = [gradients(cluster_attention, q, k, x, offsets, scale) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][2], runs[1][2], strict=True))
    expected = gradients(cluster_attention, *(t.cpu() for t in (q, k, x, offsets, scale)))
    torch.testing.assert_close(runs[0][0].cpu(), expected[0], atol=1e-6, rtol=1e-4)
    for actual, gradient in zip(runs[0][2], expected[2], strict=True):
        assert (actual.cpu() - gradient).norm() <= 1e-4 * gradient.norm()
