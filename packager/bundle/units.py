"""Writes what starts a bundle: a systemd unit, a container file or a launchd job."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from packager.bundle.local import check_bundle, read_manifest
from packager.bundle.render import render
from packager.errors import InputOutputError, TargetError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DEFAULT_BASE: Final = "python:3.13-slim-bookworm"
# ProtectHome, PrivateTmp and PrivateDevices hide what lies there from the service.
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp", "/dev")  # noqa: S108 - refused
# What a file of a container's build may be called without meaning a pattern.
_PLAIN_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_HOST_NAME: Final = re.compile(
    r"(?:\*\.)?[0-9a-z_][0-9a-z_-]{0,62}(?:\.[0-9a-z_][0-9a-z_-]{0,62})*"
)
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
# Device nodes that CUDA and TensorRT open, by family; groups as `/proc/devices` names them.
_DEVICES: Final = {
    "jetson": (
        "char-nvhost*", "char-nvgpu*", "char-nvidia*", "char-host1x*", "char-drm", "char-nvsciipc",
        "/dev/nvmap", "/dev/host1x-fence",
    ),
}  # fmt: skip
_DISCRETE: Final = ("char-nvidia*",)


@dataclass(frozen=True, kw_only=True)
class Place:
    """How and where a bundle is served.

    Attributes:
        host: The IP address to listen on, or `localhost`.
        port: The port to listen on, 1 to 65535.
        tls: A certificate and its key are handed over as credentials.
        client_ca: So is who signs the certificates that clients must show.
        keys: So is a file of API keys.
        insecure: Listen on a wider address without TLS.
        names: Further names that clients call the server by.
        path: Where the bundle lies on the device; None for `/opt/edgepack/NAME.edgepack`.
        python: The device's interpreter.
        base: The image that a container starts from; None for `DEFAULT_BASE`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tls: bool = False
    client_ca: bool = False
    keys: bool = False
    insecure: bool = False
    names: tuple[str, ...] = ()
    path: str | None = None
    python: str = "/usr/bin/python3"
    base: str | None = None


def export(
    bundle: Path, kind: str, *, place: Place, out_dir: Path, force: bool, cache_dir: Path
) -> list[Path]:
    """Write the files of one format and return their paths.

    Args:
        bundle: A bundle file or an unpacked release; verified first.
        kind: One of `FORMATS`.
        place: How it is served.
        out_dir: Where the files go; made where it is missing.
        force: Write over files that are there.
        cache_dir: For the verification.

    Raises:
        IntegrityError: a byte of the bundle differs.
        UsageError: options that do not go together.
        TargetError: the bundle's target is none that the format can start.
        InputOutputError: a file is there already, or cannot be written.
    """
    check_bundle(bundle, cache_dir=cache_dir)
    check_place(place)
    files = FORMATS[kind](read_manifest(bundle), bundle, place)
    paths = [out_dir / name for name in sorted(files)]
    for path in paths:
        if path.exists() and not force:
            raise InputOutputError(f"`{path}` is there already", hint="--force writes over it")
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.write_bytes(files[path.name].encode())
    return paths


def check_place(place: Place) -> None:
    """Refuse what the server itself would refuse on the device, later.

    Raises:
        UsageError: says what, and what would do.
    """
    address = _address(place.host)
    if not 1 <= place.port <= 65535:
        raise UsageError(f"`{place.port}` is no port to be found at", accepted="1 to 65535")
    if place.client_ca and not place.tls:
        raise UsageError("clients show certificates over TLS only", hint="add --tls")
    if not (address.is_loopback or place.tls):
        if place.keys:
            raise UsageError(f"keys for `{place.host}` would travel in the clear", hint="add --tls")
        if not place.insecure:
            raise UsageError(
                f"`{place.host}` can be reached from other machines",
                accepted="--tls, or --insecure on a network you trust",
            )
    for name in place.names:
        if not _HOST_NAME.fullmatch(name):
            raise UsageError(f"`{name[:80]}` is no host name", accepted="camera-7.example.com")
    if place.base is not None and not _IMAGE.fullmatch(place.base):
        raise UsageError(f"`{place.base[:80]}` is no image", accepted="NAME:TAG@sha256:DIGEST")
    for word, path in (("--path", place.path), ("--python", place.python)):
        if path is not None and not (path.startswith("/") and path.isprintable()):
            raise UsageError(f"`{word}` is a path on the device", accepted="one that begins with /")


def _systemd(manifest: Mapping[str, Any], bundle: Path, place: Place) -> dict[str, str]:
    """Return a service that takes its socket from systemd, and that socket."""
    del bundle
    name, target = manifest["name"], manifest["target"]
    path = PurePosixPath(place.path or f"/opt/edgepack/{name}.edgepack")
    for hidden in _HIDDEN:
        if path.is_relative_to(hidden):
            raise UsageError(f"the service cannot see `{hidden}`", accepted="as in --path /opt/…")
    gpu = _has_gpu(manifest)
    jetson = target["family"] == "jetson"
    address = _address(place.host)
    credentials = [
        *(("tls.crt", "tls.key") if place.tls else ()),
        *(("client-ca.crt",) if place.client_ca else ()),
        *(("keys.json",) if place.keys else ()),
        *(("capture.key",) if _keeps(manifest) else ()),
    ]
    unit = f"edgepack-{name}"
    known = {
        **_told(manifest),
        "unit": unit,
        "address": f"[{address}]:{place.port}"
        if address.version == 6
        else f"{address}:{place.port}",
    }
    return {
        f"{unit}.service": render(
            "units/systemd.service.j2",
            **known,
            bundle=str(path),
            command=(place.python, str(path), *_serve(place, place.host)),
            credentials=credentials,
            memory_mib=target["memory_mib"],
            start_s=300 if gpu else 120,
            loopback=address.is_loopback,
            gpu=gpu,
            devices=_DEVICES["jetson"] if jetson else _DISCRETE,
            groups=("video",) if jetson else (),
        ),
        f"{unit}.socket": render(
            "units/systemd.socket.j2",
            **known,
            one_address=not (address.is_loopback or address.is_unspecified),
        ),
    }


