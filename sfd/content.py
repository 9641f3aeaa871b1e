"""Find content, read strict YAML, hash files, write atomically."""

import copy
import csv
import difflib
import hashlib
import inspect
import io
import json
import os
import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, BinaryIO, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

KINDS = ("concepts", "classifiers", "configs", "eval")
_PACKAGE = Path(__file__).resolve().parent


class Strict(pydantic.BaseModel):
    """A frozen record: an unknown key, a value of another type, a number not finite are errors."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False
    )


# YAML and JSON write one as a list
Pair = Annotated[
    tuple[float, float],
    pydantic.BeforeValidator(lambda given: tuple(given) if isinstance(given, list) else given),
]

Model = TypeVar("Model", bound=pydantic.BaseModel)


def shipped() -> Path:
    """The folder that holds the shipped content: the wheel's copy, or the checkout."""
    packed = _PACKAGE / "_content"
    return packed if packed.is_dir() else _PACKAGE.parent


def roots(kind: str) -> tuple[Path, ...]:
    """Folders searched for content of a kind, the user's own (in the current directory) first."""
    assert kind.split("/")[0] in KINDS, kind
    own, ours = Path.cwd() / kind, shipped() / kind
    return (own, ours) if own.is_dir() and own.resolve() != ours.resolve() else (ours,)


