"""Dataclasses of settings as command lines: grouped help, layers below the flags, one sentence for a wrong flag."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from functools import cache
from io import StringIO
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from reid_fast.config import RECIPES, RECIPES_OF, Config, Overlay, check
from reid_fast.data.sets import SIZES
from reid_fast.errors import UserError, printable
from reid_fast.marks import Positional, Short, declares, flag_of, marks, types_of
from reid_fast.methods import method_class, method_names, settings_class
from reid_fast.models.archs import ARCHS
from reid_fast.settings_file import read_settings, typed

S = TypeVar("S")
_PATH, _NAME = 4095, 255  # bytes, as Linux has them
_LONGEST = 300  # characters of a sentence about a flag


def parse(argv: Sequence[str] | None) -> tuple[Config, dict[str, str]]:
    """Read the command line of training: `--method` first, then the settings that it reads.

    Args:
        argv: the flags; None takes the process's own.

    Returns:
        The settings, and for each the layer it came from.

    Raises:
        UserError: an unknown method, data set, recipe or flag, a flag of another method, a setting out of range; the
            same of a file of settings.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    path = _last_value(argv, "--config")
    written = {} if path is None else read_settings(Path(path))
    method = _method_of(argv, written)
    settings = settings_class(method)
    _refuse_other_flags(argv, method)
    overlay = _overlay_of(written, method, path)
    names = {"Methods": map(_shown, method_names()), "Data sets": SIZES, "Encoders": ARCHS}
    description = "\n\n".join([str(Config.__doc__), *(f"{kind}: {', '.join(found)}." for kind, found in names.items())])
    chosen = _chosen(settings, argv, settings(**{"method": method} | overlay))
    layers = [*_layers(method, **chosen), (f"file {path}", overlay)]  # without a file, nothing
    base = settings(**{"method": method} | {key: value for _, layer in layers for key, value in layer.items()})
    config = dataclasses.replace(read(settings, argv, base, description), method=method)
    check(config)
    origin = {name: _declared_by(settings, name, method) for name in vars(config)}
    origin |= {key: name for name, layer in layers for key in layer}
    origin |= {key: "flag" for key in vars(config) if getattr(config, key) != getattr(base, key)}
    named = "flag" if _last_value(argv, "--method") else f"file {path}" if "method" in written else "default"
    return config, origin | {"method": named}


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings by name as the flags that give them: batch_size=64, amp=True -> --batch-size 64 --amp."""
    found = []
    for name, value in settings.items():
        if isinstance(value, bool):
            found.append(flag_of(name if value else f"no_{name}"))
        else:
            found += [flag_of(name), *map(str, value if isinstance(value, list | tuple) else [value])]
    return found


def read(settings: type[S], argv: Sequence[str] | None, default: S | None = None, description: str = "") -> S:
    """Read a dataclass of settings from flags; the help groups them by the class that declares them.

    Args:
        settings: a dataclass; a field's help is the string behind it, its short flag a `Short` in its type.
        argv: the flags; None takes the process's own.
        default: the values of flags that are not given; None takes the fields' own, where they have one.
        description: what the help says first.

    Raises:
        UserError: a flag that there is not, or a value of another type.
    """
    return settings(**_values(settings, argv, default, description))


def _values(
    settings: type,
    argv: Sequence[str] | None,
    default: Any,
    description: str = "",
    *,
    only: Container[str] | None = None,
) -> dict[str, Any]:
    """The value of each setting by its name; or of those in `only`, whatever else the flags say."""
    try:
        import tyro
    except ImportError:
        raise UserError("the command line needs tyro: pip install tyro") from None
    if argv is not None and any("\0" in token for token in argv):
        raise UserError("a setting has a NUL character in it, which no file or name has")
    groups = [
        (title, _options(settings, home, names, default)) for title, (home, names) in _groups(settings, only).items()
    ]
    nested = dataclasses.make_dataclass(settings.__name__, groups)
    nested.__doc__ = description or settings.__doc__
    with redirect_stderr(StringIO()) as said:
        try:
            # In the source of a class that was made here there is no help to look for, and that takes a while.
            config = tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff
            found: Any
            if only is None:
                found = tyro.cli(nested, args=argv, config=config)
            else:
                found, _ = tyro.cli(nested, args=argv, config=config, return_unknown_args=True)
        except SystemExit as end:
            if not end.code:  # --help
                raise
            raise UserError(_sentence(said.getvalue())) from None
    values = {name: value for group in vars(found).values() for name, value in vars(group).items()}
    for name, value in values.items():
        _check_paths(flag_of(name), value)
    return values


def _check_paths(flag: str, value: Any) -> None:
    """Refuse paths that no file system takes, before each place that looks for them meets them."""
    for path in value if isinstance(value, tuple) else (value,):
        if isinstance(path, Path) and (
            len(os.fsencode(path)) > _PATH or any(len(os.fsencode(p)) > _NAME for p in path.parts)
        ):
            raise UserError(f"{flag} is no path: it, or a name in it, is too long ({printable(path)[:40]}…)")


def _sentence(box: str) -> str:
    """What tyro says of a wrong flag: the first part of its box, whose title is a part where it is drawn in ASCII."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    parts = [" ".join(part) for ruled, part in groupby(lines, _is_rule) if not ruled]
    said = parts[0 if box.startswith("╭") or len(parts) == 1 else 1]
    return f"{printable(said).removeprefix('Error parsing ').strip(' .')[:_LONGEST]} (--help lists the settings)"


