"""The wheel holds the tree and nothing else, and works as well as an editable install."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = {
    "runtime": "runtime",
    "templates": "templates",
    "targets": "targets",
    "docs/examples": "examples",
}
# What the user's own machine carries, so that nobody is surprised by a licence.
ALLOWED_LICENCES = (
    "mit",
    "bsd",
    "apache",
    "psf",
    "python",
    "hpnd",
    "isc",
    "mpl",
    "cc0",
    "zlib",
    "unlicense",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def make_venv(folder: Path) -> Path:
    """Return the interpreter of a new environment that sees this one's packages, after its own."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = sysconfig.get_path("purelib", "venv", {"base": str(folder)})
    (Path(site) / "test-packages.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
            "--no-build-isolation", "--no-index", *what,
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def ask(python: Path, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [python.with_name("edgepack"), *arguments],
        cwd=cwd, env={"HOME": str(cwd), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree(folder: str, prefix: str) -> set[str]:
    return {
        f"{prefix}/{path.relative_to(ROOT / folder).as_posix()}"
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path):
    expected = tree("packager", "packager")
    for folder, name in DATA.items():
        expected |= tree(folder, f"packager/_data/{name}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    assert set(names) - metadata == expected
    assert len(names) == len(set(names))
    assert {name.split("/", 1)[1] for name in metadata} == {
        "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip


def test_the_wheel_works_where_the_checkout_is_not(wheel: Path, tmp_path: Path):
    python = make_venv(tmp_path / "venv")
    install(python, wheel)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    landed = {path.name for path in site.iterdir()} - {"test-packages.pth"}
    assert {name for name in landed if not name.endswith(".dist-info")} == {"packager"}
    where = subprocess.run(
        [python, "-c", "import packager; print(packager.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(site)
    assert "Usage" in ask(python, "--help", cwd=tmp_path)
    shown = ask(python, "targets", "list", cwd=tmp_path)
    assert all(path.stem in shown for path in (ROOT / "targets").glob("*.toml"))


def test_an_editable_install_works_and_reads_the_checkout(tmp_path: Path):
    python = make_venv(tmp_path / "venv")
    install(python, "--editable", ROOT)
    program = (
        "import packager; from packager.resources import data_dir\n"
        "print(packager.__file__, data_dir('targets'), sep='\\n')"
    )
    where = subprocess.run(
        [python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert where.stdout.split() == [str(ROOT / "packager/__init__.py"), str(ROOT / "targets")]
    assert "cpu-x86_64" in ask(python, "targets", "list", cwd=tmp_path)
    assert not (ROOT / "packager" / "_data").exists()


def test_every_dependency_is_pinned_in_the_constraints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(r for extra in project["project"]["optional-dependencies"].values() for r in extra),
        *(
            r
            for group in project["dependency-groups"].values()
            for r in group
            if isinstance(r, str)
        ),
    ]
    names = {_name(requirement) for requirement in wanted} - {"edgepack"}
    alone = {_name(r) for r in project["dependency-groups"]["models"]}
    seen: set[str] = set()
    while names - seen:
        name = (names - seen).pop()
        seen.add(name)
        if name in alone:
            continue  # installed without their dependencies, for the file inside
        names |= _dependencies(name)
    assert seen - pins == set()


def test_what_a_user_installs_with_edgepack_has_a_permissive_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = {_name(requirement) for requirement in project["project"]["dependencies"]}
    while more := {d for name in names for d in _dependencies(name)} - names:
        names |= more
    unclear = {}
    for name in names:
        metadata = distribution(name).metadata
        words = " ".join(
            [
                metadata.get("License-Expression") or "",
                metadata.get("License") or "",
                *(c for c in metadata.get_all("Classifier") or () if c.startswith("License")),
            ]
        ).lower()
        if not any(licence in words for licence in ALLOWED_LICENCES) or "gpl" in words:
            unclear[name] = words[:80]
    assert unclear == {}


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    return canonicalize_name(Requirement(requirement).name)


def _dependencies(name: str) -> set[str]:
    """Return what an installed distribution needs here, extras left out."""
    from importlib.metadata import PackageNotFoundError

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        listed = requires(name) or []
    except PackageNotFoundError:
        return set()
    found = [Requirement(text) for text in listed]
    return {
        canonicalize_name(requirement.name)
        for requirement in found
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
