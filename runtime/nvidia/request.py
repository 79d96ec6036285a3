"""What an engine is built from: read from a manifest or a file, and checked like hostile input."""

from __future__ import annotations

import json
import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import ModelFault

FLAGS = ("fp16", "int8")
BOUNDS = ("min", "opt", "max")
# The first TensorRT 11 that has DLA, and the first of all that takes int8 on it from the graph.
_DLA_BACK = (11, 4, 1)
_MAX_BYTES = 4 << 20
_MAX_PROFILES = 64
_MAX_INPUTS = 256
_MAX_PRODUCTS = 1 << 16
_MAX_RANK = 8
_MAX_DIM = (1 << 31) - 1
_MAX_MIB = 1 << 21
_MODULES = ("tensorrt", "tensorrt_rtx")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){1,3}\Z")
_CAPABILITY = re.compile(r"[0-9]{1,2}\.[0-9]\Z")
_PLATFORM = re.compile(r"[a-z]{1,16}-[a-z0-9_]{1,16}\Z")
_PRECISION = re.compile(r"[a-z0-9][a-z0-9._+-]{0,62}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")

Shape = Tuple[int, ...]
Profile = Dict[str, Dict[str, Shape]]


class BadRecipe(ModelFault):
    """An engine recipe or build request that cannot be."""


class BuildRequest(NamedTuple):
    """One engine to build; all that its child process needs to know.

    Attributes:
        module: `tensorrt` or `tensorrt_rtx`.
        version: The TensorRT that the recipe is for.
        compute_capabilities: What TensorRT-RTX builds for; empty: its default. TensorRT builds for
            the GPU at hand.
        platform: Such as `linux-aarch64`.
        folder: Of the release, absolute.
        artifact: The ONNX file in it.
        artifact_sha256: Its digest.
        precision: What the graph was made for: `fp32`, `fp16`, `bf16`, `int8-static` …
        strongly_typed: Precision is the graph's alone.
        flags: What a weakly typed network may compute in as well: of `FLAGS`.
        profiles: Each gives every dynamic input its smallest, usual and largest shape; of an input
            that holds a shape, the values.
        workspace_mib: What a layer may use while it runs; None: the library's default.
        sparse: Look for kernels that skip two zeros in every four weights.
        dla_core: Which deep learning accelerator runs the layers; None: the GPU.
        gpu_fallback: Layers that the accelerator lacks may run on the GPU.
        version_compatible: The engine also runs in later TensorRTs, by host code that it carries.
        products: Names of convolutions and matrix products that the graph has in the precision
            asked for; one that computes in float32 is a loss of it. Empty where nobody named them.
    """

    module: str
    version: str
    compute_capabilities: Tuple[str, ...]
    platform: str
    folder: str
    artifact: str
    artifact_sha256: str
    precision: str
    strongly_typed: bool
    flags: Tuple[str, ...]
    profiles: Tuple[Profile, ...]
    workspace_mib: Optional[int]
    sparse: bool
    dla_core: Optional[int]
    gpu_fallback: bool
    version_compatible: bool
    products: Tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The ONNX file's path."""
        return os.path.join(self.folder, *self.artifact.split("/"))

    def to_json(self) -> str:
        """Return the request as a file holds it; equal requests give equal text."""
        return json.dumps(self._asdict(), sort_keys=True, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BuildRequest:
        """Read what `to_json` wrote.

        Raises:
            BadRecipe: it is not that, or a value cannot be.
        """
        if len(text) > _MAX_BYTES:
            raise BadRecipe("the build request has more than %d MiB" % (_MAX_BYTES >> 20))
        try:
            fields = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once)
        except (ValueError, RecursionError) as fault:
            raise BadRecipe("the build request is not valid JSON") from fault
        if not isinstance(fields, dict):
            raise BadRecipe("the build request is no JSON object")
        strange = sorted(set(fields) - set(cls._fields))
        if strange:
            raise BadRecipe("the build request has an unknown key: `%s`" % strange[0][:80])
        folder = fields.pop("folder", None)
        if not isinstance(folder, str) or not os.path.isabs(folder):
            raise BadRecipe("`folder` in the build request must be an absolute path")
        return _read(fields, folder)


