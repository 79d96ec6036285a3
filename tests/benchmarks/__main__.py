"""Runs every benchmark, or those named: `python tests/benchmarks [NAME[:ROW,…] …]`."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

NAMES = (
    "starting",
    "building",
    "serving",
    "closed",
    "grpc_serving",
    "batching",
    "saturated",
    "health",
    "compressing",
)
# Only by name: single passes on one model, and other tools, which take longer.
OTHERS = (
    "minilm",
    "efficientnet",
    "recogniser",
    "parts",
    "adapter",
    "engines",
    "servers",
    "soak",
    "peers",
)


def main(words: list[str]) -> int:
    """Run the benchmarks in order and print their tables."""
    asked = [word.partition(":") for word in words or NAMES]
    unknown = {name for name, _, _ in asked} - {*NAMES, *OTHERS}
    if unknown:
        return refuse(f"there is no benchmark {', '.join(sorted(unknown))}", (*NAMES, *OTHERS))
    runs = []
    for name, _, rows in asked:
        module = importlib.import_module(f"tests.benchmarks.{name}")
        wanted = rows.split(",") if rows else []
        known = getattr(module, "ROWS", ())
        if set(wanted) - set(known):
            return refuse(
                f"`{name}` has no row {', '.join(sorted(set(wanted) - set(known)))}", known
            )
        runs.append((module.main, [wanted] if wanted else []))
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    print(f"{cpu}, CPython {platform.python_version()}\n")
    for run, arguments in runs:
        run(*arguments)
        print()
    return 0


def refuse(message: str, accepted: tuple[str, ...]) -> int:
    """Say what cannot be, and what can."""
    print(f"error: {message}", file=sys.stderr)
    print(f"\naccepted: {', '.join(accepted) or 'no rows'}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
