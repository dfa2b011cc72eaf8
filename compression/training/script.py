"""A training set from the user's own script: `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from compression.errors import CompressionError, InvalidTrainingSet
from compression.training.training_set import TrainingSet, require_torch

_Made = TypeVar("_Made")


def load_script(where: str) -> TrainingSet:
    """Runs the script, calls the function in it, and tries what it returns on a few samples.

    Args:
        where: `train.py:training` (a file; it may import its neighbours), or `package.module:training`.

    Raises:
        InvalidTrainingSet: no such file or function, it raised (with its own last line), or it returned something else.
        TrainingNeeded: torch is not installed.
    """
    require_torch()
    from compression.training.trial import checked

    place, found, name = where.rpartition(":")
    if not found or not place or not name.isidentifier():
        raise InvalidTrainingSet(f"{where!r} names no function; give FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION")
    path = Path(place).resolve() if place.endswith(".py") else None
    with _neighbours(Path.cwd() if path is None else path.parent):
        module = _run(f"{place} cannot be loaded", lambda: _module(place, path))
        function = getattr(module, name, None)
        if not callable(function):
            raise InvalidTrainingSet(
                f"{place} has no function {name!r}; it has: {', '.join(_functions(module)) or 'none'}"
            )
        made = _run(f"{where} failed", function)
    if not isinstance(made, TrainingSet):
        raise InvalidTrainingSet(
            f"{where} returned {type(made).__name__}; it must return a compression.training.training_set.TrainingSet"
        )
    return checked(made)


@contextmanager
def _neighbours(folder: Path) -> Iterator[None]:
    """Modules of this folder can be imported inside."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # the script may have changed the list itself
            sys.path.remove(str(folder))


def _module(place: str, path: Path | None) -> ModuleType:
    if path is None:
        return importlib.import_module(place)
    if not path.is_file():
        raise InvalidTrainingSet(f"there is no file {path}; give the path of the training script")
    spec = importlib.util.spec_from_file_location(f"training_script_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickles of the script find their module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def _run(what: str, call: Callable[[], _Made]) -> _Made:
    try:
        return call()
    except CompressionError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidTrainingSet(f"{what}: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    """The error itself, and where in the user's own code it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and "importlib" not in frame.filename]
    place = f" (line {own[-1].lineno} of {Path(own[-1].filename).name})" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" (line {error.lineno} of {Path(error.filename).name})"
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1] + place


def _functions(module: ModuleType) -> list[str]:
    return sorted(
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_")
    )
