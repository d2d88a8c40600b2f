"""Captured steps, with operations that are listed and run again in place of a CUDA graph."""

import pytest
import torch
from inputs import TINY, argv, refused, rows_of, sampled
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reid_fast import captured, epoch
from reid_fast import run as parts
from reid_fast import train as driver
from reid_fast.command_line import parse
from reid_fast.data.images import Batch
from reid_fast.methods import dccc, method_names, settings_class
from reid_fast.ranks import ALONE


class Operations(TorchDispatchMode):
    """Lists operations with their tensors. Running them again repeats what a CUDA graph repeats, and nothing else."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the step looks at a value on the device"
        out = func(*args, **kwargs or {})
        if not func.is_view:
            self.done.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def again(self):
        for func, args, kwargs, out in self.done:
            for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Replays:
    """A recorder for the CPU. A capture does not run, so what listing the operations has changed is put back."""

    def __init__(self, state):
        self.state, self.captures, self.replays = state, 0, 0

    def eager(self, work):
        return work()

    def capture(self, work):
        self.captures += 1
        before = [(tensor, tensor.clone()) for tensor in self.state()]
        with Operations() as operations:
            out = work()
        for tensor, value in before:
            tensor.copy_(value)

        def replay():
            self.replays += 1
            operations.again()
            return out

        return replay


def trained(flags, monkeypatch):
    """A run whose steps are captured for the CPU: its folder, and the recorder of each epoch."""
    recorders = []

    def recorded(step, constants, _):
        (run,) = step.args
        recorders.append(Replays(lambda: tree_leaves([run.method.state_dict(), run.optimizer.state_dict()["state"]])))
        return captured.CapturedStep(step, constants, recorders[-1])

    with monkeypatch.context() as patch:
        patch.setattr(parts, "check_capturable", lambda device, amp, ranks: None)
        patch.setattr(epoch, "CapturedStep", recorded)
        return driver.train(parse([*flags, "--cuda-graph"])[0]), recorders


def assert_same_state(one, other):
    one, other = (torch.load(folder / "last.pt") for folder in (one, other))
    parts = (tree_leaves([state["method"], state["optimizer"]["state"]]) for state in (one, other))
    for our, their in zip(*parts, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("tiny_arch")
@pytest.mark.parametrize("name", sampled(method_names(), "cacl", "dccc"))
def test_replays_train_like_the_steps_themselves(name, people, tmp_path, monkeypatch):
    """Whatever the method: a second epoch has another learning rate and a memory of other rows."""
    monkeypatch.setattr(dccc, "COPY_STEP", 8)  # from then on the teacher's momentum is another in each step
    small = TINY | {
        "arch": "tiny",
        "iters": 6,
        "epochs": 2,
        "workers": 1,
        "warmup_epochs": 2,
        "save_steps": 4,
        "bn_group": 8,
    }
    small |= {"camera_epoch": 0} if "camera_epoch" in settings_class(name).__dataclass_fields__ else {}
    flags = argv(**small, method=name.replace("_", "-"), data_dir=people)
    ours, recorders = trained([*flags, "--logs-dir", str(tmp_path / "ours")], monkeypatch)
    replayed = [(each.captures, each.replays) for each in recorders]
    assert replayed == [(1, 6 - captured.WARM_UP), (0, 0) if name == "dccc" else (1, 6 - captured.WARM_UP)]
    theirs = driver.train(parse([*flags, "--logs-dir", str(tmp_path / "theirs")])[0])
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert [row.get("loss") for row in rows_of(ours)] == [row.get("loss") for row in rows_of(theirs)]
    assert_same_state(ours, theirs)


@pytest.mark.usefixtures("tiny_arch")
@pytest.mark.parametrize("name", ["cacl", "ice"])
def test_replays_of_a_transformer_skip_the_branches_of_their_own_images(name, people, tmp_path, monkeypatch):
    small = TINY | {"arch": "tiny_vit", "drop_path": 0.5, "optimizer": "sgd", "iters": 6, "epochs": 1, "workers": 1}
    flags = argv(**small, method=name, data_dir=people)
    ours, (recorder,) = trained([*flags, "--logs-dir", str(tmp_path / "ours")], monkeypatch)
    assert recorder.replays == 6 - captured.WARM_UP
    assert_same_state(ours, driver.train(parse([*flags, "--logs-dir", str(tmp_path / "theirs")])[0]))


@pytest.mark.usefixtures("tiny_arch")
def test_a_run_goes_on_with_graphs_and_without(people, tmp_path, monkeypatch):
    small = TINY | {"arch": "tiny", "method": "cc", "iters": 6, "workers": 1, "data_dir": people, "resume": True}
    ours, theirs = ([*argv(**small), "--logs-dir", str(tmp_path / name)] for name in ("ours", "theirs"))
    driver.train(parse([*ours, "--epochs", "1"])[0])
    folder, recorders = trained([*ours, "--epochs", "2"], monkeypatch)
    assert [each.captures for each in recorders] == [1]
    driver.train(parse([*ours, "--epochs", "3"])[0])
    assert_same_state(folder, driver.train(parse([*theirs, "--epochs", "3"])[0]))


def batches(count, *sizes):
    """Batches of these sizes in turn, each with its step's number as its only content."""
    for step in range(count):
        content = torch.full((sizes[step % len(sizes)],), step)
        yield Batch((content.float(),), content, content, content, step=step)


def counted(step, constants=lambda batch: None, count=9, sizes=(2,)):
    """What a captured step returns for each batch, and how often it was captured."""
    recorder = Replays(lambda: [])
    taken = captured.CapturedStep(step, constants, recorder)
    return [taken(batch).tolist() for batch in batches(count, *sizes)], recorder.captures


def test_a_replay_reads_its_own_batch_and_its_loss_stays():
    assert counted(lambda batch: batch.views[0].sum() + batch.labels.sum()) == ([4.0 * step for step in range(9)], 1)


def test_a_number_of_the_host_would_stay_that_of_the_capture():
    seen, _ = counted(lambda batch: batch.labels.sum() * 0 + batch.step)
    assert seen == [0, 1, 2, *6 * [3]]


def test_numbers_of_the_host_and_sizes_that_change_are_captured_again():
    step = lambda batch: batch.labels.sum() * 0 + batch.step // 5  # noqa: E731
    assert counted(step, lambda batch: batch.step // 5, 10) == ([step // 5 for step in range(10)], 2)
    assert counted(lambda batch: batch.views[0].sum(), sizes=(2, 3))[1] == 0


def test_without_a_gpu_it_is_refused(people, capsys):
    flags = argv(**TINY, data_dir=people, cuda_graph=True)
    assert "--cuda-graph needs a CUDA device, not cpu" in refused(capsys, driver.main, *flags)


def test_a_loss_scaler_is_refused():
    with pytest.raises(captured.UserError, match="float16"):
        captured.check_capturable(torch.device("cuda"), torch.float16, ALONE)
    captured.check_capturable(torch.device("cuda"), torch.bfloat16, ALONE)


@pytest.mark.gpu
@pytest.mark.parametrize("name", method_names())
def test_gpu_graphs_train_like_the_steps_themselves(name, people, tmp_path):
    small = TINY | {"iters": 8, "epochs": 2, "device": "cuda", "deterministic": True, "method": name.replace("_", "-")}
    ours, theirs = (
        driver.train(parse([*argv(**small, data_dir=people, logs_dir=tmp_path / name), *more])[0])
        for name, more in {"ours": ["--cuda-graph"], "theirs": []}.items()
    )
    assert_same_state(ours, theirs)
