"""What images take at least of memory: never more than what training and extraction do take."""

import pytest
import torch

from reid_fast.errors import UserError
from reid_fast.models import footprint
from reid_fast.models.archs import Options
from reid_fast.models.encoder import Encoder
from reid_fast.models.footprint import Footprint, check_room

SIZE = 64, 32


@pytest.mark.usefixtures("tiny_arch")
@pytest.mark.parametrize("arch", ["tiny", "tiny_vit", "tiny_osnet"])
def test_it_is_what_is_kept_for_the_gradient(arch):
    encoder = Encoder(arch, options=Options(SIZE))
    weights = {weight.data_ptr() for weight in encoder.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder.train()(torch.randn(8, 3, *SIZE))
    images = sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
    assert 0.5 * images < 8 * Footprint.of(encoder, SIZE).trained <= 1.1 * images


@pytest.mark.usefixtures("tiny_arch")
def test_what_fits_is_not_refused_and_the_larger_is_named(monkeypatch):
    encoder, device = Encoder("tiny", options=Options(SIZE)), torch.device("cpu")
    images = 4 * 12 * 64 * 32
    need = images + 4 * Footprint.of(encoder, SIZE).trained
    monkeypatch.setattr(footprint, "free_bytes", lambda device: need)
    check_room(encoder, SIZE, device, batch=4, trained=True)
    with pytest.raises(UserError, match=r"^--batch-size, --height and --width need"):
        check_room(encoder, SIZE, device, batch=5, trained=True)
    with pytest.raises(UserError, match=r"^--iters need"):
        check_room(encoder, SIZE, device, batch=4, trained=True, beside={"--iters": 2 * need})
