"""`reid-fast COMMAND …`, which is also `python -m reid_fast COMMAND …`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from reid_fast.commands import dispatch
from reid_fast.errors import exit_on_user_error


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: exit code 0, or 2 with one sentence on bad input."""
    with exit_on_user_error():
        dispatch(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    main()
