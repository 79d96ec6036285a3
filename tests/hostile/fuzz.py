"""Fuzzes the runtime's parsers: `python tests/hostile/fuzz.py [--minutes N] [TARGET …]`.

Where `atheris` can be imported, coverage leads the way; otherwise inputs that had a new outcome
are kept and changed further. Either begins with the requests of this folder's corpus. A failure
is written to a file, whose path is printed; `--replay FILE TARGET` runs it again.
"""

# ruff: noqa: T201 - a program that people run

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from tests.hostile.fuzz_targets import Target

NAMES = ("head", "framing", "json", "http2", "hpack", "protobuf", "npz", "wav", "csv")
MOST_INPUT_S = 5
# How much slower code is whose coverage is watched.
_COST_OF_WATCHING = 8
MOST_GROWTH_MIB = 128
MOST_BYTES = 1 << 16
MOST_KEPT = 4000
# What a parser says of numbers and of quoted words says nothing about where it was.
_DETAILS = re.compile(r"[0-9]+|`[^`]*`|'[^']*'")


class TooSlowError(Exception):
    """One input took longer than any may."""


def main(argv: list[str] | None = None) -> int:
    """Fuzz until the time is over; return 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="*", choices=[*NAMES, []], help="by default all")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--seed", type=int, default=None, help="makes a run repeatable")
    parser.add_argument("--engine", choices=["atheris", "outcomes"], default=None)
    parser.add_argument("--replay", type=Path, default=None, help="one input for one target")
    parser.add_argument("--failures", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args(argv)
    names = options.target or list(NAMES)
    engine = options.engine
    if engine is None:
        engine = "atheris" if importlib.util.find_spec("atheris") else "outcomes"
    seed = random.SystemRandom().getrandbits(31) if options.seed is None else options.seed
    if options.replay is not None:
        _run(_target(names[0]), options.replay.read_bytes())
        return 0
    failed = False
    for name in names:
        seconds = options.minutes * 60 / len(names)
        if engine == "atheris" and len(names) > 1:
            # libFuzzer ends the process it runs in
            argv = [sys.executable, __file__, name, "--engine", "atheris", "--seed", str(seed)]
            argv += ["--minutes", str(seconds / 60), "--failures", str(options.failures)]
            failed |= subprocess.run(argv, check=False).returncode != 0
        elif engine == "atheris":
            _lead_by_coverage(name, seconds, seed, options.failures)
        else:
            failed |= not _lead_by_outcomes(name, seconds, seed, options.failures)
    return 1 if failed else 0


def _target(name: str) -> Target:
    from tests.hostile.fuzz_targets import targets

    return targets()[name]()


def _run(target: Target, data: bytes) -> str:
    """Return what became of an input.

    Raises:
        Exception: none of a stranger's mistakes.
    """
    try:
        return "+" + target.parse(data)
    except target.mistakes as error:
        if getattr(error, "status", 400) >= 500:
            raise
        return "-" + _DETAILS.sub("#", f"{type(error).__name__} {error}")


def _lead_by_coverage(name: str, seconds: float, seed: int, failures: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["runtime"]):
        target = _target(name)
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    words = corpus.parent / f"{corpus.name}.words"
    words.write_text("".join(f'"{_quoted(word)}"\n' for word in target.words), encoding="ascii")
    flags: dict[str, object] = {
        "max_total_time": max(1, int(seconds)),
        "seed": seed or 1,
        "timeout": MOST_INPUT_S * _COST_OF_WATCHING,
        "max_len": MOST_BYTES,
        "rss_limit_mb": 2048,
        "print_final_stats": 1,
        "artifact_prefix": f"{failures}/{name}-",
    }
    if target.words:
        flags["dict"] = words
    given = [sys.argv[0], str(corpus), *(f"-{key}={value}" for key, value in flags.items())]
    atheris.Setup(given, lambda data: _run(target, data))
    print(f"{name}: {len(target.seeds)} seeds, {seconds:.0f} s, led by coverage", flush=True)
    atheris.Fuzz()


def _quoted(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _lead_by_outcomes(name: str, seconds: float, seed: int, failures: Path) -> bool:
    """Keep what had a new outcome, change it further; return whether nothing failed."""
    dice = random.Random(seed)
    target = _target(name)
    kept = list(target.seeds)
    seen: set[str] = set()
    runs = 0
    before_mib = 0.0
    signal.signal(signal.SIGALRM, _too_slow)
    until = time.monotonic() + seconds
    waiting = list(kept)
    while time.monotonic() < until or runs < len(target.seeds):
        data = waiting.pop() if waiting else _changed(dice, dice.choice(kept), kept, target.words)
        signal.alarm(MOST_INPUT_S)
        try:
            outcome = _run(target, data)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we look for
            signal.alarm(0)
            path = failures / f"{name}-{seed}-{runs}"
            path.write_bytes(data)
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}; the input is in {path}")
            return False
        signal.alarm(0)
        runs += 1
        if outcome not in seen:
            seen.add(outcome)
            if len(kept) < MOST_KEPT:
                kept.append(data)
        if runs == len(target.seeds) + 500:
            before_mib = _peak_mib()
    growth_mib = _peak_mib() - before_mib if before_mib else 0.0
    print(
        f"{name}: {runs} inputs, {len(seen)} outcomes, {growth_mib:.0f} MiB more, seed {seed}",
        flush=True,
    )
    return growth_mib <= MOST_GROWTH_MIB


def _too_slow(number: int, frame: FrameType | None) -> Any:
    raise TooSlowError(f"more than {MOST_INPUT_S} s")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _changed(
    dice: random.Random, data: bytes, others: list[bytes], words: Iterable[bytes]
) -> bytes:
    """Return an input with a few changes."""
    out = bytearray(data)
    words = list(words)
    for _ in range(1 << dice.randrange(4)):
        at = dice.randrange(len(out) + 1)
        end = min(len(out), at + (1 << dice.randrange(6)))
        choice = dice.randrange(9)
        if choice == 0:
            out[at:at] = dice.randbytes(1 << dice.randrange(4))
        elif choice == 1:
            del out[at:end]
        elif choice == 2 and at < len(out):
            out[at] ^= 1 << dice.randrange(8)
        elif choice == 3 and at < len(out):
            out[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
        elif choice == 4:
            out[at:at] = out[at:end] * dice.choice((1, 2, 50))
        elif choice == 5 and words:
            out[at:at] = dice.choice(words)
        elif choice == 6:
            other = dice.choice(others)
            start = dice.randrange(len(other) + 1)
            out[at:end] = other[start : start + (1 << dice.randrange(8))]
        elif choice == 7:
            out[at:end] = (dice.choice((0, 1, (1 << 32) - 1, 1 << 31))).to_bytes(4, "big")
        else:
            digits = list(re.finditer(rb"[0-9]+", bytes(out)))
            if digits:
                found = dice.choice(digits)
                new = dice.choice((b"0", b"-1", b"1e9", b"4294967296", b"18446744073709551616"))
                out[found.start() : found.end()] = new
    return bytes(out[:MOST_BYTES])


if __name__ == "__main__":
    sys.exit(main())
