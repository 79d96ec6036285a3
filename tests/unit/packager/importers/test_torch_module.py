"""Torch factories: the ladder, its refusals with the user's own line, and what is recorded."""

from __future__ import annotations

import re
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest

from packager.console import Silent
from packager.errors import BackendMissing, ModelUnsupported, UsageError
from packager.importers.load import import_model, parse_source
from packager.recipe import DimRange, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.packager.importers.conftest import Importing

HEAD = """
import torch
from torch import nn
"""


def factory(folder: Path, body: str, *, name: str = "net.py") -> str:
    path = folder / name
    path.write_text(HEAD + textwrap.dedent(body), encoding="utf-8")
    return f"{path}:make_model"


CNN = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, image):
        seen = torch.relu(self.norm(self.conv(image)))
        return self.head(nn.functional.max_pool2d(seen, 2).flatten(1))

def make_model():
    torch.manual_seed(0)
    return Net(), {"image": torch.randn(1, 1, 8, 8)}
"""


@pytest.fixture
def making(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Return a function that runs a factory in this process: children would cost seconds each."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def call(word: str) -> object:
        from packager.importers.torch_calls import Callee
        from packager.importers.torch_module import make

        monkeypatch.delitem(sys.modules, "net", raising=False)
        return Callee(*make(parse_source(word)))

    return call


@pytest.mark.torch
def test_a_network_imports_with_its_batch_open_and_the_same_bytes_in_any_folder(
    tmp_path: Path, workdir: Path, importing: Importing, request: pytest.FixtureRequest
) -> None:
    results = []
    for name in ("one", "two"):
        if name == "two":  # as the other tests have it: it must make no difference
            request.getfixturevalue("warm_torch")
        (tmp_path / name).mkdir()
        found = importing(factory(tmp_path / name, CNN))
        results.append((found.path.read_bytes(), found.provenance))
        assert not (tmp_path / name / "__pycache__").exists()
    assert results[0] == results[1]
    assert [str(s) for s in (*found.signature.inputs, *found.signature.outputs)] == [
        "image: float32[batch=1..32, 1, 8, 8]",
        "output: float32[batch=1..32, 3]",
    ]
    assert found.provenance.kind == "torch"
    assert found.provenance.source == "net.py:make_model"
    assert found.provenance.exporter == "torch.export"
    assert re.fullmatch(r"[0-9a-f]{64}", found.provenance.source_sha256)
    assert found.provenance.rungs[-1][1].startswith("passed: 10 inputs at 3 sizes")
    assert str(tmp_path).encode() not in found.path.read_bytes()
    assert {p.name for p in workdir.iterdir()} == {"model.onnx", "model.json", "import.log"}
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    got = session.run(None, {"image": np.ones((7, 1, 8, 8), np.float32)})
    assert got[0].shape == (7, 3)


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_a_bidirectional_gru_with_two_open_dimensions_and_a_dictionary_of_outputs(
    tmp_path: Path, importing: Importing
) -> None:
    word = factory(
        tmp_path,
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.gru = nn.GRU(3, 4, bidirectional=True, batch_first=True)

            def forward(self, signal, scale, *, shift=None):
                states, last = self.gru(signal * scale + shift)
                return {"states": states, "pair": (last, states.mean(1)), "nothing": None}

        def make_model():
            torch.manual_seed(0)
            examples = {"scale": torch.tensor(2.0), "shift": torch.zeros(3)}
            return Net(), {"signal": torch.randn(2, 10, 3), **examples}
        """,
    )
    found = importing(
        word,
        shapes={"signal": ("batch", "time", 3), "shift": (3,)},
        dims={"time": DimRange(min=1, max=40, opt=4), "batch": DimRange(min=1, max=4, opt=1)},
    )
    assert [str(s) for s in (*found.signature.inputs, *found.signature.outputs)] == [
        "signal: float32[batch=1..4, time=1..40, 3]",
        "scale: float32[]",
        "shift: float32[3]",
        "states: float32[batch=1..4, time=1..40, 8]",
        "pair_0: float32[2, batch=1..4, 4]",
        "pair_1: float32[batch=1..4, 8]",
    ]


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_control_flow_on_values_is_refused_with_the_line(
    tmp_path: Path, importing: Importing
) -> None:
    word = factory(
        tmp_path,
        """
        class Net(nn.Module):
            def forward(self, x):
                if x.sum() > 0:
                    return x * 2
                return x - 1

        def make_model():
            return Net(), {"x": torch.randn(2, 4)}
        """,
    )
    with pytest.raises(ModelUnsupported, match="depends on the values of a tensor") as refused:
        importing(word)
    first, *rungs = refused.value.message.splitlines()
    assert "net.py:7 `if x.sum() > 0:`" in first
    assert [line.split(":")[0].strip() for line in rungs] == [
        "torch.export",
        "torch.export-strict",
        "torchscript",
    ]
    assert "torch.where" in (refused.value.hint or "")


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_a_size_fixed_in_the_code_is_refused_with_the_dimension_to_declare(
    tmp_path: Path, importing: Importing
) -> None:
    body = """
        class Net(nn.Module):
            def forward(self, x):
                return x.reshape(4, 8) * 2

        def make_model():
            return Net(), {"x": torch.randn(4, 8)}
        """
    word = factory(tmp_path, body)
    with pytest.raises(ModelUnsupported, match=r"net.py:7 `return x.reshape\(4, 8\)") as refused:
        importing(word)
    assert "--dim batch=4" in (refused.value.hint or "")
    found = importing(word, dims={"batch": DimRange(min=4, max=4, opt=4)})
    assert str(found.signature.inputs[0]) == "x: float32[4, 8]"


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_an_operator_without_onnx_form_is_named_with_its_line(
    tmp_path: Path, importing: Importing
) -> None:
    word = factory(
        tmp_path,
        """
        class Net(nn.Module):
            def forward(self, x):
                return torch.linalg.eigvals(x).abs() + x.sum()

        def make_model():
            return Net(), {"x": torch.eye(3).repeat(2, 1, 1)}
        """,
    )
    with pytest.raises(ModelUnsupported, match="eig") as refused:
        importing(word)
    assert "has no ONNX form" in refused.value.message.splitlines()[0]
    assert "net.py:7" in refused.value.message.splitlines()[0]


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_what_torch_export_cannot_do_falls_to_the_older_tracer(
    tmp_path: Path, importing: Importing
) -> None:
    word = factory(
        tmp_path,
        """
        class Net(nn.Module):
            def forward(self, x):
                if torch.compiler.is_compiling() or torch.compiler.is_exporting():
                    raise RuntimeError("not for torch.export")
                return torch.sigmoid(x)

        def make_model():
            return Net(), {"x": torch.randn(2, 4)}
        """,
    )
    found = importing(word)
    assert found.provenance.exporter == "torchscript"
    assert [name for name, _ in found.provenance.rungs] == [
        "torch.export",
        "torch.export-strict",
        "torchscript",
    ]
    assert str(found.signature.outputs[0]) == "output: float32[batch=1..32, 4]"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("module", "examples", "names"),
    [
        ("Net()", "(torch.ones(1, 4), torch.ones(1, 4))", ["left", "right"]),
        ("Net()", "[torch.ones(1, 4)]", ["left"]),
        ("nn.Linear(4, 3)", "torch.ones(1, 4)", ["input"]),
        ("torch.jit.script(Net())", "(torch.ones(1, 4), torch.ones(1, 4))", ["left", "right"]),
        ("Net()", "UserDict(right=torch.ones(1, 4), left=torch.ones(1, 4))", ["right", "left"]),
    ],
)
def test_examples_without_names_get_those_of_the_parameters(
    module: str, examples: str, names: list[str], tmp_path: Path, making: Callable
) -> None:
    word = factory(
        tmp_path,
        f"""
        from collections import UserDict
        from typing import Optional

        class Net(nn.Module):
            def forward(self, left: torch.Tensor, right: Optional[torch.Tensor] = None):
                return left if right is None else left - right

        def make_model():
            return {module}, {examples}
        """,
    )
    found = making(word).examples
    assert list(found) == names


