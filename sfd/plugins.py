"""A user's own row in any table: `./mine.py:fn`, or an entry point of an installed package."""

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from sfd import content

ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What a mistake in somebody's code raises."""


@contextmanager
def blamed(where: str) -> Iterator[None]:
    """Around code that is the user's own: its mistakes are a ValueError, one line that says where.

    So is an end of the process that it asks for.
    """
    try:
        yield
    except SystemExit as error:
        if type(error) is not SystemExit:  # the command line's own, of a signal
            raise
        raise ValueError(f"{where}: SystemExit: {error.code}") from error
    except ERRORS as error:
        said = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{where}: {kind}{said}".rstrip(": ")) from error


def guarded(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    """A function of the user's own, `blamed` whenever it is called; its signature stays."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with blamed(where):
            return function(*args, **kwargs)

    return call


def resolve(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """The row called `name`: of `table`, of an installed package, or `FILE.py:NAME`.

    Raises ValueError, in one line, if there is none; the nearest known name is suggested. A
    function of the user's own is `guarded`.
    """
    path, colon, attribute = name.rpartition(":")
    if name not in table and colon and path.endswith(".py"):
        found = getattr_or_explain(_import_file(Path(path).expanduser()), attribute, path)
        return guarded(found, name)
    return installed(table, name, kind, hint=" (your own: ./FILE.py:NAME)")


def installed(table: Mapping[str, Any], name: str, kind: str, hint: str = "") -> Any:
    """The row called `name`: of `table`, or of entry-point group `sfd.<kind>`.

    What a model file names is looked up here: no file of code that came with it is run.
    """
    if name in table:
        return table[name]
    entries = importlib.metadata.entry_points(group=f"sfd.{kind}")
    if name in entries.names:
        with blamed(f"{name}: cannot be imported"):
            found = entries[name].load()
        return guarded(found, name) if callable(found) else found
    near = content.did_you_mean(name, [*table, *entries.names])
    raise ValueError(f"no {kind.rstrip('s')} called {name!r}{near}{hint}")


def getattr_or_explain(module: Any, attribute: str, where: str) -> Callable[..., Any]:
    """A callable of a module. Raises ValueError with the nearest name if there is none."""
    found = vars(module).get(attribute)
    if callable(found):
        return found
    public = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
    raise ValueError(f"{where}: no function {attribute!r}{content.did_you_mean(attribute, public)}")


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    digest = content.sha256(path)
    name = f"sfd_user_{path.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    loader = SourceFileLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    whole = False
    try:
        with blamed(f"{path}: cannot be imported"):
            # not from a .pyc: it would miss an edit within its second that leaves the size
            exec(loader.source_to_code(path.read_bytes(), str(path)), module.__dict__)
        whole = True
    finally:
        if not whole:
            del sys.modules[name]
    return module
