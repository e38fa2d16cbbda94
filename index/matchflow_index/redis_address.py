"""Where a Redis server is and how it is to be used, written as one URL."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from matchflow_index.errors import StoreUnavailableError

SCHEMES = ("redis", "rediss", "unix")
# Shorter, and who waits for a change would ask all the time.
SHORTEST_S, LONGEST_S = 0.05, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """A server, a database on it, and what is asked of both; the defaults are the safe ones.

    prefix             begins every key, so that several stores can share a server
    replicas           replicas that must have a transaction before it counts (WAIT)
    replica_timeout_s  how long they may take
    connect_timeout_s  how long the server may take to accept a connection
    timeout_s          how long it may take to answer
    allow_unsafe       also use a server that keeps nothing on disk or that evicts keys
    """

    url: str
    prefix: str = "matchflow"
    replicas: int = 0
    replica_timeout_s: float = 1.0
    connect_timeout_s: float = 2.0
    timeout_s: float = 5.0
    allow_unsafe: bool = False

    def __post_init__(self) -> None:
        if not self.prefix or set(self.prefix) & set("{}"):
            raise StoreUnavailableError(f"prefix must be a text without braces; got {self.prefix!r}")
        if self.replicas < 0:
            raise StoreUnavailableError(f"replicas must be at least 0; got {self.replicas}")
        for name in ("replica_timeout_s", "connect_timeout_s", "timeout_s"):
            value = getattr(self, name)
            if not SHORTEST_S <= value <= LONGEST_S:
                raise StoreUnavailableError(f"{name} must be from {SHORTEST_S} to {LONGEST_S}; got {value}")
        try:
            # The number is only read when it is asked for.
            _ = urlsplit(self.url).port
        except ValueError as error:
            raise StoreUnavailableError(f"the port of a Redis address is no good: {error}") from error

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Return what `redis://[user:password@]host:port/db?prefix=...&replicas=...` says.

        >>> RedisAddress.parse("redis://localhost:6379/2?replicas=1&prefix=mine").replicas
        1
        """
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES:
            raise StoreUnavailableError(f"expected an address redis://host:port/db; got scheme {parts.scheme!r}")
        known = {field.name: str(field.type) for field in fields(cls) if field.name != "url"}
        given: dict[str, Any] = {}
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            if name not in known:
                raise StoreUnavailableError(f"{name!r} is no option of a Redis address; these are: {', '.join(known)}")
            given[name] = _value(name, text, known[name])
        return cls(url=urlunsplit(parts._replace(query="")), **given)

    def __str__(self) -> str:
        """Say where it is, without the password."""
        parts = urlsplit(self.url)
        place = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
        database = "" if parts.scheme == "unix" else parts.path.rstrip("/")
        return f"{parts.scheme}://{place}{database}"


def is_redis_address(text: str) -> bool:
    """Tell whether a text is the address of a Redis server rather than a path."""
    return text.split("://", 1)[0] in SCHEMES and "://" in text


def _value(name: str, text: str, kind: str) -> object:
    try:
        if kind == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[kind](text)
    except (KeyError, ValueError) as error:
        raise StoreUnavailableError(f"{name} in a Redis address must be of type {kind}; got {text!r}") from error
