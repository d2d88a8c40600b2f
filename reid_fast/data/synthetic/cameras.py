"""Cameras for the synthetic data set: six places, each with its own scene, viewpoint and bad optics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import pi, radians

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from reid_fast.data.synthetic.people import SHIRTS, Colour, draw_lots, paint, shaded, strike_pose

WIDTH, HEIGHT = 64, 128
OVERSAMPLING = 3
FRAME = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)
PANORAMA = (FRAME[0] * 4, FRAME[1])

# Without fog between people and scene an untrained network sees the place only, and clustering finds cameras.
FOG, FOG_DENSITY = (122, 122, 122), 0.65

Scene = Callable[[ImageDraw.ImageDraw, np.random.Generator], None]


@dataclass(frozen=True)
class Camera:
    """A place and its device: `yaw` is how people mostly face it (degrees), `gains` its white balance."""

    scene: Scene
    yaw: float
    scale: float
    gains: tuple[float, float, float]
    gamma: float
    haze: float
    blur: float
    noise: float


def lawn(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width, height = PANORAMA
    draw.rectangle((0, 0, width, 120), fill=(150, 180, 205))
    draw.rectangle((0, 110, width, height), fill=(92, 132, 62))
    for x in rng.integers(0, width, 14):
        r = rng.integers(40, 80)
        draw.rectangle((x - 7, 20, x + 7, 140), fill=(84, 64, 48))
        draw.ellipse((x - r, -60, x + r, 90), fill=shaded((58, 98, 48), rng.uniform(0.7, 1.3)))
    for x, y in zip(rng.integers(0, width, 500), rng.integers(120, height, 500), strict=True):
        draw.line((x, y, x + 3, y - 9), fill=shaded((92, 132, 62), rng.uniform(0.6, 1.3)), width=3)
    draw.polygon(((0, 330), (width, 280), (width, 330), (0, height)), fill=(176, 168, 150))


def street(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width, height = PANORAMA
    draw.rectangle((0, 0, width, 150), fill=(150, 128, 112))
    for x in range(10, width, 60):
        draw.rectangle((x, 15, x + 34, 85), fill=shaded((70, 84, 100), rng.uniform(0.7, 1.5)))
    draw.rectangle((0, 150, width, 190), fill=(160, 158, 154))
    draw.rectangle((0, 190, width, height), fill=(88, 88, 92))
    for x in range(0, width, 150):
        car = SHIRTS[rng.integers(len(SHIRTS))]
        draw.rounded_rectangle((x + 8, 130, x + 132, 190), radius=16, fill=car)
        draw.rounded_rectangle((x + 34, 104, x + 108, 145), radius=14, fill=shaded(car, 0.6))
        for wheel in (x + 34, x + 106):
            draw.ellipse((wheel - 14, 174, wheel + 14, 202), fill=(22, 22, 24))
    for x in range(0, width, 110):
        draw.polygon(((x, 300), (x + 60, 300), (x + 50, 316), (x - 10, 316)), fill=(220, 220, 215))


def shop(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width, height = PANORAMA
    draw.rectangle((0, 0, width, 230), fill=(226, 214, 186))
    for y in range(20, 210, 46):
        for x in range(0, width, 22):
            top = y + int(rng.integers(0, 16))
            draw.rectangle((x, top, x + 17, y + 34), fill=shaded(SHIRTS[rng.integers(len(SHIRTS))], 0.9))
        draw.rectangle((0, y + 34, width, y + 41), fill=(120, 92, 64))
    draw.rectangle((0, 230, width, height), fill=(214, 204, 186))
    tiles(draw, 230, (170, 158, 140))


def brick_wall(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width, height = PANORAMA
    draw.rectangle((0, 0, width, 270), fill=(188, 172, 158))
    for row, y in enumerate(range(0, 262, 15)):
        for x in range(-20 * (row % 2), width, 40):
            draw.rectangle((x, y, x + 36, y + 11), fill=shaded((150, 78, 58), rng.uniform(0.75, 1.2)))
    for x in range(90, width, 330):
        draw.rectangle((x, 90, x + 90, 270), fill=(70, 58, 48))
    draw.rectangle((0, 270, width, height), fill=(140, 136, 130))


def plaza(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width, height = PANORAMA
    draw.rectangle((0, 0, width, 110), fill=(206, 204, 196))
    for x in range(0, width, 84):
        draw.rectangle((x, 0, x + 26, 110), fill=shaded((176, 172, 162), rng.uniform(0.85, 1.1)))
    for step in range(4):
        draw.rectangle(
            (0, 110 + 14 * step, width, 124 + 14 * step), fill=shaded((200, 196, 186), 1 - 0.12 * (step % 2))
        )
    draw.rectangle((0, 166, width, height), fill=(196, 192, 182))
    tiles(draw, 166, (158, 154, 146))


def underpass(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> None:
    width, height = PANORAMA
    draw.rectangle((0, 0, width, 240), fill=(74, 84, 96))
    for x in range(0, width, 96):
        draw.rectangle((x, 40, x + 90, 236), fill=shaded((74, 84, 96), rng.uniform(0.75, 1.25)))
        draw.rounded_rectangle((x + 14, 12, x + 74, 26), radius=6, fill=(235, 240, 230))
    for x in rng.integers(0, width, 7):
        draw.rectangle((x, 90, x + 60, 170), fill=SHIRTS[rng.integers(len(SHIRTS))])
    draw.rectangle((0, 240, width, height), fill=(58, 60, 66))
    draw.rectangle((0, 300, width, 312), fill=(200, 168, 48))


def tiles(draw: ImageDraw.ImageDraw, top: int, colour: Colour) -> None:
    """Paving whose joints run towards a vanishing point above."""
    width, height = PANORAMA
    for x in range(-width, 2 * width, 70):
        draw.line((x, height, width / 2 + (x - width / 2) * 0.6, top), fill=colour, width=3)
    y, step = float(top), 10.0
    while y < height:
        draw.line((0, y, width, y), fill=colour, width=3)
        y, step = y + step, step * 1.35


CAMERAS: tuple[Camera, ...] = (
    Camera(lawn, yaw=0, scale=1.06, gains=(1.02, 1.00, 0.96), gamma=1.00, haze=0.00, blur=0.4, noise=4),
    Camera(street, yaw=180, scale=1.03, gains=(0.94, 0.98, 1.06), gamma=1.04, haze=0.04, blur=0.6, noise=5),
    Camera(shop, yaw=60, scale=1.08, gains=(1.08, 1.00, 0.89), gamma=0.95, haze=0.00, blur=0.5, noise=4),
    Camera(brick_wall, yaw=-80, scale=1.05, gains=(0.95, 0.95, 0.88), gamma=1.10, haze=0.02, blur=0.7, noise=5),
    Camera(plaza, yaw=25, scale=1.01, gains=(1.05, 1.05, 1.07), gamma=0.93, haze=0.06, blur=0.6, noise=4),
    Camera(underpass, yaw=150, scale=1.06, gains=(0.84, 0.92, 0.98), gamma=1.06, haze=0.02, blur=0.6, noise=8),
)


def facing(camera: Camera, rng: np.random.Generator) -> float:
    """The yaw of one passer-by: most walk the camera's way, some walk back, and few walk straight."""
    turn = pi if rng.random() < 0.3 else 0.0
    return radians(camera.yaw) + turn + rng.normal(0, radians(40))


