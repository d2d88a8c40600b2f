"""The one exception that means "the user can fix this"."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: its text is one sentence that names the thing and the way out."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn a `UserError` into that sentence on stderr and exit code 2, Ctrl-C into exit code 130."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "interrupted: a training run continues with the same command and --resume",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(130) from None
