"""The same emoji drawn by six designers: fetched, parsed and rasterised.

A class is a code point sequence ("1f468-200d-1f680"), an instance is one designer's drawing of it. Skin-tone variants
are dropped: they differ in colour alone. The drawings come as six packages of icon sets ("Iconify JSON"), which
`npm pack` downloads once; what came is checked against the digests below, so every run sees exactly the same drawings.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import resvg_py
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

SKIN_TONE = re.compile(r"1f3f[b-f]")
NAMING_DESIGNER = "noto"


class EmojiError(Exception):
    """A package can't be fetched, is not what was expected, or holds no such drawing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One designer's set: its npm package and the sha256 of the archive that npm packs."""

    designer: str
    name: str
    version: str
    sha256: str

    @property
    def archive_name(self) -> str:
        """The file name that `npm pack` gives the archive."""
        return f"iconify-json-{self.name}-{self.version}.tgz"


PACKAGES = (
    Package(
        designer="twemoji",
        name="twemoji",
        version="1.2.5",
        sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    Package(
        designer="noto",
        name="noto",
        version="1.2.9",
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    Package(
        designer="openmoji",
        name="openmoji",
        version="1.2.29",
        sha256="03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),
    Package(
        designer="fluent",
        name="fluent-emoji-flat",
        version="1.2.6",
        sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    Package(
        designer="noto-v1",
        name="noto-v1",
        version="1.2.5",
        sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    Package(
        designer="emojione",
        name="emojione",
        version="1.2.3",
        sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    ),
)
DESIGNERS = tuple(package.designer for package in PACKAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class IconSet:
    """One designer's drawings.

    `drawings` maps an icon name to a whole SVG document; `names` maps a code point sequence to an icon name and is
    empty for the sets that publish none; `kinds` maps an icon name to its category ("Food & Drink").
    """

    designer: str
    drawings: dict[str, str]
    names: dict[str, str]
    kinds: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmojiClass:
    """One emoji: its code point sequence, its name and category in Noto, and its icon name in each designer's set."""

    codepoint: str
    name: str
    kind: str
    icons: dict[str, str]


def missing_packages(folder: Path, designers: Collection[str] = DESIGNERS) -> list[Package]:
    """Return the packages of `designers` whose archive is not in `folder`."""
    return [p for p in PACKAGES if p.designer in designers and not (folder / p.archive_name).is_file()]


def fetch(folder: Path, designers: Collection[str] = DESIGNERS) -> dict[str, Path]:
    """Return each designer's archive in `folder`, packed by npm where it is not there yet, its digest checked.

    Raises EmojiError when npm is absent or fails, or when an archive has another digest.
    """
    wanted = [p for p in PACKAGES if p.designer in designers]
    if missing := missing_packages(folder, designers):
        _npm_pack(missing, folder)
    for package in wanted:
        _check_digest(package, folder / package.archive_name)
    return {p.designer: folder / p.archive_name for p in wanted}


def _npm_pack(packages: Iterable[Package], folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise EmojiError("expected the command npm, which downloads the emoji packages; it is not on PATH")
    incoming = folder / "incoming"
    incoming.mkdir(parents=True, exist_ok=True)
    for package in packages:
        spec = f"@iconify-json/{package.name}@{package.version}"
        command = [npm, "pack", "--silent", "--pack-destination", str(incoming), spec]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EmojiError(f"npm pack {spec} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        # Renamed only when whole: a run that was cut off leaves no half archive under the final name.
        (incoming / package.archive_name).replace(folder / package.archive_name)
    incoming.rmdir()


def _check_digest(package: Package, archive: Path) -> None:
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise EmojiError(f"expected {archive.name} with sha256 {package.sha256}; got {digest}")


def load_icon_set(designer: str, archive: Path) -> IconSet:
    """Parse one package. Raises EmojiError when a member is absent or is not JSON."""
    try:
        with tarfile.open(archive) as tar:
            members = {name: json.load(_member(tar, f"package/{name}.json")) for name in ("icons", "chars", "metadata")}
    except (tarfile.TarError, KeyError, ValueError, EOFError) as error:
        raise EmojiError(f"expected an Iconify JSON package in {archive.name}; got {error!r}") from error
    return IconSet(
        designer=designer,
        drawings=_drawings(members["icons"]),
        names={c: name for c, name in members["chars"].items() if not SKIN_TONE.search(c)},
        kinds={name: kind for kind, names in members["metadata"]["categories"].items() for name in names},
    )


def _member(tar: tarfile.TarFile, name: str) -> io.BytesIO:
    file = tar.extractfile(name)
    if file is None:
        raise KeyError(name)
    return io.BytesIO(file.read())


def _drawings(icons: dict[str, Any]) -> dict[str, str]:
    """Wrap each icon's body into a document with the icon's own view box."""

    def document(icon: dict[str, Any]) -> str:
        left, top, width, height = (
            icon.get(key, icons.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
        )

    return {name: document(icon) for name, icon in icons["icons"].items()}


def load_icon_sets(folder: Path, designers: Collection[str] = DESIGNERS) -> dict[str, IconSet]:
    """Fetch and parse the sets of `designers`; Noto always comes along because it names the classes."""
    archives = fetch(folder, {*designers, NAMING_DESIGNER})
    return {designer: load_icon_set(designer, archive) for designer, archive in archives.items()}


def shared_classes(sets: dict[str, IconSet], designers: Collection[str]) -> list[EmojiClass]:
    """Return the classes that every one of `designers` has drawn, in code point order.

    A set that publishes no code points is matched by Noto's icon name. Raises EmojiError when Noto's set is absent.
    """
    if NAMING_DESIGNER not in sets:
        raise EmojiError(f"expected the set of {NAMING_DESIGNER}, which names the classes; got {sorted(sets)}")
    noto = sets[NAMING_DESIGNER]
    classes = []
    for codepoint, name in sorted(noto.names.items()):
        icons = {d: icon for d in designers if (icon := _icon(sets[d], codepoint, name)) is not None}
        if len(icons) == len(designers):
            kind = noto.kinds.get(name, "Symbols")
            classes.append(EmojiClass(codepoint=codepoint, name=name, kind=kind, icons=icons))
    return classes


def _icon(icon_set: IconSet, codepoint: str, noto_name: str) -> str | None:
    name = icon_set.names.get(codepoint) if icon_set.names else noto_name
    return name if name in icon_set.drawings else None


def rasterise(document: str, size_px: int) -> Image.Image:
    """Draw an SVG on a white square of `size_px`, centred, as RGB. Raises EmojiError when it can't be drawn."""
    try:
        # Without the system's fonts: the same picture on every machine.
        data = resvg_py.svg_to_bytes(
            svg_string=document, width=size_px, height=size_px, background="#ffffff", skip_system_fonts=True
        )
    except ValueError as error:
        raise EmojiError(f"expected an SVG document; got {document[:80]!r}: {error}") from error
    drawn = Image.open(io.BytesIO(data)).convert("RGB")
    if drawn.size == (size_px, size_px):
        return drawn
    square = Image.new("RGB", (size_px, size_px), "white")
    square.paste(drawn, ((size_px - drawn.width) // 2, (size_px - drawn.height) // 2))
    return square