def _container(manifest: Mapping[str, Any], bundle: Path, place: Place) -> dict[str, str]:
    """Return a container file: the release unpacked and verified at build, served by nobody."""
    if place.base is None and _has_gpu(manifest):
        raise UsageError(
            f"no image is known for `{manifest['target']['name']}`",
            accepted="--base with one that has Python, CUDA and TensorRT",
        )
    return {"Containerfile": _containerfile(manifest, bundle, place)}


def _launchd(manifest: Mapping[str, Any], bundle: Path, place: Place) -> dict[str, str]:
    """Return a job that keeps the container running on a Mac, and the container file."""
    target = manifest["target"]
    if _has_gpu(manifest):
        raise TargetError(
            f"no Mac can serve a bundle for `{target['name']}`: it has no NVIDIA GPU",
            hint="build for cpu-arm64 or cpu-x86_64",
        )
    if place.tls or place.keys or not _address(place.host).is_loopback:
        raise UsageError("the job on a Mac serves that Mac alone", accepted="--port and --name")
    label = f"edgepack.{manifest['name']}"
    # The virtual machine's ports are passed on to the Mac's loopback and no further.
    inside = ("serve", "--host", "0.0.0.0", "--port", str(place.port), "--insecure")  # noqa: S104
    names = [word for name in place.names for word in ("--name", name)]
    command = [
        "/usr/bin/env", "podman", "run", "--rm", "--replace", f"--name=edgepack-{manifest['name']}",
        *_limits(manifest), f"--publish=127.0.0.1:{place.port}:{place.port}", _image(manifest),
        *inside, *names,
    ]  # fmt: skip
    plist = render("units/launchd.plist.j2", label=label, command=command)
    return {f"{label}.plist": plist, "Containerfile": _containerfile(manifest, bundle, place)}


# What a bundle can be exported as: each writes files by name.
FORMATS: Final[dict[str, Callable[[Mapping[str, Any], Path, Place], dict[str, str]]]] = {
    "systemd": _systemd,
    "container": _container,
    "launchd": _launchd,
}


def _containerfile(manifest: Mapping[str, Any], bundle: Path, place: Place) -> str:
    if bundle.is_dir():
        raise UsageError("a container is made from a bundle file, not from an unpacked release")
    if not _PLAIN_FILE.fullmatch(bundle.name):
        raise UsageError(
            f"`{bundle.name}` cannot be named in a container file",
            accepted="letters, digits, `.`, `_`, `+` and `-`",
        )
    base = place.base or DEFAULT_BASE
    image = _image(manifest)
    loopback = _address(place.host).is_loopback
    network = "--network=host" if loopback else f"--publish={place.port}:{place.port}"
    return render(
        "units/Containerfile.j2",
        **_told(manifest),
        file=bundle.name,
        base=base,
        pinned="@sha256:" in base,
        build=f"podman build --format=docker -f Containerfile -t {image} .",
        run=" ".join(["podman run --rm", *_limits(manifest), network, image]),
        port=place.port,
        probe=_probe(place),
        arguments=_serve(place, place.host),
        keeps=_keeps(manifest),
    )


def _told(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {
        "program": manifest["name"],
        "version": manifest["version"],
        "target": manifest["target"]["name"],
        "edgepack": manifest["edgepack"],
    }


def _image(manifest: Mapping[str, Any]) -> str:
    return f"localhost/edgepack/{manifest['name']}:{manifest['version']}"


def _limits(manifest: Mapping[str, Any]) -> list[str]:
    return [
        "--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges",
        f"--memory={manifest['target']['memory_mib']}m", "--pids-limit=256", "--ulimit=core=0",
    ]  # fmt: skip


def _serve(place: Place, host: str) -> list[str]:
    """Return the words of the bundle's own command line; certificates and keys are credentials."""
    words = ["serve", "--host", str(_address(host)), "--port", str(place.port)]
    if place.insecure and not place.tls:
        words.append("--insecure")
    for name in place.names:
        words += ["--name", name]
    return words


def _probe(place: Place) -> str:
    """Return Python that fails unless the server is ready."""
    address = _address(place.host)
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    if place.client_ca:  # which asks for a certificate that the probe does not have
        return f"import socket; socket.create_connection(({str(address)!r}, {place.port}), 4)"
    host = f"[{address}]" if address.version == 6 else str(address)
    url = f"{'https' if place.tls else 'http'}://{host}:{place.port}/v2/health/ready"
    context = ", context=ssl._create_unverified_context()" if place.tls else ""
    modules = "ssl, urllib.request" if place.tls else "urllib.request"
    return f"import {modules}; urllib.request.urlopen({json.dumps(url)}, timeout=4{context})"


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if host == "localhost":
        return ipaddress.ip_address("127.0.0.1")
    try:
        return ipaddress.ip_address(host)
    except ValueError as error:
        raise UsageError(
            f"`{host[:80]}` is no IP address",
            accepted="127.0.0.1, ::1, 0.0.0.0 or the device's own",
        ) from error


def _has_gpu(manifest: Mapping[str, Any]) -> bool:
    return bool(manifest.get("tensorrt"))


def _keeps(manifest: Mapping[str, Any]) -> bool:
    """Say whether the server keeps anything of requests, which takes a key."""
    privacy = manifest.get("privacy") or {}
    return bool(privacy.get("capture") or privacy.get("drift"))
