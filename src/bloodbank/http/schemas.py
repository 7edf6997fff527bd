"""Which event types have a payload model, and what it asks for."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Request, Response

from bloodbank.http import description
from bloodbank.http.answers import schema_list
from bloodbank.http.bus import bus_of
from bloodbank.http.refusals import SchemaNotFound
from bloodbank.http.shapes import SchemaList

router = APIRouter(prefix="/schemas", tags=["schemas"])


@router.get(
    "",
    summary="List the event types that have a schema",
    response_class=Response,
    responses={200: description.answer(SchemaList, "All of them, by name.")} | description.refusals(401, 403),
)
async def list_schemas(request: Request) -> Response:
    """List the types whose payloads are checked. Others are taken with any JSON object, unless settings refuse them."""
    return Response(orjson.dumps(schema_list(bus_of(request).publisher.registry)), media_type="application/json")


@router.get(
    "/{event_type}",
    summary="Read the JSON schema of a payload",
    response_class=Response,
    responses={
        200: {
            "description": "JSON schema, draft 2020-12.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    }
    | description.refusals(401, 403, 404),
)
async def read_schema(
    request: Request,
    event_type: Annotated[
        str, Path(description="Type of an event.", examples=["llm.prompt"], json_schema_extra=description.EVENT_TYPE)
    ],
) -> Response:
    """Return what the payload of a type must look like."""
    model = bus_of(request).publisher.registry.model_for(event_type)
    if model is None:
        raise SchemaNotFound("No schema is registered for this event type. GET /schemas lists the types that have one.")
    schema: dict[str, Any] = model.model_json_schema()
    return Response(orjson.dumps(schema), media_type="application/json")