@pytest.mark.torch
@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        (
            "def make_model():\n    raise ValueError('weights.bin is not there')\n",
            r"`make_model\(\)` failed at net.py:5 .*\n  ValueError: weights.bin is not there",
            None,
        ),
        ("def make_model(:\n", r"cannot be imported at net.py:4\n  SyntaxError", None),
        ("import no_such_package\n", "No module named 'no_such_package'", "no_such_package"),
        ("def other():\n    pass\n", "there is no function `make_model`", None),
        ("def make_model():\n    return nn.Linear(2, 2)\n", "returned a Linear", "make_model"),
        ("def make_model():\n    return 1, {}\n", "returned a int as its module", None),
        ("def make_model():\n    return nn.ReLU(), {}\n", "a dict as its example inputs", None),
        ("def make_model():\n    return nn.ReLU(), ()\n", "a tuple as its example inputs", None),
        ("def make_model():\n    return nn.ReLU(), 'x'\n", "a str as its example inputs", None),
        (
            "def make_model():\n    return nn.ReLU(), (torch.ones(1), torch.ones(1))\n",
            "`forward` takes 1 inputs, but there are 2 examples",
            None,
        ),
        ("def make_model():\n    return nn.ReLU(), {'x': 3}\n", "example input 'x' is a int", None),
        ("def make_model():\n    exit(3)\n", "SystemExit: 3", None),
        (
            "def make_model():\n    return nn.Linear(3, 2), {'input': torch.ones(1, 4)}\n",
            "the module fails on its inputs",
            None,
        ),
        (
            (
                "class Net(nn.Module):\n    def forward(self, x):\n"
                "        return x + torch.randn(4)\n"
                "def make_model():\n    return Net(), {'x': torch.ones(1, 4)}\n"
            ),
            "different answers for the same input",
            "randomness",
        ),
        (
            (
                "class Net(nn.Module):\n    def forward(self, x):\n        return 'text'\n"
                "def make_model():\n    return Net(), {'x': torch.ones(1, 4)}\n"
            ),
            "returns a str",
            None,
        ),
        (
            (
                "import pathlib\n"
                "def make_model():\n"
                "    here = pathlib.Path(__file__).with_name('w.pth')\n"
                "    torch.save(nn.Linear(2, 2), here)\n"
                "    return torch.load(here, weights_only=True), {}\n"
            ),
            "weights_only",
            "state_dict alone",
        ),
    ],
)
def test_a_factory_that_breaks_its_contract_is_refused_without_a_traceback(
    body: str, message: str, hint: str | None, tmp_path: Path, making: Callable[[str], object]
) -> None:
    with pytest.raises(ModelUnsupported, match=message) as refused:
        making(factory(tmp_path, body))
    assert "Traceback" not in refused.value.message
    assert refused.value.exit_code == 5
    if hint is not None:
        assert hint in (refused.value.hint or "")


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_a_factory_in_a_package_of_the_current_folder(
    tmp_path: Path, importing: Importing, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "zoo"
    package.mkdir()
    (package / "__init__.py").write_text("")
    factory(
        package, "def make_model():\n    return nn.Tanh(), {'a b': torch.ones(2)}\n", name="nets.py"
    )
    monkeypatch.chdir(tmp_path)
    found = importing("zoo.nets:make_model")
    assert str(found.signature.inputs[0]) == "a b: float32[batch=1..32]"
    assert found.provenance.source == "zoo.nets:make_model"
    with pytest.raises(ModelUnsupported, match=r"No module named 'zoo\.none'"):
        importing("zoo.none:make_model")


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_recipes_that_do_not_fit_the_module_are_usage_errors(
    tmp_path: Path, importing: Importing
) -> None:
    word = factory(
        tmp_path, "def make_model():\n    return nn.ReLU(), {'input': torch.ones(2, 4)}\n"
    )
    with pytest.raises(UsageError, match="the model has no input `x`"):
        importing(word, shapes={"x": (2, 4)})
    with pytest.raises(UsageError, match="has 1 dimensions, its example has 2"):
        importing(word, shapes={"input": ("batch",)})
    with pytest.raises(UsageError, match="dimension `w` of `input` has no range"):
        importing(word, shapes={"input": ("batch", "w")})


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_outputs_that_share_a_tensor_or_an_input_keep_names_of_their_own(
    tmp_path: Path, importing: Importing
) -> None:
    word = factory(
        tmp_path,
        """
        class Net(nn.Module):
            def forward(self, x):
                y = torch.relu(x)
                return {"y": y, "again": y, "x": x, "relu": y + 1}

        def make_model():
            return Net(), {"x": torch.randn(2, 4)}
        """,
    )
    found = importing(word)
    assert [spec.name for spec in found.signature.outputs] == ["y", "again", "x_2", "relu"]
    graph = onnx.load(found.path).graph
    made = [name for node in graph.node for name in node.output]
    assert len(set(made)) == len(made)


def test_without_torch_the_extra_is_named(
    tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    recipe = Recipe(model=factory(tmp_path, CNN), name="tested")
    with pytest.raises(BackendMissing, match="torch is not installed") as refused:
        import_model(recipe, workdir=workdir, reporter=Silent())
    assert refused.value.hint == "pip install 'edgepack[torch]'"


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_a_scripted_module_keeps_its_branches(tmp_path: Path, importing: Importing) -> None:
    word = factory(
        tmp_path,
        """
        class Net(nn.Module):
            def forward(self, x):
                if bool(x.sum() > 0):
                    return x * 2
                return x - 1

        def make_model():
            return torch.jit.script(Net()), {"x": torch.randn(2, 4)}
        """,
    )
    found = importing(word)
    assert found.provenance.exporter == "torchscript"
    session = onnxruntime.InferenceSession(found.path, providers=["CPUExecutionProvider"])
    for sign, answer in ((1, 2), (-1, -2)):
        (got,) = session.run(None, {"x": np.full((1, 4), sign, np.float32)})
        assert got.tolist() == [[answer] * 4]


@pytest.mark.usefixtures("warm_torch")
@pytest.mark.torch
def test_a_side_that_follows_its_input_only_at_even_sizes_is_not_tied_to_it(
    tmp_path: Path, importing: Importing
) -> None:
    word = factory(
        tmp_path,
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.down = nn.Conv1d(1, 2, 3, stride=2, padding=1)
                self.up = nn.ConvTranspose1d(2, 1, 2, stride=2)

            def forward(self, x):
                return self.up(self.down(x))

        def make_model():
            torch.manual_seed(0)
            return Net(), {"x": torch.randn(1, 1, 16)}
        """,
    )
    width = DimRange(min=8, max=32, opt=16)
    found = importing(word, shapes={"x": (1, 1, "width")}, dims={"width": width})
    assert str(found.signature.outputs[0]) == "output: float32[1, 1, ?=0..]"


@pytest.mark.torch
def test_a_module_that_torch_has_quantized_is_refused(tmp_path: Path, importing: Callable) -> None:
    word = factory(
        tmp_path,
        """
        def make_model():
            net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
            quantized = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
            return quantized, {"input": torch.ones(1, 4)}
        """,
    )
    with pytest.raises(
        ModelUnsupported, match=r"quantized and packed \(`0`, a Linear\)"
    ) as refused:
        importing(word)
    assert "give the float module" in (refused.value.hint or "")
