"""What a recipe may say of privacy about a model, and what then goes into its bundle."""

from __future__ import annotations

import pytest

from packager.bundle.privacy import check_mask
from packager.bundle.serving import runtime_packages, serving_fields
from packager.errors import UsageError
from packager.model import Signature, TensorSpec
from packager.recipe import Privacy, Recipe

SIGNATURE = Signature(
    inputs=(
        TensorSpec(name="face", dtype="float32", shape=()),
        TensorSpec(name="light", dtype="float32", shape=()),
    ),
    outputs=(TensorSpec(name="age", dtype="float32", shape=()),),
)


def recipe(privacy: Privacy | None) -> Recipe:
    return Recipe(model="m.onnx", name="m", privacy=privacy)


def test_masked_names_must_be_inputs() -> None:
    check_mask(recipe(None), SIGNATURE)
    check_mask(recipe(Privacy(mask=("face", "light"))), SIGNATURE)
    for name in ("Face", "age", ""):
        with pytest.raises(UsageError, match=f"`privacy.mask` names `{name}`") as caught:
            check_mask(recipe(Privacy(mask=(name,))), SIGNATURE)
        assert caught.value.accepted == "`face`, `light`"


def test_the_code_that_keeps_requests_is_carried_only_where_the_recipe_asks() -> None:
    for privacy, carried in ((None, False), (Privacy(), True)):
        manifest = {"model": {}, **serving_fields(recipe(privacy))}
        assert ("privacy" in manifest) == carried
        assert ("privacy" in runtime_packages(manifest)) == carried
    assert manifest["privacy"] == {
        "mask": [], "capture": 0.0, "keep_s": 604_800.0, "drift": False
    }  # fmt: skip
