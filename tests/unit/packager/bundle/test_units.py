"""What starts a bundle elsewhere: judged by the programs that read it, and run by its rules."""

from __future__ import annotations

import ctypes
import http.client
import json
import math
import os
import plistlib
import re
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from packager.bundle.assemble import target_fields
from packager.bundle.render import render
from packager.bundle.units import FORMATS, Place, check_place, export
from packager.errors import InputOutputError, IntegrityError, TargetError, UsageError
from packager.target import find_target
from tests.unit.packager.bundle.sandbox import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from packager.bundle.assemble import Bundle

SANDBOX = Path(__file__).with_name("sandbox.py")
GPU_TARGETS = ("jetson-orin-nano-8gb@6.2", "jetson-agx-xavier@5.1", "rtx-ada", "server-l4")
CPU_TARGETS = ("cpu-x86_64", "cpu-arm64", "raspberry-pi-5")


def manifest(target: str, **fields: Any) -> dict[str, Any]:
    found = find_target(target)
    gpu = {"tensorrt": {"module": "tensorrt"}} if target in GPU_TARGETS else {}
    known = {"name": "a--digits.v2", "version": "1.2.0", "edgepack": "0.1.0"}
    return {**known, "target": target_fields(found), **gpu, **fields}


def written(
    target: str, kind: str, folder: Path, place: Place | None = None, **fields: Any
) -> Path:
    for name, text in FORMATS[kind](
        manifest(target, **fields), Path("digits.edgepack"), place or Place()
    ).items():
        (folder / name).write_text(text)
    return folder


def unit(folder: Path) -> Path:
    (found,) = folder.glob("*.service")
    return found


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_units_are_the_golden_ones(golden: Callable[[str, str], None]) -> None:
    for target, kinds in (("cpu-x86_64", FORMATS), ("jetson-orin-nano-8gb@6.2", ("systemd",))):
        for kind in kinds:
            files = FORMATS[kind](manifest(target), Path("digits.edgepack"), Place())
            for name, text in files.items():
                golden(f"render/units/{target}/{kind}/{name}", text)


@pytest.mark.parametrize("target", [*CPU_TARGETS, *GPU_TARGETS])
def test_systemd_finds_the_service_hardly_exposed(target: str, tmp_path: Path) -> None:
    # in tenths: 1.5 on a processor alone, 2.0 where a GPU's driver needs more
    limit = 20 if target in GPU_TARGETS else 15
    for place in (Place(), Place(host="0.0.0.0", tls=True, keys=True)):  # noqa: S104 - rendered
        path = unit(written(target, "systemd", tmp_path, place))
        done = analyze("security", "--offline=true", f"--threshold={limit}", path)
        level = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
        assert level, done.stderr
        assert float(level[1]) <= limit / 10
        assert done.returncode == 0


@pytest.mark.parametrize("target", ["cpu-x86_64", "jetson-orin-nano-8gb@6.2"])
def test_systemd_reads_every_line(target: str, tmp_path: Path) -> None:
    place = Place(tls=True, keys=True, client_ca=True, python=sys.executable)
    folder = written(target, "systemd", tmp_path, place, privacy={"capture": 0.1})
    done = analyze("verify", *sorted(folder.glob("edgepack-*")))
    ours = [line for line in done.stderr.splitlines() if "edgepack" in line]
    assert ours == []
    assert done.returncode == 0