def _is_rule(line: str) -> bool:
    return line[:1] in ("╭", "+") or not line.strip("─-╰╯")


def _groups(settings: type, only: Container[str] | None) -> dict[str, tuple[type, list[str]]]:
    """The fields of a dataclass by the first of its bases that declares them: title -> (that class, names)."""
    groups: dict[str, tuple[type, list[str]]] = {}
    for field in dataclasses.fields(settings):
        if only is not None and field.name not in only:
            continue
        home = next(cls for cls in reversed(settings.__mro__) if declares(cls, field.name))
        title = re.sub(r"(Settings|Config)$", "", home.__name__)
        groups.setdefault(title.lower(), (home, []))[1].append(field.name)
    return groups


def _options(settings: type, home: type, names: list[str], default: Any) -> Any:
    """A dataclass of one group, its fields annotated for tyro."""
    from tyro import conf

    without_flag: Any = conf.Positional
    hints, fields = types_of(settings), {field.name: field for field in dataclasses.fields(settings)}
    options = []
    for name in names:
        said = marks(settings, name)
        kind: Any = without_flag[hints[name]] if Positional in said else hints[name]
        aliases = [mark.flag for mark in said if isinstance(mark, Short)]
        kind = Annotated[kind, conf.arg(help=_help(settings, name), aliases=aliases)]
        value = fields[name].default if default is None else getattr(default, name)
        options.append((name, kind, dataclasses.field(default=value)))
    group = dataclasses.make_dataclass(home.__name__, options, kw_only=True)
    return Annotated[group, conf.arg(help=home.__doc__)]  # for a class's own docstring tyro parses its module


def _help(settings: type, name: str) -> str:
    """The string behind the last declaration of a field that has one."""
    texts = (_help_texts(cls).get(name) for cls in settings.__mro__ if declares(cls, name))
    return next(filter(None, texts), "")


