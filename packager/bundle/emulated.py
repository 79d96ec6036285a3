"""Runs a release's golden samples under an emulated, older processor."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.device import last_line, samples_argv, tell_sample
from packager.errors import BudgetMissed
from packager.process import describe, run

if TYPE_CHECKING:
    from pathlib import Path

    from packager.console import Reporter

# Emulated arithmetic is about a hundred times slower than the processor's own.
_TIMEOUT_S: Final = 900.0


def samples_under(
    release: Path,
    cpu: str,
    *,
    arch: str,
    cache_dir: Path,
    reporter: Reporter,
    timeout_s: float = _TIMEOUT_S,
) -> dict[str, Any] | None:
    """Run the golden samples of an unpacked release under `qemu-ARCH -cpu CPU`.

    Args:
        release: A folder whose files were verified: under emulation only the arithmetic matters.
        cpu: A model that the emulator knows, as `Haswell`.
        arch: Of this machine, whose own interpreter runs under the emulator.
        cache_dir: Where our runtime's compiled modules are: compiling takes long in an emulator.
        reporter: Is told which sample is run.
        timeout_s: Wall-clock limit.

    Returns:
        `cpu` (the level seen), `self_test`, `min_cosine` with the artifact's recorded outputs and
        `engine`; None where the emulator is not installed.

    Raises:
        BudgetMissed: a sample comes out otherwise than recorded.
        ExternalToolError: it took too long.
    """
    emulator = shutil.which(f"qemu-{arch}")
    if emulator is None:
        return None
    done = run(
        [emulator, "-cpu", cpu, *samples_argv(release, cache_dir=cache_dir)],
        timeout_s=timeout_s,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
        on_line=lambda line: tell_sample(line, reporter),
    )
    if done.returncode != 0:
        raise BudgetMissed(
            f"the self-test under an emulated {cpu} failed\n{describe(done)}",
            hint="the artifact computes something else on that processor; try another precision",
        )
    return last_line(done)
