"""The servicer that describes the loaded bundles and runs them."""
# ruff: noqa: N802, ARG002 - the methods and their arguments are those of the contract

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from matchflow.v1 import model_pb2, model_pb2_grpc
from matchflow_bundle import ImageError
from matchflow_service import fields, names
from matchflow_service.calls import request_id
from matchflow_service.conversions import features_message, model_message
from matchflow_service.deadlines import Deadline
from matchflow_service.pages import page_token, parse_page_token
from matchflow_service.settings import MAX_EMBEDDED_IMAGES
from matchflow_service.statuses import OK, status_of
from matchflow_service.workers import on

if TYPE_CHECKING:
    from matchflow_service.images import ImageReader, ReadImage
    from matchflow_service.models import Model, Models
    from matchflow_service.workers import Workers

Embedding = model_pb2.EmbedImagesResponse.Embedding


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Answers from what was loaded at start."""

    def __init__(self, *, models: Models, reader: ImageReader, workers: Workers) -> None:
        self._models = models
        self._reader = reader
        self._workers = workers

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
        """See the contract."""
        return model_message(self._models.named(names.parse_model(request.name, "name")))

    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        """See the contract."""
        limit = fields.page_size(request.page_size)
        after = parse_page_token(request.page_token, "ListModels", "")
        rest = [model for model in self._models.by_name() if after is None or model.name > after]
        return model_pb2.ListModelsResponse(
            models=[model_message(model) for model in rest[:limit]],
            next_page_token=page_token("ListModels", "", rest[limit - 1].name) if len(rest) > limit else "",
        )

    async def EmbedImages(self, request: model_pb2.EmbedImagesRequest, context: Any) -> model_pb2.EmbedImagesResponse:
        """See the contract."""
        fields.at_most(request.images, "images", MAX_EMBEDDED_IMAGES)
        model = self._models.named(names.parse_model(request.model, "model") if request.model else "")
        return await Deadline.of(context).bound(self._embed(list(request.images), model))

    async def _embed(self, images: list[bytes], model: Model) -> model_pb2.EmbedImagesResponse:
        read = await asyncio.gather(*(on(self._workers.images, partial(self._read, data, model)) for data in images))
        inputs = [outcome.model_input for outcome in read if not isinstance(outcome, ImageError)]
        batch = await model.queue.encode(np.stack(inputs)) if inputs else ()
        features = (batch[i] for i in range(len(batch)))
        return model_pb2.EmbedImagesResponse(
            embeddings=[
                Embedding(status=status_of(outcome, request_id.get()))
                if isinstance(outcome, ImageError)
                else Embedding(status=OK, features=features_message(next(features), model.bundle_digest))
                for outcome in read
            ]
        )

    def _read(self, data: bytes, model: Model) -> ReadImage | ImageError:
        try:
            return self._reader.read(data, model.preprocessing)
        except ImageError as error:
            return error
