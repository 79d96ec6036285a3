"""Joins requests that wait into one run of the model, and parts its results."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from .core import Inference
from .errors import DeviceError


class Batching:
    """Runs requests together whose rows a model treats alike.

    Args:
        inference: The model.
        max_rows: The most rows of a batch.

    Attributes:
        max_rows: As given.
    """

    def __init__(self, inference: Inference, max_rows: int) -> None:
        self.max_rows = max_rows
        self._inference = inference
        self._first = next(iter(inference.signature.inputs))

    def key(self, request: Any) -> Optional[Tuple[Any, ...]]:
        """Return what requests of one batch have in common; None for one that goes alone."""
        if request.sequence is not None:
            return None
        return tuple((name, tensor.shape[1:]) for name, tensor in sorted(request.feeds.items()))

    def rows_of(self, request: Any) -> int:
        """Return the rows of a request."""
        rows: int = request.feeds[self._first].shape[0]
        return rows

    def run(self, requests: Sequence[Tuple[Any, Any, str]]) -> List[Any]:
        """Return the results of each request, or what its run raised.

        Args:
            requests: Task, request and caller of each; all of one key.
        """
        if len(requests) > 1:
            try:
                found = self._inference.run_rows([request for _, request, _ in requests])
            except (DeviceError, MemoryError):
                pass  # one of them is to blame, the others need not suffer
            else:
                return [_wanted(one, request) for one, (_, request, _) in zip(found, requests)]  # noqa: B905 - not in CPython 3.8
        return [_alone(*one) for one in requests]


def _wanted(results: Dict[str, Any], request: Any) -> Dict[str, Any]:
    if request.outputs is None:
        return results
    return {name: results[name] for name in request.outputs}


def _alone(task: Any, request: Any, caller: str) -> Any:
    try:
        return task.run(request, caller)
    except Exception as error:  # noqa: BLE001 - handed to the request it belongs to
        return error
