"""How a command ends before its end: on bad input, which the user can mend, and when it is asked to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import Signals
from typing import NoReturn

CONTINUE = "a training run continues with the same command and --resume"


def printable(text: object) -> str:
    """Text from outside in one line: what cannot be seen, turns text around or is not UTF-8 is named by its number."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


class UserError(ValueError):
    """Bad input: its text is one sentence that names the thing and the way out."""


class Stopped(BaseException):
    """A signal has asked the run to end, and what it has done is saved."""

    def __init__(self, signal: int) -> None:
        """
        Args:
            signal: its number; the exit code is 128 more, as shells count.
        """
        self.code = 128 + signal
        super().__init__(f"stopped by {Signals(signal).name}: {CONTINUE}")


class Parser(argparse.ArgumentParser):
    """Flags without any package beside Python; a wrong one is a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def leave(code: int, sentence: str) -> NoReturn:
    """Say a sentence on stderr and end with an exit code."""
    print(sentence, file=sys.stderr, flush=True)
    raise SystemExit(code)


@contextmanager
def exit_on_user_error(leave: Callable[[int, str], NoReturn] = leave) -> Iterator[None]:
    """Turn a `UserError` into that sentence on stderr and exit code 2, Ctrl-C into exit code 130, `Stopped` into its.

    Args:
        leave: says the sentence and ends.
    """
    try:
        yield
    except UserError as error:
        code, sentence = 2, f"error: {printable(error)}"  # a name from outside may hold a new line
    except Stopped as stopped:
        code, sentence = stopped.code, str(stopped)
    except KeyboardInterrupt:
        code, sentence = 130, f"interrupted: {CONTINUE}"
    else:
        return
    leave(code, sentence)
