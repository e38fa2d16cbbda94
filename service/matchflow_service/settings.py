"""What can be set, in one class: the environment (MATCHFLOW_*) below, flags given as keyword arguments above."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from matchflow_index.redis_address import is_redis_address

MIB = 1024 * 1024
# A request of EmbedImages must fit the encoder's queue.
MAX_EMBEDDED_IMAGES = 64


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0))


class ServiceSettings(BaseSettings):
    """Everything that an operator can choose; read once, then passed on as plain values.

    `bundles` in the environment is a list of paths parted by ':', as in PATH; the first is the default model.
    """

    model_config = SettingsConfigDict(env_prefix="MATCHFLOW_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    # 0: any free port; the log says which.
    port: int = Field(default=50051, ge=0, le=65535)
    # A folder, or redis://host:port/db on a server that several processes may share; its options follow after a ?, see
    # matchflow_index.redis_address. The defaults are the safe ones.
    store: Path | str
    # Where this process keeps what it derives from a store on a Redis server; no two processes may share it.
    cache: Path | None = Field(default=None, validate_default=True)
    # When an image in a folder counts as stored: DISK, once it is synchronised; PROCESS, once the operating system has
    # it. On a Redis server its own appendfsync says that.
    durability: Literal["disk", "process"] | None = Field(default=None, validate_default=True)
    # How long after the last answer of a store on a Redis server searches go on without it, from what this process knew
    # last, which a reply then says; 0: never. What other servers remove meanwhile is still found here.
    reads_without_store_s: float = Field(default=60.0, ge=0)
    # Only search a store in a folder, as it was when each gallery was first asked for: also beside the server that
    # writes to it, and on a file system that can't be written to. What would write fails with STORE_UNAVAILABLE.
    read_only: bool = Field(default=False, validate_default=True)
    bundles: Annotated[list[Path], NoDecode] = Field(min_length=1)
    provider: str = "CPUExecutionProvider"
    # Concurrent calls of the model, each on one thread.
    encoder_threads: int = Field(default_factory=available_cores, ge=1, le=256)
    encoder_batch_size: int = Field(default=8, ge=1, le=1024)
    # How long the first image of a batch waits for others.
    encoder_wait_ms: float = Field(default=2.0, ge=0, le=1000)
    # Images that may wait for the encoder; beyond, calls get OVERLOADED and streams are held back.
    encoder_queue_size: int = Field(default=256, ge=MAX_EMBEDDED_IMAGES)
    search_threads: int = Field(default_factory=available_cores, ge=1, le=256)
    max_image_bytes: int = Field(default=20 * MIB, ge=1)
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    max_message_bytes: int = Field(default=64 * MIB, ge=1)
    # How long calls in flight may take to end once the server has been told to stop.
    drain_s: float = Field(default=20.0, ge=0)
    log_format: Literal["json", "console"] = "json"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def from_environment(cls) -> Self:
        """Return what the environment alone says; raises pydantic's ValidationError."""
        return cls()  # type: ignore[call-arg]  # the environment has them

    @field_validator("store", mode="before")
    @classmethod
    def _folder_or_address(cls, value: object) -> object:
        return Path(value) if isinstance(value, str) and not is_redis_address(value) else value

    # Fields of their own: an error about all settings at once would show the store's password.
    @field_validator("cache")
    @classmethod
    def _cache_is_for_redis(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        store = info.data.get("store")
        if isinstance(store, str) and value is None:
            raise ValueError("a store on a Redis server needs a folder of this process for its caches")
        if isinstance(store, Path) and value is not None:
            raise ValueError("a store in a folder has its caches there; cache is for a store on a Redis server")
        return value

    @field_validator("durability")
    @classmethod
    def _durability_is_for_folders(cls, value: str | None, info: ValidationInfo) -> str | None:
        if isinstance(info.data.get("store"), str) and value is not None:
            raise ValueError("the durability of a store on a Redis server is that server's setting appendfsync")
        return value

    @field_validator("read_only")
    @classmethod
    def _read_only_is_for_folders(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - as pydantic calls it
        if isinstance(info.data.get("store"), str) and value:
            raise ValueError("a store on a Redis server can't be served read-only; any number of servers may share it")
        return value

    @field_validator("bundles", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _image_fits_message(self) -> Self:
        if self.max_image_bytes > self.max_message_bytes:
            raise ValueError(
                f"max_image_bytes must be at most max_message_bytes ({self.max_message_bytes}); "
                f"got {self.max_image_bytes}"
            )
        return self
