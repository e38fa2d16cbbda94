"""Settings from flags and from the environment, and where the log goes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from matchflow_service import logs
from matchflow_service.calls import request_id
from matchflow_service.settings import ServiceSettings, available_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

STORE = Path("store")
BUNDLES = [Path("lite0")]


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ServiceSettings.model_fields:
        monkeypatch.delenv(f"MATCHFLOW_{name.upper()}", raising=False)
    return monkeypatch


def test_only_store_and_bundles_must_be_given(clean_environment: pytest.MonkeyPatch) -> None:
    assert clean_environment
    settings = ServiceSettings(store=STORE, bundles=BUNDLES)
    assert (settings.host, settings.port) == ("127.0.0.1", 50051)
    assert settings.encoder_threads == settings.search_threads == available_cores() >= 1
    assert settings.reads_without_store_s == 60
    with pytest.raises(ValidationError) as raised:
        ServiceSettings.from_environment()
    assert {error["loc"][0] for error in raised.value.errors()} == {"store", "bundles"}


def test_the_environment_is_read_and_flags_win(clean_environment: pytest.MonkeyPatch) -> None:
    for name, value in {
        "STORE": "/data",
        "BUNDLES": "/models/a:/models/b",
        "PORT": "6000",
        "LOG_LEVEL": "debug",
        "ENCODER_WAIT_MS": "0.5",
        "READS_WITHOUT_STORE_S": "0",
    }.items():
        clean_environment.setenv(f"MATCHFLOW_{name}", value)
    settings = ServiceSettings.from_environment()
    assert (settings.store, settings.bundles) == (Path("/data"), [Path("/models/a"), Path("/models/b")])
    assert (settings.port, settings.log_level, settings.encoder_wait_ms) == (6000, "DEBUG", 0.5)
    assert settings.reads_without_store_s == 0
    assert ServiceSettings(store=STORE, bundles=BUNDLES, port=7000).port == 7000


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65_536),
        ("bundles", []),
        ("encoder_threads", 0),
        ("encoder_batch_size", 0),
        ("encoder_wait_ms", -1),
        ("encoder_queue_size", 63),
        ("search_threads", 0),
        ("max_image_bytes", 0),
        ("max_image_pixels", 0),
        ("drain_s", -1),
        ("reads_without_store_s", -1),
        ("reads_without_store_s", float("nan")),
        ("log_format", "xml"),
        ("log_level", 5),
        ("unheard_of", 1),
    ],
)
def test_a_setting_out_of_its_range_is_refused(
    clean_environment: pytest.MonkeyPatch, field: str, value: object
) -> None:
    assert clean_environment
    with pytest.raises(ValidationError, match=field):
        ServiceSettings(**{"store": STORE, "bundles": BUNDLES, field: value})  # type: ignore[arg-type]


def test_an_image_must_fit_a_message(clean_environment: pytest.MonkeyPatch) -> None:
    assert clean_environment
    with pytest.raises(ValidationError, match="max_image_bytes must be at most max_message_bytes"):
        ServiceSettings(store=STORE, bundles=BUNDLES, max_message_bytes=1000)


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    root.handlers, root.level = handlers, level


def test_every_record_becomes_one_json_line_with_its_request_and_extras(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(log_format="json", level="INFO")
    assert root_logger.handlers
    token = request_id.set("abc")
    try:
        logging.getLogger("matchflow_index.store").info("opened %d", 3, extra={"path": "x"})
        logging.getLogger("other").error("failed", exc_info=ValueError("of the test"))
    finally:
        request_id.reset(token)
    logging.getLogger("other").debug("not at this level")
    logging.getLogger("other").warning("outside of a call")
    first, second, third = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["logger"], first["level"]) == ("opened 3", "matchflow_index.store", "info")
    assert (first["request_id"], first["path"]) == ("abc", "x")
    assert "ValueError: of the test" in second["exception"]
    assert "request_id" not in third


def test_the_console_format_is_for_people(root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(log_format="console", level="WARNING")
    assert root_logger.level == logging.WARNING
    logging.getLogger("x").info("quiet")
    logging.getLogger("x").warning("loud")
    text = capsys.readouterr().err
    assert "loud" in text
    assert "\x1b" not in text  # colours are for a terminal, not for a file
    assert "quiet" not in text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_a_client_sent_can_neither_forge_a_line_nor_steer_a_terminal(
    log_format: str, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(log_format=log_format, level="INFO")
    assert root_logger.handlers
    logging.getLogger("odd").info("refused: %s", "\x1b]0;x\x07\nlistening" + "y" * 100_000)
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "\x1b]0" not in written
    assert len(written) < 3_000


def test_a_store_is_a_folder_or_the_address_of_a_redis_server(clean_environment: pytest.MonkeyPatch) -> None:
    clean_environment.setenv("MATCHFLOW_STORE", "redis://:secret@localhost:6379/0?replicas=1")
    clean_environment.setenv("MATCHFLOW_CACHE", "/var/cache/matchflow")
    clean_environment.setenv("MATCHFLOW_BUNDLES", "lite0")
    settings = ServiceSettings.from_environment()
    assert settings.store == "redis://:secret@localhost:6379/0?replicas=1"
    assert (settings.cache, settings.durability) == (Path("/var/cache/matchflow"), None)
    clean_environment.delenv("MATCHFLOW_CACHE")
    for name in ("data", "/data", "./redis:/data"):
        assert ServiceSettings(store=name, bundles=BUNDLES).store == Path(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"store": "redis://:secret@h"}, "needs a folder of this process for its caches"),
        ({"store": "data", "cache": "c"}, "a store in a folder has its caches there"),
        ({"store": "redis://:secret@h", "cache": "c", "durability": "disk"}, "is that server's setting appendfsync"),
        ({"store": "data", "durability": "memory"}, "'disk' or 'process'"),
    ],
)
def test_settings_of_a_store_that_do_not_go_together_are_refused_and_no_password_is_shown(
    clean_environment: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    assert clean_environment
    with pytest.raises(ValidationError, match=message) as raised:
        ServiceSettings(**{"bundles": BUNDLES, **settings})  # type: ignore[arg-type]
    assert "secret" not in str(raised.value)
