"""Say what of the installation works here, and what a set would need."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reid_fast.doctor import Finding, machine, needs, parts, self_test
from reid_fast.errors import Parser, UserError, exit_on_user_error
from reid_fast.marks import Count, Pixels, check_range, flag_of

_SIGNS = {"ok": "ok", "missing": "--", "broken": "!!"}
_NEEDS = {
    "decoded_gib": "GiB of memory hold all images decoded (--cache; else --cache-dir, or they are decoded again)",
    "labels_gib": "GiB of memory for the label stage: features, neighbours, graph",
    "checkpoint_gib": "GiB of disk for last.pt, and of memory for its copy",
    "instances_gib": "GiB more of both for a method that remembers every image (spcl, cacl)",
    "export_gib": "GiB of disk for model.safetensors",
    "epoch_minutes": "minutes an epoch, without decoding",
}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence where something that a base install promises is broken."""
    # argparse, since this command is for when something is missing: it needs nothing but Python.
    parser = Parser(description="Say what works here, and test every kernel in some seconds.")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--full", action="store_true", help="with --dataset or --images: also measure minutes an epoch")
    parser.add_argument("--dataset", "-d", help="say what this data set would need, with --data-dir")
    parser.add_argument("--data-dir", type=Path, help="the data set's folder, or one that holds it")
    parser.add_argument("--images", type=int, help="say what so many training images would need")
    parser.add_argument("--arch", "-a", default="resnet50", help="the encoder that they are trained with")
    parser.add_argument("--height", type=int, help="of the images, in pixels; by default the data set's")
    parser.add_argument("--width", type=int, help="of the images, in pixels; by default the data set's")
    with exit_on_user_error():
        asked = parser.parse_args(argv)
        for name in ("images", "height", "width"):
            check_range(flag_of(name), getattr(asked, name), Pixels if name != "images" else Count)
        examine(asked)


def examine(asked: argparse.Namespace) -> None:
    """Print what was found.

    Raises:
        UserError: a data set that cannot be read, or something that a base install promises does not work.
    """
    groups = {"machine": machine(), "packages": parts(), "self test": self_test()}
    found: dict[str, Any] = {name: [asdict(one) for one in group] for name, group in groups.items()}
    if not asked.json:
        for name, group in groups.items():
            _say(name, group)
    faults = [one for group in groups.values() for one in group if one.fault]
    if faults:
        if asked.json:
            print(json.dumps(found, indent=2))
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UserError(f"{faults[0].name} does not work ({faults[0].said}){more}: {faults[0].way_out}")
    try:
        if (said := _needs(asked)) is not None:
            found["needs"] = said
            if not asked.json:
                _say_needs(said)
    finally:
        if asked.json:
            print(json.dumps(found, indent=2))


def _say(title: str, group: Sequence[Finding]) -> None:
    print(title)
    wide = max((len(one.name) for one in group), default=0)
    for one in group:
        print(f"  {_SIGNS[one.state]} {one.name:<{wide}}  {one.said}")
        if one.way_out:
            print(f"     {'':<{wide}}  {one.way_out}")


def _needs(asked: argparse.Namespace) -> dict[str, Any] | None:
    """What the set, or so many images, would need; None where neither is asked for."""
    if asked.dataset is None and asked.images is None:
        return None
    from reid_fast.data.sets import SIZES, load_set

    images = asked.images
    size = SIZES.get(asked.dataset or "folder")
    if size is None:
        raise UserError(f"--dataset {asked.dataset} is not known: choose from {', '.join(SIZES)}")
    if images is None:
        if asked.data_dir is None:
            raise UserError(f"--dataset {asked.dataset} needs --data-dir, the folder that holds it, or --images")
        images = len(load_set(asked.dataset, asked.data_dir).train)
    height, width = asked.height or size[0], asked.width or size[1]
    said = {"images": images, "height": height, "width": width, "arch": asked.arch}
    return said | needs(images, (height, width), asked.arch, measure=asked.full)


def _say_needs(said: dict[str, Any]) -> None:
    print(f"{said['images']:,} images of {said['height']}×{said['width']} pixels with {said['arch']} need")
    for name, text in _NEEDS.items():
        if name in said:
            print(f"  {said[name]:>9.2f} {text}")
    if "measured_on" in said:
        print(f"            measured on {said['measured_on']}; `train --dry-run` measures the whole of it")
