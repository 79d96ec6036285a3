"""Gets the libraries that decode photos on a device, each by package, version and digest."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.library import fetch_library
from packager.errors import BackendMissing, TargetError
from packager.resources import data_dir
from packager.target import EngineLibrary

if TYPE_CHECKING:
    from pathlib import Path

    from packager.bundle.library import FetchedLibrary
    from packager.console import Reporter
    from packager.target import Target

_FOLDER: Final = "vendor"
_FILE: Final = "image-libraries.toml"
_SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True)
class ImageLibrary:
    """A library that decodes one kind of photo.

    Attributes:
        kind: The media type.
        name: The library's own name, as `libpng`.
        version: The library's, not that of the package it comes in.
        path: Where it lies in a bundle.
        library: The package that it comes from, by digest.
    """

    kind: str
    name: str
    version: str
    path: str
    library: EngineLibrary


@dataclass(frozen=True, kw_only=True)
class CarriedImageLibrary:
    """One of them, at hand.

    Attributes:
        wanted: What it is.
        fetched: The files.
        licenses: Texts that travel along, by file name; some packages leave them out.
    """

    wanted: ImageLibrary
    fetched: FetchedLibrary
    licenses: dict[str, Path]


def image_libraries(arch: str) -> tuple[ImageLibrary, ...]:
    """Return what decodes photos on an architecture, by kind; none where none is known.

    Raises:
        TargetError: the table has another schema.
    """
    found = []
    for kind, entry in sorted(_table().get(arch, {}).items()):
        source = dict(entry["library"])
        library = EngineLibrary(**{**source, "licenses": tuple(source["licenses"])})
        values = {key: entry[key] for key in ("name", "version", "path")}
        found.append(ImageLibrary(kind=kind, library=library, **values))
    return tuple(found)


def fetch_image_libraries(
    target: Target,
    *,
    cache: Path,
    wheelhouse: Path | None,
    reporter: Reporter,
    must: bool,
) -> tuple[CarriedImageLibrary, ...]:
    """Return the libraries for a target that can be had; each kind of photo is served on its own.

    Args:
        target: Its architecture decides.
        cache: As for the engine's library.
        wheelhouse: A folder of wheels that replaces the network.
        reporter: Told which kinds will not be served, why, and what helps.
        must: Whether a missing library is an error: the recipe asks for it by name.

    Raises:
        BackendMissing: one is nowhere, there is no network, and it must be there.
        IntegrityError: a wheel or a library is not the one that is named.
        InputOutputError: the cache cannot be written.
    """
    found = []
    for wanted in image_libraries(target.arch):
        try:
            fetched = fetch_library(
                wanted.library, cache=cache, wheelhouse=wheelhouse, reporter=reporter
            )
        except BackendMissing as fault:
            if must:
                raise
            package = f"{wanted.library.package} {wanted.library.version}"
            reporter.note(
                f"`{wanted.kind}` bodies will not be served: {wanted.name} of the package "
                f"{package} cannot be had ({_first_line(fault)}); `--wheelhouse DIR` takes its "
                "wheel, `image_bodies = true` in `[server]` makes it a must, `false` leaves it out"
            )
            continue
        found.append(
            CarriedImageLibrary(
                wanted=wanted, fetched=fetched, licenses=fetched.licenses or _own_copy(wanted)
            )
        )
    return tuple(found)


def _first_line(fault: BackendMissing) -> str:
    return str(fault).partition("\n")[0]


def _own_copy(wanted: ImageLibrary) -> dict[str, Path]:
    """Return the licence that a package should have brought."""
    return {"LICENSE": data_dir("targets") / _FOLDER / f"{wanted.name}.LICENSE"}


@cache
def _table() -> dict[str, Any]:
    path = data_dir("targets") / _FOLDER / _FILE
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    if table.pop("schema") != _SCHEMA:
        raise TargetError(f"`{path.name}` has another schema", accepted=f"schema = {_SCHEMA}")
    return table
