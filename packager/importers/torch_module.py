"""Imports a torch module: runs the user's factory and hands the module to the ladder."""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import ModelUnsupported
from packager.importers.blame import user_frame
from packager.importers.ladder import climb
from packager.importers.onnx_file import MAX_PROTOBUF_BYTES, write_model
from packager.importers.torch_calls import Callee, positional_names
from packager.model import Provenance

if TYPE_CHECKING:
    from types import ModuleType

    from packager.importers.request import Imported, ImportRequest

_CONTRACT = (
    "`make_model()` returns (torch.nn.Module, {input name: example tensor}), or the tensors in "
    "the order in which `forward` takes them"
)


def import_torch_module(request: ImportRequest, workdir: Path) -> Imported:
    """Import the module that the request's factory makes.

    Raises:
        ModelUnsupported: the factory fails or breaks its contract, or no export passes.
    """
    module, examples = make(request)
    _refuse_packed(module, request)
    weights_bytes = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if weights_bytes > MAX_PROTOBUF_BYTES:
        raise ModelUnsupported(
            f"`{request.source}` holds {weights_bytes / 1e9:.1f} GB of weights",
            accepted="models up to 2 GB",
            hint="hold its weights in half precision: `module.half()`; or export it yourself with "
            "`torch.onnx.export(…, external_data=True)` and give the ONNX file",
        )
    callee = Callee(module, examples)
    taken = climb(callee, request, workdir)
    return write_model(
        taken.model,
        taken.signature,
        workdir=workdir,
        provenance=Provenance(
            kind="torch",
            source=request.source,
            source_sha256=module_digest(module, request, examples),
            exporter=taken.rung,
            rungs=taken.rungs,
            notes=taken.notes,
        ),
    )


def _refuse_packed(module: Any, request: ImportRequest) -> None:
    """Refuse what torch.ao quantized: its weights are objects that no export can read."""
    for name, part in module.named_modules():
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise ModelUnsupported(
                f"`{request.source}` holds weights that torch has quantized and packed "
                f"(`{name or type(part).__name__}`, a {type(part).__name__})",
                hint="give the float module: edgepack quantizes it for the target",
            )


def make(request: ImportRequest) -> tuple[Any, dict[str, Any]]:
    """Run the factory and return the module in evaluation mode with its example inputs.

    Raises:
        ModelUnsupported: it cannot be loaded, raises, or returns something else.
    """
    import torch

    # The fused encoder layer has no ONNX form; its plain form computes the same.
    torch.backends.mha.set_fastpath_enabled(False)
    loaded = load_code(request)
    factory = getattr(loaded, request.factory, None)
    if not callable(factory):
        offered = [n for n, v in vars(loaded).items() if inspect.isfunction(v) and n[0] != "_"]
        raise ModelUnsupported(
            f"`{request.source}`: there is no function `{request.factory}`",
            accepted=", ".join(f"`{name}`" for name in offered[:8]) or None,
        )
    try:
        made = factory()
    except (Exception, SystemExit) as fault:
        raise _blamed(fault, f"`{request.factory}()` failed", request) from fault
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ModelUnsupported(
            f"`{request.source}` returned {_kind(made)}", accepted=_CONTRACT, hint=_hint(request)
        )
    module, examples = made
    if not isinstance(module, torch.nn.Module):
        raise ModelUnsupported(
            f"`{request.source}` returned {_kind(module)} as its module", accepted=_CONTRACT
        )
    named = _by_name(examples, module)
    if not named:
        raise ModelUnsupported(
            f"`{request.source}` returned {_kind(examples)} as its example inputs",
            accepted=_CONTRACT,
        )
    for name, value in named.items():
        if not isinstance(name, str) or not name or not isinstance(value, torch.Tensor):
            raise ModelUnsupported(
                f"`{request.source}`: the example input {name!r} is {_kind(value)}",
                accepted=_CONTRACT,
            )
    module.eval().cpu()
    for parameter in module.parameters():
        parameter.requires_grad_(requires_grad=False)
    return module, {name: value.detach().cpu() for name, value in named.items()}


def _by_name(examples: Any, module: Any) -> dict[str, Any]:
    """Return example inputs by name; those in order are named like `forward`'s parameters."""
    import torch

    if isinstance(examples, Mapping):
        return dict(examples)
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if not isinstance(examples, tuple | list):
        return {}
    names = positional_names(module, len(examples))
    return dict(zip(names, examples, strict=True))


def load_code(request: ImportRequest) -> ModuleType:
    """Import the file or module that holds the factory.

    A file's folder comes first on the import path, as `python file.py` has it; for a module it
    is the folder the user works in.

    Raises:
        ModelUnsupported: it cannot be found, or raises.
    """
    try:
        if request.module:
            sys.path.insert(0, request.folder)
            return importlib.import_module(request.module)
        path = Path(request.path)
        sys.path.insert(0, str(path.parent))
        loader = importlib.machinery.SourceFileLoader(path.stem, str(path))
        spec = importlib.util.spec_from_loader(path.stem, loader)
        loaded = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        sys.modules[path.stem] = loaded
        loader.exec_module(loaded)
    except (Exception, SystemExit) as fault:
        raise _blamed(fault, f"`{request.source}` cannot be imported", request) from fault
    return loaded


def _blamed(fault: BaseException, what: str, request: ImportRequest) -> ModelUnsupported:
    """Return the error that shows the user's line instead of a traceback."""
    where = user_frame(fault)
    text = f"{type(fault).__name__}: {fault}".rstrip(": ")
    place = f" at {where}" if where else ""
    hint = None
    if isinstance(fault, ModuleNotFoundError) and fault.name:
        if fault.name == request.module.split(".")[0]:
            hint = "run from the folder that holds the package, or install it"
        else:
            hint = f"install the package that provides `{fault.name}`"
    elif "weights_only" in str(fault) or "UnpicklingError" in text:
        text = text.splitlines()[0]
        hint = "save the state_dict alone; pickled checkpoints are not executed"
    return ModelUnsupported(f"{what}{place}\n  {text[:2000]}", hint=hint)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "nothing"


def _hint(request: ImportRequest) -> str:
    return f"end `{request.factory}` with `return module, {{'x': torch.zeros(1, 3, 224, 224)}}`"


def module_digest(module: Any, request: ImportRequest, examples: dict[str, Any]) -> str:
    """Return a digest of the weights, of the code of every class used, and of the examples' form.

    Classes of torch itself count by name and torch's version, so that two folders and two
    installations of the same release agree.
    """
    import torch

    digest = hashlib.sha256(f"torch {torch.__version__}\0".encode())
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    for name, tensor in examples.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
    code = {Path(request.path)} if request.path else set()
    if request.module:
        file = getattr(sys.modules[request.module], "__file__", None)
        code |= {Path(file)} if file else set()
    names = set()
    for part in module.modules():
        kind = type(part)
        names.add(f"{kind.__module__}.{kind.__qualname__}")
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if file and kind.__module__.split(".")[0] != "torch":
            code.add(Path(file))
    for name in sorted(names):
        digest.update(name.encode() + b"\0")
    for content in sorted(hashlib.sha256(path.read_bytes()).digest() for path in code):
        digest.update(content)
    return digest.hexdigest()
