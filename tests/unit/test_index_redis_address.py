from __future__ import annotations

import pytest

from matchflow_index import StoreUnavailableError
from matchflow_index.redis_address import RedisAddress, is_redis_address


def test_an_address_alone_has_safe_defaults() -> None:
    address = RedisAddress.parse("redis://localhost:6379/2")
    assert address == RedisAddress(url="redis://localhost:6379/2")
    assert not address.allow_unsafe
    assert str(address) == "redis://localhost:6379/2"


def test_an_address_says_how_the_server_is_to_be_used() -> None:
    options = "prefix=mine&replicas=2&replica_timeout_s=0.5&connect_timeout_s=1&timeout_s=3.5&allow_unsafe=true"
    assert RedisAddress.parse(f"rediss://u:p@h/1?{options}") == RedisAddress(
        url="rediss://u:p@h/1",
        prefix="mine",
        replicas=2,
        replica_timeout_s=0.5,
        connect_timeout_s=1.0,
        timeout_s=3.5,
        allow_unsafe=True,
    )


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://user:secret@host:1234/5", "redis://host:1234/5"),
        ("redis://:secret@host", "redis://host:6379"),
        ("redis://", "redis://localhost:6379"),
        ("unix://:secret@/run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, text: str) -> None:
    assert str(RedisAddress.parse(url)) == text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://localhost", "got scheme 'http'"),
        ("/a/path", "got scheme ''"),
        ("redis://h?prefx=a", "'prefx' is no option of a Redis address; these are: prefix, replicas"),
        ("redis://h?replicas=two", "replicas in a Redis address must be of type int; got 'two'"),
        ("redis://h?replicas=-1", "replicas must be at least 0; got -1"),
        ("redis://h?timeout_s=fast", "must be of type float; got 'fast'"),
        ("redis://h?timeout_s=0", "timeout_s must be from 0.05 to 3600.0; got 0.0"),
        ("redis://h?timeout_s=nan", "timeout_s must be from 0.05 to 3600.0; got nan"),
        ("redis://h?connect_timeout_s=0", "connect_timeout_s must be from 0.05"),
        ("redis://h?allow_unsafe=maybe", "must be of type bool; got 'maybe'"),
        ("redis://h?prefix=", "prefix must be a text without braces; got ''"),
        ("redis://h?prefix={a}", "prefix must be a text without braces; got '{a}'"),
    ],
)
def test_an_address_that_makes_no_sense_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreUnavailableError) as raised:
        RedisAddress.parse(url)
    assert message in str(raised.value)


@pytest.mark.parametrize("url", ["redis://h:port/0", "redis://h:99999/0"])
def test_an_address_whose_port_is_none_is_refused(url: str) -> None:
    with pytest.raises(StoreUnavailableError, match="the port of a Redis address is no good"):
        RedisAddress.parse(url)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://h", True),
        ("rediss://h", True),
        ("unix:///s", True),
        ("/a/b", False),
        ("redis", False),
        ("a://b", False),
    ],
)
def test_addresses_and_paths_are_told_apart(text: str, *, expected: bool) -> None:
    assert is_redis_address(text) is expected
