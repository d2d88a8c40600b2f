"""Pages for people: one HTML file each, which refers to nothing outside itself and trusts no name that it shows."""

from reid_fast.pages.pictures import thumbnail
from reid_fast.pages.shell import page
from reid_fast.pages.text import shown, visible

__all__ = ["page", "shown", "thumbnail", "visible"]
