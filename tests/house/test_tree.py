"""Rules about the source that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("packager", "runtime")
STDLIB = sys.stdlib_module_names
# Put together here, so that this file does not hold what it looks for.
PLACES = re.compile(
    "|".join(["/wor" + "k/", "/roo" + "t/", r"/home/(?!some)[a-z]\w*/", "/tm" + "p/wl/"])
)
HOSTS = re.compile(
    "|".join(
        host.replace(" ", "")
        for host in (
            r"py pi\.org",
            r"python hosted\.org",
            r"npm js\.(org|com)",
            r"deb\.deb ian\.org",
            r"download\.py torch\.org",
        )
    )
)
UNFINISHED = re.compile(
    "|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", r"raise NotImpl" + "ementedError"])
)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def texts(files: list[Path]) -> list[tuple[str, str]]:
    found = []
    for path in files:
        try:
            found.append((relative(path), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # a picture or an archive
    return found


def test_no_file_names_a_folder_of_one_machine(repository_files):
    assert [name for name, text in texts(repository_files) if PLACES.search(text)] == []


def test_no_file_names_the_host_of_a_registry(repository_files):
    assert [name for name, text in texts(repository_files) if HOSTS.search(text)] == []


def test_nothing_is_left_unfinished():
    files = [*sources(*SOURCES), *sorted((ROOT / "templates").rglob("*.j2"))]
    assert [name for name, text in texts(files) if UNFINISHED.search(text)] == []


def test_no_module_is_past_600_lines():
    files = [*sources("packager", "runtime", "tests"), *sorted((ROOT / "templates").rglob("*.j2"))]
    assert [name for name, text in texts(files) if text.count("\n") > 600] == []


@pytest.mark.parametrize("path", sources(*SOURCES), ids=relative)
def test_the_first_line_of_a_module_says_its_job(path: Path):
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "no docstring"
    assert len(docstring.splitlines()[0]) <= 100


def test_only_the_console_and_the_commands_write_to_standard_output():
    # What runs as a child process answers its parent there, and no person reads that.
    writers = {"sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write", "os.write"}
    strays = [
        f"{relative(path)}:{node.lineno}"
        for path in sources("packager")
        if path.parent.name != "cli" and path.name != "console.py"
        if '__name__ == "__main__"' not in path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in writers
    ]
    assert strays == []


def test_only_the_process_module_starts_processes():
    strays = [
        relative(path)
        for path in sources("packager")
        if path.name != "process.py" and _imported(path) & {"subprocess", "pty", "multiprocessing"}
    ]
    assert strays == []


def test_the_runtime_imports_itself_and_the_standard_library_alone():
    strays = {relative(path): _imported(path) - STDLIB for path in sources("runtime")}
    assert {name: modules for name, modules in strays.items() if modules} == {}


def test_the_runtime_is_read_by_every_python_of_a_device(old_python: Path):
    program = (
        "import sys, warnings; warnings.simplefilter('error')\n"
        "for p in sys.argv[1:]:\n"
        "    with open(p, encoding='utf-8') as stream: compile(stream.read(), p, 'exec')"
    )
    done = subprocess.run(
        [old_python, "-Ic", program, *sources("runtime")],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""


def _imported(path: Path) -> set[str]:
    """Return the top-level names of absolute imports, wherever they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names
