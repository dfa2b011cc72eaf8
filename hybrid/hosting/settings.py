"""Settings of a service, read once: a flag over an environment variable over the TOML file over the default.

Design: a service's settings are the fields of one frozen dataclass, so that a setting, its flag, its environment
variable, its line in the TOML file, its help and its place in the docs are written once.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

Value = str | int | float | bool | Path | None


class Settings(Protocol):
    """A frozen dataclass of settings, each field made by `setting`.

    Attributes:
        PREFIX: in front of every environment variable.
        COMMAND: whose `--help` lists the settings.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    PREFIX: ClassVar[str]
    COMMAND: ClassVar[str]

    def check(self) -> None:
        """Refuse combinations that would be unsafe or senseless, with a `ValueError` that says what to change."""
        ...


S = TypeVar("S", bound=Settings)


def setting(default: Value, text: str) -> Any:
    """A field with its documentation, which the flag's help and the docs repeat."""
    return field(default=default, metadata={"text": text})


def settings_of(kind: type[Settings]) -> tuple[Field[Value], ...]:
    """The fields of a service's settings, for flags and docs."""
    return cast("tuple[Field[Value], ...]", fields(kind))


def load(kind: type[S], flags: Mapping[str, Value], environment: Mapping[str, str], file: Path | None) -> S:
    """The settings out of their three sources; values of None in `flags` were not given.

    Raises:
        ValueError: an unknown name, a value of another type, a file that cannot be read, an unsafe combination.
    """
    given: dict[str, Any] = {}
    in_file = _file(kind, file) if file is not None else {}
    for spec in settings_of(kind):
        variable = kind.PREFIX + spec.name.upper()
        if flags.get(spec.name) is not None:
            given[spec.name] = flags[spec.name]
        elif variable in environment:
            given[spec.name] = _of_text(spec, environment[variable], variable)
        elif spec.name in in_file:
            given[spec.name] = _of_toml(spec, in_file[spec.name])
    chosen = kind(**given)
    chosen.check()
    return chosen


def kind_of(spec: Field[Value]) -> type:
    """The Python type of a setting's values; one that is absent by default is a path."""
    if spec.default is MISSING:
        raise ValueError(f"setting {spec.name} has no default; this is a fault of ours")
    if spec.default is None or isinstance(spec.default, Path):
        return Path
    return type(spec.default)


def refuse_below(settings: object, least: float, names: tuple[str, ...]) -> None:
    """Refuse settings that are less than they may be. Raises `ValueError`."""
    for name in names:
        if getattr(settings, name) < least:
            raise ValueError(f"{name} is {getattr(settings, name)}; it must be at least {least:g}")


def refuse_unknown(settings: object, name: str, known: tuple[str, ...]) -> None:
    """Refuse a word that a setting does not know. Raises `ValueError`."""
    word = getattr(settings, name)
    if word not in known:
        raise ValueError(f"{name.replace('_', ' ')} {word!r} is unknown; use {', '.join(known[:-1])} or {known[-1]}")


def _of_text(spec: Field[Value], text: str, variable: str) -> Value:
    kind = kind_of(spec)
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off", ""):
            return False
        raise ValueError(f"{variable} is {text!r}; use 1 or 0")
    try:
        return cast("Value", kind(text))
    except ValueError as exc:
        raise ValueError(f"{variable} is {text!r}; it must be {kind.__name__}") from exc


def _of_toml(spec: Field[Value], value: object) -> Value:
    kind = kind_of(spec)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"setting {spec.name} is {value!r} in the file; it must be {kind.__name__}")
    return cast("Value", value)


def _file(kind: type[Settings], path: Path) -> dict[str, object]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ValueError(f"{path} cannot be read: {exc.strerror}; give another --config") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ValueError(f"{path} is not TOML: {exc}") from exc
    unknown = sorted(set(found) - {spec.name for spec in settings_of(kind)})
    if unknown:
        raise ValueError(f"{path} has the unknown settings {', '.join(unknown)}; `{kind.COMMAND} --help` has all")
    return found
