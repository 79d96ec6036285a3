"""Temperature and power of the device, where the kernel tells them in sysfs.

Names and units are OpenTelemetry's for hardware. Thermal zones: Documentation/driver-api/thermal
of the kernel; hwmon: Documentation/hwmon/sysfs-interface; energy of Intel and AMD packages:
Documentation/power/powercap. The INA3221 of Jetsons: mainline's hwmon driver in newer releases of
L4T, an IIO driver of NVIDIA's own in older ones.
"""

from __future__ import annotations

import os
from typing import List, Mapping, NamedTuple, Tuple

Reading = Tuple[str, Mapping[str, str], float]
MAX_SENSORS = 48
TEMPERATURE = "hw_temperature_celsius"
POWER = "hw_power_watts"
ENERGY = "hw_energy_joules_total"
_MAX_TEXT = 64
# Asking these wakes a sleeping disk or sends it a command; they say nothing of the processor.
_SKIPPED_CHIPS = frozenset(("drivetemp", "nvme"))
# What a part that is not there reports is far outside of these.
_CELSIUS = (-100.0, 300.0)


class _Sensor(NamedTuple):
    name: str
    ident: str
    said: str
    paths: Tuple[str, ...]  # one value, or a voltage and a current, whose product counts
    scale: float


class Sensors:
    """What this device has, found when first read.

    Args:
        root: Where `/sys` is mounted.
    """

    def __init__(self, root: str = "/sys") -> None:
        self._root = root
        self._found: List[_Sensor] = []
        self._searched = False

    def read(self) -> List[Reading]:
        """Return metric, labels and value of every sensor that answers now, by metric."""
        if not self._searched:
            self._searched = True
            self._found = sorted(self._search())[:MAX_SENSORS]
        readings: List[Reading] = []
        for sensor in self._found:
            value = sensor.scale
            try:
                for path in sensor.paths:
                    with open(path, "rb") as stream:
                        value *= int(stream.read(32))
            except (OSError, ValueError):
                continue  # a sensor of a part that is off answers with an error
            if sensor.name != TEMPERATURE or _CELSIUS[0] < value < _CELSIUS[1]:
                labels = {"hw_id": sensor.ident, "hw_name": sensor.said}
                readings.append((sensor.name, labels, round(value, 6)))
        return readings

    def _search(self) -> List[_Sensor]:
        found: List[_Sensor] = []
        for place, prefix, look in (
            ("class/thermal", "thermal_zone", _thermal_zone),
            ("class/hwmon", "hwmon", _hwmon),
            ("class/powercap", "intel-rapl:", _powercap),
            ("bus/i2c/drivers/ina3221x", "", _ina3221x),
        ):
            parent = os.path.join(self._root, place)
            for name in _names(parent, prefix):
                found += look(os.path.join(parent, name))
        return found


def _thermal_zone(folder: str) -> List[_Sensor]:
    zone = os.path.basename(folder)
    path = os.path.join(folder, "temp")
    return [_Sensor(TEMPERATURE, zone, _text(folder, "type") or zone, (path,), 1e-3)]


def _hwmon(folder: str) -> List[_Sensor]:
    chip = _text(folder, "name")
    parent = os.path.basename(os.path.realpath(os.path.join(folder, "device")))
    if chip in _SKIPPED_CHIPS or parent.startswith("thermal_zone"):
        return []  # the latter is told as a thermal zone already
    files = frozenset(_names(folder, ""))
    found = []
    for file in files:
        channel, _, what = file.rpartition("_")
        quantity = channel.rstrip("0123456789")
        number = channel[len(quantity) :]
        inputs: Tuple[str, ...] = (file,)
        if (quantity, what) == ("temp", "input"):
            name, scale, label = TEMPERATURE, 1e-3, channel
        elif quantity == "power" and (
            what == "input" or (what == "average" and channel + "_input" not in files)
        ):
            name, scale, label = POWER, 1e-6, channel
        elif (
            (quantity, what) == ("curr", "input")
            and chip.startswith("ina")
            and {"in%s_input" % number, "in%s_label" % number} <= files
            and "power%s_input" % number not in files
        ):
            # a monitor of supply rails that leaves the product to us: millivolt by milliampere
            name, scale, label = POWER, 1e-6, "in" + number
            inputs = (file, "in%s_input" % number)
        else:
            continue
        said = " ".join(filter(None, (chip, _text(folder, label + "_label"))))
        ident = "%s/%s" % (os.path.basename(folder), channel)
        paths = tuple(os.path.join(folder, item) for item in inputs)
        found.append(_Sensor(name, ident, said or ident, paths, scale))
    return found


def _powercap(folder: str) -> List[_Sensor]:
    """Return an energy counter, if we may read it: usually only root may, since 2020."""
    path = os.path.join(folder, "energy_uj")
    if not os.access(path, os.R_OK):
        return []
    ident = os.path.basename(folder)
    return [_Sensor(ENERGY, ident, _text(folder, "name") or ident, (path,), 1e-6)]


def _ina3221x(folder: str) -> List[_Sensor]:
    """Return the rails of NVIDIA's older driver, in milliwatt."""
    found = []
    for inner in _names(folder, "iio"):
        place = os.path.join(folder, inner)
        for number in "012":
            path = os.path.join(place, "in_power%s_input" % number)
            if os.path.exists(path):
                ident = "%s/power%s" % (os.path.basename(folder), number)
                said = _text(place, "rail_name_" + number) or ident
                found.append(_Sensor(POWER, ident, said, (path,), 1e-3))
    return found


def _names(folder: str, prefix: str) -> List[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith(prefix))
    except OSError:
        return []


def _text(folder: str, name: str) -> str:
    """Return what a file of one line says, without anything that is no plain text."""
    try:
        with open(os.path.join(folder, name), "rb") as stream:
            text = stream.read(_MAX_TEXT).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return "".join(character if character.isprintable() else "?" for character in text)
