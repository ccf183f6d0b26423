"""A file in a room is a member of it, and its name is the name you write in the recipe.

Rooms are the packages ``pruners``, ``quantizers``, ``metrics`` and ``backends``. A path to
the user's own ``.py`` file works wherever a name does.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from edgekit.errors import EdgekitError, InputError


def members(room: str) -> list[str]:
    """The names of a room's members, sorted, without importing any."""
    folder = Path(__file__).parent / room
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def load(room: str, name: str, *, base: Path | None = None, where: str = "") -> ModuleType:
    """Import a room's member by name, or the user's own by path.

    Args:
        room: ``"backends"``, ``"metrics"``, …
        name: A member's name, or a path that ends in ``.py``.
        base: The folder that a relative path starts from (the recipe's).
        where: The file that names it, for the message.

    Raises:
        InputError: No such member (the nearest is offered), or no such file.
    """
    if name.endswith(".py"):
        return load_file((base or Path()) / name)
    known = members(room)
    if name not in known:
        noun = room.rstrip("s")
        raise InputError(
            f"no {noun} named '{name}'{did_you_mean(name, known)}",
            where=where,
            remedy=f"choose one of {', '.join(known)}, or give the path of a .py file",
        )
    return importlib.import_module(f"edgekit.{room}.{name}")


def load_file(path: Path) -> ModuleType:
    """Import a user's Python file under a name of its own.

    Raises:
        InputError: The file is missing, or raises while it is imported.
    """
    path = path.resolve()
    if not path.is_file():
        raise InputError(
            "no such Python file", where=str(path), remedy="check the path; it starts at the recipe's folder"
        )
    name = f"edgekit_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look it up there
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # the file's own imports from beside it
    try:
        with _no_bytecode():
            spec.loader.exec_module(module)
    except Exception as error:
        line = _line_in(error, path)
        raise InputError(
            f"this file raises {type(error).__name__} when imported: {error}",
            where=f"{path}:{line}" if line else str(path),
            remedy="run it alone with Python and mend what it says",
        ) from error
    return module


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Import without leaving a ``__pycache__`` among the user's files."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _line_in(error: BaseException, path: Path) -> int | None:
    """The last line of ``path`` in an exception's traceback."""
    import traceback

    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path]
    return lines[-1] if lines else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"``, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def load_entry(spec: str, base: Path) -> Callable[..., Any]:
    """The function that an entry names: ``file.py:function`` or ``package.module:function``.

    Args:
        spec: As the recipe has it; a file's path starts at ``base``.
        base: The recipe's folder, put on the import path too.

    Raises:
        InputError: Not of that form, no such file or module, or no such function (the nearest is offered).
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise InputError(
            f"'{spec}' names no function", remedy="write it as 'file.py:function' or 'package.module:function'"
        )
    if place.endswith(".py"):
        module = load_file(base / place)
    else:
        if str(base) not in sys.path:
            sys.path.insert(0, str(base))
        try:
            with _no_bytecode():
                module = importlib.import_module(place)
        except ImportError as error:
            remedy = "check the name, or give the path of a .py file"
            raise InputError(f"can't import '{place}': {error}", where=spec, remedy=remedy) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise InputError(
            f"there is no function '{name}' in {place}{did_you_mean(name, known)}",
            where=spec,
            remedy=f"add it, or name one of: {', '.join(known[:10]) or 'none found'}",
        )
    return cast("Callable[..., Any]", function)


def load_own(name: str, base: Path) -> ModuleType | Callable[..., Any]:
    """Import what a recipe names of the user's own: a file, or a function in one.

    Raises:
        InputError: As :func:`load_file` and :func:`load_entry`.
    """
    return load_entry(name, base) if ":" in name else load_file(base / name)


def call_entry(spec: str, base: Path, what: str) -> Any:
    """Call an entry without arguments; what it raises is the user's error, with file and line.

    Raises:
        InputError: The entry is missing, or raises.
    """
    function = load_entry(spec, base)
    try:
        return function()
    except EdgekitError:
        raise
    except Exception as error:
        file = Path(sys.modules[function.__module__].__file__ or "") if function.__module__ in sys.modules else Path()
        line = _line_in(error, file)
        where = f"{file}:{line}" if line else spec
        raise InputError(
            f"{what} entry '{spec}' raises {type(error).__name__}: {error}",
            where=where,
            remedy="call that function alone and mend what it says",
        ) from error
