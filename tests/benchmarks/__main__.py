"""Runs every benchmark, or those named: `python tests/benchmarks [NAME…]`."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

NAMES = ("starting", "building", "serving", "efficientnet", "recogniser")


def main(names: list[str]) -> int:
    """Run the benchmarks in order and print their tables."""
    unknown = set(names) - set(NAMES)
    if unknown:
        print(f"error: there is no benchmark {', '.join(sorted(unknown))}", file=sys.stderr)
        print(f"\naccepted: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    print(f"{cpu}, CPython {platform.python_version()}\n")
    for name in names or NAMES:
        importlib.import_module(f"tests.benchmarks.{name}").main()
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
