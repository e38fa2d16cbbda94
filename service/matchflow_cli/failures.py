"""What went wrong, in one line that says what to do. A traceback is for those who ask for it with --debug."""

from __future__ import annotations

from typing import Any

from matchflow_cli.output import printable

# Our packages raise with messages that are meant to be read; the class name finds what to do.
OUR_PACKAGES = frozenset(
    {
        "matchflow",
        "matchflow_bundle",
        "matchflow_cli",
        "matchflow_exporter",
        "matchflow_index",
        "matchflow_matching",
        "matchflow_service",
    }
)
ADVICE = {
    "ServerUnreachableError": "is it running? Start one with `matchflow serve`, or name another with --server",
    "DeadlineExceededError": "try again, or allow more with --timeout",
    "GalleryNotFoundError": "`matchflow gallery list` shows what there is, `matchflow gallery create` makes one",
    "GalleryExistsError": "choose another name, or delete it first with `matchflow gallery delete`",
    "GenerationNotFoundError": "`matchflow generation list GALLERY` shows what there is",
    "GenerationExistsError": "delete the one that is not active with `matchflow generation delete`",
    "GenerationNotReadyError": "`matchflow generation missing` names images, --allow-missing switches without them",
    "GenerationActiveError": "name the other one; `matchflow generation list GALLERY` shows which is active",
    "ContentDiffersError": "send what the gallery holds, or ingest into the gallery, without --generation",
    "ImageNotFoundError": "`matchflow gallery show GALLERY --images 20` shows ids",
    "ModelNotFoundError": "`matchflow gallery list` shows the models in use; `matchflow serve --bundle` adds one",
    "BundleMismatchError": "start the server with the bundle that the gallery was made with, or ingest again",
    "OverloadedError": "try again in a moment",
    "EtagMismatchError": "look at the image again, then decide anew",
    "SequenceNotReachedError": "try again in a moment, or ask another server",
    "BundleExistsError": "choose another --output, or replace it with --overwrite",
    "BundleInvalidError": "name the folder that `matchflow export` wrote",
    "BundleCorruptError": "export it again with `matchflow export`",
    "GoldenMismatchError": "export it again on this machine with `matchflow export`",
    "ProviderUnavailableError": "choose one that is there with --provider",
    "StoreUnavailableError": "check the folder that --store names, and room and rights on its disk",
    "BackupDamagedError": "take another backup; nothing was restored",
    "HeadImagesError": "name a folder with more images with --head-images",
}
INTERNAL_ADVICE = "run again as `matchflow --debug ...` and report what it prints"


class CommandError(Exception):
    """A command can't do what was asked; `exit_code` 2 when it was asked wrongly, 1 when it failed."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def exit_code_of(error: Exception) -> int:
    """Return the status that the process ends with."""
    return error.exit_code if isinstance(error, CommandError) else 1


def one_line(error: Exception) -> str:
    """Return what went wrong and what to do about it, in one line."""
    package = type(error).__module__.partition(".")[0]
    if package in OUR_PACKAGES:
        return _join(str(error), _advice(error))
    if type(error).__name__ == "ValidationError" and package.startswith("pydantic"):
        return validation_line(error)
    if isinstance(error, OSError) and error.strerror:
        return _join(f"{error.filename}: {error.strerror}" if error.filename else error.strerror, None)
    if isinstance(error, UnicodeEncodeError):  # bytes of the command line that are no UTF-8
        return _join(f"{error.object!r} is no text in UTF-8", None)
    if isinstance(error, ModuleNotFoundError):
        return _join(f"the package {error.name} is not installed", "run: pip install 'matchflow[service,export]'")
    return _join(f"unexpected {type(error).__name__}: {error}", INTERNAL_ADVICE)


def validation_line(error: Any) -> str:
    """Return what pydantic found wrong, field by field."""
    problems = (f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg']}" for each in error.errors())
    return _join("; ".join(problems), None)


def _advice(error: Exception) -> str | None:
    return next((ADVICE[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in ADVICE), None)


def _join(message: str, advice: str | None) -> str:
    # A name in it may come from anywhere, and this goes to a terminal.
    text = printable(" ".join(message.split()))
    return f"{text}; {advice}" if advice else text
