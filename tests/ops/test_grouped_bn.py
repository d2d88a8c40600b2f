"""grouped_bn against its formula in float64: the reference, the op behind autograd, the kernels."""

import pytest
import torch
from torch.library import opcheck

from reid_fast.kernels import grouped_bn as kernel
from reid_fast.ops import grouped_bn
from reid_fast.ops.grouped_bn import Norms, _backward, _op, fused, grouped_bn_ref

# Images, channels, height and width; images of a group; domains.
CASES = [
    ((12, 3, 5, 2), 4, 1),
    ((11, 65, 2, 3), 4, 1),  # a short last group, one channel more than a block has
    ((9, 1, 7, 3), 0, 1),
    ((2, 130, 1, 1), 5, 1),
    ((2, 20, 31, 17), 1, 1),  # several tiles, a last one that is not full
    ((16, 33), 8, 1),
    ((6, 4, 9), 2, 1),
    ((12, 5, 4, 2), 4, 2),  # each domain has a short last group
    ((8, 6), 0, 2),
]
TAILS = [(False, False), (True, False), (False, True), (True, True)]  # with a ReLU, with a residual
NAMES = Norms._fields
MOMENTUM, EPS = 0.3, 1e-3


def problem(shape, domains, with_residual, dtype=torch.float64):
    """x, the norms and the residual."""
    x = (3 * torch.randn(shape) + 1).to(dtype)
    norms = Norms(*([torch.rand(shape[1], dtype=dtype) + 0.5 for _ in range(domains)] for _ in NAMES))
    norms.bias[0].sub_(1)
    return x, norms, torch.randn(shape).to(dtype) if with_residual else None


def copied(norms):
    return Norms(*([tensor.clone() for tensor in tensors] for tensors in norms))


def literal(x, norms, group, momentum, eps, residual=None, relu=False):
    """Group by group, as the formula reads."""
    parts, share = [], len(x) // len(norms.weight)
    for domain, (w, b, running_mean, running_var) in enumerate(zip(*norms, strict=True)):
        images = x[domain * share : (domain + 1) * share]
        size = group if 0 < group < len(images) else len(images)
        for start in range(0, len(images), size):
            part = images[start : start + size]
            axes = [axis for axis in range(part.ndim) if axis != 1]
            mean = part.mean(axes, keepdim=True)
            var = ((part - mean) ** 2).mean(axes, keepdim=True)
            affine = [tensor.view(1, -1, *[1] * (part.ndim - 2)) for tensor in (w, b)]
            parts.append((part - mean) / (var + eps).sqrt() * affine[0] + affine[1])
            if start == 0:
                count = part.numel() // part.shape[1]
                running_mean.mul_(1 - momentum).add_(momentum * mean.detach().flatten())
                running_var.mul_(1 - momentum).add_(momentum * var.detach().flatten() * count / (count - 1))
    y = torch.cat(parts)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def as_public(function):
    return lambda x, norms, group, momentum, eps, residual, relu: function(
        x, *norms, group, momentum, eps, residual=residual, relu=relu
    )


def with_gradients(function, x, norms, residual, group, relu, by_y):
    """[y, every gradient, the running statistics]."""
    norms = copied(norms)
    leaves = [x.clone().requires_grad_(), *(t.requires_grad_() for t in (*norms.weight, *norms.bias))]
    if residual is not None:
        residual = residual.clone().requires_grad_()
        leaves.append(residual)
    y = function(leaves[0], norms, group, MOMENTUM, EPS, residual, relu)
    gradients = torch.autograd.grad(y, leaves, by_y)
    return [y.detach(), *gradients, *norms.running_mean, *norms.running_var]


FORMS = {"public": as_public(grouped_bn), "reference": as_public(grouped_bn_ref), "op": fused}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("relu", "with_residual"), TAILS)
@pytest.mark.parametrize(("shape", "group", "domains"), CASES)
def test_equals_the_formula(shape, group, domains, relu, with_residual, form):
    x, norms, residual = problem(shape, domains, with_residual)
    common = (x, norms, residual, group, relu, torch.randn(shape, dtype=x.dtype))
    for wanted, actual in zip(with_gradients(literal, *common), with_gradients(FORMS[form], *common), strict=True):
        torch.testing.assert_close(actual, wanted)


