"""`matchflow ingest --generation`: what is sent to a generation that lacks it, and what its journal spares."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from client_counterpart import Counterpart, failure, running
from google.rpc import code_pb2
from grpc_status import rpc_status
from import_samples import age

from matchflow.v1 import gallery_pb2, generation_pb2, ingest_pb2
from matchflow_cli.application import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import grpc

NAMES = ("a.png", "b.png", "c.png")


@dataclass
class TwoGenerations:
    """A gallery whose generation 1 is active: takes images, and for generation 2 only those that it holds."""

    images: dict[str, str] = field(default_factory=dict)
    second: dict[str, str] = field(default_factory=dict)
    active: int = 1
    # (generation, image) of everything that was sent.
    sent: list[tuple[int, str]] = field(default_factory=list)

    def ingest(
        self, requests: Iterator[ingest_pb2.IngestImagesRequest], context: grpc.ServicerContext
    ) -> Iterator[ingest_pb2.IngestImagesResponse]:
        for request in requests:
            name, content = request.name, hashlib.sha256(request.image_bytes).hexdigest()
            self.sent.append((request.generation, name.rpartition("/")[2]))
            reply = ingest_pb2.IngestImagesResponse(item_id=request.item_id, name=name)
            if request.generation in {0, self.active}:
                self.images[name] = content
            elif request.generation > 2:
                missing = failure("GENERATION_NOT_FOUND", code_pb2.NOT_FOUND, "no such generation")
                context.abort_with_status(rpc_status.to_status(missing))
            elif self.images.get(name, content) != content:
                reply.status.CopyFrom(failure("CONTENT_DIFFERS", code_pb2.FAILED_PRECONDITION, "other content"))
            elif name not in self.images:
                reply.status.CopyFrom(failure("IMAGE_NOT_FOUND", code_pb2.NOT_FOUND, "no such image"))
            else:
                self.second[name] = content
            if not reply.status.code:
                reply.outcome = ingest_pb2.INGEST_OUTCOME_CREATED
            yield reply

    def answers(self) -> dict[str, Any]:
        """Return the unary methods that an import asks."""
        return {
            "GetGallery": lambda _: gallery_pb2.Gallery(
                name="galleries/demo", generation=self.active, image_count=len(self.images)
            ),
            "ListImages": lambda _: gallery_pb2.ListImagesResponse(
                images=[gallery_pb2.Image(name=name, content_hash=each) for name, each in self.images.items()]
            ),
            "ListMissingImages": lambda _: generation_pb2.ListMissingImagesResponse(
                names=[name for name, each in self.images.items() if self.second.get(name) != each]
            ),
        }


@pytest.fixture
def server() -> TwoGenerations:
    return TwoGenerations()


@pytest.fixture
def ingest(
    server: TwoGenerations, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Run `matchflow ingest FOLDER`; gives its exit status, what it printed and what it sent."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
    age(*folder.iterdir())
    with running(Counterpart(answers=server.answers(), ingest=server.ingest)) as counterpart:

        def command(*options: object) -> tuple[int, str, list[tuple[int, str]]]:
            capsys.readouterr()
            server.sent.clear()
            status = run(["ingest", str(folder), "-g", "demo", "--server", counterpart.target, *map(str, options)])
            captured = capsys.readouterr()
            return status, captured.out + captured.err, sorted(server.sent)

        yield command


def to(generation: int, *names: str) -> list[tuple[int, str]]:
    return [(generation, name) for name in names]


@pytest.mark.parametrize("named", [False, True], ids=["a journal each", "one journal for both"])
def test_what_the_gallery_holds_is_still_sent_to_the_generation_that_lacks_it(
    ingest: Any, tmp_path: Path, named: bool
) -> None:
    journal = ("--journal", tmp_path / "import.journal") if named else ()
    assert ingest(*journal)[2] == to(0, *NAMES)
    assert ingest(*journal)[2] == []
    status, said, sent = ingest("--generation", 2, *journal)
    assert (status, sent) == (0, to(2, *NAMES))
    assert "3 created" in said
    status, said, sent = ingest("--generation", 2, *journal)
    assert (status, sent) == (0, [])
    assert "3 images not sent again: generation 2 has the same bytes" in said


def test_a_run_for_a_generation_leaves_the_journal_of_the_gallery_as_it_was(ingest: Any) -> None:
    ingest()
    ingest("--generation", 2)
    status, said, sent = ingest()
    assert (status, sent) == (0, [])
    assert "the gallery holds the same bytes and labels" in said


def test_what_a_generation_lost_is_sent_again_and_nothing_else(ingest: Any, server: TwoGenerations) -> None:
    ingest()
    ingest("--generation", 2)
    del server.second["galleries/demo/images/b.png"]
    assert ingest("--generation", 2)[2] == to(2, "b.png")


def test_labels_are_the_gallerys_and_send_nothing_again(ingest: Any) -> None:
    ingest()
    ingest("--generation", 2)
    assert ingest("--generation", 2, "--label-from-folders", "class")[2] == []


def test_another_generation_has_a_journal_of_its_own(ingest: Any, server: TwoGenerations) -> None:
    ingest()
    ingest("--generation", 2)
    server.active = 2
    assert ingest("--generation", 1)[2] == to(1, *NAMES)


def test_the_active_generation_is_the_gallery_itself(ingest: Any) -> None:
    assert ingest("--generation", 1)[2] == to(0, *NAMES)
    assert ingest()[2] == []


def test_images_that_the_gallery_has_not_or_has_otherwise_are_rejected_and_stop_nothing(
    ingest: Any, server: TwoGenerations
) -> None:
    ingest()
    server.images["galleries/demo/images/a.png"] = "ab" * 32
    del server.images["galleries/demo/images/b.png"]
    status, said, sent = ingest("--generation", 2)
    assert (status, sent) == (1, to(2, *NAMES))
    for expected in ("1 created", "2 rejected", "CONTENT_DIFFERS", "IMAGE_NOT_FOUND"):
        assert expected in said
    assert list(server.second) == ["galleries/demo/images/c.png"]


def test_a_file_that_changed_is_read_and_sent_again(ingest: Any, tmp_path: Path, server: TwoGenerations) -> None:
    ingest()
    ingest("--generation", 2)
    (tmp_path / "photos" / "b.png").write_bytes(b"changed")
    assert ingest()[2] == to(0, "b.png")
    status, _, sent = ingest("--generation", 2)
    assert (status, sent) == (0, to(2, "b.png"))
    assert server.second == server.images


def test_a_generation_that_is_not_there_is_said_with_what_to_do(ingest: Any) -> None:
    status, said, _ = ingest("--generation", 3)
    assert status == 1
    assert "no such generation; `matchflow generation list GALLERY` shows what there is" in said
