"""How both clients connect."""

from __future__ import annotations

import grpc

from matchflow.sources import MAX_MESSAGE_BYTES

DEFAULT_TARGET = "localhost:50051"
DEFAULT_TIMEOUT_S = 30.0

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that comes back is found again within seconds, not minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A connection that died silently ends a waiting stream. Servers allow one idle ping per five minutes by default.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


def open_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Return a channel for threads; without credentials it is plain text."""
    if credentials is None:
        return grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)


def open_async_channel(target: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    """Return a channel for the running event loop; without credentials it is plain text."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
