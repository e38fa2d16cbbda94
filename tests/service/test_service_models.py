"""ModelService, health and reflection through a real channel."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from service_harness import LIMIT_S, Api, RunningServer, gated, png, read_status, refusal_of

from matchflow.v1 import model_pb2
from matchflow_bundle import decode_image
from matchflow_matching import quantise

if TYPE_CHECKING:
    from matchflow_bundle import Bundle

SERVICES = ["GalleryService", "IngestService", "ModelService", "SearchService"]


def embed(api: Api, images: list[bytes], model: str = "") -> model_pb2.EmbedImagesResponse:
    return api.models.EmbedImages(model_pb2.EmbedImagesRequest(images=images, model=model), timeout=LIMIT_S)


def test_a_model_says_what_it_is(api: Api, sample_bundle: Bundle) -> None:
    listed = api.models.ListModels(model_pb2.ListModelsRequest())
    assert not listed.next_page_token
    (model,) = listed.models
    assert api.models.GetModel(model_pb2.GetModelRequest(name=model.name)) == model
    manifest = sample_bundle.manifest
    assert model.name == f"models/{manifest.name}"
    assert (model.version, model.bundle_digest) == (manifest.version, sample_bundle.digest)
    assert (model.input_height_px, model.input_width_px) == (128, 128)
    assert (model.grid.rows, model.grid.columns, model.embedding_dim) == (4, 4, 128)
    assert model.execution_provider == "CPUExecutionProvider"


def test_an_unknown_model_is_not_found(api: Api) -> None:
    for call in (
        lambda: api.models.GetModel(model_pb2.GetModelRequest(name="models/none")),
        lambda: embed(api, [png(1)], "models/none"),
    ):
        refusal = refusal_of(call)
        assert (refusal.code, refusal.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert refusal_of(lambda: api.models.GetModel(model_pb2.GetModelRequest(name="none"))).violations == ["name"]
    assert refusal_of(lambda: embed(api, [png(1)], "models/a/b")).violations == ["model"]


def test_embedding_gives_the_stored_precision_of_the_model(api: Api, server: RunningServer) -> None:
    model = server.server.models.named("")
    pixels = model.preprocessing.apply(decode_image(png(1)))[None]
    expected = quantise(*model.encoder.encode(pixels))
    (embedding,) = embed(api, [png(1)], f"models/{model.name}").embeddings
    assert embedding.status.code == 0
    assert embedding.features.bundle_digest == model.bundle_digest
    np.testing.assert_array_equal(np.array(embedding.features.embedding, np.float32), expected.embeddings[0])
    assert embedding.features.cells == expected.cells[0].tobytes()
    np.testing.assert_array_equal(
        np.array(embedding.features.cell_scales, np.float32), expected.scales[0].astype(np.float32)
    )


def test_a_bad_image_among_good_ones_gets_its_own_status(api: Api) -> None:
    reply = embed(api, [png(1), b"", png(2), png(3)[:100], png(1)])
    assert [embedding.status.code for embedding in reply.embeddings] == [0, 3, 0, 3, 0]
    assert [embedding.HasField("features") for embedding in reply.embeddings] == [True, False, True, False, True]
    assert read_status(reply.embeddings[1].status).reason == "IMAGE_UNREADABLE"
    first, last = reply.embeddings[0].features, reply.embeddings[4].features
    np.testing.assert_allclose(first.embedding, last.embedding, atol=1e-5)


def test_nothing_to_embed_gives_nothing_and_only_bad_images_need_no_model(api: Api, server: RunningServer) -> None:
    before = server.queue.images_run
    assert len(embed(api, []).embeddings) == 0
    assert [embedding.status.code for embedding in embed(api, [b"x", b"y"]).embeddings] == [3, 3]
    assert server.queue.images_run == before


def test_sixty_four_images_are_embedded_and_sixty_five_refused(api: Api) -> None:
    reply = embed(api, [png(i % 4) for i in range(64)])
    assert [embedding.status.code for embedding in reply.embeddings] == [0] * 64
    refusal = refusal_of(lambda: embed(api, [png(1)] * 65))
    assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", ["images"])


@pytest.mark.parametrize("token", ["x", "!!", "WzFd", "WyJMaXN0R2FsbGVyaWVzIiwiIiwieCJd"])
def test_a_foreign_page_token_is_refused(api: Api, token: str) -> None:
    refusal = refusal_of(lambda: api.models.ListModels(model_pb2.ListModelsRequest(page_token=token)))
    assert (refusal.reason, refusal.violations) == ("INVALID_FIELD", ["page_token"])


def test_health_tells_of_the_server_and_of_every_service(api: Api) -> None:
    for service in ["", *(f"matchflow.v1.{name}" for name in SERVICES)]:
        reply = api.health.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        api.health.Check(health_pb2.HealthCheckRequest(service="matchflow.v1.Nothing"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_answers_while_the_encoder_is_busy(api: Api, server: RunningServer) -> None:
    with gated(server) as gate, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(embed, api, [png(1)])
        assert gate.entered.wait(LIMIT_S)
        assert api.health.Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S).status == 1
        gate.gate.set()
        assert busy.result(LIMIT_S).embeddings


def test_reflection_lists_the_services_and_their_files(api: Api) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="matchflow.v1.SearchService"),
    ]
    listed, described = stub.ServerReflectionInfo(iter(requests))
    names = {service.name for service in listed.list_services_response.service}
    assert {f"matchflow.v1.{name}" for name in SERVICES} | {"grpc.health.v1.Health"} <= names
    files = [FileDescriptorProto.FromString(f) for f in described.file_descriptor_response.file_descriptor_proto]
    assert "matchflow/v1/search.proto" in {file.name for file in files}


def test_a_method_that_does_not_exist_is_unimplemented(api: Api) -> None:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = api.channel.unary_unary("/matchflow.v1.SearchService/Nothing")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