def from_manifest(fields: Mapping[str, Any], folder: str) -> BuildRequest:
    """Return the request that a manifest's `tensorrt` table describes.

    Args:
        fields: The whole manifest.
        folder: Of the unpacked release.

    Raises:
        BadRecipe: there is no such table, or a value in it cannot be.
    """
    table = fields.get("tensorrt")
    if not isinstance(table, dict):
        raise BadRecipe("this bundle has no recipe for a TensorRT engine")
    known = {key: table[key] for key in BuildRequest._fields if key in table}
    return _read(known, os.path.abspath(folder))


def read_request(path: str) -> BuildRequest:
    """Read a request from a file.

    Raises:
        BadRecipe: see `BuildRequest.from_json`.
    """
    with open(path, "rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    try:
        return BuildRequest.from_json(data.decode("utf-8"))
    except UnicodeDecodeError as fault:
        raise BadRecipe("the build request is not UTF-8") from fault


def model_bytes(request: BuildRequest) -> int:
    """Return the size of the ONNX file, with the weights that lie in files beside it.

    Raises:
        BadRecipe: the file is not there, or lies outside the release's folder.
    """
    path = _inside(request)
    beside = path + ".data"
    return os.path.getsize(path) + (os.path.getsize(beside) if os.path.isfile(beside) else 0)


def reason_against_dla(request: BuildRequest, numbers: Sequence[int], name: str) -> Optional[str]:
    """Return why the request's accelerator cannot be used, in a sentence; None where it can.

    Args:
        request: What is asked for.
        numbers: TensorRT's version.
        name: TensorRT's name and version, for the sentence.
    """
    if request.dla_core is None:
        return None
    version = tuple(numbers)
    if request.module == "tensorrt_rtx":
        return "TensorRT-RTX has no DLA"
    if (11,) <= version < _DLA_BACK:
        return "%s has no DLA: 11.4.1 brought it back" % name
    if "int8" in request.precision and version < _DLA_BACK:
        return (
            "%s takes int8 on the DLA only by calibration, not from the graph; 11.4.1 is the "
            "first that does" % name
        )
    if "int8" not in request.precision and request.precision != "fp16":
        return "the DLA computes in fp16, and the model is %s" % request.precision
    for profile in request.profiles:
        for tensor, bounds in sorted(profile.items()):
            if not bounds["min"] == bounds["opt"] == bounds["max"]:
                return "the DLA needs a fixed batch and size, and input `%s` has a range" % tensor
    return None


def _read(fields: Dict[str, Any], folder: str) -> BuildRequest:
    optional = ("folder", *BuildRequest._field_defaults)
    missing = [key for key in BuildRequest._fields if key not in optional and key not in fields]
    if missing:
        raise BadRecipe("the engine recipe lacks `%s`" % missing[0])
    capabilities = _words(fields["compute_capabilities"], "compute_capabilities", 32)
    for word in capabilities:
        _match(word, "compute_capabilities", _CAPABILITY)
    flags = _words(fields["flags"], "flags", len(FLAGS))
    for word in flags:
        if word not in FLAGS:
            raise BadRecipe("`flags` in the engine recipe cannot hold `%s`" % word[:80])
    if fields["module"] not in _MODULES:
        raise BadRecipe("`module` in the engine recipe must be one of " + ", ".join(_MODULES))
    request = BuildRequest(
        module=fields["module"],
        version=_match(fields["version"], "version", _VERSION),
        compute_capabilities=capabilities,
        platform=_match(fields["platform"], "platform", _PLATFORM),
        folder=folder,
        artifact=_artifact(fields["artifact"]),
        artifact_sha256=_match(fields["artifact_sha256"], "artifact_sha256", _SHA256),
        precision=_match(fields["precision"], "precision", _PRECISION),
        strongly_typed=_switch(fields, "strongly_typed"),
        flags=flags,
        profiles=_profiles(fields["profiles"]),
        workspace_mib=_optional_whole(fields, "workspace_mib", 1, _MAX_MIB),
        sparse=_switch(fields, "sparse"),
        dla_core=_optional_whole(fields, "dla_core", 0, 15),
        gpu_fallback=_switch(fields, "gpu_fallback"),
        version_compatible=_switch(fields, "version_compatible"),
        products=_words(fields.get("products", []), "products", _MAX_PRODUCTS),
    )
    if request.strongly_typed and flags:
        raise BadRecipe("a strongly typed network takes no precision `flags`")
    return request


def _artifact(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise BadRecipe("`artifact` in the engine recipe must be a path")
    parts = value.split("/")
    if not value.isprintable() or "\\" in value or any(part in ("", ".", "..") for part in parts):
        raise BadRecipe("`artifact` in the engine recipe leaves the release's folder")
    return value


def _inside(request: BuildRequest) -> str:
    """Return the artifact's real path, which no link may lead out of the folder."""
    folder, path = os.path.realpath(request.folder), os.path.realpath(request.path)
    if os.path.commonpath([folder, path]) != folder:
        raise BadRecipe("`%s` leaves the release's folder" % request.artifact)
    if not os.path.isfile(path):
        raise BadRecipe("there is no `%s` in the release" % request.artifact)
    return path


def _profiles(value: Any) -> Tuple[Profile, ...]:
    if not isinstance(value, list) or len(value) > _MAX_PROFILES:
        raise BadRecipe("`profiles` must be a list of at most %d" % _MAX_PROFILES)
    return tuple(_profile(item) for item in value)


def _profile(value: Any) -> Profile:
    if not isinstance(value, dict) or len(value) > _MAX_INPUTS:
        raise BadRecipe("a profile must map at most %d inputs to shapes" % _MAX_INPUTS)
    profile: Profile = {}
    for name, bounds in sorted(value.items()):
        if not 0 < len(name) <= 1024 or not isinstance(bounds, dict) or set(bounds) != set(BOUNDS):
            raise BadRecipe("the profile of input `%s` must give min, opt and max" % name[:80])
        shapes = {bound: _shape(name, bounds[bound]) for bound in BOUNDS}
        low, usual, high = (shapes[bound] for bound in BOUNDS)
        ordered = len(low) == len(usual) == len(high) and all(
            low[axis] <= usual[axis] <= high[axis] for axis in range(len(low))
        )
        if not ordered:
            raise BadRecipe("the profile of input `%s` is not min <= opt <= max" % name[:80])
        profile[name] = shapes
    return profile


def _shape(name: str, value: Any) -> Shape:
    if not isinstance(value, list) or len(value) > _MAX_RANK:
        raise BadRecipe(
            "a shape of input `%s` must be a list of at most %d sizes" % (name[:80], _MAX_RANK)
        )
    for size in value:
        if type(size) is not int or not 0 <= size <= _MAX_DIM:
            raise BadRecipe("a shape of input `%s` has a size that cannot be" % name[:80])
    return tuple(value)


def _words(value: Any, key: str, most: int) -> Tuple[str, ...]:
    fits = isinstance(value, list) and len(value) <= most
    if not fits or not all(isinstance(word, str) for word in value):
        raise BadRecipe("`%s` in the engine recipe must be a list of words" % key)
    return tuple(value)


def _match(value: Any, key: str, pattern: "re.Pattern[str]") -> str:
    if not isinstance(value, str) or not pattern.match(value):
        raise BadRecipe("`%s` in the engine recipe has a value that cannot be" % key)
    return value


def _switch(fields: Mapping[str, Any], key: str) -> bool:
    if not isinstance(fields[key], bool):
        raise BadRecipe("`%s` in the engine recipe must be true or false" % key)
    return bool(fields[key])


def _optional_whole(fields: Mapping[str, Any], key: str, low: int, high: int) -> Optional[int]:
    value = fields[key]
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise BadRecipe("`%s` in the engine recipe must be %d to %d, or null" % (key, low, high))
    return value


def _refuse_constant(word: str) -> Any:
    raise ValueError("`%s` is no JSON number" % word)


def _once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key is given twice")
    return fields
