"""Changes the sample rate of a sound: a polyphase filter, a sinc in a Kaiser window.

Our own forty lines of numpy instead of a package: the result must be the same bytes on every build
host, as ranges are found on it. Source: Oppenheim and Schafer, Discrete-Time Signal Processing,
3rd edition, sections 4.6 (sampling rate by a rational factor) and 7.5 (Kaiser window).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Zero crossings of the sinc on each side, in periods of the lower rate, and the window's shape:
# what would alias is 100 dB down. The transition ends at the lower rate's Nyquist frequency.
_ZERO_CROSSINGS: Final = 64
_BETA: Final = 10.0
_CUT_OFF: Final = 0.95


def resample(values: NDArray[Any], rate: int, wanted: int) -> NDArray[Any]:
    """Return a sound at another rate; outside of it is silence.

    Args:
        values: float64 [samples].
        rate: Its samples per second.
        wanted: The result's samples per second.

    Returns:
        float64 [ceil(samples · wanted / rate)].
    """
    import numpy as np

    if rate == wanted:
        return values
    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    # The cut-off as a share of the input's sample rate, halved: of its Nyquist frequency.
    cut_off = _CUT_OFF * min(1.0, wanted / rate)
    reach = math.ceil(_ZERO_CROSSINGS / min(1.0, wanted / rate))
    taps = np.arange(-reach + 1, reach + 1, dtype=np.float64)
    count = -(-len(values) * up // down)
    last = (count - 1) * down // up
    padded = np.pad(values, (reach - 1, reach + max(last + 1 - len(values), 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach)
    result = np.empty(count)
    for phase in range(min(up, count)):
        # Output m lies at m · down / up of the input: every `up`-th has the same fraction.
        start, fraction = divmod(phase * down, up)
        places = taps - fraction / up
        shape = np.i0(_BETA * np.sqrt(np.clip(1.0 - (places / reach) ** 2, 0.0, None)))
        weights = np.sinc(cut_off * places) * shape
        # Each phase passes a constant unchanged.
        weights /= weights.sum()
        part = result[phase::up]
        # `einsum` sums in one order whatever the number of threads, unlike a matrix product.
        np.einsum("ij,j->i", windows[start::down][: len(part)], weights, out=part)
    return result
