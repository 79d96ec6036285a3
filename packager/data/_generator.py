"""Runs the user's generator of samples in a child process, once, and keeps what it yields."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from packager.data._arrays import fit_sample
from packager.data._files import MOST_SAMPLES, REQUEST_BYTES
from packager.data._npz import read_arrays
from packager.data._spool import Spool
from packager.errors import InputOutputError, UsageError
from packager.process import Limits, describe, python_argv, run

if TYPE_CHECKING:
    from packager.data._gather import Gathering
    from packager.data._samples import Samples

_TIMEOUT_S: Final = 600.0
_MEMORY_MIB: Final = 16 << 10
_DISK_MIB: Final = 64 << 10
# Exit status of the child for what it has explained itself.
_REFUSED: Final = 3
LABEL: Final = "label"


def load_generator(file: Path, function: str, gathering: Gathering) -> Samples:
    """Run `function()` of a Python file to its end and read what it yielded.

    It yields a dict of arrays by input name, or (dict, label), where a label is a number, a text,
    an array of one per row, or a dict of `boxes` and `classes`. It runs once: later uses read what
    was kept on disk, and the digest is that of the content.

    Raises:
        InputOutputError: the file is missing.
        UsageError: there is no such function, it fails or does not end, or what it yields does not
            fit.
    """
    word = f"{file.name}:{function}"
    if not file.is_file():
        raise InputOutputError(f"`{file}` does not exist or is no file")
    if not function:
        raise UsageError(f"`{gathering.word}` names no function", accepted="`FILE.py:FUNCTION`")
    spool = Spool()
    folder = Path(tempfile.mkdtemp(prefix="edgepack-generator-"))
    try:
        done = run(
            python_argv(
                "packager.data.generator_child",
                *(file.absolute(), function, folder),
                *(str(MOST_SAMPLES), str(_DISK_MIB)),
            ),
            timeout_s=_TIMEOUT_S,
            check=False,
            limits=Limits(memory_mib=_MEMORY_MIB),
            error=UsageError,
            hint=f"`{word}` must come to its end: a few hundred samples are enough",
        )
        if done.returncode == _REFUSED:
            raise UsageError(done.stderr.strip().splitlines()[-1])
        if done.returncode != 0:
            raise UsageError(f"the generator `{word}` failed\n{describe(done)}")
        count = _keep(folder, word, spool, gathering)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    origin = f"{count} sample{'' if count == 1 else 's'} of `{word}`"
    return gathering.finish(kind="generator", origin=origin)


def _keep(folder: Path, word: str, spool: Spool, gathering: Gathering) -> int:
    signature, recipe = gathering.signature, gathering.recipe
    # By number: a millionth sample has a longer name.
    files = sorted(folder.glob("*.npz"), key=lambda path: int(path.stem))
    for index, path in enumerate(files):
        where = f"sample {index} of `{word}`"
        changes: list[str] = []
        try:
            arrays = read_arrays(path, most=REQUEST_BYTES)
        except UsageError as fault:
            reason = fault.message.replace(f"`{path}`", where)
            raise UsageError(reason, accepted=fault.accepted) from fault
        label = _label(arrays, path)
        sample = fit_sample(arrays, signature, recipe, where, changes)
        name = f"sample {index}"
        gathering.add(sample, spool.add(sample), name=name, label=label, changes=changes)
        path.unlink()
    return len(files)


def _label(arrays: dict[str, Any], path: Path) -> Any:
    """Take the label out of what the child wrote: its keys are told beside the arrays."""
    keys: dict[str, str] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    found = {key: arrays.pop(name) for key, name in keys.items()}
    return found.get(LABEL, found or None)
