"""memory_update against the loop of the papers, its kernel against both, and the published golden values."""

import pytest
import torch
import torch.nn.functional as F
from inputs import near, phi, unit_phi
from torch.library import opcheck

from reid_fast.kernels import memory_update as kernel
from reid_fast.ops import memory_update
from reid_fast.ops.memory_update import _op, memory_update_ref

MODES = ["serial", "hard", "weighted", "pick"]
SHAPES = [(1, 1, 1), (7, 3, 5), (40, 7, 67), (17, 1, 33), (64, 5, 8), (13, 997, 130)]


def literal(memory, x, labels, momentum, mode="serial", temperature=None, scores=None):
    """One vector operation after another, in batch order."""
    old = memory.float()
    if mode == "serial":
        for member, label in zip(x.float(), labels.tolist(), strict=True):
            row = momentum * old[label] + (1 - momentum) * member
            old[label] = row / row.norm()
    else:
        for label in labels.unique().tolist():
            members, row = x.float()[labels == label], old[label]
            if mode == "hard":
                member = members[(members @ row).argmin()]
            elif mode == "pick":
                member = members[scores[labels == label].argmax()]
            else:
                member = torch.softmax(-(members @ row) / temperature, dim=0) @ members
            row = momentum * row + (1 - momentum) * member
            old[label] = row / row.norm()
    memory.copy_(old)


def problem(B, C, D):
    memory, x = F.normalize(torch.randn(C, D)), F.normalize(torch.randn(B, D))
    return memory, x, torch.randint(C, (B,)), torch.rand(B)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_loop(shape, mode, device):
    memory, x, labels, scores = problem(*shape)
    expected, actual, fused = memory.clone(), memory.clone(), memory.to(device)
    literal(expected, x, labels, 0.3, mode, 0.4, scores)
    memory_update(actual, x, labels, 0.3, mode, 0.4, scores=scores)
    kernel.memory_update(fused, x.to(device), labels.to(device), 0.3, mode, 0.4, scores.to(device))
    torch.testing.assert_close(actual, expected, atol=5e-7, rtol=1e-5)
    torch.testing.assert_close(fused.cpu(), expected, atol=5e-7, rtol=1e-5)
    untouched = torch.ones(len(memory), dtype=torch.bool)
    untouched[labels] = False
    assert torch.equal(actual[untouched], memory[untouched])
    assert torch.equal(fused.cpu()[untouched], memory[untouched])


@pytest.mark.parametrize("mode", ["hard", "pick"])
def test_the_first_of_equals_is_taken(mode, device):
    """Members 1 and 3 are the extreme ones; they tie, and lie in different directions."""
    memory = torch.tensor([[1.0, 0.0, 0.0]])
    x = torch.tensor([[0.8, 0.6, 0.0], [0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.0, 0.0, 1.0]])
    labels, scores = torch.zeros(4, dtype=torch.int64), torch.tensor([0.1, 0.7, -0.2, 0.7])
    expected = F.normalize(0.1 * memory + 0.9 * x[1:2])
    actual, fused = memory.clone(), memory.to(device)
    memory_update(actual, x, labels, 0.1, mode, scores=scores)
    kernel.memory_update(fused, x.to(device), labels.to(device), 0.1, mode, None, scores.to(device))
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(fused.cpu(), expected)


def test_weighted_tends_to_hard_and_to_the_mean():
    memory, x, labels, _ = problem(20, 3, 16)
    hard, cold, mean, warm = (memory.clone() for _ in range(4))
    memory_update(hard, x, labels, 0.1, "hard")
    memory_update(cold, x, labels, 0.1, "weighted", 1e-4)
    torch.testing.assert_close(cold, hard, atol=1e-5, rtol=0)
    for label in range(3):
        mean[label] = F.normalize(0.1 * memory[label] + 0.9 * x[labels == label].mean(0), dim=0)
    memory_update(warm, x, labels, 0.1, "weighted", 1e6)
    torch.testing.assert_close(warm, mean, atol=1e-5, rtol=0)


