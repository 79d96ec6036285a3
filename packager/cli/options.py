"""Options that several commands share."""

from __future__ import annotations

import shlex
import sys
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


def typed() -> str:
    """Return the command line as it can be typed again."""
    return shlex.join(["edgepack", *sys.argv[1:]])


def compression(function: _Command) -> _Command:
    """Add what compression is told: data, metric, budget, objective."""
    from packager.recipe import OBJECTIVES, PRECISIONS

    data = "A folder of photos, .wav, .npy or .npz files; a .csv, .parquet, .npy or .npz file"
    for option in reversed((
        click.option(
            "-c", "--calibration", metavar="DATA",
            help=f"{data}; FILE.py:GENERATOR; or `random` for made-up samples.",
        ),
        click.option("--eval", "evaluation", metavar="DATA", help="The same, with labels."),
        click.option("--label", metavar="COLUMN", help="What holds the label; `label` by default."),
        click.option("--metric", metavar="NAME", help="top1, f1, wer, auc … or FILE.py:FUNCTION."),
        click.option("--max-drop", metavar="DROP", help="0.5% or 0.005 absolute, rel:1% relative."),
        click.option("--objective", type=click.Choice(OBJECTIVES), help="latency by default."),
        click.option("--time-budget", metavar="TIME", help="Of the search, as 10m or 90s."),
        click.option(
            "--precision", type=click.Choice(PRECISIONS), help="Take this instead of searching."
        ),
    )):  # fmt: skip
        function = option(function)
    return function


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