def test_the_service_has_what_its_target_and_options_ask_for(tmp_path: Path) -> None:
    place = Place(host="::", port=8443, tls=True, keys=True, names=("camera-7.local",))
    found = settings(unit(written("raspberry-pi-5", "systemd", tmp_path, place)))
    folder = "/etc/edgepack/a--digits.v2"
    command = "/usr/bin/python3 /opt/edgepack/a--digits.v2.edgepack serve --host :: --port 8443"
    assert found["ExecStart"] == [command + " --name camera-7.local"]
    assert found["LoadCredential"] == [
        f"{name}:{folder}/{name}" for name in ("tls.crt", "tls.key", "keys.json")
    ]
    memory = find_target("raspberry-pi-5").memory_mib
    assert found["MemoryMax"] == [f"{memory}M"]
    assert found["ExecReload"] == [
        "-/bin/systemd-notify RELOADING=1",  # or else a reload returns before it has ended
        "/bin/sh -c 'kill -HUP $MAINPID'",  # small systems have no other `kill`
    ]
    # whoever is asked must be allowed to tell, and a client must not start what cannot work
    assert found["NotifyAccess"] == ["exec"]
    given_up = found["RestartPreventExitStatus"][0].replace(" ", "|")
    (after,) = found["ExecStopPost"]
    assert f" {given_up}) systemctl --no-block stop edgepack-a--digits.v2.socket;; " in after
    assert "IPAddressDeny" not in found
    (path,) = tmp_path.glob("*.socket")
    assert settings(path)["ListenStream"] == ["[::]:8443"]
    assert "FreeBind" not in settings(path)
    (tmp_path / "one").mkdir()
    written("cpu-x86_64", "systemd", tmp_path / "one", Place(host="192.0.2.7", tls=True))
    (path,) = (tmp_path / "one").glob("*.socket")
    assert settings(path)["FreeBind"] == ["yes"]  # the address may come later than the socket
    plain = settings(unit(written("cpu-x86_64", "systemd", tmp_path)))
    assert "LoadCredential" not in plain
    assert plain["IPAddressDeny"] == ["any"]


def test_only_a_gpu_gets_devices_and_code_made_at_run_time(tmp_path: Path) -> None:
    for target in (*CPU_TARGETS, *GPU_TARGETS):
        found = settings(unit(written(target, "systemd", tmp_path)))
        gpu = target in GPU_TARGETS
        assert found["MemoryDenyWriteExecute"] == ["no" if gpu else "yes"]
        assert found["PrivateDevices"] == ["no" if gpu else "yes"]
        assert bool(found.get("DeviceAllow")) == gpu
        assert found["LimitCORE"] == ["0"]


def test_a_path_that_systemd_could_misread_is_quoted(tmp_path: Path) -> None:
    place = Place(path='/opt/my models/50% $x "y"\\z.edgepack')
    found = settings(unit(written("cpu-x86_64", "systemd", tmp_path, place)))
    assert found["ExecStart"][0].startswith(
        '/usr/bin/python3 "/opt/my models/50%% $$x \\"y\\"\\\\z.edgepack" serve '
    )


@pytest.fixture
def confined(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Return a function that starts a command by the rules of a unit, with its socket."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp is not installed (package libseccomp2)")
    started: list[subprocess.Popen[str]] = []
    starter = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_FDS'] = '1';"
        " os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
    )

    def start(*argv: str | Path) -> tuple[subprocess.Popen[str], int]:
        port = listener.getsockname()[1]
        path = unit(written("cpu-x86_64", "systemd", tmp_path, Place(port=port)))
        descriptor = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-c", starter, str(descriptor), SANDBOX, path, *argv],
            env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache")},
            pass_fds=[descriptor], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process, port

    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield start
        for process in started:
            process.kill()
            process.communicate(timeout=30)