def on(device, value):
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return [on(device, part) for part in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(("relu", "with_residual"), TAILS)
@pytest.mark.parametrize(("shape", "group", "domains"), CASES)
def test_the_kernels_equal_the_op(shape, group, domains, relu, with_residual, device):
    x, norms, residual = problem(shape, domains, with_residual, torch.float32)
    theirs, mine = copied(norms), Norms(*on(device, copied(norms)))
    expected = _op(x, residual, *theirs, group, MOMENTUM, EPS, relu)
    actual = kernel.grouped_bn(on(device, x), on(device, residual), *mine, group, MOMENTUM, EPS, relu)
    for mine_too, wanted in zip((*actual, *mine[2], *mine[3]), (*expected, *theirs[2], *theirs[3]), strict=True):
        torch.testing.assert_close(mine_too.cpu(), wanted, rtol=1e-5, atol=1e-5)
    y = expected[0] if relu and with_residual else None
    arguments = (torch.randn(shape), x, y, norms.weight, norms.bias, *expected[1:], group, EPS, relu)
    gradients = kernel.grouped_bn_backward(*on(device, arguments))
    for mine_too, wanted in zip(gradients, _backward(*arguments), strict=True):
        torch.testing.assert_close(mine_too.cpu(), wanted, rtol=1e-4, atol=1e-4)


SPREADS = {
    "far from 0": lambda shape: 1000 + 0.1 * torch.randn(shape),
    "first pixel astray": lambda shape: torch.randn(shape).index_fill(2, torch.tensor([0]), 1e4),
    "bfloat16 far from 0": lambda shape: (200 + torch.randint(-2, 3, shape)).bfloat16(),
}


@pytest.mark.parametrize("spread", SPREADS)
def test_the_variance_of_values_far_from_0_is_right(spread, device):
    x = SPREADS[spread]((2, 5, 300, 20)).contiguous(memory_format=torch.channels_last)
    _, norms, _ = problem((2, 5), 1, False, torch.float32)
    _, mean, var = kernel.grouped_bn(x.to(device), None, *on(device, norms), 1, MOMENTUM, EPS, False)
    wide = x.double().flatten(2)
    torch.testing.assert_close(mean.cpu().double(), wide.mean(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(var.cpu().double(), wide.var(2, correction=0), rtol=5e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("relu", "with_residual"), TAILS)
def test_halves_err_at_most_twice_as_much_as_pytorchs(dtype, relu, with_residual, device):
    shape = (8, 40, 6, 5)
    x, norms, residual = problem(shape, 1, with_residual, dtype)
    norms = Norms(*([tensor.float() for tensor in tensors] for tensors in norms))
    by_y = torch.randn(shape).to(dtype)
    wide = [x.double(), Norms(*([t.double() for t in tensors] for tensors in norms))]
    wide.append(None if residual is None else residual.double())
    exact = with_gradients(literal, *wide, 4, relu, by_y.double())
    plain = with_gradients(FORMS["reference"], x, norms, residual, 4, relu, by_y)
    mine = Norms(*on(device, copied(norms)))
    y, mean, var = kernel.grouped_bn(on(device, x), on(device, residual), *mine, 4, MOMENTUM, EPS, relu)
    by_x, by_residual, by_weight, by_bias = kernel.grouped_bn_backward(
        *on(device, (by_y, x)), y if relu and with_residual else None, *mine[:2], mean, var, 4, EPS, relu
    )
    results = [y, by_x, by_weight[0], by_bias[0], *([by_residual if relu else by_y] if with_residual else [])]
    assert y.dtype == by_x.dtype == dtype
    # Triton's interpreter cuts bfloat16 off where a GPU rounds, which errs twice as much by itself.
    most = 4 if device == "cpu" and dtype == torch.bfloat16 else 2
    for actual, theirs, wanted in zip((*results, mine[2][0], mine[3][0]), plain, exact, strict=True):
        off, allowed = (actual.cpu().double() - wanted).norm(), (theirs.double() - wanted).norm()
        assert off <= most * allowed + 1e-6 * wanted.norm()


LAYOUTS = {
    "plain": lambda x: x.contiguous(),
    "every other channel": lambda x: torch.stack([x, x], 2).flatten(1, 2)[:, ::2],
    "turned": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[..., :1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernels_read_any_strides(layout, device):
    x, norms, residual = problem((6, 10, 3, 4), 1, True, torch.float32)
    by_y, x, residual = (LAYOUTS[layout](tensor) for tensor in (torch.randn_like(x), x, residual))
    gamma = [torch.stack([norms.weight[0], norms.bias[0]], 1)[:, 0]]

    def run(make):
        mine = Norms(*on(device, copied(norms)))._replace(weight=on(device, gamma))
        y, mean, var = kernel.grouped_bn(*on(device, [make(x), make(residual)]), *mine, 2, MOMENTUM, EPS, True)
        back = kernel.grouped_bn_backward(*on(device, [make(by_y), make(x)]), y, *mine[:2], mean, var, 2, EPS, True)
        assert y.is_contiguous(memory_format=torch.channels_last)
        return [y, *back]

    rows = run(lambda tensor: tensor.contiguous(memory_format=torch.channels_last))
    for actual, wanted in zip(run(lambda tensor: tensor), rows, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("with_residual", [False, True])
def test_not_a_number_passes_the_relu_both_ways(with_residual, device):
    """A loss that is not finite must show."""
    x, norms, residual = problem((4, 3, 2, 2), 1, with_residual, torch.float32)
    x[0, 1] = torch.nan
    norms = on(device, norms)
    y, mean, var = kernel.grouped_bn(*on(device, [x, residual]), *norms, 2, MOMENTUM, EPS, True)
    assert y[:2, 1].isnan().all()
    assert y[2:].isfinite().all()
    given = y if with_residual else None
    back = kernel.grouped_bn_backward(torch.ones_like(y), on(device, x), given, *norms[:2], mean, var, 2, EPS, True)
    assert back[0][:2, 1].isnan().all()
    assert back[0][2:].isfinite().all()


@pytest.mark.parametrize(("shape", "group"), [((4, 3, 1, 1), 1), ((1, 3), 0), ((5, 3), 2), ((2, 4), 0)])
def test_one_value_a_channel_is_pytorchs_error_before_anything_is_written(shape, group):
    domains = 2 if shape == (2, 4) else 1
    x, norms, _ = problem(shape, domains, False)
    before = copied(norms)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got input size"):
        grouped_bn(x, *norms, group, MOMENTUM, EPS)
    for tensors, kept in zip(norms, before, strict=True):
        assert all(map(torch.equal, tensors, kept))


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (0, 3), (4, 3, 0, 2)])
def test_an_empty_batch_gives_nothing_and_moves_nothing(shape):
    x, norms, _ = problem(shape, 1, False)
    before = copied(norms)
    y = grouped_bn(x.requires_grad_(), *norms, 2, MOMENTUM, EPS, relu=True)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
    assert torch.equal(norms.running_mean[0], before.running_mean[0])


def test_what_cannot_be_done_is_refused():
    x, norms, _ = problem((5, 3, 2, 2), 2, False)
    with pytest.raises(ValueError, match="5 images cannot be halved among 2 domains"):
        grouped_bn(x, *norms, 2, MOMENTUM, EPS)
    one = [tensors[0] for tensors in norms]
    with pytest.raises(ValueError, match=r"residual must be torch\.float64 \[5, 3, 2, 2\], not torch\.float32"):
        grouped_bn(x, *one, 2, MOMENTUM, EPS, residual=x.float())
    with pytest.raises(ValueError, match="must be contiguous"):
        grouped_bn(x, *one[:3], torch.ones(3, 2, dtype=x.dtype)[:, 0], 2, MOMENTUM, EPS)
    with pytest.raises(TypeError, match=r"not torch\.float64"):
        kernel.grouped_bn(x, None, *([tensor] for tensor in one), 2, MOMENTUM, EPS, True)


@pytest.mark.parametrize(("relu", "with_residual"), TAILS)
def test_opcheck(relu, with_residual):
    x, norms, residual = problem((6, 3, 4, 2), 2, with_residual, torch.float32)
    y, mean, var = _op(x, residual, *copied(norms), 2, MOMENTUM, EPS, relu)
    opcheck(_op, (x, residual, *norms, 2, MOMENTUM, EPS, relu))
    given = y if relu and with_residual else None
    opcheck(_backward, (torch.randn_like(x), x, given, *norms[:2], mean, var, 2, EPS, relu))


@pytest.mark.parametrize("form", ["public", "op"])
def test_compiles_whole(form):
    x, norms, residual = problem((6, 3, 4, 2), 1, True, torch.float32)
    by_y, function = torch.randn(x.shape), FORMS[form]
    expected = with_gradients(function, x, norms, residual, 2, True, by_y)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(with_gradients(compiled, x, norms, residual, 2, True, by_y), expected, strict=True):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("relu", "with_residual"), TAILS)
@pytest.mark.parametrize(
    ("shape", "group", "domains"), [*CASES, ((64, 256, 64, 32), 16, 1), ((128, 512, 16, 8), 16, 2)]
)
def test_gpu_gradients_precision_and_bits(shape, group, domains, relu, with_residual, dtype):
    """Through autograd on CUDA: at most twice PyTorch's error in the same type, and the same bits twice."""
    x, norms, residual = problem(shape, domains, with_residual)
    by_y = torch.randn(shape, dtype=x.dtype)
    low = [x.to("cuda", dtype), Norms(*([t.to("cuda", torch.float32) for t in tensors] for tensors in norms))]
    low += [None if residual is None else residual.to("cuda", dtype), group, relu, by_y.to("cuda", dtype)]
    exact = with_gradients(
        literal,
        low[0].double(),
        Norms(*([t.double() for t in ts] for ts in low[1])),
        None if residual is None else low[2].double(),
        group,
        relu,
        low[5].double(),
    )
    plain, first, again = (with_gradients(FORMS[form], *low) for form in ("reference", "public", "public"))
    for actual, repeated, theirs, wanted in zip(first, again, plain, exact, strict=True):
        assert torch.equal(actual, repeated)
        off, allowed = (actual.double() - wanted).norm(), (theirs.double() - wanted).norm()
        assert off <= 2 * allowed + 1e-6 * wanted.norm()
