"""The command that draws the synthetic data set and prints its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reid_fast.data.synthetic.draw import contact_sheet, synthetic_folder
from reid_fast.errors import Parser, exit_on_user_error
from reid_fast.marks import Seed, check_range
from reid_fast.run_folder import check_output


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    parser = Parser(description="Draws the synthetic data set and prints its folder.")
    parser.add_argument("--root", type=Path, help="where to put it (default: the user's cache folder)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="also save a contact sheet of the first identities here")
    with exit_on_user_error():
        args = parser.parse_args(argv)
        check_range("--seed", args.seed, Seed)
        if args.sheet:
            check_output(args.sheet)
        folder = synthetic_folder(args.root, seed=args.seed)
        if args.sheet:
            contact_sheet(folder, args.sheet)
        print(folder)