def test_a_bundle_answers_under_the_very_rules_of_its_unit(
    small_bundle: Bundle, confined: Callable[..., tuple[subprocess.Popen[str], int]]
) -> None:
    process, port = confined(sys.executable, small_bundle.path, "serve")
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line == f"ready on http://127.0.0.1:{port}\n", line + process.stderr.read()
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert "Seccomp_filters:\t3\n" in status
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:

        def ask(method: str, path: str, document: Any = None) -> bytes:
            body = None if document is None else json.dumps(document)
            client.request(method, path, body)
            reply = client.getresponse()
            content = reply.read()
            assert reply.status == 200, content
            return content

        (spec,) = json.loads(ask("GET", "/v2/models/small"))["inputs"]
        shape = [max(size, 1) for size in spec["shape"]]
        tensor = {**spec, "shape": shape, "data": [0.5] * math.prod(shape)}
        for _ in range(3):
            answer = json.loads(ask("POST", "/v2/models/small/infer", {"inputs": [tensor]}))
            assert answer["outputs"][0]["data"]
        assert b"process_open_fds" in ask("GET", "/metrics")
    process.terminate()
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    "code",
    [
        "import mmap; mmap.mmap(-1, 4096, prot=7)",
        "import socket; socket.socket(socket.AF_INET)",
        "import os; os.chown('.', 0, 0)",
        "import os; os.sched_setaffinity(0, {0})",
    ],
)
def test_what_those_rules_forbid_is_refused(
    code: str, confined: Callable[..., tuple[subprocess.Popen[str], int]]
) -> None:
    process, _ = confined(sys.executable, "-c", code)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search(r"(PermissionError|OSError: \[Errno 97\])", said), said


def test_the_container_file_unpacks_verified_and_serves_as_nobody(tmp_path: Path) -> None:
    written("cpu-x86_64", "container", tmp_path)
    lines = (tmp_path / "Containerfile").read_text().splitlines()
    steps = [line.split(" ", 1) for line in lines if re.match("[A-Z]+ ", line)]
    words = [word for word, _ in steps]
    assert words[:4] == ["FROM", "COPY", "RUN", "FROM"]
    assert {"USER", "HEALTHCHECK", "ENTRYPOINT", "CMD", "STOPSIGNAL"} <= set(words)
    assert not any("pip" in text for _, text in steps)
    found = dict(steps)
    assert found["USER"] == "65532:65532"
    assert json.loads(found["ENTRYPOINT"]) == ["python3", "/release"]
    assert json.loads(found["CMD"]) == ["serve", "--host", "127.0.0.1", "--port", "8000"]
    assert json.loads(found["RUN"]) == ["python3", "/bundle.edgepack", "unpack", "/release"]


@pytest.mark.parametrize(
    "place",
    [
        Place(),
        Place(host="0.0.0.0", tls=True),  # noqa: S104 - rendered
        Place(host="::1"),
        Place(tls=True, client_ca=True),
    ],
)
def test_the_probe_of_a_container_is_python_that_compiles(place: Place, tmp_path: Path) -> None:
    written("cpu-x86_64", "container", tmp_path, place)
    text = (tmp_path / "Containerfile").read_text()
    (line,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)
    python, option, code = json.loads(line)
    assert (python, option) == ("python3", "-c")
    compile(code, "probe", "exec")
    assert ("127.0.0.1" in code) == (place.host != "::1")


def test_a_server_that_keeps_something_gets_a_place_and_a_key(tmp_path: Path) -> None:
    written("cpu-x86_64", "container", tmp_path, privacy={"capture": 0.1})
    text = (tmp_path / "Containerfile").read_text()
    assert 'VOLUME ["/var/lib/edgepack"]' in text
    assert "--chown=65532:65532 /state" in text
    written("cpu-x86_64", "systemd", tmp_path, privacy={"capture": 0.0, "drift": True})
    assert settings(unit(tmp_path))["LoadCredential"] == [
        "capture.key:/etc/edgepack/a--digits.v2/capture.key"
    ]


def test_the_job_of_a_mac_runs_the_container_on_its_loopback(tmp_path: Path) -> None:
    written("cpu-arm64", "launchd", tmp_path, Place(port=8123, names=("mac.local",)))
    (path,) = tmp_path.glob("*.plist")
    found = plistlib.loads(path.read_bytes())
    assert path.name == found["Label"] + ".plist"
    words = found["ProgramArguments"]
    assert "--publish=127.0.0.1:8123:8123" in words
    assert words[words.index("localhost/edgepack/a--digits.v2:1.2.0") + 1] == "serve"
    assert found["KeepAlive"] is True
    assert (tmp_path / "Containerfile").exists()


