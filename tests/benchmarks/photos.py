"""Fetches photos for EfficientNet-Lite0 from Debian packages, to calibrate and to compare on."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "photos"
_PACKAGES: Final = (
    "tuxpaint-stamps-default", "gcompris-qt-data", "mate-backgrounds", "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
)  # fmt: skip
_STAMPS: Final = Path("usr/share/tuxpaint/stamps")
# The photos among the stamps; the others are drawings.
_STAMP_FOLDERS: Final = ("animals", "food", "hobbies", "household", "plants", "sports", "vehicles")
_CALIBRATION_STAMPS: Final = 50
_GCOMPRIS: Final = (
    "categorization", "erase", "explore_farm_animals", "explore_monuments", "explore_world_animals",
)  # fmt: skip
# Of the photos of GCompris each fifth calibrates, the others are compared on.
_CALIBRATION_STRIDE: Final = 5
_WALLPAPERS: Final = (
    "usr/share/backgrounds/mate/nature/*.jpg", "usr/share/backgrounds/*_by_*.jpg",
)  # fmt: skip
_LONGEST_SIDE: Final = 800


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Two folders that share no photo, and what is known about the second.

    Attributes:
        labels: ImageNet class by file name, for 98 of the photos to compare on.
    """

    calibration: Path
    evaluation: Path
    labels: dict[str, int]


def fetch_photos(folder: Path = CACHE) -> Photos:
    """Return the photos, fetched once with `apt-get download` and kept under `folder`.

    To compare on are 98 stamps of Tux Paint whose subject is a class of ImageNet, cut out on white,
    and 198 photos of GCompris; to calibrate on 50 other stamps, the other 50 photos of GCompris and
    the photographs among the backgrounds of MATE and Lomiri.

    Raises:
        RuntimeError: apt-get or dpkg is missing, or they cannot fetch the packages.
    """
    found = Photos(
        calibration=folder / "calibration",
        evaluation=folder / "evaluation",
        labels={_file_name(stamp): index for stamp, index in LABELS.items()},
    )
    if not (folder / "complete").is_file():
        packages = _unpacked(folder)
        for part in (found.calibration, found.evaluation):
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        _write_stamps(packages, found)
        _write_gcompris(packages, found)
        for pattern in _WALLPAPERS:
            for path in sorted(packages.glob(pattern)):
                _save(path.read_bytes(), found.calibration / f"{path.stem}.png")
        (folder / "complete").touch()
    return found


def fetch_others(folder: Path = CACHE) -> Path:
    """Return a folder with the stamps that are in neither part: for a search to choose on."""
    others = folder / "others"
    if not others.is_dir():
        fetch_photos(folder)
        stamps = _unpacked(folder) / _STAMPS
        draft = folder / "others.draft"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        unlabelled = _unlabelled(stamps)
        for stamp in sorted(set(unlabelled) - set(_calibrating(unlabelled))):
            _save((stamps / f"{stamp}.png").read_bytes(), draft / _file_name(stamp))
        draft.rename(others)
    return others


def _unpacked(folder: Path) -> Path:
    downloads, unpacked = folder / "packages", folder / "unpacked"
    downloads.mkdir(parents=True, exist_ok=True)
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise RuntimeError("the photos come from Debian packages: apt-get and dpkg are needed")
    missing = [name for name in _PACKAGES if not list(downloads.glob(f"{name}_*.deb"))]
    if missing:
        done = subprocess.run(
            ["apt-get", "download", "-qq", *missing], cwd=downloads, check=False,
            capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"apt-get download failed: {done.stderr.strip()}")
    unpacked.mkdir(exist_ok=True)
    for package in sorted(downloads.glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True, timeout=600)
    return unpacked


def _write_stamps(packages: Path, photos: Photos) -> None:
    stamps = packages / _STAMPS
    for stamp, part in (
        *((stamp, photos.evaluation) for stamp in LABELS),
        *((stamp, photos.calibration) for stamp in _calibrating(_unlabelled(stamps))),
    ):
        _save((stamps / f"{stamp}.png").read_bytes(), part / _file_name(stamp))


def _unlabelled(stamps: Path) -> list[str]:
    found = [
        path.relative_to(stamps).with_suffix("").as_posix()
        for folder in _STAMP_FOLDERS
        for path in sorted((stamps / folder).rglob("*.png"))
        if "cartoon" not in path.parts
    ]
    return [stamp for stamp in found if stamp not in LABELS]


