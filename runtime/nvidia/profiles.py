"""Chooses the optimization profile that covers a request's shapes."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from ..errors import BadRequest, ModelFault

Shape = Tuple[int, ...]


class Extent(NamedTuple):
    """The shapes of one input that a profile covers."""

    min: Shape
    opt: Shape
    max: Shape

    def covers(self, shape: Sequence[int]) -> bool:
        """Return whether the profile takes this shape."""
        return len(shape) == len(self.min) and all(
            low <= size <= high
            for low, size, high in zip(self.min, shape, self.max)  # noqa: B905 - not in 3.8
        )

    def __str__(self) -> str:
        sizes = (
            str(low) if low == high else "%d..%d" % (low, high)
            for low, high in zip(self.min, self.max)  # noqa: B905 - not in 3.8
        )
        return "[%s]" % ", ".join(sizes)


Profile = Mapping[str, Extent]


def read_profiles(wire: Sequence[Mapping[str, Mapping[str, Sequence[int]]]]) -> List[Profile]:
    """Return the profiles of `manifest["tensorrt"]["profiles"]`.

    Raises:
        ModelFault: they are not of the documented form.
    """
    try:
        return [
            {
                name: Extent(*(tuple(map(int, sizes[word])) for word in Extent._fields))
                for name, sizes in profile.items()
            }
            for profile in wire
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFault("the manifest's profiles cannot be read: %s" % error) from error


def profiles_of(engine: Any, inputs: Sequence[str]) -> List[Profile]:
    """Return the profiles that an `ICudaEngine` was built with, each for every input."""
    profiles: List[Profile] = []
    for index in range(max(1, engine.num_optimization_profiles)):
        extents: Dict[str, Extent] = {}
        for name in inputs:
            shape = tuple(engine.get_tensor_shape(name))
            if -1 in shape:
                low, opt, high = engine.get_tensor_profile_shape(name, index)
                extents[name] = Extent(tuple(low), tuple(opt), tuple(high))
            else:
                # older releases keep no extent for what is fixed
                extents[name] = Extent(shape, shape, shape)
        profiles.append(extents)
    return profiles


def check_profiles(wanted: Sequence[Profile], found: Sequence[Profile]) -> None:
    """Check that an engine was built with the profiles that its bundle asks for.

    Raises:
        ModelFault: an input is missing, or its shapes differ; the engine is of another build.
    """
    if not wanted:
        return
    hint = "build the engine again"
    if len(wanted) != len(found):
        raise ModelFault(
            "the engine has %d optimization profiles where the bundle asks for %d"
            % (len(found), len(wanted)),
            hint=hint,
        )
    for number, (ours, theirs) in enumerate(zip(wanted, found)):  # noqa: B905 - not in 3.8
        for name, extent in ours.items():
            other = theirs.get(name)
            if other != extent:
                raise ModelFault(
                    "profile %d of the engine takes %s for input `%s` where the bundle asks for %s"
                    % (number, other or "nothing", name, extent),
                    hint=hint,
                )


def choose_profile(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> int:
    """Return the index of the profile that covers all shapes and was tuned nearest to them.

    Raises:
        BadRequest: no profile covers them; says which input, its shape and what is covered.
    """
    best, nearest = -1, math.inf
    for index, profile in enumerate(profiles):
        if all(profile[name].covers(shape) for name, shape in shapes.items()):
            far = sum(_distance(profile[name].opt, shape) for name, shape in shapes.items())
            if far < nearest:
                best, nearest = index, far
    if best < 0:
        raise BadRequest(_uncovered(profiles, shapes))
    return best


def largest(profile: Profile) -> Dict[str, Shape]:
    """Return the largest shape of each input."""
    return {name: extent.max for name, extent in profile.items()}


def _distance(opt: Shape, shape: Shape) -> float:
    """Return by how many doublings the sizes differ from those tuned for."""
    return sum(
        abs(math.log2(max(1, size) / max(1, tuned)))
        for tuned, size in zip(opt, shape)  # noqa: B905 - not in 3.8
    )


def _uncovered(profiles: Sequence[Profile], shapes: Mapping[str, Shape]) -> str:
    for name, shape in shapes.items():
        extents = list(dict.fromkeys(str(profile[name]) for profile in profiles))
        if not any(profile[name].covers(shape) for profile in profiles):
            return "input `%s` has the shape %s, and the engine was built for %s" % (
                name,
                list(shape),
                " or ".join(extents),
            )
    given = ", ".join("`%s` %s" % (name, list(shape)) for name, shape in shapes.items())
    covered = " or ".join(
        ", ".join("`%s` %s" % (name, profile[name]) for name in shapes) for profile in profiles
    )
    return "the engine was built for no such shapes together: %s; it takes %s" % (given, covered)
