"""Has kernels that TensorRT-RTX compiles while it serves written soon, not only at the end."""

from __future__ import annotations

import threading
from typing import Callable, Optional, Sequence

# A moment after shapes came that were new, and once more for what is compiled in the background:
# kernels made for these very shapes follow when the first requests have been answered.
PAUSES_S = (2.0, 30.0)


class Keeper:
    """Calls a function some seconds after it was told of something new, in a thread of its own.

    Args:
        save: Writes what there is; nothing where it has not grown.
        pauses_s: After the first news, and after each call but the last.
    """

    def __init__(self, save: Callable[[], None], pauses_s: Sequence[float] = PAUSES_S) -> None:
        self._save = save
        self._pauses_s = pauses_s
        self._news = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: Optional[threading.Thread] = None

    def note(self) -> None:
        """Tell of something new; returns at once."""
        self._news.set()
        if self._thread is None:
            with self._lock:
                if self._thread is None and not self._closed.is_set():
                    self._thread = threading.Thread(
                        target=self._run, name="edgepack-kernels", daemon=True
                    )
                    self._thread.start()

    def close(self) -> None:
        """Call no more, and wait for a call under way."""
        with self._lock:
            self._closed.set()
            thread = self._thread
        self._news.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        first_s, *later_s = self._pauses_s
        while self._news.wait() and not self._closed.wait(first_s):
            self._news.clear()
            self._call()
            for pause_s in later_s:
                if self._news.wait(pause_s):
                    break
                self._call()

    def _call(self) -> None:
        try:
            self._save()
        except Exception:  # noqa: BLE001 - a vendor library may raise anything; requests go on
            self._closed.set()