def test_bfloat16_memory_is_rounded_once(device):
    memory, x, labels, _ = problem(12, 2, 40)
    memory = memory.bfloat16()
    expected = memory.float()
    literal(expected, x, labels, 0.5)
    actual = memory.clone()
    memory_update(actual, x, labels, 0.5)
    torch.testing.assert_close(actual.float(), expected, atol=1e-3, rtol=4e-3)  # half a unit in the last place
    fused = memory.to(device)
    kernel.memory_update(fused, x.to(device), labels.to(device), 0.5, "serial", None, None)
    torch.testing.assert_close(fused.float().cpu(), expected, atol=1e-3, rtol=4e-3)


@pytest.mark.parametrize(
    ("mode", "temperature", "rows"),
    [
        (
            "serial",
            None,
            {
                0: [0.255825, -0.540230, 0.223888, 0.273359, -0.438084, 0.273275, 0.109844, -0.489073],
                2: [0.340257, 0.286663, -0.467936, -0.013105, 0.458803, -0.257380, -0.314598, 0.455189],
            },
        ),
        (
            "hard",
            None,
            {
                0: [-0.251824, -0.460157, -0.041372, 0.454930, 0.360692, -0.226584, -0.551510, -0.174828],
                2: [0.327783, 0.196207, -0.454256, 0.057459, 0.452806, -0.307538, -0.324984, 0.489064],
            },
        ),
        (
            "weighted",
            0.03,
            {0: [-0.251604, -0.460483, -0.041167, 0.455107, 0.360315, -0.226416, -0.551419, -0.175158]},
        ),
        (
            "weighted",
            0.6,
            {0: [0.166803, -0.736481, 0.065628, 0.445516, -0.171753, -0.035812, -0.296327, -0.329225]},
        ),
    ],
)
def test_golden(mode, temperature, rows):
    memory, x, labels = unit_phi(5, 0.5), F.normalize(phi(6, 2.0)), torch.tensor([0, 0, 2, 2, 0, 3])
    memory_update(memory, x, labels, 0.1, mode, temperature)
    for label, row in rows.items():
        near(memory[label], row)
    assert torch.equal(memory[1], unit_phi(5, 0.5)[1])


@pytest.mark.parametrize("mode", MODES)
def test_opcheck(mode):
    memory, x, labels, scores = problem(6, 4, 5)
    opcheck(_op, (memory, x, labels, 0.2, mode, 0.1, scores))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "mean"}, "mode must be"),
        ({"mode": "weighted"}, "needs a temperature"),
        ({"mode": "pick"}, "needs scores"),
        ({"mode": "weighted", "temperature": 0.0}, "must be positive, not 0.0"),
        ({"mode": "weighted", "temperature": -0.1}, "must be positive, not -0.1"),
        ({"mode": "weighted", "temperature": float("nan")}, "must be positive, not nan"),
    ],
)
def test_a_mode_that_does_not_exist_or_lacks_its_argument_is_refused(arguments, message):
    memory, x, labels, _ = problem(3, 4, 5)
    with pytest.raises(ValueError, match=message):
        memory_update(memory, x, labels, 0.1, **arguments)


def test_the_reference_takes_its_arguments_by_name():
    memory, x, labels, scores = problem(9, 4, 5)
    expected = memory.clone()
    literal(expected, x, labels, 0.3, "pick", scores=scores)
    memory_update_ref(memory, x=x, labels=labels, momentum=0.3, mode="pick", scores=scores)
    torch.testing.assert_close(memory, expected, atol=5e-7, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_training_size_and_bits(mode, dtype):
    memory, x, _, scores = problem(256, 2000, 2048)
    labels = torch.randperm(2000)[:16].repeat_interleave(16)
    memory, x = memory.to(dtype), F.normalize(x.to(dtype).float()).to(dtype)
    expected = memory.float()
    literal(expected, x, labels, 0.1, mode, 0.1, scores)
    first, again = memory.cuda(), memory.cuda()
    for fused in (first, again):
        memory_update(fused, x.cuda(), labels.cuda(), 0.1, mode, 0.1, scores=scores.cuda())
    assert torch.equal(first, again)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-3}[dtype]
    torch.testing.assert_close(first.float().cpu(), expected, atol=tolerance, rtol=4 * tolerance)
