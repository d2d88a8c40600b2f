"""Any tensors and numbers into the ops: what they say whatever memory they lie in, or a refusal; nothing is written."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from awkward import REFUSALS, says_something
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from reid_fast import ops
from reid_fast.ops._registration import _in_place, launcher

B, C, D, N, H, W = 6, 11, 5, 23, 9, 7


def problem(seed=0):
    """name: (op, the sizes of its tensors, its arguments)."""
    torch.manual_seed(seed)
    unit = lambda *shape: F.normalize(torch.randn(shape))  # noqa: E731
    labels, owners, index = torch.randint(C, (B,)), torch.randint(C, (N,)), torch.randint(N, (B,))
    contrast = {"x": torch.randn(B, D), "memory": unit(C, D), "labels": labels, "temperature": 0.2}
    spans, weights = torch.stack([labels - 2, labels + 3], 1), torch.rand(B)
    instances = {"memory": unit(N, D), "memory_labels": owners}
    hybrid = {"x": torch.randn(B, D), **instances, "index": index}
    means, counts = ops.class_means(*instances.values(), C)
    update = {"memory": unit(C, D), "x": unit(B, D), "labels": labels, "momentum": 0.3}
    q = {"q": torch.randn(2, N, D), "k": torch.randn(2, N, D)}
    attention = {"offsets": torch.tensor([0, 2, 9, N]), "scale": torch.tensor(3.0)}
    boxes = torch.tensor([[2, 1, 5, 4]], dtype=torch.int32).repeat(B, 1)
    image = {"images": torch.randint(256, (N, H, W, 3), dtype=torch.uint8), "index": index}
    image |= {"flip": torch.rand(B) < 0.5, "crop": boxes[:, :2] - 3, "erase": boxes, "blur": weights}
    image |= {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "fill": [0.4, 0.5, 0.6]}
    maps, norm = {"x": torch.randn(B, C, 3, 2)}, {name: torch.rand(C) for name in ("weight", "bias")}
    norm |= {"running_mean": torch.rand(C), "running_var": torch.rand(C), "group": 3, "momentum": 0.1, "eps": 1e-5}

    def hybrid_update(means, counts, **given):
        ops.hybrid_update(classes=ops.ClassMeans(means, counts), **given)

    losses = "x B D, memory C D, labels B"
    return {
        "cluster_nce": (
            ops.cluster_nce,
            f"{losses}, spans B 2, weights B",
            contrast | {"spans": spans, "weights": weights},
        ),
        "dense": (ops.cluster_nce, f"{losses}, targets B C", contrast | {"targets": torch.rand(B, C)}),
        "cluster_step": (ops.cluster_step, losses, contrast | {"momentum": 0.3}),
        "memory_update": (ops.memory_update, losses, update),
        "pick": (ops.memory_update, f"{losses}, scores B", update | {"mode": "pick", "scores": weights}),
        "hybrid_nce": (ops.hybrid_nce, "x B D, memory N D, memory_labels N, index B", hybrid | {"temperature": 0.2}),
        "hybrid_update": (
            hybrid_update,
            "x B D, memory N D, memory_labels N, index B, means C D, counts C",
            hybrid | {"means": means, "counts": counts, "momentum": 0.3},
        ),
        "class_means": (ops.class_means, "memory N D, memory_labels N", instances | {"classes": C}),
        "camera_nce": (
            ops.camera_nce,
            "x B D, memory N D, memory_labels N, labels B, weights B",
            contrast | instances | {"negatives": 4, "weights": weights},
        ),
        "hard_nce": (
            ops.hard_nce,
            "x B D, teacher B D, labels B",
            {"x": torch.randn(B, D), "teacher": torch.randn(B, D), "labels": labels, "temperature": 0.1},
        ),
        "soft_nce": (
            ops.soft_nce,
            "x B D, teacher B D, weak B D",
            {key: torch.randn(B, D) for key in ("x", "teacher", "weak")} | {"temperature": 0.1},
        ),
        "received_attention": (ops.received_attention, "q h N D, k h N D, offsets c, scale", q | attention),
        "cluster_attention": (
            ops.cluster_attention,
            "q h N D, k h N D, x N F, offsets c, scale",
            q | attention | {"x": torch.randn(N, 3)},
        ),
        "augment": (ops.augment, "images N H W 3, index B, flip B, crop B 2, erase B 4, blur B", image),
        "bias_relu": (
            ops.bias_relu,
            "x B C H W, bias C, residual B C H W",
            maps | {"bias": torch.rand(C), "residual": torch.randn(B, C, 3, 2)},
        ),
        "grouped_bn": (ops.grouped_bn, "x B C H W, weight C, bias C, running_mean C, running_var C", maps | norm),
    }


WRITTEN = {"memory", "means", "running_mean", "running_var"}
NUMBERS = {"labels", "memory_labels", "index", "spans", "offsets", "counts"}

LAYOUTS = {
    "spread": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1) if t.ndim > 1 else t,
    "offset": lambda t: torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(t.shape) if t.numel() else t,
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
}
SHAPES = {
    "one less": lambda t: t[:-1] if t.ndim else t[None],
    "one more": lambda t: torch.cat([t, t[:1]]) if t.ndim else t[None],
    "one": lambda t: t[:1] if t.ndim else t[None],
    "narrower": lambda t: t[..., :-1] if t.ndim else t[None],
    "deeper": lambda t: t[None],
    "flat": lambda t: t.flatten(),
    "none": lambda t: t[:0] if t.ndim else t[None][:0],
    "scalar": lambda t: t.flatten()[0],
    "huge": lambda t: t.new_zeros(()).expand(1 << 20, *t.shape),
}
TYPES = [torch.float16, torch.float64, torch.int32, torch.int64, torch.bool, torch.complex64, torch.uint8]


def agree(sizes, arguments):
    """Whether the tensors have the sizes that the letters say."""
    known = {}
    for part in sizes.split(", "):
        name, *letters = part.split()
        if (tensor := arguments.get(name)) is None:
            continue
        if tensor.ndim != len(letters):
            return False
        for letter, size in zip(letters, tensor.shape, strict=True):
            if known.setdefault(letter, int(letter) if letter.isdigit() else size) != size:
                return False
    return True


def out_of_range(name, arguments):
    """Whether a label or an index is one that has no meaning."""
    outside = lambda t, end: bool(((t < -1) | (t >= end)).any())  # noqa: E731
    rows = {key: len(tensor) for key, tensor in arguments.items() if torch.is_tensor(tensor) and tensor.ndim}
    if name in ("cluster_nce", "cluster_step", "memory_update", "pick"):
        labels = arguments["labels"]
        inside = True
        if name == "cluster_nce":
            start, stop = arguments["spans"].T
            inside = bool(((labels == -1) | (labels >= start) & (labels < stop)).all())
        return not inside or outside(labels, rows["memory"])
    if name in ("hybrid_nce", "hybrid_update"):
        return outside(arguments["index"], rows["memory"])
    if name == "class_means":
        return outside(arguments["memory_labels"], arguments["classes"])
    if name == "augment":
        return bool(((arguments["index"] < 0) | (arguments["index"] >= rows["images"])).any())
    if name.endswith("attention"):
        offsets = arguments["offsets"]
        return bool((offsets.diff() < 0).any() or offsets[0] < 0 or offsets[-1] > N)
    return False


def results(function, arguments):
    """What an op returns, and what it leaves in its arguments."""
    arguments = {key: a.clone() if torch.is_tensor(a) and key in WRITTEN else a for key, a in arguments.items()}
    out = function(**arguments)
    out = () if out is None else out if isinstance(out, tuple) else (out,)
    return [*out, *(arguments[key] for key in sorted(WRITTEN & arguments.keys()))]


@pytest.mark.parametrize("name", problem())
def test_any_tensors(name, attack):
    def case(seed, data):
        function, sizes, arguments = problem(seed)[name]
        expected = results(function, arguments)
        key = data.draw(st.sampled_from([key for key, a in arguments.items() if torch.is_tensor(a)]))
        kind = data.draw(st.sampled_from(["layout", "shape", "type", "value"]))
        given = arguments[key].clone()
        if kind == "layout":
            given = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))](given)
        elif kind == "shape":
            given = SHAPES[data.draw(st.sampled_from(sorted(SHAPES)))](given)
        elif kind == "type":
            given = given.to(data.draw(st.sampled_from(TYPES)))
        elif given.dtype in (torch.int64, torch.int32):
            end = torch.iinfo(given.dtype)
            extremes = [end.min, -2, -1, 0, C - 1, C, N, end.max // 3, end.max]
            given.view(-1)[data.draw(st.integers(0, given.numel() - 1))] = data.draw(st.sampled_from(extremes))
        elif given.is_floating_point():
            extreme = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf, 0.0, 1e-42, 1e30, 7.0]))
            given.view(-1)[data.draw(st.integers(0, given.numel() - 1))] = extreme
        spoilt = arguments | {key: given}
        before = {k: a.clone() for k, a in spoilt.items() if torch.is_tensor(a) and a.numel() < 1 << 19}
        try:
            found = results(function, spoilt)
        except REFUSALS as error:
            says_something(error)
            assert kind != "layout" or key in WRITTEN | {"images"}  # which must be contiguous
        except (RuntimeError, NotImplementedError):  # torch's own, of types that it does not compute with
            assert kind == "type"
            assert key not in NUMBERS
        else:
            if kind == "layout":
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
            assert agree(sizes, spoilt)
            assert kind != "type" or key not in NUMBERS or given.dtype == arguments[key].dtype
            assert kind != "value" or key not in NUMBERS or not out_of_range(name, spoilt)
        for k, old in before.items():
            assert torch.equal(torch.nan_to_num(spoilt[k].double()), torch.nan_to_num(old.double()))

    attack(case, 20, seed=st.integers(0, 99), data=st.data())


NUMERICAL = {"temperature": [0.0, -1.0, float("nan")], "momentum": [-0.1, 1.1, float("nan"), float("inf")]}


@pytest.mark.parametrize("name", [name for name, (_, _, given) in problem().items() if set(NUMERICAL) & set(given)])
def test_numbers_that_have_no_meaning(name):
    function, _, arguments = problem()[name]
    for key in set(NUMERICAL) & set(arguments) - ({"momentum"} if name == "grouped_bn" else set()):
        for wrong in NUMERICAL[key]:
            with pytest.raises(ValueError, match=f"the {key} must"):
                function(**arguments | {key: wrong})


def test_members_are_counted_in_whole_numbers():
    """Or the memory moves, and then the means cannot."""
    function, _, arguments = problem()["hybrid_update"]
    before = arguments["memory"].clone()
    with pytest.raises(TypeError, match="counts must be int64"):
        function(**arguments | {"counts": arguments["counts"].double()})
    assert torch.equal(arguments["memory"], before)


@pytest.mark.parametrize("offsets", [[0, 2, 9], [1, N], [0, 9, 2, N], [0, -(1 << 63), 2, N], [-1, N], [0, N + 1], []])
def test_every_row_belongs_to_a_cluster(offsets):
    function, _, arguments = problem()["cluster_attention"]
    with pytest.raises(ValueError, match="offsets must"):
        function(**arguments | {"offsets": torch.tensor(offsets, dtype=torch.int64)})


def test_no_domain_has_no_statistics():
    with pytest.raises(ValueError, match=r"of \[0, 0, 0, 0\] domains"):
        ops.grouped_bn(torch.randn(4, 3), [], [], [], [], 0, 0.1, 1e-5)
    one = torch.ones(3)
    with pytest.raises(ValueError, match=r"of \[1, 2, 1, 1\] domains"):
        ops.grouped_bn(torch.randn(4, 3), one, [one, one], one.clone(), one.clone(), 0, 0.1, 1e-5)


@pytest.mark.parametrize("given", [{"mean": [0.5]}, {"std": [1.0, 0.0, 1.0]}, {"fill": []}])
def test_colours_have_three_numbers(given):
    _, _, arguments = problem()["augment"]
    with pytest.raises(ValueError, match="three numbers each"):
        ops.augment(**arguments | given)


@pytest.mark.parametrize("sigma", [3.0, 1e30, float("inf")])
def test_a_blur_without_end_is_refused(sigma):
    _, _, arguments = problem()["augment"]
    with pytest.raises(ValueError, match="cannot be reflected"):
        ops.augment(**arguments | {"blur": torch.tensor([sigma]).expand(B)})


@pytest.mark.parametrize("name", ["cluster_nce", "dense", "cluster_step", "memory_update", "hybrid_nce", "camera_nce"])
def test_fakes_have_the_shapes_and_types_of_results(name):
    function, _, arguments = problem()[name]
    expected = results(function, arguments)
    arguments.pop("classes", None)
    if name == "hybrid_nce":
        arguments["classes"] = ops.class_means(arguments["memory"], arguments["memory_labels"])
    with FakeTensorMode() as mode:
        fake = lambda a: mode.from_tensor(a) if torch.is_tensor(a) else a  # noqa: E731
        found = results(
            function,
            {key: ops.ClassMeans(*map(fake, a)) if key == "classes" else fake(a) for key, a in arguments.items()},
        )
    assert [(t.shape, t.dtype, t.stride()) for t in found] == [(t.shape, t.dtype, t.stride()) for t in expected]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("op", ["serial", "weighted", "cluster_step", "hybrid_update"])
def test_features_that_lie_in_the_memory_are_read_as_they_were(op, fused, monkeypatch):
    """Each row moves by what another one was; programs that run one after another would see it moved."""
    if fused and torch.cuda.is_available():
        pytest.skip("kernels run on the GPU here")
    monkeypatch.setattr(torch.cuda, "device", lambda of: nullcontext())
    memory = F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(0)))
    labels = torch.arange(B).flip(0)

    def updated(memory, x):
        file, rest = "memory_update", (0.3, "serial", None, None)
        if op == "cluster_step":
            file, arguments = op, (x, memory, labels, 0.2, *rest, True)
        elif op == "hybrid_update":
            owners = torch.arange(C)
            file, arguments = op, (memory, memory.clone(), torch.ones(C).long(), owners, x, labels, 0.3)
        else:
            arguments = (memory, x, labels, 0.3, op, 1.0 if op == "weighted" else None, None)
        module = {"hybrid_update": "hybrid_nce"}.get(file, file)
        run = launched(module, file, arguments) if fused else getattr(torch.ops.reid_fast, file)
        run(*arguments)
        return memory

    shared = memory.clone()
    torch.testing.assert_close(updated(shared, shared[:B]), updated(memory.clone(), memory[:B].clone()))


def launched(module, name, arguments):
    """The op on CUDA, as the dispatcher calls it."""
    changed = {"cluster_step": {1: "memory"}, "hybrid_update": {0: "memory", 1: "means"}}.get(name, {0: "memory"})
    return _in_place(launcher(module, name), changed)


def test_rectangles_beyond_every_border(monkeypatch):
    """The CPU counts without end, a kernel in 32 bits."""
    monkeypatch.setattr(torch.cuda, "device", lambda of: nullcontext())
    ends = np.iinfo(np.int32)
    numbers = [ends.min, ends.max, -1, 0, 2, 5]
    rng = np.random.default_rng(0)
    images = torch.randint(256, (1, H, W, 3), dtype=torch.uint8)
    crop, erase = (torch.from_numpy(rng.choice(numbers, (64, n)).astype(np.int32)) for n in (2, 4))
    crop[::2] = 0
    index, flip = torch.zeros(64, dtype=torch.int64), torch.arange(64) % 3 == 0
    given = (images, index, flip, crop, erase, None, False, [1.0] * 3, [2.0] * 3, [3.0] * 3, torch.float32)
    expected = torch.ops.reid_fast.augment(*given)
    if not torch.cuda.is_available():
        torch.testing.assert_close(launcher("augment", "augment")(*given), expected)
