"""`edgepack run`: serve a bundle on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from packager.cli.options import bundle_argument, cache_dir

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


_FILE = click.Path(dir_okay=False)


@click.command("run")
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--threads", type=click.IntRange(0, 1024), help="Intra-op threads; 0: one per core.")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads that run the model.")
@click.option("--queue", type=click.IntRange(1, 65536), help="Requests that may wait for them.")
@click.option(
    "--deadline",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that a request may wait.",
)
@click.option("--tls-cert", type=_FILE, help="Certificate chain, PEM.")
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.")
@click.option(
    "--tls-client-ca", type=_FILE, help="Ask clients for a certificate of this authority."
)
@click.option("--tls-min", type=click.Choice(["1.2", "1.3"]), help="The oldest version of TLS.")
@click.option(
    "--keys",
    type=_FILE,
    help="Only those who have one of these API keys may ask (`new-key` makes them).",
)
@click.option("--insecure", is_flag=True, help="Listen beyond this machine without TLS.")
@click.option(
    "--name", metavar="HOST", multiple=True, help="A name clients call it by; repeatable."
)
@click.option(
    "--allow-origin", metavar="URL", multiple=True, help="Pages of it may ask; repeatable."
)
@click.option("--no-page", is_flag=True, help="Leave out the page at /.")
@click.option("--log", type=click.Choice(["text", "json"]), help="The form of the log.")
@click.option("--access-log", is_flag=True, help="Log one line a request.")
@click.option(
    "--capture-dir",
    type=click.Path(file_okay=False),
    help="Where kept requests go, if the bundle keeps any.",
)
@click.option("--capture-key", type=_FILE, help="The key that they are encrypted with.")
@click.option("--retune", is_flag=True, help="Build TensorRT's engine anew.")
@cache_dir
def command(bundle: Path, cache_dir: Path, **options: Any) -> None:
    """Serve a bundle here until Ctrl-C.

    It is ready when GET /v2/health/ready answers 200.
    """
    from packager.bundle.local import serve

    serve(bundle, _words(options), cache_dir=cache_dir)


def _words(options: Mapping[str, Any]) -> list[str]:
    """Return the options that were given, as a bundle's own command line takes them."""
    words: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple):
            for item in value:
                words += [flag, item]
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words
