"""What reaches the ops: any strides, outliers, labels out of range, no rows, more columns than a grid's side."""

import mmap
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from contrast import on, with_gradient

from reid_fast import ops
from reid_fast.kernels import cluster_nce, memory_update, one_target, target_nce, tiles
from reid_fast.ops import ClassMeans, class_means
from reid_fast.ops._registration import launcher
from reid_fast.ops.cluster_nce import cluster_nce_ref
from reid_fast.ops.hybrid_nce import EPSILON, hybrid_nce_ref

B, C, D, N = 6, 11, 5, 23
CHANGED = {"memory_update": ["memory"], "cluster_step": ["memory"], "hybrid_update": ["memory", "means"]}


def problem():
    """name: (op, its arguments by name)."""
    unit = lambda *shape: F.normalize(torch.randn(shape))  # noqa: E731
    labels = torch.randint(C, (B,))
    x = {"x": unit(B, D)}
    common = x | {"memory": unit(C, D), "labels": labels, "temperature": 0.2}
    spans, weights = torch.stack([labels - 2, labels + 3], 1), torch.rand(B)
    loss = common | {"normalize": True, "spans": None, "weights": None, "needs_grad": True}
    target = common | {"normalize": True, "smoothing": 0.0, "targets": None, "spans": None, "weights": None}
    target["needs_grad"] = True
    step = common | {"momentum": 0.3, "mode_": "serial", "update_temperature": None, "scores": None, "needs_grad": True}
    update = {"memory": unit(C, D)} | x | {"labels": labels, "momentum": 0.3}
    update |= {"mode_": "pick", "temperature": None, "scores": torch.rand(B)}
    instances, classes, index = unit(N, D), torch.randint(C, (N,)), torch.randint(N, (B,))
    means, counts = class_means(instances, classes, C)
    owners = {"means": means, "counts": counts, "memory_labels": classes}
    hybrid = {"temperature": 0.2, "focal": 2.0, "epsilon": EPSILON, "normalize": True, "needs_grad": True}
    return {
        "cluster_nce": ("cluster_nce", loss),
        "spans": ("cluster_nce", loss | {"spans": spans, "weights": weights}),
        "smoothed": ("target_nce", target | {"smoothing": 0.1, "spans": spans}),
        "dense": ("target_nce", target | {"targets": torch.rand(B, C), "weights": weights}),
        "hybrid_nce": ("hybrid_nce", x | owners | {"index": index} | hybrid),
        "cluster_step": ("cluster_step", step),
        "serial": ("memory_update", update | {"mode_": "serial", "scores": None}),
        "pick": ("memory_update", update),
        "hybrid_update": ("hybrid_update", {"memory": instances} | owners | x | {"index": index, "momentum": 0.3}),
    }


def problem_without_outliers():
    """The same for ops whose rows all take part."""
    weights, owners = torch.rand(B), torch.arange(N) % C
    camera = {"x": torch.randn(B, D), "memory": torch.randn(N, D), "memory_labels": owners, "labels": torch.arange(B)}
    camera |= {"temperature": 0.3, "negatives": 4, "weights": weights, "normalize": True, "needs_grad": True}
    offsets, scale = torch.tensor([0, 2, 9, N]), torch.tensor(3.0)
    attention = {"q": torch.randn(2, N, D), "k": torch.randn(2, N, D), "scale": scale, "offsets": offsets}
    rectangles = torch.tensor([[2, 1, 5, 4]], dtype=torch.int32).repeat(B, 1)
    image = {"images": torch.randint(256, (N, 9, 7, 3), dtype=torch.uint8), "index": torch.randint(N, (B,))}
    image |= {"flip": torch.rand(B) < 0.5, "crop": rectangles[:, :2] - 3, "erase": rectangles, "blur": weights}
    numbers = {"centre": [0.1, 0.2, 0.3], "scale": [1.0, 2.0, 3.0], "fill": [0.4, 0.5, 0.6], "dtype": torch.float32}
    return {
        "camera_nce": ("camera_nce", camera),
        "attention": ("received_attention", attention),
        "augment": ("augment", image | {"grey": False} | numbers),
    }


