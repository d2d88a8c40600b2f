"""augment against an image built pixel by pixel, its kernel, and the DALI pipeline that streams the same."""

import numpy as np
import pytest
import torch
from torch.library import opcheck

from reid_fast.data.images import ImageStream, View
from reid_fast.data.images.augmentation import draw
from reid_fast.data.images.normalisation import ERASE_FILL
from reid_fast.kernels import augment as kernel
from reid_fast.ops import augment
from reid_fast.ops.augment import _op

MEAN, STD, FILL = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (0.3, 0.2, 0.1)


def literal(images, index, flip, crop, erase, blur, grey):
    """[B, 3, H, W] float64, one pixel after another."""
    H, W = images.shape[1:3]
    augmented = []
    for i, image in enumerate(images[index].double().numpy()):
        image = image[:, ::-1] if flip[i] else image
        if grey:
            image = np.floor(image @ np.array([0.299, 0.587, 0.114]) + 0.5)[..., None].repeat(3, 2)
        out = np.zeros_like(image)
        for y in range(H):
            for x in range(W):
                source = y + int(crop[i, 0]), x + int(crop[i, 1])
                if 0 <= source[0] < H and 0 <= source[1] < W:
                    out[y, x] = image[source]
        if blur is not None and blur[i] > 0:
            out = blurred(out, float(blur[i]))
        out = (out / 255 - MEAN) / STD
        top, left, height, width = erase[i].tolist()
        out[top : top + height, left : left + width] = FILL
        augmented.append(torch.from_numpy(out))
    return torch.stack(augmented).permute(0, 3, 1, 2)


