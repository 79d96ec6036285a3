"""`.pt2` archives: programs import with their dimensions; nothing that they hold is executed."""

from __future__ import annotations

import json
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from packager.errors import ModelUnsupported
from packager.importers.pt2_archive import load_program, rewrite_pt2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.unit.packager.importers.conftest import Importing

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small program with an open batch, two inputs and a dictionary of outputs."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 3)

        def forward(self, x: Any, *, scale: Any) -> Any:
            return {"scores": self.layer(x) * scale, "twice": (x * 2, x.shape[0] + scale)}

    torch.manual_seed(0)
    batch = torch.export.Dim("rows", min=1, max=16)
    program = torch.export.export(
        Net(),
        (torch.randn(2, 4),),
        {"scale": torch.tensor(2.0)},
        dynamic_shapes={"x": {0: batch}, "scale": {}},
    )
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path)
    return path


def changed(source: Path, path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a copy of an archive with some of its entries changed."""
    with zipfile.ZipFile(source) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as new:
        for name, content in entries.items():
            new.writestr(name, content)
    return path


def in_program(edit: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        name = next(n for n in entries if n.endswith("models/model.json"))
        wire = json.loads(entries[name])
        edit(wire)
        entries[name] = json.dumps(wire).encode()

    return change


def adding(name: str, content: bytes = b"x") -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        entries[next(iter(entries)).split("/")[0] + "/" + name] = content

    return change


def set_target(target: str) -> Callable[[dict[str, bytes]], None]:
    return in_program(lambda wire: wire["graph_module"]["graph"]["nodes"][0].update(target=target))


def set_expression(text: str) -> Callable[[dict[str, bytes]], None]:
    def edit(wire: Any) -> None:
        axis = wire["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]
        axis["as_expr"]["expr_str"] = text

    return in_program(edit)


def set_spec(kind: str) -> Callable[[dict[str, bytes]], None]:
    def edit(wire: Any) -> None:
        call = wire["graph_module"]["module_call_graph"][0]["signature"]
        call["in_spec"] = json.dumps([1, {"type": kind, "context": "null", "children_spec": []}])

    return in_program(edit)


def rename_input(wire: Any) -> None:
    wire["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = "x=print(1)\n"


def test_a_program_imports_with_its_own_dimensions(archive: Path, importing: Importing) -> None:
    found = importing(archive)
    assert [str(s) for s in (*found.signature.inputs, *found.signature.outputs)] == [
        "x: float32[batch=1..16, 4]",
        "scale: float32[]",
        "scores: float32[batch=1..16, 3]",
        "twice_0: float32[batch=1..16, 4]",
        "twice_1: float32[]",
    ]
    assert found.provenance.kind == "exported-program"
    assert found.provenance.source == "net.pt2"
    assert found.provenance.rungs[0][1].startswith("passed")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_target("torch.os.system"), "calls `torch.os.system`"),
        (set_target("torch.ops.evil.run.default"), "calls `torch.ops.evil.run.default`"),
        (set_target("_operator.call"), "calls `_operator.call`"),
        (set_target("#custom:run"), "calls `#custom:run`"),
        (set_expression("__import__('os').system('x')"), "odd size expression"),
        (set_expression("exec(s0)"), "odd size expression"),
        (set_expression("().__class__"), "odd size expression"),
        (set_spec("os.system"), "takes or returns a `os.system`"),
        (in_program(rename_input), "odd name"),
        (in_program(lambda wire: wire.update(guards_code=["exit()"])), "guards as code"),
        (adding("data/aotinductor/model/model.so"), "compiled code"),
        (adding("data/constants/custom_obj_0"), "pickled objects"),
        (adding("data/constants/opaque_obj_0"), "pickled objects"),
        (adding("../../outside"), "an entry with the path"),
        (adding("models/second.json", b"{}"), "holds 2 exported programs"),
        (adding("MODELS/model.json", b"{}"), "twice"),
        (lambda entries: entries.pop("net/models/model.json"), "holds 0 exported programs"),
        (
            lambda entries: entries.update({"net/models/model.json": b"{"}),
            "is not valid JSON",
        ),
        (
            lambda entries: entries.update({"net/models/model.json": b"[" * 100_000}),
            "is not valid JSON",
        ),
    ],
)
def test_archives_that_would_execute_something_are_refused(
    change: Callable[[dict[str, bytes]], None], words: str, archive: Path, tmp_path: Path
) -> None:
    path = changed(archive, tmp_path / "net.pt2", change)
    with pytest.raises(ModelUnsupported) as refused:
        rewrite_pt2(path, tmp_path / "clean.pt2", source="net.pt2")
    assert words in refused.value.message


def test_pickled_sample_inputs_are_not_executed(archive: Path, tmp_path: Path) -> None:
    import torch

    class Bomb:
        def __reduce__(self) -> object:
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save(Bomb(), tmp_path / "bomb.pt", pickle_protocol=pickle.DEFAULT_PROTOCOL)
    bomb = (tmp_path / "bomb.pt").read_bytes()
    path = changed(
        archive,
        tmp_path / "net.pt2",
        lambda entries: entries.update({"net/data/sample_inputs/model.pt": bomb}),
    )
    rewrite_pt2(path, tmp_path / "clean.pt2", source="net.pt2")
    with pytest.raises(ModelUnsupported, match="pickles are not executed"):
        load_program(tmp_path / "clean.pt2", source="net.pt2")
    assert not (tmp_path / "executed").exists()


def test_the_control_loads_after_being_rewritten(archive: Path, tmp_path: Path) -> None:
    rewrite_pt2(archive, tmp_path / "clean.pt2", source="net.pt2")
    program = load_program(tmp_path / "clean.pt2", source="net.pt2")
    assert list(program.graph_signature.user_inputs) == ["x", "scale"]


@pytest.mark.parametrize("size", [0.3, 0.9])
def test_a_truncated_archive_is_refused(size: float, archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    (tmp_path / "net.pt2").write_bytes(content[: int(len(content) * size)])
    with pytest.raises(ModelUnsupported, match="damaged"):
        rewrite_pt2(tmp_path / "net.pt2", tmp_path / "clean.pt2", source="net.pt2")


@pytest.mark.usefixtures("warm_torch")
def test_a_refused_archive_leaves_nothing_behind(
    archive: Path, tmp_path: Path, workdir: Path, importing: Importing
) -> None:
    path = changed(archive, tmp_path / "net.pt2", set_target("torch.os.system"))
    with pytest.raises(ModelUnsupported, match="no operator that edgepack converts"):
        importing(path)
    assert {entry.name for entry in workdir.iterdir()} == {"import.log"}
