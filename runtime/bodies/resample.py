"""Changes the sample rate of a sound as the build host does, with whole numbers as vectors.

The same filter: a sinc in a Kaiser window, one phase for every place that an output has between two
inputs. Source: Oppenheim and Schafer, Discrete-Time Signal Processing, 3rd edition, sections 4.6
and 7.5. Python multiplies two floats in 40 ns, but a large integer with a small one in 1 ns per
digit: so a column of samples, one for each of many outputs, is one integer of 64 bits a sample, and
an output is a sum of columns, each times its weight. The lanes never overflow into each other:
samples have 25 bits, weights 30, and the weights of a phase add up to less than 2^6 in magnitude.
"""

from __future__ import annotations

import math
import threading
from array import array
from typing import Dict, List, Sequence, Tuple

from ..errors import BadRequest

_ZERO_CROSSINGS = 64
_BETA = 10.0
_CUT_OFF = 0.95
_SAMPLE_BITS = 24
_WEIGHT_BITS = 30
_LANE_BITS = 64
_LANES = 1024
# Odd rates have thousands of phases, and each weight takes 0.7 us to make; every usual rate stays
# below 83,000.
_MOST_WEIGHTS = 1 << 17
# In products: a few seconds of work.
_MOST_WORK = 1 << 30
_KEPT_FILTERS = 4
# Below it no float32 is a number of full precision.
_SILENCE = 1e-37

# Of one phase: its first sample, its weights as integers, and their sum.
Phase = Tuple[int, List[int], int]