def _calibrating(unlabelled: list[str]) -> list[str]:
    return unlabelled[:: len(unlabelled) // _CALIBRATION_STAMPS][:_CALIBRATION_STAMPS]


def _write_gcompris(packages: Path, photos: Photos) -> None:
    number = 0
    for name in _GCOMPRIS:
        bundle = packages / "usr/share/gcompris-qt/rcc" / f"{name}.rcc"
        for path, data in sorted(_resources(bundle.read_bytes())):
            if path.endswith((".webp", ".jpg")) and "/resource/" in path:
                calibrates = number % _CALIBRATION_STRIDE == 0
                part = photos.calibration if calibrates else photos.evaluation
                _save(data, part / f"{name}-{Path(path).stem}.png")
                number += 1


def _resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the files in a Qt binary resource, format 3.

    The tree's entries are 22 bytes each: offset of the name, flags, then for a folder the number of
    children and the first of them, for a file four bytes of locale and the offset of its data; and
    eight bytes of time. A name is its length, a hash, and UTF-16; data is its length and bytes.
    """
    tree, contents, names = struct.unpack(">3i", data[8:20])
    pending = [(0, "")]
    while pending:
        entry, path = pending.pop()
        at = tree + 22 * entry
        name_at, flags, first, second = struct.unpack(">IHII", data[at : at + 14])
        length = int.from_bytes(data[names + name_at : names + name_at + 2], "big")
        start = names + name_at + 6
        name = data[start : start + 2 * length].decode("utf-16-be") if entry else ""
        path = f"{path}/{name}"
        if flags & 2:
            pending.extend((child, path) for child in range(second, second + first))
        else:
            start = contents + second
            length = int.from_bytes(data[start : start + 4], "big")
            yield path, data[start + 4 : start + 4 + length]


def _save(data: bytes, path: Path) -> None:
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGBA")
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    Image.alpha_composite(white, image).convert("RGB").save(path)


def _file_name(stamp: str) -> str:
    return f"{stamp.replace('/', '-')}.png"


# Stamps of Tux Paint by the ImageNet class of what they show.
LABELS: Final = {
    "animals/birds/chicken_profile": 8, "animals/birds/crowned_crane": 134,
    "animals/birds/drake": 97, "animals/birds/gander": 99, "animals/birds/hen": 8,
    "animals/birds/magpie": 18, "animals/birds/ostrich": 9, "animals/birds/owl": 24,
    "animals/birds/peacock": 84, "animals/birds/pelican": 144, "animals/birds/penguin": 145,
    "animals/birds/pink_flamingo": 130, "animals/birds/rainbow-lorikeet": 90,
    "animals/birds/rooster": 7, "animals/birds/tucan": 96, "animals/birds/vulture": 23,
    "animals/fish/clownfish": 393, "animals/fish/lionfish": 396, "animals/fish/lobster": 122,
    "animals/insects/Brown_slug": 114, "animals/insects/bee": 309, "animals/insects/fly": 308,
    "animals/insects/grasshopper": 311, "animals/insects/mantis": 315,
    "animals/lizards/iguana": 39, "animals/mammals/apes/chimp": 367,
    "animals/mammals/apes/gorilla": 366, "animals/mammals/aquatic/orca": 148,
    "animals/mammals/aquatic/otter": 360, "animals/mammals/aquatic/sea_lion": 150,
    "animals/mammals/badger": 362, "animals/mammals/bears/bear": 294,
    "animals/mammals/bears/european-bear": 294, "animals/mammals/bovines/bison": 347,
    "animals/mammals/bovines/ram": 348, "animals/mammals/camel/dromedary": 354,
    "animals/mammals/cats/lion-2": 291, "animals/mammals/cats/lion": 291,
    "animals/mammals/cats/tiger": 292, "animals/mammals/cats/tiger_sumatran": 292,
    "animals/mammals/dogs/dingo": 273, "animals/mammals/dogs/fox": 277,
    "animals/mammals/echidna": 102, "animals/mammals/elephant": 386,
    "animals/mammals/equines/zebra": 340, "animals/mammals/ferret": 359,
    "animals/mammals/hippopotamus": 344, "animals/mammals/pig": 341,
    "animals/mammals/rabbit_little": 330, "animals/mammals/rodents/beaver": 337,
    "animals/mammals/rodents/marmot": 336, "animals/mammals/rodents/rabbit": 330,
    "animals/mammals/rodents/squirrel": 335, "animals/mammals/wildboar": 342,
    "animals/marsupials/koala": 105, "animals/marsupials/wombat": 106,
    "clothes/hats/sombrero": 808, "food/fruit/apple_granny_smith": 948, "food/fruit/banana": 954,
    "food/fruit/cherimoya": 956, "food/fruit/lemon": 951, "food/fruit/orange": 950,
    "food/fruit/pineapple": 953, "food/fruit/pomegranate": 957, "food/fruit/strawberry": 949,
    "food/pizza": 963, "food/vegetables/broccoli": 937, "food/vegetables/mushroom": 947,
    "food/vegetables/pepper": 945, "food/vegetables/yellowpepper": 945, "hobbies/binoculars": 447,
    "hobbies/camera_35mm": 759, "hobbies/music/string/cello": 486,
    "hobbies/music/string/guitar_classical": 402, "hobbies/music/string/guitar_electric": 546,
    "hobbies/music/string/violin": 889, "hobbies/music/wind/bassoon": 432,
    "household/dishes/mug": 504, "household/dishes/teapot": 849, "household/garbagecan": 412,
    "household/toilet": 861, "household/tools/hammer": 587, "medical/stethoscope": 823,
    "medical/syringe": 845, "plants/mushrooms/cep": 997, "sports/basketball": 430,
    "sports/soccer": 805, "sports/tennis_ball": 852, "sports/tennis_racket": 752,
    "town/usps_mailbox": 637, "vehicles/auto/sportscar2": 817,
    "vehicles/cycle/pink_tricycle": 870, "vehicles/emergency/firetruck": 555,
    "vehicles/flight/balloon360": 417, "vehicles/flight/planes/747": 404,
    "vehicles/garbagetruck": 569, "vehicles/race/indycar": 751, "vehicles/wheel_tractor": 866,
}  # fmt: skip
