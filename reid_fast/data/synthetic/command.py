"""The command that draws the synthetic data set and prints its folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from reid_fast.data.synthetic.draw import contact_sheet, synthetic_folder
from reid_fast.errors import exit_on_user_error
from reid_fast.run_folder import check_output


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, draw, print."""
    parser = argparse.ArgumentParser(description="Draws the synthetic data set and prints its folder.")
    parser.add_argument("--root", type=Path, help="where to put it (default: the user's cache folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="also save a contact sheet of the first identities here")
    args = parser.parse_args(argv)
    with exit_on_user_error():
        if args.sheet:
            check_output(args.sheet)
        folder = synthetic_folder(args.root, seed=args.seed)
        if args.sheet:
            contact_sheet(folder, args.sheet)
        print(folder)
