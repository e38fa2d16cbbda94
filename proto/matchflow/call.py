"""A call as a value: described once, carried out by either client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[ValueT]):
    """A call that has not been made: where it goes, what it sends, and how the reply becomes a value."""

    path: str
    request: Message = field(repr=False)
    reply_type: type[Message]
    convert: Callable[[Any], ValueT]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[ValueT]):
    """Part of a list; `next_token` is empty on the last one."""

    values: tuple[ValueT, ...]
    next_token: str