def cache() -> Path:
    """The folder for what can be computed again: `$SFD_CACHE`, or `sfd` in the user's cache."""
    own = os.environ.get("SFD_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "sfd"


def find(kind: str, name: str) -> Path:
    """The path of the content called `name` (a file `name.yaml` or a folder `name`), or a path.

    Raises ValueError with the nearest known name where there is none.
    """
    direct = Path(name).expanduser()
    if direct.suffix or os.sep in name:
        if direct.exists():
            return direct
        dotted = [root / f"{name}.yaml" for root in roots(kind) if os.sep not in name]
        if there := next((path for path in dotted if path.exists()), None):
            return there
        raise ValueError(f"{name}: no such file{did_you_mean(direct.stem, names(kind))}")
    for root in roots(kind):
        for path in (root / f"{name}.yaml", root / name):
            if name not in ("", ".", "..") and path.exists():
                return path
    raise ValueError(f"no {kind} called {name!r}{did_you_mean(name, names(kind))}")


def names(kind: str) -> list[str]:
    """Sorted names of the content of a kind, the user's own included."""
    return sorted(
        {
            path.stem if path.suffix == ".yaml" else path.name
            for root in roots(kind)
            if root.is_dir()
            for path in root.iterdir()
            if path.suffix == ".yaml" or (path / "card.yaml").exists()
        }
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A clause to append to an error: the nearest known name, or the known ones if few."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 24 else ""


_Loader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class _UniqueKeys(_Loader):
    """SafeLoader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore
        twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
        if twice is not None:
            raise yaml.MarkedYAMLError(
                problem=f"key {twice!r} is given twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what `parse_yaml` would take for a number."""


# YAML 1.1, which the library reads, takes the number 1e-6 for a word; YAML 1.2 does not
for _side in (_UniqueKeys, Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )

DEEPEST = 100
"""Levels of lists and mappings in each other; the parser's own stack ends the process."""


@lru_cache(256)
def _parsed(text: str) -> Any:
    """Parsed once: recipes name the same cards and lists of prompts, and yaml is slow."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError
    return yaml.load(text, _UniqueKeys)


def parse_yaml(text: str, where: str) -> Any:
    """YAML text to plain data. Raises ValueError, in one line that says where."""
    try:
        return copy.deepcopy(_parsed(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{where}{line}: not valid YAML: {error.problem}") from None
    except RecursionError:
        raise ValueError(f"{where}: is nested too deep to be read") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not, digits by thousands
        raise ValueError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def dump_yaml(data: Any) -> str:
    """Plain data as YAML that `parse_yaml` reads as the same, keys in their order."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping. Raises ValueError, in one line that says where."""
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    return data


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV as a spreadsheet may save it: commas or semicolons, with a byte-order mark.

    Empty lines and what stands behind the `columns` are left out. Raises ValueError, in one line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        mark = ";" if ";" in text.split("\n", 1)[0] else ","
        lines = [
            [field.strip() for field in line]
            for line in csv.reader(io.StringIO(text), delimiter=mark)
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    head = lines[0] if lines else []
    if head[: len(columns)] != list(columns):
        raise ValueError(f"{path}: its first line must be {','.join(columns)}")
    for number, line in enumerate(lines, 1):
        if len(line) not in (0, len(head)):
            raise ValueError(f"{path}, line {number}: expected {len(head)} fields: {line}")
    return [dict(zip(columns, line[: len(columns)], strict=True)) for line in lines[1:] if line]


def check(data: dict[str, Any], model: type[Model], where: str) -> Model:
    """Plain data as a strict record. Raises ValueError that names the key and the nearest known."""
    return _checked(model.model_validate, data, model, where)


def check_json(text: str, model: type[Model], where: str) -> Model:
    """JSON, whose lists may be tuples and whose keys numbers, as a strict record; see `check`."""
    return _checked(model.model_validate_json, text, model, where)


def _checked(read: Callable[..., Model], data: Any, model: type[Model], where: str) -> Model:
    try:
        return read(data)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {_explain(error, model)}") from None


def load(path: Path, model: type[Model]) -> Model:
    """A YAML file as a strict record. Raises ValueError in one line."""
    return check(read_yaml(path), model, str(path))


def options_of(
    make: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    *,
    taken: Collection[str] = (),
) -> dict[str, Any]:
    """Options for `make`, checked against its signature; a list becomes the tuple, and a word the
    path, that it states, but no word or truth value a number.

    `taken` are parameters that the caller fills itself. Raises ValueError, in one line, on a key
    that it does not take, one that it misses, a value of another type, or one that is not finite.
    """
    parameters = _parameters(make)
    fields: dict[str, Any] = {
        p.name: (
            _typed(p.annotation),
            ... if p.default is p.empty else p.default,
        )
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in taken
    }
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    config = pydantic.ConfigDict(
        extra="allow" if open_ended else "forbid",
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        protected_namespaces=(),
    )
    model = pydantic.create_model("Options", __config__=config, **fields)
    record = check(dict(options), model, where)
    return {key: getattr(record, key) for key in options}


def _typed(annotation: Any) -> Any:
    """A parameter's type as its option is checked against it."""
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return Any  # a name that cannot be evaluated stands for anything
    strict = _is_plain(annotation)
    return Annotated[annotation, pydantic.Field(strict=True)] if strict else annotation


def _is_plain(annotation: Any) -> bool:
    """Whether YAML has a way to write every value of a type, so that nothing need be converted."""
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return all(map(_is_plain, get_args(annotation)))
    return annotation in (bool, int, float, str, NoneType)


def _parameters(make: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        signature = inspect.signature(make, eval_str=True)
    except NameError:  # an annotation names what only a type checker imports
        signature = inspect.signature(make)
    return list(signature.parameters.values())


def _explain(error: pydantic.ValidationError, model: type[pydantic.BaseModel]) -> str:
    # the most telling complaint first: an unknown key explains the missing one beside it
    first = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(path)!r}{did_you_mean(path[-1], _fields(model, path[:-1]))}"
    if first["type"] == "missing":
        return f"key {'.'.join(path)!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return message
    key, given = ".".join(path), textwrap.shorten(str(first["input"]), 60)
    keys = list(dict.fromkeys(_fields(model, path)))
    if first["type"] in ("list_type", "tuple_type"):
        message = f"is {given}, and not a list: write [{given}]"
    elif first["type"] in ("dict_type", "model_type") and keys:
        instead = f": write {{name: {given}}}" if "name" in keys else ""
        known = ", ".join(keys[:6]) + ", ..." * (len(keys) > 6)
        message = f"is {given}, and not a mapping of {known}{instead}"
    else:
        message = message.replace("Input should be", f"is {given}, should be")
    return f"{key}: {message}"


def _fields(model: Any, path: list[str]) -> list[str]:
    """Names of the keys known at `path` below `model` (all alternatives of a union)."""
    if isinstance(model, type) and issubclass(model, pydantic.BaseModel):
        if not path:
            return list(model.model_fields)
        field = model.model_fields.get(path[0])
        return _fields(field.annotation, path[1:]) if field else []
    inner = [a for a in getattr(model, "__args__", ()) if a is not type(None)]
    # pydantic puts list indices, dictionary keys and union members into the location
    return [
        name
        for arm in inner
        for rest in (path, path[1:])
        if len(rest) < len(path) or not path or isinstance(arm, type)
        for name in _fields(arm, rest)
    ]


def sha256(source: Path | bytes) -> str:
    """Hex digest of a file's bytes, or of bytes."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(paths: Iterable[Path]) -> str:
    """Hex digest of the names and the bytes of files, whatever the order of their paths."""
    return hash_json(sorted([path.name, sha256(path)] for path in paths))


def hash_json(data: Any) -> str:
    """Hex digest of plain data, whatever the order of its keys."""
    return sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write so that whoever looks at `path` sees the old content or the new.

    Raises OSError (full disk, no permission); the old file is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say whose
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Find out before the work whether files can be put into a folder; it leaves nothing behind.

    Raises ValueError where it is a file, OSError where it cannot be made or written into.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, and a folder is needed: name another")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    trial = folder / ".writable"
    try:
        with atomic(trial):
            pass
        trial.unlink()
    finally:
        for path in made:
            # another process may have begun to fill it
            with suppress(OSError):
                path.rmdir()


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file at once, as `atomic` does."""
    with atomic(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, data: Any) -> None:
    """Write plain data as indented JSON, atomically. Raises ValueError on NaN: JSON has none."""
    write_atomic(path, json.dumps(data, indent=1, allow_nan=False) + "\n")
