"""The exceptions of matchflow_service; statuses.py says what each becomes on the wire.

ServiceError
├── StartError            the server can't start: a bundle, the store or the port
├── FieldInvalidError     a field of a request is missing, malformed or out of range
├── ModelNotFoundError    no loaded bundle has that name
├── BundleNotLoadedError  work that needs a bundle, of which this server has no model
├── DigestsDifferError    two sides were computed by different bundles
├── ThumbnailMissingError a stored image without a picture to draw
├── OverloadedError       the queue before the encoder is full
├── ShuttingDownError     the server is stopping
└── DeadlinePassedError   no time is left and there is nothing to answer
"""

from __future__ import annotations

SHOWN = 80


def shown(value: str) -> str:
    """Return what a client sent quoted, so that it can't forge a line of the log, and cut where it is too long."""
    return repr(value if len(value) <= SHOWN else value[:SHOWN] + "...")


class ServiceError(Exception):
    """Root of what this package raises on purpose."""


class StartError(ServiceError):
    """The server can't start; the message says what to change."""


class FieldInvalidError(ServiceError):
    """A field of a request is missing, malformed or out of range."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}")
        self.field = field
        self.description = description


class ModelNotFoundError(ServiceError):
    """No loaded bundle has that name."""

    def __init__(self, model: str, loaded: list[str]) -> None:
        super().__init__(f"no model {shown(model)} is loaded; there are {', '.join(loaded)}")
        self.model = model


class BundleNotLoadedError(ServiceError):
    """A gallery, or features, belong to a bundle of which this server has no model."""

    def __init__(self, expected: str, loaded: list[str]) -> None:
        super().__init__(
            f"this needs the model of bundle {shown(expected)}, and the server has loaded {', '.join(loaded)}; "
            "start it with that bundle too"
        )
        self.expected = expected
        self.actual = ",".join(loaded)


class DigestsDifferError(ServiceError):
    """Two sides of a comparison were computed by different bundles."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"expected features of bundle {shown(expected)}; got features of bundle {shown(actual)}")
        self.expected = expected
        self.actual = actual


class ThumbnailMissingError(ServiceError):
    """A stored image has no thumbnail, so there is nothing to draw."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has no thumbnail: it was stored as features, or its gallery keeps none")
        self.name = name


class OverloadedError(ServiceError):
    """The queue before the encoder is full."""

    def __init__(self, queued: int, size: int, retry_after_s: float) -> None:
        super().__init__(f"{queued} of at most {size} images wait for the encoder; come back in {retry_after_s:.1f} s")
        self.retry_after_s = retry_after_s


class ShuttingDownError(ServiceError):
    """The server is stopping and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; send this again to another, or later")


class DeadlinePassedError(ServiceError):
    """No time is left and there is nothing to answer."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before there was anything to answer")
