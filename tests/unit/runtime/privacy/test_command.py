"""`captures`: what it prints, refuses and proves; and its export as calibration data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.data import load_samples
from packager.model import Dim, TensorSpec
from packager.model import Signature as HostSignature
from packager.recipe import Recipe, parse_source
from runtime import main
from runtime.errors import InputOutputFault, IntegrityFault, UsageFault
from runtime.privacy.command import read_date, run_captures
from runtime.privacy.folder import Folder
from runtime.privacy.keys import CaptureKey
from runtime.privacy.records import DRIFT, REQUEST, Record, pack_record
from runtime.privacy.retention import begin_segment
from runtime.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RAW = bytes(range(32))
START = 1_767_225_600.0  # 2026-01-01


def row(number: int, rows: int = 1, width: int = 2) -> dict[str, Tensor]:
    values = np.full((rows, width), number, np.float32)
    return {"x": Tensor("float32", values.shape, values.tobytes())}


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """Return a folder with two segments, a day apart: requests a, b and c, d, and statistics."""
    (tmp_path / "key").write_bytes(RAW)
    (tmp_path / "key").chmod(0o600)
    folder = Folder(str(tmp_path / "kept"))
    key = CaptureKey(RAW)
    for day, names in enumerate(("ab", "cd")):
        created = START + 86_400 * day
        head = {"created": int(created), "wall": int(created), "keep_s": 3e9, "model": "m"}
        _, writer, _ = begin_segment(folder, folder.state(), head, key)
        for name in names:
            fields = {"time": created, "id": name * 32, "request": name, "engine": "e"}
            inputs = row(ord(name) - 97, rows=1 + (name == "b"))
            writer.append(pack_record(Record(REQUEST, fields, inputs, {"y": inputs["x"]})))
        told = {"role": "input", "name": "x", "mean": 1.0, "std": 0.5, "low": 0.5, "high": 2.0}
        fields = {"time": created, "since": created - 60, "requests": 20, "tensors": [told]}
        writer.append(pack_record(Record(DRIFT, fields, {}, {})))
        writer.close()
    return tmp_path / "kept"


@pytest.fixture
def run(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)

    def call(action: str, *, key: bool = True, **changes: Any) -> Any:
        values = {
            "action": action, "dir": str(kept), "before": None, "request": None, "all": False,
            "expired": False, "output": None, "outputs": False, "json": False,
            "capture_key": str(kept.parent / "key") if key else None, **changes,
        }  # fmt: skip
        return run_captures(values)

    return call


def test_list_tells_requests_with_the_key_and_segments_without(run: Callable[..., Any]) -> None:
    result, lines = run("list")
    assert [one["request"] for one in result["requests"]] == ["a", "b", "c", "d"]
    assert lines[0].startswith(f"2026-01-01T00:00:00Z  {'a' * 32}  e  a")
    assert lines[-1] == "4 requests"
    result, lines = run("list", key=False)
    assert len(result["segments"]) == 2
    assert "begun 2026-01-02T00:00:00Z" in lines[1]
    assert lines[-1] == "2 segments; give `--capture-key` to see the requests in them"


def test_drift_tells_the_statistics(run: Callable[..., Any]) -> None:
    result, lines = run("drift")
    assert [one["requests"] for one in result["drift"]] == [20, 20]
    assert lines[0] == "2025-12-31T23:59:00Z to 2026-01-01T00:00:00Z, 20 requests"
    assert lines[1].split() == [
        "input",
        "x",
        "mean",
        "1",
        "std",
        "0.5",
        "low",
        "0.5",
        "high",
        "2.0",
    ]


def test_export_gives_the_rows_that_the_build_host_calibrates_with(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "rows.npz"
    result, lines = run("export", output=str(out))
    assert (result["rows"], result["requests"], result["left_out"]) == (5, 4, 0)
    assert lines == [f"5 rows of 4 requests in `{out}`"]
    assert out.stat().st_mode & 0o777 == 0o600
    signature = HostSignature(
        inputs=(
            TensorSpec(name="x", dtype="float32", shape=(Dim(name="n", min=1, max=8), Dim(size=2))),
        ),
        outputs=(),
    )
    samples = load_samples(
        parse_source(str(out)), signature, Recipe(model="m.onnx", name="m"), labelled=False, seed=0
    )
    assert [float(sample["x"][0, 0]) for sample in samples] == [0, 1, 1, 2, 3]
    run("export", output=str(out), outputs=True)
    with np.load(out) as arrays:
        assert set(arrays.files) == {"x", "y"}


def test_requests_of_other_shapes_are_left_out_of_an_export(
    run: Callable[..., Any], kept: Path, tmp_path: Path
) -> None:
    folder = Folder(str(kept))
    head = {"created": 1, "wall": 1, "keep_s": 1.0, "model": "m"}
    _, writer, _ = begin_segment(folder, folder.state(), head, CaptureKey(RAW))
    scalar = {"x": Tensor("float32", (), bytes(4))}
    for inputs in (row(9, width=3), scalar, {}):
        writer.append(pack_record(Record(REQUEST, {"time": 1.0, "id": "z"}, inputs, {})))
    writer.close()
    result, lines = run("export", output=str(tmp_path / "rows.npz"))
    assert (result["rows"], result["left_out"]) == (5, 3)
    assert lines[1] == "of other shapes, and left out: 3 requests"


def test_an_export_of_masked_inputs_says_so(run: Callable[..., Any], kept: Path) -> None:
    folder = Folder(str(kept))
    run("delete", all=True)
    head = {"created": 1, "wall": 1, "keep_s": 3e9, "model": "m"}
    _, writer, _ = begin_segment(folder, folder.state(), head, CaptureKey(RAW))
    writer.append(pack_record(Record(REQUEST, {"time": 1.0, "id": "z"}, {}, row(1))))
    writer.close()
    with pytest.raises(UsageFault, match=r"all inputs of what is kept in `.*` are masked") as found:
        run("export", output=str(kept.parent / "rows.npz"))
    assert found.value.hint == "--outputs exports the answers"


def test_another_key_finds_no_empty_folder(run: Callable[..., Any], kept: Path) -> None:
    (kept.parent / "key").write_bytes(RAW[::-1])
    for action in ("list", "export"):
        with pytest.raises(IntegrityFault, match="was encrypted with another key"):
            run(action, output=str(kept.parent / "rows.npz"))


def test_a_folder_that_lost_its_counts_is_not_in_order(run: Callable[..., Any], kept: Path) -> None:
    run("delete", before="2026-01-02")
    state = kept / "state.json"
    for damage in (state.unlink, lambda: state.write_text('{"clock": 1}x')):
        damage()
        with pytest.raises(IntegrityFault, match=r"`state\.json`, which counts"):
            run("verify")


def test_deleting_one_request_proves_itself(run: Callable[..., Any]) -> None:
    result, lines = run("delete", request="b")
    assert result["proved"] is True
    assert (result["requests"], result["left"]["segments"]) == (1, 2)
    assert lines[0] == "1 request deleted, and the key of 1 segment overwritten"
    assert [one["request"] for one in run("list")[0]["requests"]] == ["c", "d", "a"]
    assert run("verify")[1][1] == "1 deletion in an unbroken chain, 1 of them signed"


def test_deleting_before_a_date_needs_no_key(run: Callable[..., Any]) -> None:
    result, lines = run("delete", before="2026-01-02", key=False)
    assert (len(result["segments"]), result["requests"]) == (1, None)
    assert lines[0] == ("1 segment deleted with all requests in it, each segment's key overwritten")
    assert [one["request"] for one in run("list")[0]["requests"]] == ["c", "d"]


def test_deleting_all_leaves_the_record_alone(run: Callable[..., Any], kept: Path) -> None:
    result, lines = run("delete", all=True)
    assert (result["requests"], result["left"]["segments"]) == (4, 0)
    assert lines[0] == "2 segments deleted with 4 requests, each segment's key overwritten"
    assert lines[1] == (
        "nothing of it remains; 0 segments left, and line 1 of `deletions.log` is the record"
    )
    assert {path.name for path in kept.iterdir()} == {"lock", "state.json", "deletions.log"}
    assert run("verify")[0]["faults"] == []


def test_deleting_what_has_expired_goes_by_each_segment_s_own_rule(
    run: Callable[..., Any], kept: Path
) -> None:
    folder = Folder(str(kept))
    head = {"created": 1000, "wall": 1000, "keep_s": 60.0, "model": "m"}
    begin_segment(folder, folder.state(), head, CaptureKey(RAW))[1].close()
    result, _ = run("delete", expired=True)
    assert len(result["segments"]) == 1
    assert len(folder.segments()) == 2
    assert run("delete", expired=True)[1] == [
        "nothing that is kept is meant, so nothing was deleted", "2 segments left",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("action", "changes", "said"),
    [
        ("show", {}, "`captures` cannot `show`"),
        ("delete", {}, "`captures delete` needs to know what"),
        ("delete", {"all": True, "request": "a"}, "needs to know what"),
        ("delete", {"request": "a", "key": False}, "no key to encrypt kept requests with"),
        ("delete", {"before": "yesterday"}, "`yesterday` is no date"),
        ("export", {}, "`captures export` needs a file to write"),
        ("export", {"key": False}, "no key"),
        ("drift", {"key": False}, "no key"),
        ("list", {"dir": None}, "there is no folder for kept requests"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Callable[..., Any], action: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageFault, match=said):
        run(action, **changes)


def test_a_folder_that_is_not_there_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputOutputFault, match="no such file"):
        run("list", dir=str(tmp_path / "nowhere"))


def test_a_fault_is_an_error_not_a_result(run: Callable[..., Any], kept: Path) -> None:
    first = min(kept.glob("*.kept"))
    first.unlink()
    with pytest.raises(IntegrityFault, match="segment 0 is missing and no deletion is on record"):
        run("verify")
    with pytest.raises(IntegrityFault, match="the deletion is not proved: segment 0 is missing"):
        run("delete", all=True)


def test_dates_are_in_utc() -> None:
    assert read_date("2026-01-01") == START
    assert read_date("2026-01-01T00:00") == read_date("2026-01-01T00:00:00Z") == START
    assert read_date("1767225600") == START


def test_the_command_line_reaches_it(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(kept))
    arguments = ["captures", "list", "--capture-key", str(kept.parent / "key"), "--json"]
    assert main.main(arguments, None) == 0
    assert len(json.loads(capsys.readouterr().out)["requests"]) == 4
    assert main.main(["captures", "delete"], None) == 2
    assert capsys.readouterr().err.startswith("error: `captures delete` needs to know what\n")
    next(kept.glob("*.kept")).write_bytes(b"")
    assert main.main(["captures", "verify", "--dir", str(kept)], None) == 8
    assert "is no segment of kept requests" in capsys.readouterr().err
