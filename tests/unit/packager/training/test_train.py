"""Trained variants: from a recipe to ONNX files with the original's signature, in a child."""

from __future__ import annotations

import dataclasses
import importlib.util
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from packager.console import Silent
from packager.data import Samples
from packager.errors import ModelUnsupported, UsageError
from packager.importers.load import import_model, parse_source
from packager.model import Dim, Model, Provenance, Signature, TensorSpec
from packager.recipe import Recipe, Training, read_recipe
from packager.target import find_target
from packager.training import train_variants, training_digest
from packager.training.run import scheme_of
from packager.training.wire import TrainingRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from packager.training import Variant

NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(6, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

def make_model():
    torch.manual_seed(0)
    return Net(24), {"x": torch.zeros(1, 6)}

def make_student():
    torch.manual_seed(1)
    return Net(8), {"x": torch.zeros(1, 6)}

def make_other():
    torch.manual_seed(1)
    return nn.Linear(6, 5), {"x": torch.zeros(1, 6)}

def make_unseeded():
    return Net(24), {"x": torch.zeros(1, 6)}

def follow(module, session):
    assert session.teacher is not None
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(300):
        x = torch.randn(64, 6)
        with torch.no_grad():
            wanted = session.teacher(x)
        optimizer.zero_grad()
        loss = session.distill_loss(module.train()(x), wanted, kind="values")
        loss.backward()
        optimizer.step()
        session.step(loss, done=step + 1, total=300)
    session.log(f"trained {session.variant}")

def hang(module, session):
    import signal, time
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(600)
"""


EXAMPLES = Path(__file__).resolve().parents[4] / "docs" / "examples"
DATA = np.random.default_rng(5).standard_normal((200, 6)).astype(np.float32)


@pytest.fixture
def word(tmp_path: Path) -> Callable[[str], str]:
    file = tmp_path / "net.py"
    file.write_text(textwrap.dedent(NETWORK), encoding="utf-8")
    return lambda name: f"{file}:{name}"


class Told(Silent):
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def stage(self, text: str) -> None:
        self.texts.append(text)

    def note(self, text: str) -> None:
        self.texts.append(text)

    def progress(self, done: int, total: int, text: str) -> None:
        self.steps.append((done, total))


def rows(count: int = 16) -> Samples:
    def load(index: int) -> dict[str, Any]:
        values = np.random.default_rng([3, index]).standard_normal((1, 6))
        return {"x": values.astype(np.float32)}

    loaders = [lambda index=index: load(index) for index in range(count)]
    return Samples(loaders, digest="0" * 64, origin="made up", kind="npz")


def answers(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run(None, {"x": part})[0] for part in np.split(DATA, 10)])


def digits_example() -> Any:
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits_training.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def stand_in(word: str = "") -> Model:
    """Return what importing the network gives, without exporting it.

    Without a word it only serves for refusals before any work.
    """
    digest = "0" * 64
    if word:
        source = parse_source(word)
        from packager.importers.torch_module import make, module_digest

        module, examples = make(source)
        digest = module_digest(module, source, examples)
    batch = Dim(name="batch", min=1, max=32, opt=1)
    x = TensorSpec(name="x", dtype="float32", shape=(batch, Dim(size=6)))
    y = TensorSpec(name="output", dtype="float32", shape=(batch, Dim(size=4)))
    return Model(
        path=Path("model.onnx"),
        name="net",
        signature=Signature(inputs=(x,), outputs=(y,)),
        opset=18,
        ir_version=10,
        provenance=Provenance(kind="torch", source="net.py:make_model", source_sha256=digest),
    )


def train(recipe: Recipe, folder: Path, *, model: Model | None = None) -> tuple[Variant, ...]:
    return train_variants(recipe, model or stand_in(), rows(), workdir=folder, reporter=Silent())


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_every_variant_has_the_originals_signature_and_answers(
    word: Callable[[str], str], tmp_path: Path
) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (extra `train`)")
    import torch

    from packager.importers.torch_module import make

    recipe = Recipe(
        model=word("make_model"),
        name="net",
        targets=("cpu-x86_64",),
        train=Training(
            function=word("follow"),
            prune=0.4,
            quantize=True,
            distill=True,
            student=word("make_student"),
            time_limit_s=60,
        ),
    )
    model = stand_in(recipe.model)
    told = Told()
    folder = tmp_path / "train"
    folder.mkdir()
    found = train_variants(recipe, model, rows(), workdir=folder, reporter=told)
    assert [variant.name for variant in found] == ["pruned", "qat", "pruned-qat", "distilled"]
    module, _ = make(parse_source(recipe.model))
    original = module(torch.from_numpy(DATA)).numpy()
    for variant in found:
        assert variant.model.signature == model.signature
        assert variant.model.name == "net"
        got = answers(variant.path)
        error = np.square(got - original).mean() / original.var()
        assert error < 0.1, variant.name
        assert error > 1e-9, f"{variant.name} is another model"
        assert variant.facts["hook"] == "net.py:follow"
        assert len(variant.facts["hook_sha256"]) == 64
        assert variant.facts["parameters_before"] == 6 * 24 + 24 + 24 * 4 + 4
        assert variant.facts["trained_s"] > 0
    pruned, qat, both, distilled = found
    assert pruned.facts["parameters_after"] <= 0.6 * 268
    assert both.facts["parameters_after"] == pruned.facts["parameters_after"]
    assert qat.facts["weight_bits"] == 7, "as the recipe's target has it"
    assert "simulated 7-bit weights per channel" in qat.notes[0]
    assert distilled.facts["parameters_after"] == 6 * 8 + 8 + 8 * 4 + 4
    assert told.texts[0] == ("train `pruned`, `qat`, `pruned-qat`, `distilled`, up to 60 s each")
    assert "trained qat" in told.texts
    assert (300, 300) in told.steps
    assert {path.name for path in folder.iterdir()} == {
        *(variant.name for variant in found), "training.json", "trained.json", "progress.jsonl",
        "training.log",
    }  # fmt: skip


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
@pytest.mark.parametrize(
    ("factory", "settings", "words"),
    [
        ("make_model", {"student": "make_other"}, "gives other outputs than the original"),
        ("make_unseeded", {"quantize": True}, "made another model than when it was imported"),
    ],
    ids=["student", "factory"],
)
def test_what_cannot_be_compared_is_refused_by_the_child(
    factory: str,
    settings: dict[str, Any],
    words: str,
    word: Callable[[str], str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    settings = {key: word(value) if key == "student" else value for key, value in settings.items()}
    model = stand_in(word(factory))
    training = Training(function=word("follow"), time_limit_s=30, **settings)
    with pytest.raises(ModelUnsupported, match=words):
        train(Recipe(model=word(factory), name="net", train=training), tmp_path, model=model)


@pytest.mark.torch
def test_a_hook_that_no_signal_ends_is_killed_and_its_line_named(
    word: Callable[[str], str], tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    model = stand_in(word("make_model"))
    training = Training(function=word("hang"), quantize=True, time_limit_s=0.2)
    with pytest.raises(
        ModelUnsupported, match=r"`net.py:hang` went on .* had to be killed, at net"
    ):
        train(Recipe(model=word("make_model"), name="net", train=training), tmp_path, model=model)


def test_nothing_is_made_where_nothing_is_asked_for(tmp_path: Path) -> None:
    assert train(Recipe(model="model.onnx", name="net"), tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_are_refused(word: Callable[[str], str], tmp_path: Path) -> None:
    follow = word("follow")
    for training, words in (
        (Training(prune=1.0), "`train.prune` is 1"),
        (Training(prune=-0.1), "`train.prune` is -0.1"),
        (Training(quantize=True), "`train.quantize` needs a hook"),
        (Training(sparsity="2:4"), "`train.sparsity` needs a hook"),
        (Training(student=word("make_student")), "`train.student` needs a hook"),
        (Training(distill=True), "`train.distill` gives the hook a teacher"),
        (Training(prune=0.5, distill=True), "`train.distill` gives the hook a teacher"),
        (Training(function=follow), "`train.function` has nothing to train"),
        (Training(function="hook.py", prune=0.5), "`hook.py` is no hook"),
        (Training(function="absent.py:f", prune=0.5), "there is no file `absent.py`"),
    ):
        with pytest.raises(UsageError, match=words) as caught:
            train(Recipe(model=word("make_model"), name="net", train=training), tmp_path)
        assert caught.value.accepted


def test_only_a_factory_can_be_trained(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"\x08\x08")
    with pytest.raises(UsageError, match=r"`model\.onnx` cannot be trained"):
        train(Recipe(model=str(file), name="net", train=Training(prune=0.5)), tmp_path)


def test_a_target_with_unsigned_weights_cannot_be_simulated() -> None:
    kind = find_target("cpu-x86_64").quantization
    assert scheme_of(kind) == {"weight_bits": 7, "per_channel": True, "symmetric": False}
    with pytest.raises(UsageError, match="cannot simulate U8U8"):
        scheme_of(dataclasses.replace(kind, weight="uint8"))


def test_the_digest_follows_the_hook_and_the_settings(
    word: Callable[[str], str], tmp_path: Path
) -> None:
    def digest(**settings: Any) -> str:
        training = Training(function=word("follow"), **{"prune": 0.5, **settings})
        return training_digest(Recipe(model=word("make_model"), name="net", train=training))

    first = digest()
    assert digest() == first
    assert digest(prune=0.4) != first
    assert digest(student=word("make_student")) != first
    file = tmp_path / "net.py"
    file.write_text(file.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    assert digest() != first
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "net.py").write_bytes(file.read_bytes())
    training = Training(function=f"{moved / 'net.py'}:follow", prune=0.5)
    recipe = Recipe(model=word("make_model"), name="net", train=training)
    assert training_digest(recipe) == digest(), "the folder does not count"


def test_a_request_comes_back_as_it_was_written(tmp_path: Path, word: Callable[[str], str]) -> None:
    request = TrainingRequest(
        source=parse_source(word("make_model")),
        weights_sha256="0" * 64,
        variants=("pruned", "qat"),
        hook=word("follow"),
        student=parse_source(word("make_student")),
        scheme={"weight_bits": 7},
        prune=0.5,
        distill=True,
        time_limit_s=5.0,
        seed=3,
    )
    request.write(tmp_path / "request.json")
    assert TrainingRequest.read(tmp_path / "request.json") == request


def test_the_recipe_of_the_worked_example_is_read() -> None:

    training = read_recipe(EXAMPLES / "digits_training.toml")["train"]
    assert training.function == f"{EXAMPLES / 'digits_training.py'}:fine_tune"
    assert (training.prune, training.distill, training.time_limit_s) == (0.5, True, 60.0)


@pytest.mark.slow
@pytest.mark.torch
def test_half_of_the_digits_network_goes_without_its_accuracy(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (extra `train`)")
    values = read_recipe(EXAMPLES / "digits_training.toml")
    recipe = Recipe(name="digits", **{k: v for k, v in values.items() if k != "name"})
    example = digits_example()
    calibration = list(example.calibration())[:64]
    samples = Samples(
        [lambda sample=sample: sample for sample in calibration],
        digest="0" * 64, origin="digits", kind="generator",
    )  # fmt: skip
    (tmp_path / "import").mkdir()
    model = import_model(recipe, workdir=tmp_path / "import", reporter=Silent())
    found = train_variants(recipe, model, samples, workdir=tmp_path, reporter=Silent())

    def accuracy(path: Path) -> float:
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        right = [
            int(session.run(None, sample)[0].argmax()) == label
            for sample, label in example.held_out()
        ]
        return sum(right) / len(right)

    original = accuracy(model.path)
    assert original >= 0.98
    for variant in found:
        facts = variant.facts
        assert accuracy(variant.path) >= original - 0.005, variant.name
        assert facts["trained_s"] <= 60 + 6
        if "pruned" in variant.name:
            assert facts["parameters_after"] <= facts["parameters_before"] / 2


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
def test_the_digits_network_learns_to_live_with_three_bits(
    per_channel: bool, make_context: Callable, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    import onnx
    import onnxruntime

    from packager.importers.torch_calls import Callee
    from packager.passes.clean_up import CleanUp
    from packager.passes.contract import apply
    from packager.passes.int8_static import Int8Static
    from packager.training.fake_quant import Scheme, attach, detach
    from packager.training.fold import fold_batch_norms

    example = digits_example()
    train_x, train_y, test_x, test_y = example.load_data()
    feeds = [{"x": row[None]} for row in train_x[:128]]
    samples = Samples(
        [lambda feed=feed: {"x": feed["x"].numpy()} for feed in feeds],
        digest="0" * 64, origin="digits", kind="generator",
    )  # fmt: skip

    def int8_accuracy(epochs: int) -> float:
        module, examples = example.make_model()
        callee = Callee(module, examples)
        assert fold_batch_norms(module, callee, feeds[:2]) == 2
        attach(module, Scheme(weight_bits=3, per_channel=per_channel), callee, feeds)
        torch.manual_seed(0)
        if epochs:
            for _ in example.epochs(module, train_x, train_y, count=epochs, peak=3e-3):
                pass
        detach(module)
        path = tmp_path / f"{epochs}.onnx"
        torch.onnx.export(
            module.eval(), (torch.zeros(2, 1, 8, 8),), path, dynamo=False, opset_version=17,
            input_names=["x"], output_names=["y"], dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )  # fmt: skip
        after, _ = apply((CleanUp(), Int8Static()), onnx.load(path), make_context(samples))
        session = onnxruntime.InferenceSession(after.SerializeToString())
        scores = session.run(None, {"x": test_x.numpy()})[0]
        return float((scores.argmax(1) == test_y.numpy()).mean())

    rounded, trained = int8_accuracy(0), int8_accuracy(8)
    assert rounded < 0.9
    assert trained > 0.98
