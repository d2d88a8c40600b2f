"""The contrast with a memory, literally, and problems for it: shared by the tests of its two ops."""

import torch
import torch.nn.functional as F

from reid_fast.ops import cluster_nce
from reid_fast.ops.cluster_nce import cluster_nce_ref

SHAPES = [(1, 1, 1), (3, 7, 5), (6, 97, 33), (67, 131, 67), (16, 257, 8)]


def literal(x, memory, labels, temperature, normalize=True, smoothing=0.0, targets=None, spans=None, weights=None):
    """Row by row, as the formula reads."""
    x = F.normalize(x) if normalize else x
    weights = torch.full((len(x),), 1 / len(x), dtype=x.dtype) if weights is None else weights
    loss = 0
    for i in range(len(x)):
        start, stop = (0, len(memory)) if spans is None else spans[i].tolist()
        log_p = (x[i] @ memory[start:stop].T / temperature).log_softmax(0)
        if targets is None:
            q = torch.full_like(log_p, smoothing / (stop - start))
            q[labels[i] - start] += 1 - smoothing
        else:
            q = targets[i, start:stop]
        loss = loss - weights[i] * (q * log_p).sum()
    return loss


def problem(B, C, D, kind, dtype=torch.float32):
    """(x, memory, labels, temperature, options): `kind` names the options, "plain" none."""
    x, memory = torch.randn(B, D, dtype=dtype), F.normalize(torch.randn(C, D, dtype=dtype))
    labels = torch.randint(C, (B,))
    options = {"normalize": kind != "raw"}
    if "smooth" in kind:
        options["smoothing"] = 0.1
    if kind == "dense":
        options["targets"] = torch.rand(B, C, dtype=dtype)
    if "spans" in kind:
        options["spans"] = torch.stack([labels - torch.randint(3, (B,)), labels + 5], 1).clamp(0, C)
        options["weights"] = torch.rand(B, dtype=dtype)
    return x, memory, labels, 0.2, options


def with_gradient(loss, x, *rest, **options):
    """(loss, its gradient by x)."""
    x = x.clone().requires_grad_()
    value = loss(x, *rest, **options)
    value.backward()
    return value.detach(), x.grad


def on(device, *arguments):
    """The arguments, their tensors on a device."""
    return [a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments]


def check_cpu(shape, kind):
    """The op and its reference on the CPU give the literal loss and its gradient."""
    *case, options = problem(*shape, kind, torch.float64)
    expected, gradient = with_gradient(literal, *case, **options)
    for loss in (cluster_nce, cluster_nce_ref):
        value, by_x = with_gradient(loss, *case, **options)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(by_x, gradient)


def check_kernels(op, kernel, arguments, device):
    """The kernels give the CPU's loss and gradient, and the same loss where no gradient is wanted."""
    loss, gradient = op(*arguments)
    arguments = on(device, *arguments)
    fused, by_x = kernel(*arguments)
    torch.testing.assert_close(fused.cpu(), loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_x.cpu(), gradient, atol=2e-6, rtol=1e-4)
    alone, none = kernel(*arguments[:-1], False)
    assert torch.equal(alone, fused)
    assert none.numel() == 0


def check_gpu_precision_and_bits(loss, reference, kind, dtype):
    """At most twice PyTorch's own error in the same type, and the same bits twice."""
    *case, options = problem(256, 2000, 2048, kind, torch.float64)
    expected, gradient = with_gradient(reference, *case, **options)
    cast = lambda a: a.to("cuda", dtype if a.is_floating_point() else a.dtype) if torch.is_tensor(a) else a  # noqa: E731
    low, low_options = [cast(a) for a in case], {name: cast(a) for name, a in options.items()}
    runs = [with_gradient(loss, *low, **low_options) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    value, by_x = runs[0]
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        torch_value, torch_by_x = with_gradient(reference, *low, **low_options)
    floor = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    error = lambda g: (g.cpu().double() - gradient).norm() / gradient.norm()  # noqa: E731
    assert error(by_x) <= max(2 * error(torch_by_x), floor)
    assert abs(value.cpu() - expected) <= max(2 * abs(torch_value.cpu() - expected), floor * expected)
