"""Uses a bundle on this machine: verify it with our own runtime, then start its own."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from packager.bundle.device import bundle_argv, bundle_environment, run_runtime
from packager.bundle.sequence import client_signature
from packager.errors import InputOutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from packager.recipe import Recipe

_PREDICT_TIMEOUT_S = 600.0


def check_bundle(bundle: Path, *, cache_dir: Path) -> None:
    """Check every byte of a bundle or release with our own runtime, before its code runs.

    Raises:
        InputOutputError: it does not exist or cannot be read.
        IntegrityError: any byte differs from the manifest.
    """
    if not bundle.exists():
        raise InputOutputError(f"`{bundle}` does not exist", hint="edgepack build --help")
    run_runtime(["verify", str(bundle), "--no-self-test"], cache_dir=cache_dir)


def verify(
    bundle: Path, *, self_test: bool, cache_dir: Path
) -> tuple[dict[str, Any], Iterable[str]]:
    """Check integrity and, where this machine fits, run the golden samples.

    Returns:
        The result as data, and as lines.

    Raises:
        IntegrityError: a byte differs, or a golden sample is computed wrongly.
    """
    check_bundle(bundle, cache_dir=cache_dir)
    arguments = ["verify", str(bundle), "--json"]
    if not self_test:
        arguments.append("--no-self-test")
    done = run_runtime(arguments, cache_dir=cache_dir, timeout_s=_PREDICT_TIMEOUT_S)
    result: dict[str, Any] = json.loads(done.stdout)
    return result, [f"{key}: {_text(value)}" for key, value in result.items()]


def predict(
    bundle: Path,
    inputs: Sequence[Path],
    *,
    output: Path | None,
    top: int,
    cache_dir: Path,
    as_json: bool,
) -> str:
    """Run one inference in the bundle's own runtime and return what it printed.

    Photos, sounds and tables are decoded here; resizing, normalizing and the like are inside the
    bundle's graph.

    Raises:
        UsageError: an input file of no kind that the model takes.
    """
    check_bundle(bundle, cache_dir=cache_dir)
    if output is not None and not output.absolute().parent.is_dir():
        raise InputOutputError(f"`{output.parent}` is not a folder", hint="create it first")
    cache_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="predict-", dir=cache_dir) as folder:
        arguments = ["predict", "--top", str(top)]
        files = [
            _tensor_file(bundle, path, Path(folder) / f"{index}")
            for index, path in enumerate(inputs)
        ]
        for file in files:
            arguments += ["-i", str(file)]
        if output is not None:
            arguments += ["-o", str(output.absolute())]
        if as_json:
            arguments.append("--json")
        done = run_runtime(
            arguments, bundle=bundle, cache_dir=cache_dir, timeout_s=_PREDICT_TIMEOUT_S
        )
    names = [(file.name, path.name) for file, path in zip(files, inputs, strict=True)]
    return _named_as_given(done.stdout, names, as_json=as_json)


def _named_as_given(printed: str, names: Sequence[tuple[str, str]], *, as_json: bool) -> str:
    """Return what a bundle printed of files decoded here, with the names that the user gave.

    Args:
        printed: The bundle's answer.
        names: For each result in order the name that the bundle was given, and the user's.
        as_json: In which form the bundle answered.
    """
    if as_json:
        document = json.loads(printed)
        for result, (_, name) in zip(document["results"], names, strict=True):
            result["input"] = name
        return json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    lines = printed.split("\n")
    at = 0
    for given, name in names:
        at = lines.index(f"{given}:", at)
        lines[at] = f"{name}:"
        at += 1
    return "\n".join(lines)


def serve(bundle: Path, options: Sequence[str], *, cache_dir: Path) -> NoReturn:
    """Verify a bundle, then become its server.

    Args:
        bundle: The bundle file or release folder.
        options: As the bundle's own `serve` takes them.
        cache_dir: Below it releases are unpacked.
    """
    check_bundle(bundle, cache_dir=cache_dir)
    arguments = ["serve", *options]
    argv = bundle_argv(bundle, arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], argv, bundle_environment(cache_dir))  # noqa: S606 - no shell is wanted


def read_manifest(bundle: Path) -> dict[str, Any]:
    """Return the manifest of a bundle file or of an unpacked release, already verified."""
    if bundle.is_dir():
        content = (bundle / "manifest.json").read_bytes()
    else:
        with zipfile.ZipFile(bundle) as archive:
            content = archive.read("manifest.json")
    wire: dict[str, Any] = json.loads(content)
    return wire


def _tensor_file(bundle: Path, path: Path, folder: Path) -> Path:
    """Return a file that the device reads: this one, or its decoded content as `.npz`."""
    if not path.is_file():
        raise InputOutputError(f"`{path}` does not exist or is no file")
    if path.suffix.lower() in {".npz", ".npy"}:
        return path.absolute()
    import numpy as np

    from packager.data import read_request

    manifest = read_manifest(bundle)
    model = manifest["model"]
    if path.suffix.lower() == ".txt" and model.get("text"):
        return path.absolute()  # the bundle has the tokenizer
    sample, _ = read_request(path, client_signature(manifest), _inputs_of(model))
    # Written entry by entry: `numpy.savez` takes names as keywords, and some names are its own.
    folder.mkdir()
    file = folder / f"{path.stem}.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in sample.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return file


def _inputs_of(model: Mapping[str, Any]) -> Recipe:
    """Return what a manifest says of its inputs as a recipe says it."""
    from packager.recipe import AudioInput, ColumnsInput, ImageInput, Recipe

    def entries(key: str) -> dict[str, Any]:
        found: dict[str, Any] = model.get(key) or {}
        return found

    return Recipe(
        model=str(model["source"]),
        name="bundle",
        images={n: ImageInput(size=tuple(e["size"])) for n, e in entries("images").items()},
        audio={
            n: AudioInput(sample_rate=e["sample_rate"], window=e.get("window"))
            for n, e in entries("audio").items()
        },
        columns={n: ColumnsInput(names=tuple(e["names"])) for n, e in entries("columns").items()},
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
