"""Renders the page and writes it: nothing is fetched, nothing is run, nothing is half-written."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.errors import InputOutputError, UsageError
from packager.report import sections
from packager.report.candidates import chosen_of, plots_of, rows_of
from packager.report.reading import Part, check_same_bundle, read_record
from packager.resources import data_dir

if TYPE_CHECKING:
    import jinja2

_TEMPLATE: Final = "report.html.j2"
_STYLE: Final = "report.css"
_MOST_COMMAND: Final = 8000


def write_report(
    bundle: Path, output: Path, *, record: Path | None, cache_dir: Path
) -> dict[str, Any]:
    """Verify a bundle, and write the report of its record as one HTML file.

    Args:
        bundle: A bundle file or an unpacked release.
        output: The HTML file; a file that is there is replaced.
        record: None for `NAME.record.json` beside the bundle.
        cache_dir: For the verification.

    Returns:
        `report`, `bundle` (its digest), `size_bytes` and `unknown`: the sections that the record
        says nothing about.

    Raises:
        IntegrityError: the bundle does not verify, or the record is another bundle's.
        InputOutputError: a file that cannot be read or written.
        UsageError: no record, or an output that is none.
    """
    from packager.bundle.local import read_manifest, verify

    if record is None and bundle.is_dir():
        raise UsageError(
            f"`{bundle}` is a folder, and no record lies beside its bundle",
            accepted="the record of the bundle it was unpacked from",
            hint="name it with `--record FILE`",
        )
    record = record if record is not None else bundle.with_suffix(".record.json")
    _check_output(output, bundle, record)
    checked, _ = verify(bundle, self_test=False, cache_dir=cache_dir)
    found = read_record(record)
    check_same_bundle(found, str(checked["digest"]), path=record)
    page, unknown = render_report(found, Part(read_manifest(bundle)))
    content = page.encode("utf-8")
    _write(output, content)
    return {
        "report": str(output),
        "bundle": str(checked["digest"]),
        "size_bytes": len(content),
        "unknown": unknown,
    }


def render_report(record: Part, manifest: Part) -> tuple[str, list[str]]:
    """Return the page, and the names of the sections that nothing is known for.

    Args:
        record: Of the bundle; whatever is missing in it is shown as not known.
        manifest: Of the same bundle.
    """
    search = record.part("search")
    rows = rows_of(record)
    chosen = chosen_of(rows)
    metric = search.text("metric")
    style = (data_dir("templates") / "report" / _STYLE).read_text(encoding="utf-8")
    shown = {
        "plan": sections.plan(record),
        "candidates": rows,
        "sensitivity": sections.sensitivity(search),
        "kept": sections.kept_layers(record),
        "sizes": sections.sizes(record),
        "disagreements": sections.disagreements(search),
        "latency": sections.latency(search),
        "coverage": sections.coverage(search),
        "data": sections.data(search),
        "environment": sections.environment(record, manifest),
        "command": search.text("command", most=_MOST_COMMAND),
    }
    # An empty list there is a finding, not a gap.
    found_nothing = ("disagreements", "coverage")
    looked_for = [name for name in found_nothing if isinstance(search.wire.get(name), list)]
    page = _environment().get_template(_TEMPLATE).render(
        style=style,
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        summary=sections.summary(record, manifest, chosen),
        metric=metric,
        search_facts=sections.search_facts(search),
        plots=plots_of(rows, metric=metric, budget=sections.budget_of(search)),
        looked_for=looked_for,
        **shown,
    )  # fmt: skip
    return page, [name for name, value in shown.items() if not value and name not in looked_for]


def _check_output(output: Path, bundle: Path, record: Path) -> None:
    if output.is_dir():
        raise InputOutputError(
            f"`{output}` is a folder", accepted="a file", hint=f"-o {output / 'report.html'}"
        )
    if not output.absolute().parent.is_dir():
        raise InputOutputError(f"`{output.parent}` is not a folder", hint="create it first")
    for name, other in (("bundle", bundle), ("record", record)):
        if output.exists() and other.exists() and output.samefile(other):
            raise UsageError(f"`{output}` is the {name} itself", hint="-o report.html")


def _write(output: Path, content: bytes) -> None:
    try:
        descriptor, name = tempfile.mkstemp(
            prefix=".", suffix=".part", dir=output.absolute().parent
        )
    except OSError as fault:
        raise InputOutputError(f"`{output}` cannot be written: {fault.strerror}") from fault
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(0o644)
        part.replace(output)
    except OSError as fault:
        part.unlink(missing_ok=True)
        raise InputOutputError(f"`{output}` cannot be written: {fault.strerror}") from fault
    except BaseException:  # Ctrl-C too leaves no half-written file
        part.unlink(missing_ok=True)
        raise


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(data_dir("templates") / "report"),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