NAMES = list(problem())
LOSSES = ["cluster_nce", "spans", "smoothed", "hybrid_nce", "cluster_step"]
UPDATES = ["cluster_step", "serial", "pick", "hybrid_update"]


def results(implementation, op, arguments, device="cpu"):
    """What an implementation returns, and what it leaves of the arguments that it changes; all around them stays."""
    fenced = {name: F.pad(arguments[name], (0, 0, 16, 16), value=7.0).to(device) for name in CHANGED.get(op, ())}
    changed = {name: room[16:-16] for name, room in fenced.items()}
    out = implementation(*on(device, *(arguments | changed).values()))
    for room in fenced.values():
        assert (room[:16] == 7).all()
        assert (room[-16:] == 7).all()
    returned = () if out is None else out if isinstance(out, tuple) else (out,)
    return [t.cpu() for t in (*returned, *changed.values())]


def plain(op, arguments):
    """The op on the CPU."""
    return results(getattr(torch.ops.reid_fast, op), op, arguments)


@pytest.fixture
def fused(device, monkeypatch):
    """The op on CUDA, as the dispatcher calls it; without a GPU its launches run in the interpreter."""
    if device == "cpu":
        monkeypatch.setattr(torch.cuda, "device", lambda of: nullcontext())
    file = {"hybrid_update": "hybrid_nce", "received_attention": "cluster_attention"}
    return lambda op, arguments: results(launcher(file.get(op, op), op), op, arguments, device)


def strided(tensor):
    """The same values, each beside one that is not there."""
    return torch.stack([tensor, torch.full_like(tensor, 10)], -1)[..., 0]


@pytest.mark.parametrize("name", [*NAMES, *problem_without_outliers()])
def test_any_strides(name, fused):
    op, arguments = (problem() | problem_without_outliers())[name]
    kept = ["needs_grad", *CHANGED.get(op, ())]
    other = {key: strided(a) if torch.is_tensor(a) and key not in kept else a for key, a in arguments.items()}
    for run in (plain, fused):
        torch.testing.assert_close(run(op, other), run(op, arguments), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("spans", "weights"), ("pick", "scores"), ("dense", "weights"), ("camera_nce", "weights"), ("augment", "blur")],
)
def test_expanded(name, argument, fused):
    """One element stands for all: a kernel that takes it for an array reads past it."""
    op, arguments = (problem() | problem_without_outliers())[name]
    one = torch.tensor(0.25).expand(B)
    for run in (plain, fused):
        expected = run(op, arguments | {argument: one.contiguous()})
        torch.testing.assert_close(run(op, arguments | {argument: one}), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("op", "argument"), [(op, argument) for op in CHANGED for argument in CHANGED[op]])
def test_what_is_changed_must_be_contiguous(op, argument):
    _, arguments = problem()[{"memory_update": "serial"}.get(op, op)]
    arguments[argument] = strided(arguments[argument])
    before = [arguments[key].clone() for key in CHANGED[op]]
    with pytest.raises(ValueError, match=f"{argument} must be contiguous: it is updated in place"):
        getattr(torch.ops.reid_fast, op)(*arguments.values())
    assert all(torch.equal(arguments[key], old) for key, old in zip(CHANGED[op], before, strict=True))


def with_outliers(arguments, outliers):
    """The arguments with outliers among the rows of the batch, and without those rows."""
    labels = "index" if "index" in arguments else "labels"
    some = arguments[labels].clone()
    some[outliers] = -1
    rows = {key: a[~outliers] if torch.is_tensor(a) and len(a) == B else a for key, a in arguments.items()}
    return arguments | {labels: some}, rows


@pytest.mark.parametrize("name", NAMES)
def test_outliers_take_no_part(name, fused):
    op, arguments = problem()[name]
    outliers = torch.tensor([True, False, False, True, False, False])
    some, others = with_outliers(arguments, outliers)
    expected = plain(op, others)
    for run in (plain, fused):
        actual = run(op, some)
        if "needs_grad" in arguments:
            assert not actual[1][outliers].any()
            actual[1] = actual[1][~outliers]
        torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [0, B])
