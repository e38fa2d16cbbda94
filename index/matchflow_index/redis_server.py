"""What a Redis server promises: it is asked when a truth is opened, and after every transaction."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from matchflow_index.errors import StoreUnavailableError
from matchflow_index.truth import Durability

if TYPE_CHECKING:
    from matchflow_index.redis_address import RedisAddress
    from matchflow_index.redis_link import RedisLink, RedisSession

logger = logging.getLogger(__name__)

# ZRANGE BYLEX and XTRIM MINID came with it.
OLDEST_VERSION = (6, 2)
_CONFIGURATION = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.0002, 0.02


def check_server(link: RedisLink) -> Durability:
    """Return what an acknowledgement of this server means; StoreUnavailableError where evidence could be lost."""
    address = link.address
    server = _info(link.call("INFO", "server"))
    version = tuple(int(part) for part in server["redis_version"].split(".")[:2])
    if version < OLDEST_VERSION:
        raise StoreUnavailableError(f"{address}: expected Redis 6.2 or newer, got {server['redis_version']}")
    link.by_slot = server.get("redis_mode") == "cluster"
    if link.by_slot:
        nodes = int(_info(link.call("CLUSTER", "INFO"))["cluster_size"])
        if nodes != 1:
            raise StoreUnavailableError(f"{address}: expected one server, got one of a cluster of {nodes}")
    return _durability(link)


def _durability(link: RedisLink) -> Durability:
    address = link.address
    try:
        replies = link.pipeline([("CONFIG", "GET", name) for name in _CONFIGURATION])
        found = {reply[0].decode(): reply[1].decode() for reply in replies}
    except StoreUnavailableError as error:
        if not address.allow_unsafe:
            raise StoreUnavailableError(
                f"{error}; without its configuration nobody knows what this server may lose (allow_unsafe accepts that)"
            ) from error
        found = dict.fromkeys(_CONFIGURATION, "unknown")
    problems = []
    if found["appendonly"] != "yes":
        problems.append(f"expected appendonly yes, got {found['appendonly']}: a restart would lose what was stored")
    if found["appendonly"] == "yes" and found["appendfsync"] == "no":
        problems.append("expected appendfsync always or everysec, got no: nobody knows when data are on disk")
    if found["maxmemory-policy"] != "noeviction":
        problems.append(
            f"expected maxmemory-policy noeviction, got {found['maxmemory-policy']}: full memory would erase images"
        )
    if problems and not address.allow_unsafe:
        raise StoreUnavailableError(f"{address} is not safe: {'; '.join(problems)} (allow_unsafe accepts that)")
    for problem in problems:
        logger.warning("%s is not safe: %s", address, problem)
    if found["appendonly"] != "yes":
        return Durability.MEMORY
    always = found["appendfsync"] == "always" and found["no-appendfsync-on-rewrite"] == "no"
    return Durability.DISK if always else Durability.PROCESS


def settle(session: RedisSession, link: RedisLink, durability: Durability) -> None:
    """Return once what `session` did is as safe as promised; StoreUnavailableError when that doesn't come.

    `always` synchronises before it answers. Otherwise, while a synchronisation takes long, Redis answers before it has
    written to its file: a kill would lose that. It says how much it still has to write.
    """
    address = link.address
    if address.replicas:
        _wait_for_replicas(session, address)
    if durability is Durability.PROCESS:
        _wait_until_written(link)


def _wait_for_replicas(session: RedisSession, address: RedisAddress) -> None:
    deadline_s = time.monotonic() + address.replica_timeout_s
    while True:
        # In steps: the server must always answer within timeout_s.
        left_s = min(deadline_s - time.monotonic(), address.timeout_s / 2)
        reached = session.call("WAIT", address.replicas, max(1, int(1000 * left_s)))
        if reached >= address.replicas:
            return
        if time.monotonic() >= deadline_s:
            raise StoreUnavailableError(
                f"{address}: expected {address.replicas} replicas to have the transaction within "
                f"{address.replica_timeout_s} s, got {reached}; it was carried out, but is not as safe as asked for"
            )


def _wait_until_written(link: RedisLink) -> None:
    deadline_s, pause_s = time.monotonic() + link.address.timeout_s, _FIRST_PAUSE_S
    while True:
        state = _info(link.call("INFO", "persistence"))
        written = state.get("aof_last_write_status", "ok") == "ok"
        if written and state.get("aof_buffer_length", "0") == "0":
            return
        if not written or time.monotonic() > deadline_s:
            raise StoreUnavailableError(
                f"{link.address} can't write to its disk: expected aof_last_write_status ok and aof_buffer_length 0 "
                f"within {link.address.timeout_s} s, got {state.get('aof_last_write_status')} and "
                f"{state.get('aof_buffer_length')}; the transaction was carried out, but a restart may lose it"
            )
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def server_time_s(link: RedisLink) -> int:
    """Return the server's clock, in whole seconds since 1970: the one that all who use it share."""
    return int(link.call("TIME")[0])


def _info(reply: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in lines}
