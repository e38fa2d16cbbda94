"""grpc.health.v1: one status for the server as a whole and one for each service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from matchflow.v1 import gallery_pb2, generation_pb2, ingest_pb2, model_pb2, search_pb2

if TYPE_CHECKING:
    import grpc.aio

SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (gallery_pb2, "GalleryService"),
        (generation_pb2, "GenerationService"),
        (ingest_pb2, "IngestService"),
        (search_pb2, "SearchService"),
        (model_pb2, "ModelService"),
    )
)
WHOLE_SERVER = ""


class Health:
    """Says SERVING from `serving` on and NOT_SERVING once `draining`, to Check and to everybody who Watches."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self._servicer = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*SERVICES, health, reflection.SERVICE_NAME), server)

    async def serving(self) -> None:
        """Tell that calls are taken."""
        for service in (WHOLE_SERVER, *SERVICES):
            await self._servicer.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def draining(self) -> None:
        """Tell, once and for all, that calls are not taken any more."""
        await self._servicer.enter_graceful_shutdown()