def test_without_a_row_that_takes_part(rows, name, fused):
    """The loss is 0, and so is its gradient; nothing moves."""
    op, arguments = problem()[name]
    if rows:
        arguments, _ = with_outliers(arguments, torch.ones(B, dtype=torch.bool))
    else:
        arguments = {key: a[:0] if torch.is_tensor(a) and len(a) == B else a for key, a in arguments.items()}
    for run in (plain, fused):
        out = run(op, arguments)
        changed = CHANGED.get(op, ())
        for key, after in zip(changed, out[len(out) - len(changed) :], strict=True):
            assert torch.equal(after, arguments[key])
        if "needs_grad" in arguments:
            assert out[0] == 0
            assert torch.equal(out[1], torch.zeros(rows, D))


@pytest.mark.parametrize("name", ["cluster_nce", "smoothed", "dense", "cluster_step", "pick", "hybrid_nce"])
@pytest.mark.parametrize("rows", [0, 2])
def test_an_empty_memory(rows, name, fused):
    """No column, and so no row that takes part."""
    op, arguments = problem()[name]
    sizes = {B: rows, C: 0}
    cut = lambda a: a[tuple(slice(sizes.get(n)) for n in a.shape)] if torch.is_tensor(a) else a  # noqa: E731
    arguments = {key: cut(a) for key, a in arguments.items()}
    arguments, _ = with_outliers(arguments, torch.ones(rows, dtype=torch.bool))
    for run in (plain, fused):
        out = run(op, arguments)
        if "needs_grad" in arguments:
            assert out[0] == 0
            assert torch.equal(out[1], torch.zeros(rows, D))


@pytest.mark.parametrize("wrong", [-2, -(1 << 40), "the next", 1 << 40])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "dense"])
def test_a_label_out_of_range(name, wrong, fused):
    """An error on the CPU; CUDA is not waited for: there the loss is NaN, and no memory is touched."""
    op, arguments = problem()[name]
    labels, rows = ("index", N) if "index" in arguments else ("labels", C)
    arguments[labels][3] = wrong = rows if wrong == "the next" else wrong
    before = {key: arguments[key].clone() for key in CHANGED.get(op, ())}
    with pytest.raises(ValueError, match=f"(label|index) {wrong} of row 3 is not in"):
        getattr(torch.ops.reid_fast, op)(*arguments.values())
    assert all(torch.equal(arguments[key], before[key]) for key in before)
    out = fused(op, arguments)
    if "needs_grad" in arguments:
        assert out[0].isnan()
        assert out[1].isnan().any(1).tolist() == [row == 3 for row in range(B)]
    if before:
        _, others = with_outliers(arguments, torch.arange(B) == 3)
        torch.testing.assert_close(out[-len(before) :], plain(op, others)[-len(before) :], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["hybrid_nce", "hybrid_update"])
@pytest.mark.parametrize("wrong", [-2, C, 1 << 40])
def test_a_class_out_of_range(wrong, name, fused):
    op, arguments = problem()[name]
    arguments["memory_labels"][arguments["index"][2]] = wrong
    with pytest.raises(ValueError, match=f"class {wrong} of row 2 is not in"):
        getattr(torch.ops.reid_fast, op)(*arguments.values())
    out = fused(op, arguments)
    rows = arguments["index"] == arguments["index"][2]
    if "needs_grad" in arguments:
        assert out[0].isnan()
        assert torch.equal(out[1].isnan().any(1), rows)
    else:
        _, others = with_outliers(arguments, rows)
        torch.testing.assert_close(out, plain(op, others), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["spans", "smoothed"])
def test_a_label_outside_its_span(name, fused):
    op, arguments = problem()[name]
    arguments["spans"][4] = torch.tensor([int(arguments["labels"][4]) + 1, C])
    with pytest.raises(ValueError, match="of row 4 is outside the row's span"):
        getattr(torch.ops.reid_fast, op)(*arguments.values())
    assert fused(op, arguments)[0].isnan()


