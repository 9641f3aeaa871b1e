"""A user's own row in any table: `./mine.py:fn`, or an entry point of an installed package."""

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfd import content


def resolve(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """The row called `name`: of `table`, of entry-point group `sfd.<kind>`, or `FILE.py:NAME`.

    Raises ValueError, in one line, if there is none; the nearest known name is suggested.
    """
    if name in table:
        return table[name]
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return getattr_or_explain(_import_file(Path(path).expanduser()), attribute, path)
    entries = importlib.metadata.entry_points(group=f"sfd.{kind}")
    if name in entries.names:
        return entries[name].load()
    near = content.did_you_mean(name, [*table, *entries.names])
    raise ValueError(f"no {kind.rstrip('s')} called {name!r}{near} (your own: ./FILE.py:NAME)")


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
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    whole = False
    try:
        spec.loader.exec_module(module)
        whole = True
    except (SyntaxError, ImportError, NameError) as error:
        raise ValueError(f"{path}: cannot be imported: {error}") from None
    finally:
        if not whole:
            del sys.modules[name]
    return module
