"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from packager.resources import default_cache_dir

if TYPE_CHECKING:
    from collections.abc import Callable

_Command = TypeVar("_Command", bound="Callable[..., Any]")

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
bundle_argument = click.argument(
    "bundle", metavar="BUNDLE", type=click.Path(path_type=Path, exists=False)
)


def cache_dir(function: _Command) -> _Command:
    """Add `--cache-dir`."""
    return click.option(
        "--cache-dir",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="EDGEPACK_CACHE_DIR",
        default=default_cache_dir,
        show_default="$XDG_CACHE_HOME/edgepack",
        help="Where engine libraries and finished stages are kept.",
    )(function)
