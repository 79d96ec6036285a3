"""Temperature and power, read from folders laid out as the kernel lays out sysfs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.sensors import MAX_SENSORS, Sensors

if TYPE_CHECKING:
    from pathlib import Path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def read(root: Path) -> dict[tuple[str, str], float]:
    return {(name, labels["hw_name"]): value for name, labels, value in Sensors(str(root)).read()}


def test_a_jetson_tells_zones_and_the_rails_of_its_monitor(tmp_path: Path) -> None:
    write(tmp_path, {
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "48531",
        "class/thermal/thermal_zone1/type": "gpu-thermal",
        "class/thermal/thermal_zone1/temp": "-256000",
        "class/hwmon/hwmon3/name": "ina3221",
        "class/hwmon/hwmon3/in1_label": "VDD_IN",
        "class/hwmon/hwmon3/in1_input": "5040",
        "class/hwmon/hwmon3/curr1_input": "1200",
        "class/hwmon/hwmon3/in4_input": "12",
        "class/hwmon/hwmon3/curr4_input": "9",
    })  # fmt: skip
    assert read(tmp_path) == {
        ("hw_temperature_celsius", "cpu-thermal"): 48.531,
        ("hw_power_watts", "ina3221 VDD_IN"): 6.048,
    }


def test_an_older_jetson_tells_its_rails_in_milliwatt(tmp_path: Path) -> None:
    place = "bus/i2c/drivers/ina3221x/1-0040/iio:device0/"
    write(tmp_path, {place + "rail_name_0": "POM_5V_IN", place + "in_power0_input": "2436",
                     "bus/i2c/drivers/ina3221x/uevent/x": ""})  # fmt: skip
    assert read(tmp_path) == {("hw_power_watts", "POM_5V_IN"): 2.436}


def test_a_pc_tells_cores_power_and_energy_but_its_disks_are_left_asleep(tmp_path: Path) -> None:
    write(tmp_path, {
        "class/hwmon/hwmon0/name": "coretemp",
        "class/hwmon/hwmon0/temp1_input": "55000",
        "class/hwmon/hwmon0/temp1_label": "Package id 0",
        "class/hwmon/hwmon0/temp1_max": "100000",
        "class/hwmon/hwmon1/name": "amdgpu",
        "class/hwmon/hwmon1/power1_average": "7000000",
        "class/hwmon/hwmon2/name": "nvme",
        "class/hwmon/hwmon2/temp1_input": "33000",
        "class/powercap/intel-rapl:0/name": "package-0",
        "class/powercap/intel-rapl:0/energy_uj": "12500000",
    })  # fmt: skip
    assert read(tmp_path) == {
        ("hw_temperature_celsius", "coretemp Package id 0"): 55.0,
        ("hw_power_watts", "amdgpu"): 7.0,
        ("hw_energy_joules_total", "package-0"): 12.5,
    }


def test_a_zone_that_shows_as_hwmon_too_is_told_once(tmp_path: Path) -> None:
    write(tmp_path, {
        "class/thermal/thermal_zone0/type": "cpu-thermal",
        "class/thermal/thermal_zone0/temp": "40000",
        "class/hwmon/hwmon0/name": "cpu_thermal",
        "class/hwmon/hwmon0/temp1_input": "40000",
    })  # fmt: skip
    (tmp_path / "class/hwmon/hwmon0/device").symlink_to(tmp_path / "class/thermal/thermal_zone0")
    assert read(tmp_path) == {("hw_temperature_celsius", "cpu-thermal"): 40.0}


def test_what_does_not_answer_or_talks_nonsense_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, {
        "class/thermal/thermal_zone0/type": "broken",
        "class/thermal/thermal_zone0/temp": "N/A",
        "class/thermal/thermal_zone1/type": "gone",
        "class/thermal/thermal_zone2/temp": "30000",
    })  # fmt: skip
    (tmp_path / "class/thermal/thermal_zone2/type").write_bytes(b"\xff\x00 " + b"z" * 100)
    found = read(tmp_path)
    assert list(found.values()) == [30.0]
    ((_, said),) = found
    assert said.isprintable()
    assert len(said) <= 64


def test_a_sensor_that_comes_back_is_told_again(tmp_path: Path) -> None:
    zone = "class/thermal/thermal_zone0/"
    write(tmp_path, {zone + "type": "gpu", zone + "temp": ""})
    sensors = Sensors(str(tmp_path))
    assert sensors.read() == []
    write(tmp_path, {zone + "temp": "35000"})
    assert [value for _, _, value in sensors.read()] == [35.0]


def test_a_device_with_hundreds_of_sensors_tells_a_bounded_number(tmp_path: Path) -> None:
    write(tmp_path, {f"class/thermal/thermal_zone{i}/temp": "30000" for i in range(100)})
    assert len(Sensors(str(tmp_path)).read()) == MAX_SENSORS


def test_a_machine_without_sysfs_tells_nothing(tmp_path: Path) -> None:
    assert Sensors(str(tmp_path / "none")).read() == []
