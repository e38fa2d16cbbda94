"""Clients that write until the server is gone, and note what they asked for and what was acknowledged."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import grpc
from crash_model import State
from google.protobuf import field_mask_pb2
from service_harness import LIMIT_S, image_name, random_features

from matchflow.v1 import gallery_pb2, ingest_pb2, types_pb2
from matchflow_service.conversions import features_hash, features_message

if TYPE_CHECKING:
    from crash_model import Findings, Model, Write
    from service_harness import Api

GALLERY = "crashed"
CLIENTS = 4
CAMERAS = 6
LARGEST_BATCH = 16
# A call that ends so may have been carried out or not; a kill ends calls so.
UNCERTAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]


class OutageError(Exception):
    """An item failed that may have been stored or not."""


class Pool:
    """Ready-made features, all somewhat alike; some images will have the same ones."""

    def __init__(self, size: int, digest: str) -> None:
        batch = random_features(size, seed=7, spread=0.35)
        self.messages = [features_message(batch[k], digest) for k in range(size)]
        self.hashes = [features_hash(batch[k]) for k in range(size)]
        # What a server said of each compared with itself, by number.
        self.own_scores: dict[int, bytes | grpc.StatusCode] = {}

    def __len__(self) -> int:
        return len(self.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What clients share."""

    api: Api
    model: Model
    pool: Pool
    findings: Findings


def labels_of(state: State) -> types_pb2.Labels:
    """Return the labels of an image in a state, as the server has them."""
    return types_pb2.Labels(values={"write": state.write, "camera": state.camera}, numbers={"age": state.age})


class CrashClient:
    """Writes to images of its own in all ways, and to some of everybody, whose states it can't know, in two."""

    def __init__(self, scene: Scene, number: int, seed: str) -> None:
        self._scene, self._seed = scene, seed
        self._rng = Random(f"{seed}/{number}")
        names = scene.model.names
        self._own = names[number :: CLIENTS + 1]
        self._shared = names[CLIENTS :: CLIENTS + 1]
        self._prefix = f"{seed}/{number}"
        self._counter = itertools.count()

    def write(self) -> None:
        """Do one call. Raises grpc.RpcError, OutageError."""
        rng = self._rng
        names = self._shared if rng.random() < 0.15 else self._own
        chosen = rng.sample(names, min(len(names), rng.randint(1, LARGEST_BATCH)))
        kind = rng.choices(["ingest", "relabel", "update", "delete"], [50, 15, 20, 15])[0]
        if kind == "delete":
            self._delete(chosen)
        elif kind == "update" and names is self._own:
            self._update(chosen[0])
        else:
            self._ingest(chosen, keep_content=kind == "relabel" and names is self._own)

    def _new_state(self, content: int) -> State:
        rng = self._rng
        return State(
            content=content,
            write=f"{self._prefix}/{next(self._counter)}",
            camera=f"c{rng.randrange(CAMERAS)}",
            age=rng.randrange(0, 1000) / 8,
        )

    def _ingest(self, names: list[str], *, keep_content: bool) -> None:
        scene, writes = self._scene, list[tuple[str, "Write"]]()
        requests = []
        for item_id, name in enumerate(names):
            old = scene.model.state(name) if keep_content else None
            state = self._new_state(old.content if old else self._rng.randrange(len(scene.pool)))
            writes.append((name, scene.model.send(name, state)))
            requests.append(
                ingest_pb2.IngestImagesRequest(
                    name=image_name(GALLERY, name),
                    features=scene.pool.messages[state.content],
                    labels=labels_of(state),
                    item_id=item_id,
                )
            )
        for answer in scene.api.ingest.IngestImages(iter(requests), timeout=LIMIT_S):
            name, write = writes[answer.item_id]
            if answer.status.code == 0:
                scene.model.acknowledge(write, sequence=answer.sequence, row_id=answer.row_id)
            elif answer.status.code == UNAVAILABLE:
                raise OutageError(answer.status.message)
            else:
                scene.findings.add("refused", f"{self._prefix}: {name}: {answer.status}")

    def _update(self, name: str) -> None:
        scene, old = self._scene, self._scene.model.state(name)
        if old is None:
            return
        state = self._new_state(old.content)
        write = scene.model.send(name, state)
        image = gallery_pb2.Image(name=image_name(GALLERY, name), labels=labels_of(state))
        request = gallery_pb2.UpdateImageRequest(image=image, update_mask=field_mask_pb2.FieldMask(paths=["labels"]))
        updated = scene.api.galleries.UpdateImage(request, timeout=LIMIT_S)
        scene.model.acknowledge(write, sequence=sequence_of(updated), row_id=updated.row_id)

    def _delete(self, names: list[str]) -> None:
        scene = self._scene
        there = sum(scene.model.state(name) is not None for name in names)
        writes = [scene.model.send(name, None) for name in names]
        request = gallery_pb2.DeleteImagesRequest(
            parent=f"galleries/{GALLERY}", names=[image_name(GALLERY, name) for name in names]
        )
        answer = scene.api.galleries.DeleteImages(request, timeout=LIMIT_S)
        for write in writes:
            scene.model.acknowledge(write)
        if names[0] in self._own and answer.deleted_count != there:
            scene.findings.add(
                "lost", f"{self._prefix}: deleted {answer.deleted_count} images of {there} that were there"
            )


def sequence_of(image: gallery_pb2.Image) -> int:
    """Return the change that an image's etag stands for."""
    return int(image.etag.strip('"'))


class Traffic:
    """All clients at once, each until a call of its fails."""

    def __init__(self, scene: Scene, seed: str) -> None:
        clients = [CrashClient(scene, number, seed) for number in range(CLIENTS)]
        self._findings = scene.findings
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in clients]

    def start(self) -> None:
        """Let them begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Return once all have failed."""
        for thread in self._threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive(), "a client of a dead server still waits"

    def _run(self, client: CrashClient) -> None:
        try:
            while True:
                client.write()
        except OutageError:
            return
        except grpc.RpcError as error:
            if error.code() not in UNCERTAIN:
                self._findings.add("refused", f"{client._prefix}: {error}")