@pytest.mark.parametrize("name", ["spans", "smoothed"])
def test_what_of_a_span_lies_outside_the_memory_is_cut_off(name, fused):
    op, arguments = problem()[name]
    arguments["spans"][:3] = torch.tensor([[-3, C], [-(1 << 40), 1 << 40], [0, C + 2]])
    arguments["spans"][3], arguments["labels"][3] = torch.tensor([1 << 40, 1 << 41]), -1
    expected = plain(op, arguments | {"spans": arguments["spans"].clamp(0, C)})
    for run in (plain, fused):
        torch.testing.assert_close(run(op, arguments), expected, atol=2e-6, rtol=1e-5)


def test_references_know_outliers_and_what_is_out_of_range():
    _, given = problem()["smoothed"]
    spans = given["spans"]
    x, memory, labels = given["x"].double(), given["memory"].double(), given["labels"]
    some, outliers = labels.clone(), torch.tensor([False, True, False, False, False, True])
    some[outliers] = -1
    spans[1] = 0  # no column at all
    for options in ({}, {"smoothing": 0.1}, {"spans": spans, "smoothing": 0.1}, {"targets": torch.rand(B, C).double()}):
        expected = with_gradient(ops.cluster_nce, x, memory, some, 0.2, **options)
        torch.testing.assert_close(with_gradient(cluster_nce_ref, x, memory, some, 0.2, **options), expected)
    assert cluster_nce_ref(x, memory, labels.index_fill(0, torch.tensor([2]), C), 0.2).isnan()
    _, given = problem()["hybrid_nce"]
    rows, classes = torch.randn(N, D).double(), given["memory_labels"].index_fill(0, torch.arange(3), -1)
    index = torch.tensor([0, 7, -1, 9, 1, 22])  # 0 and 1 are without a class
    expected = with_gradient(ops.hybrid_nce, x, rows, classes, index, 0.2, 2.0)
    torch.testing.assert_close(with_gradient(hybrid_nce_ref, x, rows, classes, index, 0.2, 2.0), expected)
    assert hybrid_nce_ref(x, rows, classes, index + 1, 0.2).isnan()


def test_images_without_an_identity_are_left_out_of_the_hard_contrast():
    x, teacher, labels = torch.randn(6, 5), torch.randn(6, 5), torch.tensor([0, -1, 1, 0, -1, 1])
    part = labels >= 0
    loss, gradient = with_gradient(ops.hard_nce, x, teacher, labels, 0.2)
    expected, by_part = with_gradient(ops.hard_nce, x[part], teacher[part], labels[part], 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[part], by_part)
    assert not gradient[~part].any()


def test_rows_without_a_class_are_in_no_mean():
    features, labels = torch.randn(9, 4), torch.tensor([2, -1, 0, 2, -1, 2, 0, 4, -1])
    means, counts = class_means(features, labels)
    assert counts.tolist() == [2, 0, 3, 0, 1]
    for label in (0, 2, 4):
        torch.testing.assert_close(means[label], features[labels == label].mean(0))
    assert not means[[1, 3]].any()


