"""Files of torchreid and BoxMOT through `load_weights`, against what OSNet's definition computes."""

import pytest
import torch
import torch.nn.functional as F
from inputs import sampled
from published_layouts import average, by_formula, images, normed

from reid_fast.models.checkpoints import architecture_of, read_checkpoint
from reid_fast.models.encoder import Encoder
from reid_fast.models.weights import load_weights


def osnet(state, x):
    """torchreid's `OSNet.forward` of osnet.py and osnet_ain.py in evaluation: [B, 3, H, W] -> [B, 512]."""

    def conv(x, name, relu=True):
        x = F.conv2d(x, state[f"{name}.conv.weight"])
        x = normed(state, f"{name}.bn", x) if f"{name}.bn.weight" in state else x
        return x.relu() if relu else x

    def light(x, name):
        x = F.conv2d(x, state[f"{name}.conv1.weight"])
        x = F.conv2d(x, state[f"{name}.conv2.weight"], padding=1, groups=x.shape[1])
        return normed(state, f"{name}.bn", x).relu()

    def gated(x, name):
        gate = F.adaptive_avg_pool2d(x, 1)
        for i in (1, 2):
            gate = F.conv2d(gate, state[f"{name}.fc{i}.weight"], state[f"{name}.fc{i}.bias"])
            gate = gate.relu() if i == 1 else gate.sigmoid()
        return gate * x

    def block(x, name):
        first, total = conv(x, f"{name}.conv1"), 0
        for stream in range(4):
            names = [f"{name}.conv2.{stream}.layers.{i}" for i in range(stream + 1)]
            if f"{names[0]}.conv1.weight" not in state:
                start = f"{name}.conv2{'abcd'[stream]}"
                names = [f"{start}.{i}" for i in range(stream + 1)] if stream else [start]
            y = first
            for layer in names:
                y = light(y, layer)
            total = total + gated(y, f"{name}.gate")
        y = conv(total, f"{name}.conv3", relu=False)
        if f"{name}.IN.weight" in state:
            y = F.instance_norm(y, weight=state[f"{name}.IN.weight"], bias=state[f"{name}.IN.bias"])
        if f"{name}.downsample.conv.weight" in state:
            x = conv(x, f"{name}.downsample", relu=False)
        return (x + y).relu()

    x = F.conv2d(x, state["conv1.conv.weight"], stride=2, padding=3)
    if "conv1.bn.running_mean" in state:
        x = normed(state, "conv1.bn", x)
    else:
        x = F.instance_norm(x, weight=state["conv1.bn.weight"], bias=state["conv1.bn.bias"])
    x = F.max_pool2d(x.relu(), 3, 2, padding=1)
    for stage in (2, 3, 4):
        x = block(block(x, f"conv{stage}.0"), f"conv{stage}.1")
        pool = next((name for name in (f"conv{stage}.2.0", f"pool{stage}.0") if f"{name}.conv.weight" in state), None)
        x = F.avg_pool2d(conv(x, pool), 2) if pool else x
    x = F.linear(average(conv(x, "conv5")), state["fc.0.weight"], state["fc.0.bias"])
    return normed(state, "fc.1", x).relu()


@pytest.mark.parametrize("arch", sampled(["osnet_x0_25", "osnet_ain_x1_0"], "osnet_x0_25"))
@torch.no_grad()
def test_torchreid_and_boxmot(tmp_path, arch):
    encoder = Encoder(arch)
    shapes = {name: tuple(tensor.shape) for name, tensor in encoder.backbone.state_dict().items()}
    state = by_formula(shapes | {"classifier.weight": (9, 512), "classifier.bias": (9,)})
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"state_dict": prefixed, "epoch": 150, "rank1": 0.9, "optimizer": {}}, tmp_path / "osnet.pt")
    load_weights(encoder, arch, str(tmp_path / "osnet.pt"))
    x = images(H=128, W=64)
    expected = F.normalize(osnet(state, x))
    assert F.pdist(expected).min() > 1e-3
    torch.testing.assert_close(encoder.eval()(x), expected, atol=1e-5, rtol=0)
    assert encoder.origin == f"OSNet under torchreid's names, {len(shapes)} tensors used; left out: classifier (2)"
    assert architecture_of(read_checkpoint(tmp_path / "osnet.pt").tensors) == arch
