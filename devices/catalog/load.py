"""Machines and link classes by name, read from the catalog's TOML files or from files of the user's own."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

from devices.device import Device, Radio
from devices.errors import CatalogInvalid, CatalogUnknown
from devices.link_class import LinkClass, LinkState, Rates
from devices.source import Source

_HERE: Final = "devices.catalog"

Made = TypeVar("Made", Device, Radio, LinkClass, LinkState, Rates, Source)


def device(name_or_path: str) -> Device:
    """The machine of this name in the catalog, or that a TOML file describes.

    Raises:
        CatalogUnknown: neither a name nor a file.
        CatalogInvalid: the file does not say what it must.
    """
    return _device(*_found("devices", name_or_path))


def link_class(name_or_path: str) -> LinkClass:
    """The link class of this name in the catalog, or that a TOML file describes.

    Raises:
        CatalogUnknown: neither a name nor a file.
        CatalogInvalid: the file does not say what it must.
    """
    return _link_class(*_found("links", name_or_path))


@cache
def devices() -> tuple[Device, ...]:
    """Every machine of the catalog, the slowest first."""
    found = [device(name) for name in names("devices")]
    return tuple(sorted(found, key=lambda one: -one.slowdown_ratio))


@cache
def link_classes() -> tuple[LinkClass, ...]:
    """Every link class of the catalog, the fastest uplink first."""
    return tuple(sorted((link_class(name) for name in names("links")), key=lambda one: -one.up_bps))


@cache
def names(folder: str) -> tuple[str, ...]:
    """Names in one folder of the catalog (`devices` or `links`), in alphabetical order."""
    return tuple(sorted(item.name.removesuffix(".toml") for item in files(_HERE).joinpath(folder).iterdir()))


def _found(folder: str, name_or_path: str) -> tuple[str, str]:
    """Name and text of a description: what has a suffix or a separator is a path."""
    if name_or_path in names(folder):
        text = files(_HERE).joinpath(folder, f"{name_or_path}.toml").read_text(encoding="utf-8")
        return name_or_path, text
    path = Path(name_or_path)
    if not path.is_file():
        raise CatalogUnknown(
            f"no {'machine' if folder == 'devices' else 'link'} is called {name_or_path!r} and no file is there; "
            f"there are {', '.join(names(folder))}"
        )
    try:
        return path.stem, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CatalogInvalid(f"{path}: {exc}") from exc


def _device(name: str, text: str) -> Device:
    table = _table(name, text)
    radios = tuple(
        (interface, _made(Radio, f"{name}: radios.{interface}", given))
        for interface, given in _dict(name, "radios", table.pop("radios", {})).items()
    )
    sources = _sources(name, table)
    listed = {
        key: tuple(table.pop(key)) for key in ("engines", "links", "recognised_by") if isinstance(table.get(key), list)
    }
    return _made(Device, name, table | listed | {"name": name, "radios": radios, "sources": sources})


def _link_class(name: str, text: str) -> LinkClass:
    table = _table(name, text)
    ways = {way: _made(Rates, f"{name}: {way}", table.pop(way, None)) for way in ("up", "down")}
    states = tuple(
        _made(LinkState, f"{name}: states", given) for given in _list(name, "states", table.pop("states", []))
    )
    sources = _sources(name, table)
    return _made(LinkClass, name, table | ways | {"name": name, "states": states, "sources": sources})


def _table(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise CatalogInvalid(f"{name}: no TOML: {exc}") from exc


def _sources(name: str, table: dict[str, Any]) -> tuple[Source, ...]:
    made = []
    for given in _list(name, "sources", table.pop("sources", [])):
        figures = given.get("figures") if isinstance(given, dict) else None
        if not isinstance(figures, list) or not figures:
            raise CatalogInvalid(f'{name}: a source names no figures; give figures = ["idle_w", …]')
        made.append(_made(Source, f"{name}: sources", given | {"figures": tuple(figures)}))
    return tuple(made)


def _dict(name: str, key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CatalogInvalid(f"{name}: {key} is no table")
    return value


def _list(name: str, key: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise CatalogInvalid(f"{name}: {key} is no list of tables; write [[{key}]]")
    return value


def _made(kind: type[Made], place: str, given: Any) -> Made:
    """An instance of a dataclass from a TOML table, with every field of the right type and none unknown."""
    if not isinstance(given, Mapping):
        raise CatalogInvalid(f"{place}: wanted a table with {', '.join(field.name for field in fields(kind))}")
    known = {field.name: field for field in fields(kind)}
    unknown = set(given) - set(known)
    if unknown:
        raise CatalogInvalid(f"{place}: unknown field {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    for key, value in given.items():
        wanted = _SIMPLE.get(str(known[key].type))
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            raise CatalogInvalid(f"{place}: {key} = {value!r} is no {known[key].type}")
    try:
        return kind(**given)
    except TypeError as exc:
        raise CatalogInvalid(f"{place}: {str(exc).rpartition('() ')[2]}") from exc


_SIMPLE: Final[dict[str, tuple[type, ...]]] = {
    "<class 'str'>": (str,),
    "<class 'int'>": (int,),
    "<class 'float'>": (int, float),
    "<class 'bool'>": (bool,),
    "float | None": (int, float),
}
