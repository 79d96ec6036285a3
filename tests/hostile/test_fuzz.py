"""A short run of the fuzzer with a fixed seed, and proof that it finds what is to be found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import BadRequest, Busy
from tests.hostile import fuzz
from tests.hostile.fuzz_targets import Target, targets

PROGRAM = str(Path(fuzz.__file__))


def test_every_target_is_there_and_takes_its_seeds() -> None:
    made = targets()
    assert tuple(made) == fuzz.NAMES
    for make in made.values():
        target = make()
        outcomes = {fuzz._run(target, seed) for seed in target.seeds}
        assert any(outcome[0] == "+" for outcome in outcomes), "none of its seeds is good"
        assert len(target.seeds) >= 6


def test_five_seconds_with_a_fixed_seed_find_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, "--engine", "outcomes", "--minutes", str(5 / 60), "--seed", "5",
         "--failures", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(fuzz.NAMES)


def _broken(data: bytes) -> str:
    if b"\xff" in data:
        raise KeyError("a fault of ours")
    raise BadRequest("a mistake of theirs")


def _overloaded(data: bytes) -> str:
    raise Busy("for no reason")


@pytest.mark.parametrize("parse", [_broken, _overloaded])
def test_a_fault_is_found_kept_and_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    parse: object,
) -> None:
    target = Target(parse=parse, seeds=[b"abc"])  # type: ignore[arg-type]
    monkeypatch.setattr(fuzz, "_target", lambda name: target)
    arguments = ["csv", "--engine", "outcomes", "--minutes", "0.5", "--seed", "1"]
    assert fuzz.main([*arguments, "--failures", str(tmp_path)]) == 1
    (kept,) = tmp_path.iterdir()
    assert str(kept) in capsys.readouterr().out
    with pytest.raises((KeyError, Busy)):
        fuzz.main(["csv", "--replay", str(kept)])
