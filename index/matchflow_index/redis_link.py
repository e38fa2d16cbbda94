"""Connections with a Redis server: commands, pipelines, transactions, and their errors; knows nothing of galleries.

One module talks with the client library, so that another one (for Redis Cluster) can stand in its place. All keys of
one command, and of one transaction, belong to one hash slot.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from matchflow_index.errors import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matchflow_index.redis_address import RedisAddress

MAX_CONNECTIONS = 512

# A command with its arguments; redis-py writes numbers as texts.
Command = tuple[bytes | str | int | float, ...]

# What an error of Redis means for who asked: by the library's class where it has one, else by its first word.
_MEANINGS: dict[type[Exception] | str, str] = {
    redis.exceptions.OutOfMemoryError: "it is out of memory (maxmemory)",
    redis.exceptions.ReadOnlyError: "it is a read-only replica",
    redis.exceptions.BusyLoadingError: "it is still loading its data",
    redis.exceptions.AuthenticationError: "it doesn't let this user in",
    redis.exceptions.NoPermissionError: "the user may not do that",
    redis.exceptions.MaxConnectionsError: f"all {MAX_CONNECTIONS} connections are in use",
    redis.exceptions.TimeoutError: "it didn't answer in time",
    redis.exceptions.ConnectionError: "it can't be reached",
    "MISCONF": "it can't write to its disk",
    "MASTERDOWN": "it is a replica that has lost its master",
    "NOREPLICAS": "it has too few replicas to take a write",
    "CLUSTERDOWN": "its cluster is down",
    "BUSY": "it is busy with a script",
}


class RedisLink:
    """A pool of connections with one server; any thread may use it.

    `by_slot`: the server is of a cluster, and a command may only name keys of one slot.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self.by_slot = False
        self._closed = threading.Event()
        # The library's types are not complete.
        self._pool: Any = redis.ConnectionPool.from_url(
            address.url,
            max_connections=MAX_CONNECTIONS,
            socket_connect_timeout=address.connect_timeout_s,
            socket_timeout=address.timeout_s,
            # Whether a command may be sent again is ours to say.
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    def call(self, *command: bytes | str | float) -> Any:
        """Return the reply to one command."""
        with self.session() as session:
            return session.call(*command)

    def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies to commands that are sent all at once."""
        if not commands:
            return []
        with self.session() as session:
            return session.pipeline(commands)

    @contextmanager
    def session(self) -> Iterator[RedisSession]:
        """Keep to one connection: what is watched on it is no more when the block ends."""
        if self._closed.is_set():
            raise StoreUnavailableError(f"{self.address} is closed")
        with explained(self.address):
            connection = self._pool.get_connection()
        session = RedisSession(connection, self.address, by_slot=self.by_slot)
        try:
            yield session
        finally:
            if not session.is_clean:
                connection.disconnect()
            self._pool.release(connection)

    def close(self) -> None:
        """Close all connections; whoever still waits for a reply gets an error."""
        self._closed.set()
        self._pool.disconnect()


class RedisSession:
    """One connection, used by one thread; `by_slot` as for RedisLink."""

    def __init__(self, connection: Any, address: RedisAddress, *, by_slot: bool) -> None:
        self.by_slot = by_slot
        self._connection = connection
        self._address = address
        self._watching = self._waiting = False

    @property
    def is_clean(self) -> bool:
        """Whether somebody else may use the connection: no replies are on their way, and nothing is watched."""
        return not self._watching and not self._waiting

    def call(self, *command: bytes | str | float) -> Any:
        """Return the reply to one command."""
        return self.pipeline([command])[0]

    def pipeline(self, commands: Sequence[Command]) -> list[Any]:
        """Return the replies to commands; StoreUnavailableError when one was refused (the others may be done)."""
        replies = self._exchange(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, redis.RedisError):
                raise unavailable(self._address, reply, _name(command[0])) from reply
        return replies

    def watch(self, keys: Sequence[bytes]) -> None:
        """Let `execute` do nothing should one of these keys change from now on."""
        self.call("WATCH", *keys)
        self._watching = True

    def unwatch(self) -> None:
        """Watch nothing any more."""
        if self._watching:
            self.call("UNWATCH")
        self._watching = False

    def execute(self, commands: Sequence[Command]) -> list[Any] | None:
        """Run all commands as one; None when a watched key has changed, and then nothing was done.

        RefusedError: nothing was done either. Any other StoreUnavailableError: it was done, or it was not.
        """
        self._watching = False
        try:
            *queued, result = self._exchange([("MULTI",), *commands, ("EXEC",)])
        except StoreUnavailableError as error:
            raise StoreUnavailableError(f"{error}; the transaction may have been carried out, or not") from error
        refusals = [reply for reply in queued if isinstance(reply, redis.RedisError)]
        if isinstance(result, redis.RedisError):
            # EXEC only says that there was something; the refused command says what.
            cause = (refusals or [result])[0]
            raise RefusedError(str(unavailable(self._address, cause, "EXEC"))) from cause
        if result is None:
            return None
        for command, reply in zip(commands, result, strict=True):
            if isinstance(reply, redis.RedisError):
                raise unavailable(self._address, reply, f"{_name(command[0])} in a transaction") from reply
        return list(result)

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        self._waiting = True
        with explained(self._address):
            connection.send_packed_command(connection.pack_commands(commands))
            replies = [self._reply() for _ in commands]
        self._waiting = False
        return replies

    def _reply(self) -> Any:
        try:
            return self._connection.read_response()
        except redis.ResponseError as error:
            return error


class RefusedError(StoreUnavailableError):
    """Redis refused a transaction: nothing of it was done."""


@contextmanager
def explained(address: RedisAddress) -> Iterator[None]:
    """Turn the library's errors into StoreUnavailableError."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise unavailable(address, error, "an answer") from error


def unavailable(address: RedisAddress, error: Exception, wanted: str) -> StoreUnavailableError:
    """Return the error that says what was wanted of which server and what came instead."""
    text = str(error) or type(error).__name__
    keys = [*type(error).__mro__, text.split(" ", 1)[0]]
    meaning = next((_MEANINGS[key] for key in keys if key in _MEANINGS), "it refused")
    return StoreUnavailableError(f"{address} can't be used, {meaning}: expected {wanted}, got: {text}")


def _name(word: bytes | str | float) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)