@cache
def _help_texts(cls: type) -> Mapping[str, str]:
    """The strings that stand behind the fields of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(ast.literal_eval(text.value).split())
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def _last_value(argv: Sequence[str], flag: str) -> str | None:
    """What the flags give a setting that must be known before they are read; None if nothing."""
    found = None
    for token, value in pairwise([*argv, ""]):
        if token == flag:
            found = value
        elif token.startswith(f"{flag}="):
            found = token.partition("=")[2]
    return found


def _method_of(argv: Sequence[str], written: Overlay) -> str:
    """The method that the flags name, or else a file of settings, as its file is called."""
    name = _last_value(argv, "--method") or str(written.get("method", Config.method))
    if name.replace("-", "_") not in method_names():
        raise UserError(f"--method {_shown(name)} is not known: choose from {', '.join(map(_shown, method_names()))}")
    return name.replace("-", "_")


def _overlay_of(written: Overlay, method: str, path: str | None) -> dict[str, Any]:
    """What a file sets, beside the method, as values of the method's settings."""
    settings = settings_class(method)
    own = [field.name for field in dataclasses.fields(settings) if field.name != "config"]
    for name in written:
        if name not in own:
            _refuse(f"{path}: {name}", f"--{_shown(name)}", method, name, own)
    return typed(settings, {name: value for name, value in written.items() if name != "method"}, str(path))


def _refuse_other_flags(argv: Sequence[str], method: str) -> None:
    own = set(_flags(settings_class(method)))
    for token in argv:
        flag = "--" + _shown(token[2:].partition("=")[0])
        if token.startswith("--") and not token.startswith("--tyro-") and flag not in own | {"--help"}:
            _refuse(flag, flag, method, flag, own)


def _refuse(what: str, flag: str, method: str, name: str, own: Iterable[str]) -> NoReturn:
    """Say of a setting that the method does not read it, and who does or which one is meant."""
    readers = [_shown(other) for other in method_names() if flag in _flags(settings_class(other))]
    if readers and name != "config":
        raise UserError(f"{what} is a setting of {_listed(readers)}, which --method {_shown(method)} does not read")
    near = difflib.get_close_matches(name, own, 1)
    raise UserError(f"{what} is no setting" + (f": did you mean {near[0]}?" if near else ": --help lists them"))


def _flags(settings: type) -> Iterator[str]:
    types = types_of(settings)
    for field in dataclasses.fields(settings):
        yield flag_of(field.name)
        if types[field.name] is bool:
            yield flag_of(f"no_{field.name}")


def _chosen(settings: type[Config], argv: Sequence[str], default: Config) -> dict[str, Any]:
    """What decides on the layers below the flags: the data sets and the recipes, read without the other settings.

    To read all of them is what starts a command slowly, and they are read when the layers are known.
    """
    without_help = [token for token in argv if token not in ("-h", "--help")]
    try:
        return _values(settings, without_help, default, only=("dataset", "source", "recipe"))
    except UserError:
        read(settings, argv, default)  # where another flag is wrong, and this one by it, that one is said
        raise


def _layers(
    method: str, dataset: str, recipe: Sequence[str], source: str | None = None
) -> Iterator[tuple[str, Overlay]]:
    """What lies over a method's defaults and below the flags, each with its name."""
    _require_known("dataset", [dataset], SIZES)
    _require_known("source", [] if source is None else [source], SIZES)
    _require_known("recipe", recipe, RECIPES)
    further = method_class(method).recipes
    height, width = SIZES[dataset]
    yield f"data set {dataset}", {"height": height, "width": width}
    yield f"{method} on {dataset}", further.get(dataset, {})
    for name in dict.fromkeys((*RECIPES_OF.get(dataset, ()), *recipe)):  # each once, in this order
        yield f"recipe {name}", RECIPES[name]
        yield f"{method} with {name}", further.get(name, {})
        yield f"{method} with {name} on {dataset}", further.get(f"{name} on {dataset}", {})


def _require_known(flag: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"--{flag} {name} is not known: choose from {', '.join(sorted(known))}")


def _declared_by(settings: type, name: str, method: str) -> str:
    """Whose default a setting has: the engine's, or the method's."""
    last = next(cls for cls in settings.__mro__ if declares(cls, name))
    return "default" if last in Config.__mro__ else f"method {method}"


def _shown(name: str) -> str:
    """As flags and `--method` write it."""
    return name.replace("_", "-")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
