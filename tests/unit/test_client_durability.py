"""What a reply says that an image survives, as the client hands it on."""

from __future__ import annotations

from typing import Any

import pytest

from matchflow import Durability, IngestItem
from matchflow.ingest import IngestLedger
from matchflow.v1 import ingest_pb2

ITEM = IngestItem(id="a", image=b"pixels")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (ingest_pb2.DURABILITY_DISK, Durability.DISK),
        (ingest_pb2.DURABILITY_PROCESS, Durability.PROCESS),
        (ingest_pb2.DURABILITY_MEMORY, Durability.MEMORY),
        # An older server's, and a newer one's.
        (ingest_pb2.DURABILITY_UNSPECIFIED, None),
        (99, None),
    ],
)
def test_a_result_says_what_the_image_survives(sent: Any, expected: Durability | None) -> None:
    ledger = IngestLedger("demo")
    ledger.sent(ITEM, ingest_pb2.IngestImagesRequest(item_id=3))
    ledger.answered(
        ingest_pb2.IngestImagesResponse(item_id=3, outcome=ingest_pb2.INGEST_OUTCOME_CREATED, durability=sent)
    )
    (result,) = ledger.unreported()
    assert result.durability is expected