SHAPES = {
    "cluster_nce": lambda x, memory, labels: ops.cluster_nce(x, memory, labels, 0.1),
    "spans": lambda x, memory, labels: ops.cluster_nce(x, memory, torch.arange(B), 0.1, spans=labels[:, None]),
    "cluster_step": lambda x, memory, labels: ops.cluster_step(x, memory, labels, 0.1, 0.2),
    "memory_update": lambda x, memory, labels: ops.memory_update(memory, x, labels, 0.2),
    "hybrid_nce": lambda x, memory, labels: ops.hybrid_nce(x, memory, torch.arange(C), labels, 0.1),
    "hybrid_update": lambda x, memory, labels: ops.hybrid_update(
        memory, torch.arange(C), ClassMeans(memory, torch.ones(C)), x, labels, 0.2
    ),
    "hard_nce": lambda x, memory, labels: ops.hard_nce(x, x, labels, 0.1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_disagree_are_refused(name):
    """A kernel would read what lies behind the shorter one."""
    with pytest.raises(ValueError, match=r"(labels|index|spans) must be \[[BN, 2]+\], here \[6(, 2)?\], not \["):
        SHAPES[name](torch.randn(B, D), torch.randn(C, D), torch.zeros(B - (name != "spans"), dtype=torch.int64))


class Recorded:
    """A kernel that only notes its launches."""

    def __init__(self, launches):
        self.launches = launches

    def __getitem__(self, grid):
        return lambda **arguments: self.launches.append((grid, arguments))


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("rows", [1, 300])
def test_the_grid_holds_any_number_of_columns(rows, needs_grad, monkeypatch):
    """65,535 programs are the most along y and z, and all together are counted in 31 bits."""
    launches = []
    for module in (one_target, cluster_nce, target_nce):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorded(launches))
    new = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    x, memory, labels = new(rows, 2048), new(20_000_000, 2048), new(rows, dtype=torch.int64)
    cluster_nce.cluster_nce(x, memory, labels, 0.05, True, None, None, needs_grad)
    target_nce.target_nce(x, memory, labels, 0.05, True, 0.1, None, None, None, needs_grad)
    assert len(launches) >= 5
    for x, y, z in ((*grid, 1, 1)[:3] for grid, _ in launches):
        assert max(y, z) <= 65535
        assert x * y * z < 1 << 31


@pytest.fixture
def huge(device):
    """A memory of more than 2³¹ elements; on the CPU only the pages that are written take any room."""
    width = 16387
    rows = (1 << 31) // width + 70
    if device == "cpu":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        memory = torch.frombuffer(mmap.mmap(-1, 4 * rows * width, flags=flags), dtype=torch.float32).view(rows, width)
    else:
        memory = torch.zeros(rows, width, device=device)
    memory[-70:] = F.normalize(torch.randn(70, width, device=device))
    return memory


def test_an_update_behind_2_to_the_31_elements(huge, device):
    x, labels = F.normalize(torch.randn(3, huge.shape[1])), torch.tensor([len(huge) - 1, -1, len(huge) - 70])
    expected = huge[-70:].to("cpu", copy=True)
    ops.memory_update(expected, x, torch.tensor([69, -1, 0]), 0.3)
    memory_update.memory_update(huge, *on(device, x, labels), 0.3, "serial", None, None)
    torch.testing.assert_close(huge[-70:].cpu(), expected, atol=1e-6, rtol=1e-5)


def test_a_contrast_behind_2_to_the_31_elements(huge, device, monkeypatch):
    """The last tile alone, as if there were no other; of the gradient the first elements."""
    last = (len(huge) - 1) // 64 * 64
    x, labels, options = torch.randn(2, huge.shape[1]), torch.tensor([last, len(huge) - 1]), (0.2, False, None, None)
    loss, expected = torch.ops.reid_fast.cluster_nce(x, huge[last:].cpu(), labels - last, *options, True)
    kernels, launches = {}, {}
    for name in ("logits_kernel", "gradient_kernel"):
        kernels[name], launches[name] = getattr(one_target, name), []
        monkeypatch.setattr(one_target, name, Recorded(launches[name]))
    monkeypatch.setattr(tiles, "WORKSPACE", 1)  # a turn a tile
    partial = one_target.stream(x.to(device), huge, labels.to(device), *options, None, True)
    grid, arguments = launches["logits_kernel"][-1]
    arguments["max_ptr"].fill_(-torch.inf)
    arguments["sum_ptr"].zero_()
    partial.acc.zero_()
    kernels["logits_kernel"][grid](**arguments)
    kernels["gradient_kernel"][(1, 1, 1)](**launches["gradient_kernel"][-1][1])
    torch.testing.assert_close(partial.losses.sum().cpu(), loss)
    gradient = (partial.acc.sum(0) * partial.factors[:, None]).cpu()
    torch.testing.assert_close(gradient[:, :64], expected[:, :64], atol=1e-6, rtol=1e-4)
