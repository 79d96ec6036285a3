"""Runs a bundle's self-test under an emulated, older processor."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.errors import BudgetMissed
from packager.process import describe, run

if TYPE_CHECKING:
    from collections.abc import Mapping

EMULATOR: Final = "qemu-x86_64"
# Emulated arithmetic is about a hundred times slower than the processor's own.
_TIMEOUT_S: Final = 900.0


def selftest_under(
    bundle_or_release: Path,
    cpu: str,
    *,
    timeout_s: float = _TIMEOUT_S,
    cache_dir: Path | None = None,
) -> dict[str, Any] | None:
    """Run `verify --json` of a bundle file or unpacked release under `qemu-x86_64 -cpu CPU`.

    Args:
        bundle_or_release: A `.edgepack` file, or the folder of an unpacked one.
        cpu: A model that the emulator knows, as `Haswell`.
        timeout_s: Wall-clock limit.
        cache_dir: Where the bundle may unpack itself; a temporary folder is used otherwise.

    Returns:
        What the device's `verify --json` printed; None where the emulator is not installed.

    Raises:
        BudgetMissed: the self-test failed, or printed no result.
        ExternalToolError: it took too long.
    """
    emulator = shutil.which(EMULATOR)
    if emulator is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_dir or Path(folder)
        done = run(
            [
                emulator,
                "-cpu",
                cpu,
                sys.executable,
                "-I",
                "-B",
                bundle_or_release,
                "verify",
                "--json",
            ],
            timeout_s=timeout_s,
            check=False,
            env=_environment(cache),
        )
    if done.returncode != 0:
        raise BudgetMissed(
            f"the self-test under an emulated {cpu} failed\n{describe(done)}",
            hint="the artifact computes something else on that processor; try another precision",
        )
    try:
        result = json.loads(done.stdout)
    except json.JSONDecodeError as fault:
        raise BudgetMissed(
            f"the self-test under an emulated {cpu} printed no result\n{describe(done)}"
        ) from fault
    return dict(result)


def _environment(cache: Path) -> Mapping[str, str]:
    # Nothing of the build host's settings reaches the bundle, as on a device.
    return {"PATH": "/usr/bin:/bin", "HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