class Resampler:
    """Brings sounds to one rate; keeps the filters of the latest rates.

    Args:
        wanted: Samples per second.
    """

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._filters: Dict[int, _Filters] = {}

    def count(self, samples: int, rate: int) -> int:
        """Return how many samples come out of `samples` of them.

        Raises:
            BadRequest: the rate is so odd, or the sound so long, that it would take too long here.
        """
        up, down = self._ratio(rate)
        found = -(-samples * up // down)
        if rate != self._wanted:
            taps = 2 * self._reach(rate)
            if up * taps > _MOST_WEIGHTS:
                raise BadRequest(
                    "%d Hz is not resampled to %d Hz here" % (rate, self._wanted),
                    hint="convert it: `ffmpeg -i IN -ar %d OUT.wav`" % self._wanted,
                )
            if found * taps > _MOST_WORK:
                raise BadRequest(
                    "a sound of %d s is not resampled here" % (samples // rate),
                    413,
                    "convert it: `ffmpeg -i IN -ar %d OUT.wav`" % self._wanted,
                )
        return found

    def resample(self, values: Sequence[float], rate: int) -> Sequence[float]:
        """Return a sound at the wanted rate; outside of it is silence.

        Args:
            values: Finite samples.
            rate: Their samples per second, that `count` has passed.
        """
        if rate == self._wanted:
            return values
        peak = max(map(abs, values))
        if peak < _SILENCE:
            return array("d", bytes(8 * self.count(len(values), rate)))
        count = self.count(len(values), rate)
        up, down = self._ratio(rate)
        filters = self._filters.get(rate)
        if filters is None:
            # two threads may do this at once: both make the same
            if len(self._filters) >= _KEPT_FILTERS:
                self._filters.clear()
            cut_off = _CUT_OFF * min(1.0, self._wanted / rate)
            filters = self._filters[rate] = _Filters(up, down, self._reach(rate), cut_off)
        return _apply(values, peak, filters.first(min(up, count)), count, up, down)

    def _ratio(self, rate: int) -> Tuple[int, int]:
        common = math.gcd(rate, self._wanted)
        return self._wanted // common, rate // common

    def _reach(self, rate: int) -> int:
        return math.ceil(_ZERO_CROSSINGS / min(1.0, self._wanted / rate))


class _Filters:
    """The phases of one ratio, made when a sound is long enough to need them.

    Args:
        up: Phases there are.
        down: Inputs for that many outputs.
        reach: Inputs on either side of an output.
        cut_off: As a share of the input's Nyquist frequency.
    """

    def __init__(self, up: int, down: int, reach: int, cut_off: float) -> None:
        self._up, self._down = up, down
        self._reach = reach
        self._lock = threading.Lock()
        self._phases: List[Phase] = []
        self._weights: Dict[int, List[int]] = {}  # by the place between two inputs, times `up`
        self._turn = math.pi * cut_off
        self._taps = [
            (tap, math.sin(self._turn * tap), math.cos(self._turn * tap))
            for tap in range(-reach + 1, reach + 1)
        ]
        self._window = _window_terms()

    def first(self, count: int) -> List[Phase]:
        """Return the first phases, at most `up` of them."""
        with self._lock:
            for phase in range(len(self._phases), count):
                start, place = divmod(phase * self._down, self._up)
                weights = self._weights.get(place)
                if weights is None:
                    weights = self._weights[place] = self._design(place / self._up)
                    # the filter is symmetric: seen from the other input it is the same
                    self._weights[self._up - place] = weights[::-1]
                self._phases.append((start, weights, sum(weights)))
            return self._phases[:count]

    def _design(self, fraction: float) -> List[int]:
        """Return the weights of an output that lies so far behind an input."""
        sine, cosine = math.sin(self._turn * fraction), math.cos(self._turn * fraction)
        highest, *terms = self._window
        step = 1.0 / (self._reach * self._reach)
        found = []
        for tap, tap_sine, tap_cosine in self._taps:
            place = tap - fraction
            inside = 1.0 - place * place * step
            window = highest
            for term in terms:
                window = window * inside + term
            # sin(turn · place), from the tap's own angle and the fraction's
            wave = tap_sine * cosine - tap_cosine * sine
            found.append(window * (wave / place if place else self._turn))
        # each phase passes a constant unchanged
        scale = (1 << _WEIGHT_BITS) / math.fsum(found)
        return [round(weight * scale) for weight in found]


def _apply(  # noqa: PLR0917 - a sound, its filter, and the sizes of both
    values: Sequence[float], peak: float, phases: List[Phase], count: int, up: int, down: int
) -> Sequence[float]:
    taps = len(phases[0][1])
    before = taps // 2 - 1
    full = (1 << _SAMPLE_BITS) / peak
    # Lanes must not be negative: silence is in the middle.
    middle = 1 << _SAMPLE_BITS
    widest = phases[-1][0] + taps
    spare = -(-widest // down)
    groups = -(-count // up)
    silence = array("q", [middle])
    padded = silence * before
    padded.extend([round(value * full) + middle for value in values])
    padded += silence * max(0, (groups + spare + 1) * down - len(padded))
    result = array("d", bytes(8 * groups * up))
    for first in range(0, groups, _LANES):
        lanes = min(_LANES, groups - first)
        columns = _columns(padded, first * down, down, lanes + spare, widest)
        for phase, (start, weights, total) in enumerate(phases):
            summed = 0
            for tap, weight in enumerate(weights, start):
                summed += weight * columns[tap]
            part = _lanes_of(summed, lanes)
            shift, scale = total * middle, total * full
            result[first * up + phase : (first + lanes) * up : up] = array(
                "d", [(value - shift) / scale for value in part]
            )
    return result[:count]


def _columns(padded: array[int], base: int, down: int, lanes: int, widest: int) -> List[int]:
    """Return by offset the samples at it and every `down` further, as one integer.

    Columns `down` apart are the same but for one lane: a shift is cheaper than building it anew.
    """
    built: List[int] = []
    for offset in range(widest):
        if offset < down:
            column = padded[base + offset : base + offset + lanes * down : down]
            built.append(int.from_bytes(column.tobytes(), "little"))
        else:
            built.append(built[offset - down] >> _LANE_BITS)
    return built


def _lanes_of(summed: int, lanes: int) -> array[int]:
    """Return the first lanes as signed numbers."""
    width = lanes * _LANE_BITS
    bias = 1 << (_LANE_BITS - 1)
    # Added to each lane it makes all of them positive, so that none borrows from the next.
    biases = int.from_bytes(array("Q", [bias]).tobytes() * lanes, "little")
    part = (summed + biases) & ((1 << width) - 1)
    found = array("Q")
    found.frombytes(part.to_bytes(width // 8, "little"))
    return array("q", [lane - bias for lane in found])


def _window_terms() -> List[float]:
    """Return the Kaiser window as a polynomial of 1 - x², the highest power first.

    Bessel's I0 by its power series, but for a factor that all weights share; what is left out is
    less than the last bit of a weight.
    """
    terms = [1.0]
    while terms[-1] > 1e-7:
        terms.append(terms[-1] * (_BETA / 2 / len(terms)) ** 2)
    return terms[::-1]