def background(number: int, rng: np.random.Generator) -> Image.Image:
    """A random window of the camera's scene."""
    left = int(rng.integers(0, PANORAMA[0] - FRAME[0]))
    return panorama(number).crop((left, 0, left + FRAME[0], FRAME[1]))


@lru_cache(maxsize=len(CAMERAS))
def panorama(number: int) -> Image.Image:
    """The place does not depend on the data set's seed: like a real one, it was there before the people."""
    image = Image.new("RGB", PANORAMA)
    CAMERAS[number].scene(ImageDraw.Draw(image), np.random.default_rng([7, number]))
    fog = Image.new("RGB", PANORAMA, FOG)
    return Image.blend(image.filter(ImageFilter.GaussianBlur(3)), fog, FOG_DENSITY)


def occlude(canvas: Image.Image, rng: np.random.Generator) -> None:
    """Puts something between the camera and the person in three images of ten."""
    obstacle = rng.choice(("none", "pole", "bicycle", "railing", "passer-by"), p=(0.7, 0.07, 0.07, 0.06, 0.1))
    draw, (width, height) = ImageDraw.Draw(canvas), FRAME
    x, grey = float(rng.uniform(0, width)), int(rng.integers(40, 150))
    if obstacle == "pole":
        draw.rectangle((x - 9, 0, x + 9, height), fill=(grey, grey, grey))
    elif obstacle == "bicycle":
        for wheel in (x - 62, x + 62):
            draw.ellipse((wheel - 42, height - 96, wheel + 42, height - 12), outline=(20, 20, 22), width=6)
        frame = (
            (x - 62, height - 54),
            (x - 30, height - 112),
            (x + 44, height - 112),
            (x + 62, height - 54),
            (x, height - 54),
        )
        draw.line((*frame, frame[1]), fill=SHIRTS[rng.integers(len(SHIRTS))], width=7)
    elif obstacle == "railing":
        for bar in range(0, width, 24):
            draw.line((bar, height - 120, bar, height), fill=(grey, grey, grey + 8), width=5)
        draw.rectangle((0, height - 128, width, height - 116), fill=(grey, grey, grey + 8))
    elif obstacle == "passer-by":
        edge = rng.choice((-0.02, 1.02)) * width
        pose = strike_pose(rng, rng.uniform(0, 2 * pi))
        paint(canvas, draw_lots(rng), pose, (edge, height * 1.08), height * 0.95)


def expose(camera: Camera, canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What the device makes of the light: reduction to 128x64, optics, colour response, noise."""
    image = canvas.reduce(OVERSAMPLING).filter(ImageFilter.GaussianBlur(camera.blur * rng.uniform(0.6, 1.5)))
    gains = np.array(camera.gains) * rng.normal(1, 0.02, 3) * rng.uniform(0.9, 1.1)
    light = np.linspace(0, 1, 256)[None] * gains[:, None]
    response = camera.haze + (1 - camera.haze) * np.clip(light, 0, 1) ** camera.gamma
    image = image.point((255 * response).astype(int).ravel().tolist())
    slope = 1 + rng.uniform(-0.2, 0.2) * np.linspace(-1, 1, WIDTH, dtype=np.float32)[:, None]
    grain = rng.standard_normal((HEIGHT, WIDTH, 3), dtype=np.float32) * camera.noise
    return Image.fromarray(np.clip(np.asarray(image) * slope + grain, 0, 255).astype(np.uint8))
