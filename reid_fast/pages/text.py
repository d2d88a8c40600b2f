"""Text from outside as it may stand in a page."""

from __future__ import annotations

import html
import unicodedata

# Controls (Cc), formats such as bidi overrides and zero-width marks (Cf), halves of surrogate pairs, which stand for
# bytes of names that are not UTF-8 (Cs), private and unassigned characters (Co, Cn), line and paragraph ends (Zl, Zp).
_INVISIBLE = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def visible(text: object) -> str:
    """Text in which whatever cannot be seen, or turns around what can, is named by its number.

    A right-to-left override becomes ⟨U+202E⟩, so that a terminal, too, shows a name and does not obey it.

    Args:
        text: anything with a `str`, such as the name of a file.
    """
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hides(c) else c for c in str(text))


def shown(text: object) -> str:
    """`visible` text as HTML, for between tags and for attributes in either quotes: it is nothing but text there."""
    return html.escape(visible(text))


def _hides(character: str) -> bool:
    return unicodedata.category(character) in _INVISIBLE
