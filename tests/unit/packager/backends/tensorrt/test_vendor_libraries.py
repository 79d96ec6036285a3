"""NVIDIA's files in a bundle: which, from where, on what terms, and that they load there."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from packager.backends.tensorrt import vendor_libraries as module
from packager.backends.tensorrt.needs import needs
from packager.backends.tensorrt.vendor_libraries import (
    MODULE_SOURCE,
    carried_pythons,
    vendor_files,
    vendor_terms,
)
from packager.bundle.vendor import vendor_entries
from packager.console import Silent
from packager.errors import BackendMissing, IntegrityError, TargetError
from packager.manifest import sha256_file
from packager.target import find_target

ROOT = Path(__file__).resolve().parents[5]
RTX = ("rtx-ampere", "rtx-ada", "rtx-blackwell")
LIBRARIES = {
    "vendor/tensorrt_rtx_libs/__init__.py",
    "vendor/tensorrt_rtx_libs/libtensorrt_rtx.so.1",
    "vendor/tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.1",
    "vendor/nvidia/cu13/lib/libcudart.so.13",
}


def bindings(*tags: str) -> set[str]:
    names = ("__init__.py", "tensorrt_rtx.so")
    return {f"vendor/{tag}/tensorrt_rtx_bindings/{name}" for tag in tags for name in names}


@pytest.mark.parametrize("name", RTX)
def test_an_rtx_bundle_carries_libraries_and_bindings_for_every_cpython(name: str) -> None:
    found = {file.path for file in vendor_files(find_target(name))}
    assert found == LIBRARIES | bindings("cp38", "cp39", "cp310", "cp311", "cp312", "cp313")


def test_an_older_cpython_than_the_target_s_gets_no_bindings() -> None:
    target = find_target("dgx-spark")
    assert {file.path for file in vendor_files(target)} == LIBRARIES | bindings("cp312", "cp313")
    assert carried_pythons(target) == ("3.12", "3.13")


def test_every_file_is_of_the_target_s_processor_and_of_the_version_it_names() -> None:
    for name in (*RTX, "dgx-spark"):
        target = find_target(name)
        assert target.tensorrt is not None
        for file in vendor_files(target):
            assert file.library.platform.endswith(target.arch)
            if file.library.package.startswith("tensorrt"):
                assert file.library.version == target.tensorrt.version
            else:
                assert file.library.version.startswith(target.tensorrt.cuda + ".")


def test_the_plan_says_what_the_licence_asks() -> None:
    (carried, how), *terms = vendor_terms(find_target("rtx-ada"))
    assert carried.endswith(": 258 MiB once unpacked, bindings for CPython 3.8 to 3.13")
    assert "`--vendor-libraries`" in how
    said = dict(terms)
    assert "ask NVIDIA before such a bundle leaves your organisation" in said
    assert any("section 12.1" in why for why in said.values())
    assert any("libcuda.so.1" in why for why in said.values())


def test_what_is_carried_is_not_asked_of_the_device() -> None:
    target = find_target("rtx-ada")
    assert target.tensorrt is not None
    asked = needs(target.tensorrt, "")
    carried = needs(target.tensorrt, "", carried_pythons(target))
    assert len(asked) == 4
    assert carried == [
        *asked[:2],
        "CPython 3.8 to 3.13: the bundle brings TensorRT-RTX and CUDA's runtime for these",
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cpu-x86_64", "`cpu-x86_64` has no TensorRT"),
        ("server-l4", "`server-l4` has tensorrt, which its own system brings"),
    ],
)
def test_what_cannot_be_carried_is_refused(name: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        vendor_files(find_target(name))
    assert says in caught.value.message


def installed(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"`{name}` is not installed (extra `rtx`)")
    return Path(spec.origin).parent


def test_the_digests_are_those_of_the_installed_packages() -> None:
    site = installed("tensorrt_rtx_libs").parent
    installed("tensorrt_rtx_bindings")
    tag = "cp{}{}".format(*sys.version_info)
    checked = [
        file
        for file in vendor_files(find_target("rtx-ada"))
        if file.library.package.startswith("tensorrt") and file.library.python_tag in (tag, "py3")
    ]
    assert len(checked) == 5
    for file in checked:
        assert (site / file.library.member).stat().st_size == file.library.member_size
        assert sha256_file(site / file.library.member) == file.library.member_sha256
        assert all((site / text).is_file() for text in file.library.licenses)


def test_what_is_carried_builds_an_engine_without_the_installed_packages(tmp_path: Path) -> None:
    libraries, bound = installed("tensorrt_rtx_libs"), installed("tensorrt_rtx_bindings")
    vendor = tmp_path / "release" / "vendor"
    own = vendor / "cp{}{}".format(*sys.version_info)
    own.mkdir(parents=True)
    (vendor / "tensorrt_rtx_libs").symlink_to(libraries)
    (own / "tensorrt_rtx_bindings").symlink_to(bound)
    (vendor / "tensorrt_rtx.py").write_bytes(MODULE_SOURCE)
    code = (
        "import json, sys\n"
        "sys.path.append(sys.argv[2])\n"
        "from runtime.nvidia.carried import use_carried\n"
        "from runtime.nvidia.vendor import load_vendor\n"
        "assert use_carried(sys.argv[1]) and use_carried(sys.argv[1])\n"
        "vendor = load_vendor('tensorrt_rtx')\n"
        "builder = vendor.trt.Builder(vendor.trt.Logger(vendor.trt.Logger.ERROR))\n"
        "print(json.dumps([vendor.version, vendor.trt.__file__, builder is not None]))\n"
    )
    # -S: nothing that is installed can be found.
    words = [sys.executable, "-I", "-S", "-B", "-c", code, str(tmp_path / "release"), str(ROOT)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    version, origin, built = json.loads(done.stdout)
    assert version == "1.7.1.116"
    assert origin == str(vendor / "tensorrt_rtx.py")
    assert built


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> dict[str, Any]:
    """Write a wheel and return its row of the table."""
    package, version, tag, _, platform = name.removesuffix(".whl").split("-")
    text = f"{package}-{version}.dist-info/LICENSE.txt"
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, data in {**members, text: b"terms of " + package.encode()}.items():
            archive.writestr(zipfile.ZipInfo(path), data)
    return {
        "package": package, "version": version, "arch": "x86_64", "python_tag": tag,
        "platform": platform, "sha256": sha256_file(folder / name), "licenses": [text],
        "member": [
            {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for path, data in members.items()
        ],
    }  # fmt: skip


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small wheels of the same layout, in the place of NVIDIA's."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    end = "1.0-{}-none-manylinux_2_28_x86_64.whl"
    rows = [
        wheel(
            folder, "tiny_libs-" + end.format("py3"),
            {"tiny_libs/libtiny.so.1": b"\x7fELF" + bytes(40_000), "tiny_libs/__init__.py": b"#"},
        )
    ]  # fmt: skip
    for tag in ("cp37", "cp38", "cp311"):
        members = {"tiny_bindings/tiny.so": b"\x7fELF" + tag.encode() * 9000}
        rows.append(wheel(folder, "tiny_bindings-" + end.format(tag), members))
    monkeypatch.setattr(module, "_read", lambda _: {"wheel": rows})
    return folder


def test_files_come_from_a_wheelhouse_with_their_licences(wheels: Path, tmp_path: Path) -> None:
    def entries() -> list[tuple[str, bytes]]:
        found = vendor_entries(
            find_target("rtx-ada"), cache=tmp_path / "cache", wheelhouse=wheels, reporter=Silent()
        )
        return [
            (entry.path, entry.source if isinstance(entry.source, bytes)
             else entry.source.read_bytes())
            for entry in found
        ]  # fmt: skip

    found = dict(entries())
    assert list(found) == [
        "licenses/tiny_bindings/LICENSE.txt", "licenses/tiny_libs/LICENSE.txt",
        "vendor/cp311/tiny_bindings/tiny.so", "vendor/cp38/tiny_bindings/tiny.so",
        "vendor/tensorrt_rtx.py", "vendor/tiny_libs/__init__.py", "vendor/tiny_libs/libtiny.so.1",
    ]  # fmt: skip
    assert found["vendor/cp38/tiny_bindings/tiny.so"] == b"\x7fELF" + b"cp38" * 9000
    assert found["licenses/tiny_libs/LICENSE.txt"] == b"terms of tiny_libs"
    assert found["vendor/tensorrt_rtx.py"] == MODULE_SOURCE
    for path in wheels.iterdir():
        path.unlink()
    assert dict(entries()) == found  # from the cache


def test_another_wheel_of_that_name_is_refused(wheels: Path, tmp_path: Path) -> None:
    path = wheels / "tiny_libs-1.0-py3-none-manylinux_2_28_x86_64.whl"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(IntegrityError, match="is not the wheel that the target names"):
        vendor_entries(
            find_target("rtx-ada"), cache=tmp_path / "cache", wheelhouse=wheels, reporter=Silent()
        )


def test_an_absent_wheel_is_named_with_the_command_that_fetches_it(
    wheels: Path, tmp_path: Path
) -> None:
    for path in wheels.glob("tiny_libs*"):
        path.unlink()
    with pytest.raises(BackendMissing) as caught:
        vendor_entries(
            find_target("rtx-ada"), cache=tmp_path / "cache", wheelhouse=wheels, reporter=Silent()
        )
    assert "no wheel of tiny_libs 1.0" in caught.value.message
    hint = caught.value.hint or ""
    assert "pip download" in hint
    assert "--python-version" not in hint  # a wheel for any Python
    assert "--platform manylinux_2_28_x86_64" in hint


def test_a_python_without_bindings_is_told(tmp_path: Path) -> None:
    from runtime.nvidia.carried import use_carried
    from runtime.nvidia.vendor import VendorMissing

    before = list(sys.path)
    assert not use_carried(str(tmp_path))
    for tag in ("cp310", "cp39", "nvidia", "cpx"):
        (tmp_path / "vendor" / tag).mkdir(parents=True)
    with pytest.raises(VendorMissing) as caught:
        use_carried(str(tmp_path))
    here = "{}.{}".format(*itertools.islice(sys.version_info, 2))
    assert caught.value.message == (
        f"this bundle carries TensorRT-RTX for CPython 3.9, 3.10, and this is {here}"
    )
    assert sys.path == before
