"""What a release may keep: refused without a key, told in the metrics, masked throughout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from runtime.core import Inference, InferRequest
from runtime.errors import UsageFault
from runtime.metrics import Metrics
from runtime.npz import write_npz
from runtime.options import ServeOptions
from runtime.privacy.folder import Folder
from runtime.privacy.keys import CaptureKey
from runtime.privacy.retention import each_record
from runtime.privacy.watching import Watch, golden_ranges
from runtime.signature import Signature
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WIRE = {
    "inputs": [
        {"name": "x", "dtype": "float32", "shape": [2]},
        {"name": "face", "dtype": "float32", "shape": [1]},
    ],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [2]}],
}


class Twice:
    """A model that answers with its input doubled."""

    name, version, provider, precision = "twice", "2.0", "CPU", "fp32"

    def run(self, feeds: Mapping[str, Tensor], _: Sequence[str] | None = None) -> dict[str, Tensor]:
        values = 2 * np.frombuffer(feeds["x"].data, np.float32)
        return {"y": Tensor("float32", (2,), values.tobytes())}


def numbers(*values: float) -> Tensor:
    return Tensor("float32", (len(values),), np.array(values, np.float32).tobytes())


def release(tmp_path: Path, samples: int = 0, **privacy: Any) -> Any:
    wanted = {"mask": ["face"], "capture": 0.0, "keep_s": 3600.0, "drift": False, **privacy}
    manifest = {
        "privacy": wanted, "model": {"signature": WIRE}, "golden": {"samples": samples}
    }  # fmt: skip
    return SimpleNamespace(folder=str(tmp_path), manifest=manifest, digest="d" * 64)


def setting() -> tuple[Inference, Metrics]:
    inference = Inference(Signature(WIRE), Twice(), name="twice", version="1")
    return inference, Metrics(dict)


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServeOptions:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "key").chmod(0o600)
    return ServeOptions(capture_dir=str(tmp_path / "kept"), capture_key=str(tmp_path / "key"))


def test_without_a_key_or_a_folder_nothing_is_served_that_is_to_be_kept(
    tmp_path: Path, options: ServeOptions
) -> None:
    inference, metrics = setting()
    wanted = release(tmp_path, capture=0.5)
    with pytest.raises(UsageFault, match="no key to encrypt"):
        Watch(wanted, inference, options._replace(capture_key=None), metrics)
    with pytest.raises(UsageFault, match="no folder for kept requests"):
        Watch(wanted, inference, options._replace(capture_dir=None), metrics)
    assert inference.observers == []


def test_a_section_that_asks_for_nothing_observes_nothing(
    tmp_path: Path, options: ServeOptions
) -> None:
    inference, metrics = setting()
    Watch(release(tmp_path), inference, options._replace(capture_key=None), metrics).close()
    assert inference.observers == []
    assert "edgepack_capture" not in metrics.text()
    assert not (tmp_path / "kept").exists()


def test_kept_requests_go_where_systemd_says(
    tmp_path: Path, options: ServeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/state:{tmp_path}/other")
    inference, metrics = setting()
    watch = Watch(
        release(tmp_path, capture=1.0), inference, options._replace(capture_dir=None), metrics
    )
    inference.run(InferRequest({"x": numbers(1, 2), "face": numbers(7)}, "r"))
    watch.close()
    ((_, record),) = each_record(Folder(str(tmp_path / "state")), CaptureKey(bytes(32)), print)
    assert list(record.inputs) == ["x"]
    assert record.outputs == {"y": numbers(2, 4)}
    fields = {key: record.fields[key] for key in ("request", "engine", "precision", "model")}
    assert fields == {
        "request": "r", "engine": "twice 2.0 CPU", "precision": "fp32", "model": "d" * 64
    }  # fmt: skip
    text = metrics.text()
    assert "\nedgepack_captured_total 1\n" in text
    assert "\nedgepack_capture_stopped 0\n" in text
    assert '\nedgepack_capture_dropped_total{reason="queue"} 0\n' in text


def test_each_request_of_a_batch_is_kept_for_itself(tmp_path: Path, options: ServeOptions) -> None:
    inference, metrics = setting()
    watch = Watch(release(tmp_path, capture=1.0), inference, options, metrics)

    class Rows(Twice):
        def run(self, feeds: Any, _: Any = None) -> dict[str, Tensor]:
            return {"y": feeds["x"]}

    inference.engine = Rows()
    requests = [
        InferRequest({"x": Tensor("uint8", (rows, 1), bytes([rows] * rows))}, str(rows))
        for rows in (1, 2)
    ]
    inference.run_rows(requests)
    watch.close()
    found = [
        one for _, one in each_record(Folder(str(tmp_path / "kept")), CaptureKey(bytes(32)), print)
    ]
    assert [(one.fields["request"], one.outputs["y"].data) for one in found] == [
        ("1", b"\1"), ("2", b"\2\2")
    ]  # fmt: skip


def test_statistics_alone_need_no_key_and_write_nothing(
    tmp_path: Path, options: ServeOptions
) -> None:
    inference, metrics = setting()
    watch = Watch(
        release(tmp_path, drift=True), inference, options._replace(capture_key=None), metrics
    )
    for _ in range(19):
        inference.run(InferRequest({"x": numbers(1, 3), "face": numbers(7)}))
    assert "edgepack_drift_mean{" not in metrics.text()
    inference.run(InferRequest({"x": numbers(1, 3), "face": numbers(7)}))
    text = metrics.text()
    assert '\nedgepack_drift_mean{role="input",tensor="x"} 2.0\n' in text
    assert '\nedgepack_drift_stddev{role="output",tensor="y"} 2.0\n' in text
    assert "face" not in text
    watch.close()
    assert not (tmp_path / "kept").exists()


def test_bins_come_from_the_golden_samples(tmp_path: Path) -> None:
    (tmp_path / "golden").mkdir()
    for number, low in enumerate((-1.0, -3.0)):
        write_npz(
            str(tmp_path / "golden" / f"{number:03}.inputs.npz"),
            {"i0": numbers(low, float("nan")), "i1": numbers(5)},
        )
        write_npz(
            str(tmp_path / "golden" / f"{number:03}.artifact.npz"), {"o0": numbers(low, 2 * number)}
        )
    assert golden_ranges(release(tmp_path, samples=2)) == {
        ("input", "x"): (-3.0, -1.0), ("input", "face"): (5.0, 5.0), ("output", "y"): (-3.0, 2.0),
    }  # fmt: skip
