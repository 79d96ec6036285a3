"""The exported service and socket under a systemd that is process 1, in a machine of its own.

The machine is emulated, which makes this minutes long: 2 to make the machine, once per checkout,
and some 9 to boot it and let `booted/checks.py` do in it what the guide says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import SHARED_CACHE
from tests.e2e.booted import checks, machine

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def told(
    build: Callable[..., dict[str, Any]],
    edgepack_session: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Return what was found in the machine, by the name of the check."""
    reason = machine.what_is_missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("booted")
    given = [Path(checks.__file__)]
    for name, version, recipe in (
        ("mlp", "1.0.0", ""),
        ("mlp", "1.1.0", ""),
        ("kept", "1.0.0", "[privacy]\ncapture = 1.0\n"),
    ):
        given.append(_bundle(build, folder, name=name, version=version, recipe=recipe))
    units = folder / "units"
    closed = ("--tls", "--keys", "--client-ca", "--host", "0.0.0.0", "--port", "8443")  # noqa: S104 - inside
    for bundle, options in ((given[1], ()), (given[3], closed)):
        edgepack_session("export", bundle, "--format", "systemd", "-o", units, *options, check=True)
    given += sorted(units.iterdir())
    text = machine.run(machine.make(SHARED_CACHE / "machines"), given, folder, timeout_s=2400)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    found = {line["check"]: line for line in lines if "check" in line}
    found["journal"] = next((line["journal"] for line in lines if "journal" in line), text)
    return found


def _bundle(
    build: Callable[..., dict[str, Any]], folder: Path, *, name: str, version: str, recipe: str
) -> Path:
    import onnx

    from tests.models.mlp import make_mlp

    model, words = folder / "mlp.onnx", folder / f"{name}.toml"
    onnx.save(make_mlp(), model)
    words.write_text(recipe)
    built = build(
        model, "-r", words, "-t", "cpu-x86_64", "--precision", "fp32", "-c", "random",
        "--name", name, "--version", version,
    )  # fmt: skip
    path = folder / f"{name}-{version}.edgepack"
    Path(built["path"]).rename(path)
    return path


@pytest.mark.parametrize("check", [check.__name__ for check in checks.CHECKS])
def test_under_a_booted_systemd_the_service_is(check: str, told: dict[str, Any]) -> None:
    assert check in told, told["journal"][-4000:]
    failed = told[check]["failed"]
    assert failed is None, f"{failed}\n{told['journal'][-6000:]}"
