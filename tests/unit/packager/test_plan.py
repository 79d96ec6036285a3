"""The plan: recipe and options merged, contradictions refused, nothing heavy done."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from packager.errors import InputOutputError, UsageError
from packager.pipeline import make_plan
from packager.pipeline.cache import StageCache, stage_key
from packager.pipeline.plan import default_name
from packager.workspace import workspace

if TYPE_CHECKING:
    from pathlib import Path


def _plan(folder: Path, **options: Any) -> Any:
    values: dict[str, Any] = {
        "model": str(folder / "net.onnx"),
        "targets": ["cpu-x86_64"],
        "recipe_file": None,
        "output": folder / "dist",
        "cache_dir": folder / "cache",
    }
    return make_plan(**{**values, **options})


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("nets/MobileNet V2.py:make", "mobilenet-v2"),
        ("my.pkg.module:make_model", "module"),
        ("a/b.onnx", "b"),
        ("X.Y.onnx", "x.y"),
        ("./ñ.onnx", "model"),
    ],
)
def test_a_bundle_is_named_after_its_model(model: str, name: str) -> None:
    assert default_name(model) == name


def test_the_recipe_beside_the_model_is_found_and_options_win(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text('name = "kept"\nversion = "2.0"\n[dim]\nn = "1..4"\n')
    plan = _plan(tmp_path, version="3.1", dims=["m=2..8,opt=4"])
    assert plan.recipe.name == "kept"
    assert plan.recipe.version == "3.1"
    assert plan.sequence == 3_001_000
    assert set(plan.recipe.dims) == {"n", "m"}
    assert plan.bundle_path(plan.targets[0]) == tmp_path / "dist/kept-3.1-cpu-x86_64.edgepack"


def test_the_terms_of_carried_libraries_are_steps_of_the_plan(tmp_path: Path) -> None:
    plan = _plan(tmp_path, targets=["rtx-ada"], vendor_libraries=True)
    said = {step.choice: step.reason for step in plan.steps["rtx-ada"] if step.stage == "licence"}
    assert "ask NVIDIA before such a bundle leaves your organisation" in said
    (carried,) = (step for step in plan.steps["rtx-ada"] if step.stage == "vendor")
    assert "tensorrt_rtx" in carried.choice.replace("-", "_")
    assert "CPython 3.8 to 3.13" in carried.choice
    text = "\n".join(plan.to_text())
    assert "section 12.1 of NVIDIA's licence agreement" in text
    without = _plan(tmp_path, targets=["rtx-ada"]).steps["rtx-ada"]
    assert not {"vendor", "licence"} & {step.stage for step in without}


def test_the_plan_shows_the_float32_that_is_carried_beside_bf16(tmp_path: Path) -> None:
    file = tmp_path / "net.onnx"
    file.write_bytes(b"x" * 2_500_000)
    steps = _plan(tmp_path, model=str(file), targets=["server-h100"], precision="bf16").steps
    (shown,) = [step for step in steps["server-h100"] if step.stage == "fallback"]
    assert shown.choice == "float32, about 2.5 MB"
    assert shown.reason.startswith("ONNX Runtime loads no bf16 on a CPU")
    steps = _plan(tmp_path, model=str(file), targets=["server-h100"], precision="fp16").steps
    assert [step for step in steps["server-h100"] if step.stage == "fallback"] == []


def test_int8_beside_fp16_is_a_step_where_the_engine_has_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    given = {"targets": ["rtx-ada", "jetson-agx-xavier"], "calibration": str(tmp_path / "data")}
    steps = _plan(tmp_path, **given).steps
    choices = {name: [step.choice for step in found] for name, found in steps.items()}
    assert "int8-static+fp16" in choices["rtx-ada"]
    (other,) = (name for name in choices if name != "rtx-ada")
    assert "int8-static+fp16" not in choices[other]


def test_every_step_has_a_choice_and_a_reason(tmp_path: Path) -> None:
    steps = _plan(tmp_path).steps["cpu-x86_64"]
    assert [step.stage for step in steps] == [
        "import", "budget", "compress", "compress", "compress", "scheme", "engine", "check",
        "golden",
    ]  # fmt: skip
    assert all(step.choice and step.reason for step in steps)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "agreement ≥ 0.99 or cosine ≥ 0.99"),
        ({"metric": "agreement", "max_drop": "0.5%"}, "agreement falls by 0.005 in its own unit"),
        ({"metric": "cosine", "max_drop": "rel:2%"}, "cosine falls by 0.02 of the original's"),
    ],
)
def test_the_plan_tells_the_budget(tmp_path: Path, given: dict[str, str], said: str) -> None:
    steps = _plan(tmp_path, **given).steps["cpu-x86_64"]
    (budget,) = (step for step in steps if step.stage == "budget")
    assert said in budget.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": []}, "no target is named"),
        ({"targets": ["cpu-x86_64", "cpu-x86_64"]}, "twice"),
        ({"targets": ["jetson-orin-nx-8gb", "jetson-orin-nx-8gb@6.2"]}, "twice"),
        ({"model": None}, "no model is named"),
        ({"precision": "int8-static"}, "needs calibration data"),
        ({"dims": ["batch"]}, "lacks a `=`"),
        ({"shapes": ["=3"]}, "lacks a `=`"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        _plan(tmp_path, **options)


def test_a_lock_belongs_to_one_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one bundle"):
        _plan(tmp_path, targets=["cpu-x86_64", "cpu-arm64"], lock_file=tmp_path / "x")


def test_an_output_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputOutputError, match="is not a folder"):
        _plan(tmp_path, output=tmp_path / "file" / "dist")


def test_a_workspace_is_gone_even_after_a_failure(tmp_path: Path) -> None:
    def fail() -> None:
        with workspace(tmp_path) as work:
            (work / "file").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((tmp_path / "work").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputOutputError) as caught, workspace(tmp_path / "cache"):
        pass
    assert "--cache-dir" in (caught.value.hint or "")


def test_searches_that_nobody_went_on_with_are_forgotten_after_weeks(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    old, held, fresh = (cache.unfinished(name) for name in ("old", "held", "fresh"))
    for folder in (old, held, fresh):
        folder.mkdir()
        folder.with_suffix(".lock").touch()
    for path in (old, old.with_suffix(".lock"), held, held.with_suffix(".lock")):
        os.utime(path, (0, 0))
    assert cache.unfinished("held") == held
    assert sorted(path.name for path in held.parent.iterdir()) == [
        "fresh", "fresh.lock", "held", "held.lock",
    ]  # fmt: skip


def test_a_stage_is_found_again_by_its_inputs_alone(tmp_path: Path) -> None:
    cache, work = StageCache(tmp_path), tmp_path / "work"
    work.mkdir()
    (work / "result").write_text("x")
    key = stage_key("import", dims={"n": 1}, source="a")
    assert cache.find(key) is None
    kept = cache.keep(key, work)
    assert (kept / "result").read_text() == "x"
    assert cache.find(stage_key("import", source="a", dims={"n": 1})) == kept
    assert cache.find(stage_key("import", source="a", dims={"n": 2})) is None


def test_two_builds_that_finish_one_stage_keep_one(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result").write_text(name)
        kept = cache.keep("key", tmp_path / name)
    assert (kept / "result").read_text() == "first"
    assert not (tmp_path / "second").exists()