@pytest.mark.parametrize(
    ("kind", "target", "place", "message"),
    [
        ("launchd", "cpu-arm64", Place(tls=True), "serves that Mac alone"),
        ("container", "server-l4", Place(), "no image is known for `server-l4`"),
        ("systemd", "cpu-x86_64", Place(path="/home/x"), "cannot see `/home`"),
        ("systemd", "cpu-x86_64", Place(path="/run/user/1/x"), "cannot see `/run/user`"),
    ],
)
def test_what_a_format_cannot_start_is_refused(
    kind: str, target: str, place: Place, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        written(target, kind, tmp_path, place)


def test_no_mac_serves_what_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no Mac can serve a bundle for `rtx-ada`"):
        written("rtx-ada", "launchd", tmp_path)


@pytest.mark.parametrize(
    "name", ["my digits.edgepack", "*.edgepack", "-x.edgepack", 'a"b.edgepack']
)
def test_a_file_name_that_means_more_in_a_container_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be named in a container file"):
        FORMATS["container"](manifest("cpu-x86_64"), Path(name), Place())


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Place(host="0.0.0.0"), "can be reached from other machines"),  # noqa: S104 - refused
        (Place(host="192.168.1.5", keys=True, insecure=True), "would travel in the clear"),
        (Place(host="example.com"), "is no IP address"),
        (Place(host="0.0.0.0\nUser=root"), "is no IP address"),
        (Place(port=0), "`0` is no port"),
        (Place(port=65536), "`65536` is no port"),
        (Place(client_ca=True), "over TLS only"),
        (Place(names=("a b",)), "`a b` is no host name"),
        (Place(names=("--insecure",)), "is no host name"),
        (Place(path="opt/x"), "`--path` is a path on the device"),
        (Place(path="/opt/x\nUser=root"), "`--path` is a path on the device"),
        (Place(python="python3"), "`--python` is a path on the device"),
        (Place(base="x\nRUN true"), "is no image"),
    ],
)
def test_a_place_that_cannot_be_is_refused(place: Place, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        check_place(place)


def test_no_template_lets_a_line_end_in() -> None:
    known = dict.fromkeys(("program", "version", "edgepack", "unit"), "x")
    with pytest.raises(TypeError, match="line end"):
        render(
            "units/systemd.socket.j2", **known, address="x\nExecStart=/bin/sh", one_address=False
        )


@pytest.fixture
def exported(small_bundle: Bundle, tmp_path: Path) -> Callable[..., list[Path]]:
    def run(kind: str = "systemd", bundle: Path | None = None, *, force: bool = False) -> Any:
        return export(
            bundle or small_bundle.path, kind, place=Place(), out_dir=tmp_path / "out",
            force=force, cache_dir=tmp_path / "cache",
        )  # fmt: skip

    return run


def test_a_bundle_is_exported_alike_every_time(exported: Callable[..., list[Path]]) -> None:
    for kind in FORMATS:
        first = {path: path.read_bytes() for path in exported(kind, force=True)}
        assert {path: path.read_bytes() for path in exported(kind, force=True)} == first


def test_nothing_is_written_over_unless_asked(exported: Callable[..., list[Path]]) -> None:
    service, other = exported()
    service.write_text("mine")
    with pytest.raises(InputOutputError, match="is there already") as refusal:
        exported()
    assert refusal.value.hint == "--force writes over it"
    assert service.read_text() == "mine"
    other.unlink()
    with pytest.raises(InputOutputError, match="is there already"):
        exported()
    assert not other.exists()
    exported(force=True)
    assert service.read_text() != "mine"


def test_a_changed_bundle_is_not_exported(
    small_bundle: Bundle, exported: Callable[..., list[Path]], tmp_path: Path
) -> None:
    data = bytearray(small_bundle.path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = tmp_path / "changed.edgepack"
    changed.write_bytes(data)
    with pytest.raises(IntegrityError):
        exported(bundle=changed)
    assert not (tmp_path / "out").exists()
