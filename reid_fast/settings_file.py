"""Files of settings, YAML or JSON: what `--config` reads. The config.json of a run is one."""

from __future__ import annotations

import json
import reprlib
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from reid_fast.config import Overlay
from reid_fast.errors import UserError
from reid_fast.marks import types_of

# Of a run's config.json: which run it was and how it was started; its repetition is another one.
OF_THE_RUN = ("config", "dry_run", "logs_dir", "resume", "show_config")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a file has, by field name, as YAML or JSON has them.

    A name may be written as its flag is (`batch-size`) or as config.json has it (`batch_size`). Of a run's config.json
    the versions, the machine and the command are passed over, and the settings of the run folder: it is repeated.

    Raises:
        UserError: there is no such file, it is neither YAML nor JSON, or not a mapping of names.
    """
    try:
        content = _parse(path)
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error.strerror}): give a .yaml or .json file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path} is not {_kind(path)} ({' '.join(str(error).split())[:200]})") from None
    if content is None:  # YAML without a line that says something
        content = {}
    if isinstance(content, dict) and isinstance(content.get("config"), dict):
        content = {name: value for name, value in content["config"].items() if name not in OF_THE_RUN}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise UserError(f"--config {path} must have a line for each setting, such as `eps: 0.5`")
    return {name.replace("-", "_"): value for name, value in content.items()}


def typed(settings: type, overlay: Overlay, path: str) -> dict[str, Any]:
    """The values of a file as the types of a dataclass of settings, whose fields they all are.

    Raises:
        UserError: a value of another type; the setting and the type are named.
    """
    hints = types_of(settings)
    return {name: _converted(hints[name], value, f"{path}: {name}") for name, value in overlay.items()}


def _kind(path: Path) -> str:
    return "JSON" if path.suffix == ".json" else "YAML"


def _parse(path: Path) -> Any:
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise UserError(f"--config {path} must be a .yaml or a .json file")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    try:
        import yaml
    except ImportError:
        raise UserError("a YAML file of settings needs PyYAML: pip install pyyaml, or write it as .json") from None
    try:
        return yaml.safe_load(text)
    except Exception as error:  # beside its own ones those of a malformed number or date
        raise ValueError(error) from None


def _converted(kind: Any, value: Any, where: str) -> Any:
    """A value of YAML or JSON as the type of a field."""
    if isinstance(value, int) and value.bit_length() > 64:
        raise UserError(f"{where} is a whole number of {value.bit_length():,} bits: give one of at most 64")
    for choice in _choices(kind):
        found = _as(choice, value)
        if found is not None or (value is None and choice is type(None)):
            return found
    wanted = " or ".join(_said(choice) for choice in _choices(kind))
    raise UserError(f"{where} must be {wanted}, not {_shown(value)}")


def _choices(kind: Any) -> tuple[Any, ...]:
    if get_origin(kind) is Annotated:
        return _choices(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _as(kind: Any, value: Any) -> Any:
    """The value as one plain type, or None where it is none of that type."""
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else None
    if get_origin(kind) is tuple:  # of strings, as many as there are; a single one needs no brackets
        values = [value] if isinstance(value, str) else value
        return tuple(values) if isinstance(values, list) and all(isinstance(v, str) for v in values) else None
    if kind is float:
        return _number(value)
    if kind is Path:
        return Path(value) if isinstance(value, str) else None
    return value if type(value) is kind else None  # not isinstance: a bool is an int, too


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)  # a string too: YAML 1.1 takes 1e-4, without a point, for one
    except (TypeError, ValueError, OverflowError):
        return None


def _shown(value: Any) -> str:
    """A value as JSON has it; of a list or a mapping, which may hold itself, its beginning."""
    return (reprlib.repr(value) if isinstance(value, list | dict) else json.dumps(value, default=str))[:80]


def _said(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of names"
    names = {int: "a whole number", float: "a number", bool: "true or false", type(None): "null", Path: "a path"}
    return names.get(kind, "text")
