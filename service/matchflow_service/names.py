"""Resource names: models/{model}, galleries/{gallery}, and below that images/{image} and generations/{number}."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from matchflow_service.errors import FieldInvalidError, shown

GENERATION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)
GALLERY_ID = re.compile(r"[a-z][a-z0-9-]{0,62}", re.ASCII)
MAX_IMAGE_ID_LENGTH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """The two ids in an image's name."""

    gallery_id: str
    image_id: str

    def __str__(self) -> str:
        return f"galleries/{self.gallery_id}/images/{self.image_id}"


def gallery_name(gallery_id: str) -> str:
    """Return galleries/{gallery_id}."""
    return f"galleries/{gallery_id}"


def generation_name(gallery_id: str, generation: int) -> str:
    """Return galleries/{gallery_id}/generations/{generation}."""
    return f"galleries/{gallery_id}/generations/{generation}"


def parse_generation(value: str, field: str) -> tuple[str, int]:
    """Return both parts of galleries/{gallery}/generations/{generation}; raise FieldInvalidError for anything else."""
    parts = value.split("/")
    well_formed = len(parts) == 4 and parts[0] == "galleries" and parts[2] == "generations"  # noqa: PLR2004 - as above
    if not (well_formed and GALLERY_ID.fullmatch(parts[1]) and GENERATION.fullmatch(parts[3])):
        raise FieldInvalidError(
            field, f"expected galleries/{{gallery}}/generations/{{number from 1 on}}; got {shown(value)}"
        )
    return parts[1], int(parts[3])


def check_generation(value: int, field: str) -> int:
    """Return the number of a generation, 0 for the active one; raise FieldInvalidError for anything else."""
    if not (value == 0 or GENERATION.fullmatch(str(value))):
        raise FieldInvalidError(field, f"expected the number of a generation, or 0 for the active one; got {value}")
    return value


def model_name(model_id: str) -> str:
    """Return models/{model_id}."""
    return f"models/{model_id}"


def check_gallery_id(value: str, field: str) -> str:
    """Return `value`; raise FieldInvalidError unless it can be the id of a gallery."""
    if not GALLERY_ID.fullmatch(value):
        raise FieldInvalidError(
            field, f"expected 1-63 characters of [a-z0-9-] that begin with a letter; got {shown(value)}"
        )
    return value


def parse_gallery(value: str, field: str) -> str:
    """Return the id in galleries/{gallery}; raise FieldInvalidError for anything else."""
    prefix, _, gallery_id = value.partition("/")
    if prefix != "galleries" or not GALLERY_ID.fullmatch(gallery_id):
        raise FieldInvalidError(field, f"expected galleries/{{gallery}}; got {shown(value)}")
    return gallery_id


def parse_image(value: str, field: str) -> ImageName:
    """Return the ids in galleries/{gallery}/images/{image}; raise FieldInvalidError for anything else."""
    parts = value.split("/")
    well_formed = len(parts) == 4 and parts[0] == "galleries" and parts[2] == "images"  # noqa: PLR2004 - as in the name
    if not (well_formed and GALLERY_ID.fullmatch(parts[1])):
        raise FieldInvalidError(field, f"expected galleries/{{gallery}}/images/{{image}}; got {shown(value)}")
    image_id = parts[3]
    if not 1 <= len(image_id) <= MAX_IMAGE_ID_LENGTH:
        raise FieldInvalidError(
            field, f"expected an image id of 1-{MAX_IMAGE_ID_LENGTH} characters; got {len(image_id)} characters"
        )
    if not image_id.isprintable() and any(unicodedata.category(c) == "Cc" for c in image_id):
        raise FieldInvalidError(field, f"expected an image id without control characters; got {shown(image_id)}")
    return ImageName(gallery_id=parts[1], image_id=image_id)


def parse_image_in(value: str, gallery_id: str, field: str) -> str:
    """Return the image id of a full name in that gallery; raise FieldInvalidError for another gallery's."""
    name = parse_image(value, field)
    if name.gallery_id != gallery_id:
        raise FieldInvalidError(field, f"expected an image of {gallery_name(gallery_id)}; got {shown(value)}")
    return name.image_id


def parse_model(value: str, field: str) -> str:
    """Return the id in models/{model}; raise FieldInvalidError for anything else."""
    prefix, _, model_id = value.partition("/")
    if prefix != "models" or not model_id or "/" in model_id:
        raise FieldInvalidError(field, f"expected models/{{model}}; got {shown(value)}")
    return model_id
