"""Gets NVIDIA's files for a bundle whose user wants them carried along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packager.backends.tensorrt.vendor_libraries import MODULE_PATH, MODULE_SOURCE, vendor_files
from packager.bundle.archive import Entry
from packager.bundle.library import fetch_library

if TYPE_CHECKING:
    from pathlib import Path

    from packager.console import Reporter
    from packager.target import Target


def vendor_entries(
    target: Target, *, cache: Path, wheelhouse: Path | None, reporter: Reporter
) -> list[Entry]:
    """Return NVIDIA's files and licences as entries of a bundle for `target`.

    Args:
        target: One with TensorRT-RTX.
        cache: As for the engine's library: each file is kept there by its digest, compressed once.
        wheelhouse: A folder of wheels that replaces the network.
        reporter: Told of downloads and of the compression, which takes minutes once.

    Raises:
        TargetError: the target has no TensorRT that can be carried.
        BackendMissing: a package is nowhere, and there is no network.
        IntegrityError: a wheel or a file is not the one that is named.
        InputOutputError: the cache cannot be written.
    """
    entries = {MODULE_PATH: Entry(path=MODULE_PATH, source=MODULE_SOURCE)}
    for file in vendor_files(target):
        found = fetch_library(file.library, cache=cache, wheelhouse=wheelhouse, reporter=reporter)
        is_text = file.path.endswith(".py")
        entries[file.path] = Entry(
            path=file.path, source=found.path, xz_source=None if is_text else found.xz_path
        )
        for name, text in found.licenses.items():
            path = f"licenses/{file.library.package}/{name}"
            entries[path] = Entry(path=path, source=text, compress=True)
    return [entries[path] for path in sorted(entries)]
