"""People for the synthetic data set: identity (`draw_lots`), posture (`strike_pose`), appearance (`paint`).

A body is a handful of points in three dimensions (left, forward, up; the unit is an adult's height, the
origin lies between the feet), turned by the yaw of the pose and projected without perspective. The shirt is a
cylinder wrapped in a image, so a logo shows from the front, a backpack from behind, stripes from anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, hypot, pi, radians, sin
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Trait = TypeVar("Trait")

# Few colours on purpose: with ten shirts for everybody, a colour is a hint and never a name.
SHIRTS: tuple[Colour, ...] = (
    (30, 30, 34), (118, 120, 124), (232, 230, 225), (34, 44, 92), (72, 116, 186),
    (178, 42, 46), (48, 112, 72), (196, 170, 130), (214, 138, 160), (222, 186, 62),
)  # fmt: skip
TROUSERS: tuple[Colour, ...] = (
    (30, 30, 36),
    (48, 62, 102),
    (112, 138, 178),
    (190, 168, 132),
    (110, 108, 106),
)
HAIR: tuple[Colour, ...] = ((24, 20, 20), (72, 46, 30), (128, 84, 44), (206, 172, 108), (150, 148, 146))
SKIN: tuple[Colour, ...] = ((244, 208, 180), (226, 180, 146), (190, 136, 98), (134, 90, 62), (92, 60, 44))
SHOES: tuple[Colour, ...] = ((26, 24, 26), (225, 225, 225), (110, 72, 46), (170, 44, 48))
BAGS: tuple[Colour, ...] = ((34, 34, 38), (160, 44, 44), (46, 84, 140), (140, 96, 56), (70, 110, 70))

PATTERNS = ("plain", "plain", "hoops", "stripes", "checks", "halves", "print", "logo", "open", "open")
LEGWEAR = ("trousers", "trousers", "trousers", "shorts", "skirt")
HAIRCUTS = ("short", "short", "long", "bun", "bald")
LUGGAGE = ("none", "none", "backpack", "backpack", "satchel", "handbag")
HEADGEAR = ("none", "none", "none", "cap", "beanie")

STRIP_WIDTH, STRIP_HEIGHT = 180, 64  # the shirt unrolled: 2 degrees a column, the chest in the middle


@dataclass(frozen=True)
class Person:
    """What stays the same in every image of one identity."""

    height: float
    girth: float
    skin: Colour
    hair: Colour
    haircut: str
    shirt: Colour
    trim: Colour
    pattern: str
    hem: float
    sleeves: str
    legwear: str
    legs: Colour
    shoes: Colour
    luggage: str
    bag: Colour
    headgear: str
    hat: Colour


@dataclass(frozen=True)
class Pose:
    """What changes from image to image; angles in radians, and yaw 0 faces the camera."""

    yaw: float
    phase: float
    stride: float
    elbows: tuple[float, float]


def draw_lots(rng: np.random.Generator) -> Person:
    """Draws an identity; every trait is independent of the others."""

    def one_of(options: tuple[Trait, ...]) -> Trait:
        return options[rng.integers(len(options))]

    shirt, trim = (SHIRTS[i] for i in rng.choice(len(SHIRTS), 2, replace=False))
    return Person(
        height=rng.uniform(0.91, 1.06),
        girth=rng.uniform(0.86, 1.22),
        skin=one_of(SKIN),
        hair=one_of(HAIR),
        haircut=one_of(HAIRCUTS),
        shirt=shirt,
        trim=trim,
        pattern=one_of(PATTERNS),
        hem=one_of((0.47, 0.47, 0.50, 0.34)),
        sleeves=one_of(("long", "long", "short", "trim")),
        legwear=one_of(LEGWEAR),
        legs=one_of(TROUSERS),
        shoes=one_of(SHOES),
        luggage=one_of(LUGGAGE),
        bag=one_of(BAGS),
        headgear=one_of(HEADGEAR),
        hat=one_of(SHIRTS),
    )


def strike_pose(rng: np.random.Generator, yaw: float) -> Pose:
    """Draws a moment of a walk; now and then an arm is lifted (a phone) or bent (a pocket)."""
    left, right = (float(rng.choice((0.25, 1.1, 2.2), p=(0.75, 0.15, 0.10))) for _ in range(2))
    return Pose(yaw=yaw, phase=rng.uniform(0, 2 * pi), stride=rng.uniform(0.15, 0.55), elbows=(left, right))


def paint(canvas: Image.Image, person: Person, pose: Pose, feet: Point, scale: float) -> None:
    """Paints a person onto an RGB canvas, standing at `feet`; `scale` is pixels per unit of height."""
    body = Body(canvas, person, pose, feet, scale)
    faces_camera = cos(pose.yaw) > 0
    near = 1 if sin(pose.yaw) < 0 else -1  # the side of the body that is nearer to the camera

    body.shadow()
    body.arm(-near)
    if faces_camera:
        body.backpack()
        body.long_hair()
    body.leg(-near)
    body.leg(near)
    body.skirt()
    body.head()
    body.torso()
    body.satchel()
    if not faces_camera:
        body.backpack()
        body.long_hair()
    body.arm(near)


def shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(c * factor)) for c in colour)
    return red, green, blue


class Body:
    """One person in one pose; each method paints one part, the order is `paint`'s."""

    def __init__(self, canvas: Image.Image, person: Person, pose: Pose, feet: Point, scale: float) -> None:
        self.canvas, self.draw = canvas, ImageDraw.Draw(canvas)
        self.person, self.pose, self.feet = person, pose, feet
        self.scale = scale * person.height
        self.cos, self.sin = cos(pose.yaw), sin(pose.yaw)
        self.bob = 0.012 * abs(cos(pose.phase)) * pose.stride / 0.4

    def at(self, left: float, forward: float, up: float) -> Point:
        """Where a point of the body is on the canvas."""
        across = left * self.cos + forward * self.sin
        # A point nearer to the camera appears a little lower, for cameras hang above people.
        nearer = forward * self.cos - left * self.sin
        return self.feet[0] + self.scale * across, self.feet[1] - self.scale * (up + self.bob - 0.12 * nearer)

    def half_width(self, left: float, forward: float) -> float:
        """Half the visible width of an upright elliptic cylinder with these half axes."""
        return hypot(left * self.cos, forward * self.sin) * self.person.girth

    def disc(self, centre: Point, rx: float, ry: float, colour: Colour) -> None:
        x, y, rx, ry = *centre, rx * self.scale, ry * self.scale
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)

    def limb(self, start: Point, end: Point, r_start: float, r_end: float, colour: Colour) -> None:
        """A tapered capsule."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = hypot(dx, dy) or 1.0
        nx, ny = -dy / length * self.scale, dx / length * self.scale
        corners = [(start, r_start), (end, r_end), (end, -r_end), (start, -r_start)]
        self.draw.polygon([(x + nx * r, y + ny * r) for (x, y), r in corners], fill=colour)
        self.disc(start, r_start, r_start, colour)
        self.disc(end, r_end, r_end, colour)

    def outline(self, rows: list[tuple[float, float]]) -> list[Point]:
        """A shape symmetric about the body's axis, from (up, half width) rows."""
        left = [(self.at(0, 0, up)[0] - w * self.scale, self.at(0, 0, up)[1]) for up, w in rows]
        right = [(self.at(0, 0, up)[0] + w * self.scale, self.at(0, 0, up)[1]) for up, w in reversed(rows)]
        return left + right

    def shadow(self) -> None:
        x, y = self.feet
        patch = (
            int(x - 0.2 * self.scale),
            int(y - 0.03 * self.scale),
            int(x + 0.2 * self.scale),
            int(y + 0.04 * self.scale),
        )
        mask = Image.new("L", (patch[2] - patch[0], patch[3] - patch[1]))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width, mask.height), fill=90)
        self.canvas.paste((0, 0, 0), patch, mask)

    def leg(self, side: int) -> None:
        person, pose = self.person, self.pose
        light = 1.0 if side * self.sin <= 0 else 0.82
        swing = side * pose.stride * sin(pose.phase)
        bend = 0.5 * pose.stride * max(0.0, side * cos(pose.phase))
        across = 0.055 * person.girth * side
        thigh, shin = 0.24, 0.23
        knee_at = (across, thigh * sin(swing), 0.51 - thigh * cos(swing))
        ankle_at = (across, knee_at[1] + shin * sin(swing - bend), knee_at[2] - shin * cos(swing - bend))
        hip, knee, ankle = self.at(across, 0, 0.51), self.at(*knee_at), self.at(*ankle_at)
        toe = self.at(across, ankle_at[1] + 0.085, ankle_at[2] - 0.015)
        cloth, skin = shaded(person.legs, light), shaded(person.skin, light)
        wide = person.girth

        self.limb(ankle, toe, 0.028, 0.022, shaded(person.shoes, light))
        self.limb(knee, ankle, 0.042 * wide, 0.027 * wide, cloth if person.legwear == "trousers" else skin)
        self.limb(hip, knee, 0.062 * wide, 0.046 * wide, skin if person.legwear == "skirt" else cloth)

    def skirt(self) -> None:
        if self.person.legwear == "skirt":
            rows = [(0.56, self.half_width(0.10, 0.07)), (0.30, self.half_width(0.15, 0.14))]
            self.draw.polygon(self.outline(rows), fill=self.person.legs)

    def torso(self) -> None:
        person = self.person
        shoulders, waist = self.half_width(0.122, 0.070), self.half_width(0.104, 0.076)
        rows = [(0.85, 0.042), (0.822, 0.72 * shoulders), (0.775, shoulders), (0.62, waist)]
        rows += [(person.hem, self.half_width(0.118, 0.085) * (1.0 if person.hem > 0.4 else 1.15))]
        shape = self.outline(rows)
        x0, y0 = (int(min(p[i] for p in shape)) for i in (0, 1))
        width, height = (int(max(p[i] for p in shape)) + 1 - start for i, start in ((0, x0), (1, y0)))
        mask = Image.new("L", (width, height))
        ImageDraw.Draw(mask).polygon([(x - x0, y - y0) for x, y in shape], fill=255)
        cloth = Image.fromarray(turned(unrolled_shirt(person), self.pose.yaw)).resize((width, height))
        self.canvas.paste(cloth, (x0, y0), mask)

    def arm(self, side: int) -> None:
        person, pose = self.person, self.pose
        light = 0.95 if side * self.sin <= 0 else 0.78
        swing = -0.9 * side * pose.stride * sin(pose.phase)
        elbow_bend = pose.elbows[(side + 1) // 2]
        across = 0.116 * person.girth * side
        elbow_at = (across * 1.22, 0.17 * sin(swing), 0.79 - 0.17 * cos(swing))
        hand_at = (
            across * (1.25 - 0.3 * (elbow_bend > 1)),
            elbow_at[1] + 0.17 * sin(swing + elbow_bend),
            elbow_at[2] - 0.17 * cos(swing + elbow_bend),
        )
        shoulder, elbow, hand = self.at(across, 0, 0.79), self.at(*elbow_at), self.at(*hand_at)
        sleeve = shaded(person.trim if person.sleeves == "trim" else person.shirt, light)
        skin = shaded(person.skin, light)

        self.limb(elbow, hand, 0.030, 0.021, skin if person.sleeves == "short" else sleeve)
        self.disc(hand, 0.023, 0.028, skin)
        self.limb(shoulder, elbow, 0.040, 0.034, sleeve)
        if person.luggage == "handbag" and side == 1:
            self.box((hand[0], hand[1] + 0.10 * self.scale), 0.075, 0.065, shaded(person.bag, light))
            self.draw.line((hand, (hand[0], hand[1] + 0.05 * self.scale)), fill=person.bag, width=4)

    def box(self, centre: Point, half_width: float, half_height: float, colour: Colour) -> None:
        x, y, w, h = *centre, half_width * self.scale, half_height * self.scale
        self.draw.rounded_rectangle((x - w, y - h, x + w, y + h), radius=0.4 * min(w, h), fill=colour)

    def backpack(self) -> None:
        if self.person.luggage == "backpack":
            centre = self.at(0, -0.12 * self.person.girth, 0.685)
            width = hypot(0.105 * self.cos, 0.06 * self.sin)
            self.box(centre, width, 0.125, self.person.bag)
            pocket = (centre[0] - 0.02 * self.sin * self.scale, centre[1] + 0.05 * self.scale)
            self.box(pocket, 0.72 * width, 0.05, shaded(self.person.bag, 1.35 if self.cos < 0 else 0.8))

    def satchel(self) -> None:
        """A bag on the right hip; its strap crosses the chest and the back."""
        if self.person.luggage == "satchel":
            girth, front = self.person.girth, 1 if self.cos > 0 else -1
            hip = self.at(-0.14 * girth, 0.02, 0.47)
            strap = [self.at(0.07, 0.02, 0.84), self.at(-0.03, 0.08 * front * girth, 0.66), hip]
            self.draw.line(strap, fill=shaded(self.person.bag, 0.8), width=max(3, int(0.022 * self.scale)))
            if self.sin > -0.6:  # otherwise the body hides the bag
                self.box(hip, 0.05 + 0.04 * abs(self.sin), 0.06, self.person.bag)

    def head(self) -> None:
        person, skull = self.person, self.at(0, 0.015, 0.925)
        bald = person.haircut == "bald"
        self.limb(self.at(0, 0, 0.83), self.at(0, 0.01, 0.88), 0.034, 0.032, shaded(person.skin, 0.85))
        self.disc(skull, 0.055, 0.072, shaded(person.skin, 0.95) if bald else person.hair)
        if person.haircut == "bun":
            self.disc(self.at(0, -0.045, 1.0), 0.032, 0.03, person.hair)
        if self.cos > -0.45:
            self.face(bald)
        self.hat()

    def face(self, bald: bool) -> None:
        """The face slides to the side the person looks to, and grows narrow there."""
        turn = 0.030 * self.sin
        x, y = self.at(0, 0.015, 0.912)
        centre = (x + turn * self.scale, y + 0.006 * self.scale)
        width = 0.030 + 0.016 * max(0.0, self.cos)
        self.disc(centre, width, 0.058, self.person.skin)
        if not bald:
            self.disc(
                (centre[0] - 0.3 * turn * self.scale, y - 0.052 * self.scale),
                width * 1.05,
                0.022,
                self.person.hair,
            )
        for side in (-1, 1):
            eye = side * 0.019 * self.cos + 0.022 * self.sin
            if abs(eye) < 0.036:
                self.disc((centre[0] + eye * self.scale, y - 0.010 * self.scale), 0.006, 0.006, (40, 30, 30))

    def long_hair(self) -> None:
        if self.person.haircut == "long":
            x, y = self.at(0, -0.03, 0.86)
            self.box((x, y), 0.052 + 0.012 * abs(self.cos), 0.085, self.person.hair)

    def hat(self) -> None:
        person = self.person
        if person.headgear == "none":
            return
        x, y = self.at(0, 0.012, 0.965)
        rx, ry = 0.06 * self.scale, 0.05 * self.scale
        self.draw.pieslice((x - rx, y - ry, x + rx, y + ry), 180, 360, fill=person.hat)
        band = 0.016 * self.scale if person.headgear == "beanie" else 0.006 * self.scale
        self.draw.rectangle((x - rx, y - 1, x + rx, y + band), fill=shaded(person.hat, 0.85))
        if person.headgear == "cap" and self.cos > -0.5:
            self.disc(
                (x + 0.055 * self.sin * self.scale, y + 0.006 * self.scale),
                0.045,
                0.011,
                shaded(person.hat, 0.7),
            )


@lru_cache(maxsize=8)
def unrolled_shirt(person: Person) -> np.ndarray:
    """The shirt as a strip [64, 180, 3] once around the body: chest in the middle, left arm to the right."""
    strip = Image.new("RGB", (STRIP_WIDTH, STRIP_HEIGHT), person.shirt)
    draw, chest, trim = ImageDraw.Draw(strip), STRIP_WIDTH // 2, person.trim
    if person.pattern in ("hoops", "checks"):
        for y in range(4, STRIP_HEIGHT, 16):
            draw.rectangle((0, y, STRIP_WIDTH, y + 6), fill=trim)
    if person.pattern in ("stripes", "checks"):
        for x in range(0, STRIP_WIDTH, 18):
            draw.rectangle((x, 0, x + 5, STRIP_HEIGHT), fill=trim)
    if person.pattern == "halves":
        draw.rectangle((0, 0, STRIP_WIDTH, 30), fill=trim)
    if person.pattern == "print":
        draw.ellipse((chest - 24, 16, chest + 24, 48), fill=trim)
    if person.pattern == "logo":
        draw.rectangle((chest - 22, 20, chest + 22, 30), fill=trim)
        draw.rectangle((0, 14, 22, 36), fill=trim)
        draw.rectangle((STRIP_WIDTH - 22, 14, STRIP_WIDTH, 36), fill=trim)
    if person.pattern == "open":
        draw.polygon(
            ((chest - 20, 0), (chest + 20, 0), (chest + 9, STRIP_HEIGHT), (chest - 9, STRIP_HEIGHT)),
            fill=trim,
        )
    if person.luggage == "backpack":
        for x in (chest - 24, chest + 18):
            draw.rectangle((x, 0, x + 6, 40), fill=person.bag)
    return np.asarray(strip)


def turned(strip: np.ndarray, yaw: float) -> np.ndarray:
    """The half of the strip that a camera sees when the body is turned by `yaw`, darker towards its edges."""
    angle = np.arcsin(np.linspace(-1, 1, 48))
    columns = np.rint((angle - yaw) / radians(2) + STRIP_WIDTH / 2).astype(int) % STRIP_WIDTH
    light = 0.68 + 0.32 * np.cos(angle - 0.3)
    return (strip[:, columns] * light[:, None]).astype(np.uint8)