def blurred(image, sigma):
    r = int(np.ceil(3 * sigma))
    weights = np.exp(-(np.arange(-r, r + 1) ** 2) / (2 * sigma**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(image, [(r, r), (r, r), (0, 0)], mode="reflect")
    out = np.empty_like(image)
    for y in range(len(image)):
        for x in range(image.shape[1]):
            out[y, x] = np.tensordot(weights, padded[y : y + 2 * r + 1, x : x + 2 * r + 1])
    return np.floor(out + 0.5)


def problem(N, H, W, B, view):
    images = torch.randint(256, (N, H, W, 3), dtype=torch.uint8)
    drawn = draw(view, (H, W), np.arange(B), seed=3, epoch=0)
    names = ("flip", "crop", "erase", "blur")
    flip, crop, erase, blur = (torch.from_numpy(getattr(drawn, name)) for name in names)
    return images, torch.randint(N, (B,)), flip, crop, erase, blur if view.blur else None, view.grey


CASES = {
    "plain": (5, 16, 8, 7, View(pad=3)),
    "one pixel": (1, 1, 1, 2, View(pad=1, erase=0)),
    "odd": (3, 23, 11, 5, View(pad=30, erase=1.0)),
    "blurred": (2, 19, 17, 4, View(pad=2, blur=1.0, blur_sigma=(0.1, 2.0))),
    "grey": (2, 9, 7, 3, View(pad=2, grey=True)),
}


def fused(images, index, flip, crop, erase, blur, grey, device="cpu"):
    """What the kernels make of a problem."""
    centre, scale = [255 * m for m in MEAN], [1 / (255 * s) for s in STD]
    on = [t if t is None else t.to(device) for t in (images, index, flip, crop, erase, blur)]
    return kernel.augment(*on, grey, centre, scale, FILL, torch.float32).cpu()


@pytest.mark.parametrize("case", CASES)
def test_matches_the_literal_image(case, device):
    inputs = problem(*CASES[case])
    *inputs, blur, grey = inputs
    expected = literal(*inputs, blur, grey).float()
    with torch.autocast("cpu", torch.bfloat16):  # which must not reach into it
        actual = augment(*inputs, mean=MEAN, std=STD, fill=FILL, blur=blur, grey=grey)
    by_kernels = fused(*inputs, blur, grey, device)
    for out in (actual, by_kernels):
        assert out.is_contiguous(memory_format=torch.channels_last)
        # One unit of 8 bits where a sum falls on the rounding boundary; exact elsewhere.
        off = (out - expected).abs()
        assert (off > 1e-5).float().mean() < (2e-3 if blur is not None or grey else 1e-9)
        assert off.max() < 1.01 / 255 / min(STD)
    assert blur is not None or grey or torch.equal(by_kernels, actual)


def test_parameters_out_of_range(device):
    """On the CPU an error; from the kernels, which nothing waits for, an image that is no number."""
    *inputs, blur, grey = problem(2, 9, 7, 4, View(pad=2, erase=0, blur=1.0, blur_sigma=(0.5, 0.6)))
    expected = fused(*inputs, blur, grey)
    inputs[1] = inputs[1].clone()
    inputs[1][0], inputs[1][1], blur[2] = -1, 2, 2.1
    actual = fused(*inputs, blur, grey, device)
    assert actual[:3].isnan().all()
    assert torch.equal(actual[3], expected[3])
    assert fused(*inputs, None, grey, device).isnan().all((1, 2, 3)).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match=r"images have the indices 0\.\.1, not -1\.\.2"):
        augment(*inputs, mean=MEAN, std=STD, fill=FILL)


def test_rectangles_and_blurs_that_reach_over_the_border(device):
    images, index, flip, crop, erase, blur, grey = problem(2, 9, 7, 4, View(pad=2, blur=1.0))
    erase[:, 0], erase[:, 1], blur[:] = torch.tensor([-3, -6, 7, 2]), torch.tensor([-2, 3, 5, 4]), -1.0
    erase[:, 2:] = torch.tensor([[5, 4], [4, 2], [9, 9], [-1, 3]])
    inputs = images, index, flip, crop, erase
    by_kernels = fused(*inputs, blur, grey, device)
    assert torch.equal(augment(*inputs, mean=MEAN, std=STD, fill=FILL, blur=blur), by_kernels)
    filled = (by_kernels == torch.tensor(FILL)[:, None, None]).all(1).sum((1, 2))
    assert filled.tolist() == [2 * 2, 0, 2 * 2, 0]


def test_no_images(device):
    *inputs, blur, grey = problem(2, 9, 7, 0, View(pad=2, blur=1.0))
    for out in (augment(*inputs, mean=MEAN, std=STD, fill=FILL, blur=blur), fused(*inputs, blur, grey, device)):
        assert out.shape == (0, 3, 9, 7)


def test_matches_the_stream(tmp_path):
    """The same parameters give the same image through DALI, from files."""
    pil = pytest.importorskip("PIL.Image")
    pytest.importorskip("nvidia.dali")
    view = View(pad=4, erase=1.0)
    images, index, flip, crop, erase, *_ = problem(4, 32, 16, 6, view)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, pixels in zip(paths, images.numpy(), strict=True):
        pil.fromarray(pixels).save(path)
    drawn = draw(view, (32, 16), np.arange(6), seed=3, epoch=0)
    stream = ImageStream(paths, (32, 16), views=[view], batch_size=6, threads=1)
    ((streamed,),) = stream(index.numpy(), [drawn], len(index))
    stored = augment(images, index, flip, crop, erase, mean=MEAN, std=STD, fill=ERASE_FILL)
    assert torch.equal(stored, streamed)


def test_a_blurred_image_does_not_depend_on_the_others():
    """Also where they are more than are blurred at once."""
    *inputs, blur, _ = problem(7, 61, 37, 50, View(pad=2, blur=0.7))
    numbers = {"mean": MEAN, "std": STD, "fill": FILL}
    together = augment(*inputs, **numbers, blur=blur)
    assert (blur > 0).sum() * inputs[0][0].numel() > 160_000
    images, *parameters = inputs
    for i in range(50):
        alone = augment(images, *(t[i : i + 1] for t in parameters), **numbers, blur=blur[i : i + 1])
        off = (together[i] - alone[0]).abs()
        assert off.max() < 1.01 / 255 / min(STD)
        assert (off > 0).float().mean() < 2e-3


def test_a_blur_that_is_wider_than_the_image():
    *inputs, blur, _ = problem(1, 6, 40, 2, View(pad=0, blur=1.0, blur_sigma=(1.9, 2.0)))
    with pytest.raises(ValueError, match="radius 6 cannot be reflected at the borders of 6×40"):
        augment(*inputs, mean=MEAN, std=STD, fill=FILL, blur=blur)


def test_low_precision_is_rounded_once():
    *inputs, _, _ = problem(*CASES["plain"])
    numbers = {"mean": MEAN, "std": STD, "fill": FILL}
    half = augment(*inputs, **numbers, dtype=torch.bfloat16)
    torch.testing.assert_close(half, augment(*inputs, **numbers).bfloat16())


def test_opcheck():
    *inputs, blur, grey = problem(*CASES["plain"])
    opcheck(_op, (*inputs, blur, grey, [1.0] * 3, [0.0] * 3, list(FILL), torch.float32))


def test_images_of_another_type_are_refused():
    images, *inputs, _, _ = problem(*CASES["plain"])
    with pytest.raises(ValueError, match="uint8"):
        augment(images.float(), *inputs, mean=MEAN, std=STD, fill=FILL)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_training_size(dtype):
    *inputs, blur, _ = problem(40, 256, 128, 64, View(blur=0.5))
    numbers = {"mean": MEAN, "std": STD, "fill": FILL}
    expected = augment(*inputs, **numbers, blur=blur)
    on = [t.cuda() for t in inputs]
    runs = [augment(*on, **numbers, blur=blur.cuda(), dtype=dtype) for _ in range(2)]
    assert torch.equal(*runs)
    off = (runs[0].float().cpu() - expected).abs()
    assert (off > {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]).float().mean() < 1e-3


@pytest.mark.gpu
def test_gpu_many_images_of_a_store_beyond_32_bits():
    images = torch.zeros(22_000, 256, 128, 3, dtype=torch.uint8, device="cuda")
    images[-1] = 255
    index = torch.full((70_000,), len(images) - 1, device="cuda")
    none = torch.zeros(70_000, 4, dtype=torch.int32, device="cuda")
    numbers = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "fill": FILL}
    parameters = (index, none[:, 0] > 0, none[:, :2], none)
    few = [t[:2] for t in parameters]
    assert (augment(images, *few, **numbers) == 1).all()
    assert (augment(images[:, :1, :1].contiguous(), *parameters, **numbers) == 1).all()
