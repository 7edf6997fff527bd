"""Webhooks: what other services send. The signature is the key, so neither API keys nor loopback are asked for."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from bloodbank.acceptance import PublishResult, Status
from bloodbank.correlation_tracker import Lineage
from bloodbank.envelope import EventEnvelope, create_envelope
from bloodbank.errors import BloodbankError, EventConflict, EventNotFound
from bloodbank.http import description, examples, fireflies, incoming
from bloodbank.http.body import parse_json, read_body, require_json, require_object
from bloodbank.http.bus import Bus, bus_of
from bloodbank.http.publish import STATUS_CODES, Accepted
from bloodbank.http.refusals import InvalidSignature, WebhookSecretMissing
from bloodbank.http.shapes import FirefliesV1, FirefliesV2, Published

SIGNATURE_HEADER = "X-Hub-Signature"
PARENT_TIMEOUT_SECONDS = 2.0
"""Fireflies waits 10 s for an answer; looking for the parent may take this much of it."""

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.post(
    "/fireflies",
    summary="Take a Fireflies webhook, version 1 or 2",
    status_code=201,
    response_class=Response,
    responses={
        201: description.answer(Published, "Published.", examples.PUBLISHED),
        200: description.answer(
            Published, "Delivered before; nothing was added.", examples.PUBLISHED | {"status": "duplicate"}
        ),
        202: description.answer(Published, "A test ping, or an event that is not known here: recorded as it came."),
    }
    | description.refusals(400, 401, 403, 413, 415, 422, 503, 504),
    openapi_extra=description.json_body(
        FirefliesV2,
        FirefliesV1,
        {"type": "object"},
        examples={"version 2": examples.FIREFLIES_V2, "version 1": examples.FIREFLIES_V1},
    )
    | {
        "security": [],
        "parameters": [
            {
                "name": SIGNATURE_HEADER,
                "in": "header",
                "required": False,
                "description": "Hex HMAC-SHA256 of the raw body with a secret of BLOODBANK_FIREFLIES_SECRETS, bare or "
                "after `sha256=`. May be missing only where the settings allow it.",
                "schema": {"type": "string"},
            }
        ],
    },
)
async def take_fireflies(request: Request) -> Response:
    """Publish what Fireflies tells of a meeting. The transcript itself is fetched from their API.

    `client_reference_id` makes the upload event the parent when it is its id. No other parent is made up.
    """
    bus = bus_of(request)
    body = await _verified_body(request, bus)
    fields = require_object(parse_json(body, depth_limit=bus.settings.json_depth_limit))
    notice = fireflies.read_notice(fields)
    if notice.event_type == fireflies.RECEIVED:
        logger.info("A Fireflies webhook that is not known here is kept as event %s.", notice.event_id)
    result = await _publish(bus, await _envelope(request, bus, notice))
    is_new_and_unknown = notice.event_type == fireflies.RECEIVED and result.status is Status.PUBLISHED
    return Accepted(request.scope, result, 202 if is_new_and_unknown else STATUS_CODES[result.status])


async def _verified_body(request: Request, bus: Bus) -> bytes:
    """Return the raw body of a webhook that Fireflies signed; raise InvalidSignature, WebhookSecretMissing."""
    settings = bus.settings
    if not settings.fireflies_secrets and not settings.fireflies_allow_unsigned:
        raise WebhookSecretMissing(
            "No webhook secret is set, so nobody can tell who sent this. Set BLOODBANK_FIREFLIES_SECRETS to the secret "
            "that Fireflies has, or BLOODBANK_FIREFLIES_ALLOW_UNSIGNED=true."
        )
    require_json(request)
    body = await read_body(request, limit_bytes=settings.body_limit_bytes)
    signature = request.headers.get(SIGNATURE_HEADER, "")
    if settings.fireflies_secrets and not fireflies.is_signed(body, signature, settings.fireflies_secrets):
        raise InvalidSignature(
            f"{SIGNATURE_HEADER} is not the HMAC-SHA256 of this body with a secret of this server. Nothing was "
            "published.",
            {"WWW-Authenticate": 'Signature realm="fireflies"'},
        )
    return body


async def _envelope(request: Request, bus: Bus, notice: fireflies.Notice) -> EventEnvelope[Any]:
    parents: list[UUID] = []
    if notice.client_reference_id is not None and await _is_upload(bus, notice.client_reference_id, notice.event_id):
        parents.append(notice.client_reference_id)
    return create_envelope(
        notice.event_type,
        notice.payload,
        source=incoming.source_of(request),
        correlation_ids=parents,
        event_id=notice.event_id,
        registry=bus.publisher.registry,
    )


async def _is_upload(bus: Bus, reference: UUID, notice_id: UUID) -> bool:
    """Say whether the reference is the id of an upload event: ask the index, then the log, which knows more.

    Where neither can tell, the event goes out without that parent. Answering 503 would wait for a redelivery
    that Fireflies does not promise, and an event is worth more than an edge: `client_reference_id` stays in the
    payload, and CorrelationTracker.add_correlation can draw the edge later.
    """
    try:
        async with asyncio.timeout(PARENT_TIMEOUT_SECONDS):
            if bus.publisher.tracking_enabled:
                node = (await bus.publisher.tracker.find([reference]) or {}).get(reference)
                if node is not None and node.link is not None:
                    return node.link.event_type == fireflies.UPLOAD
            return (await bus.log.get(reference)).event_type == fireflies.UPLOAD
    except EventNotFound:
        return False
    except (BloodbankError, TimeoutError) as error:
        logger.warning(
            "Whether %s is the upload that led to event %s could not be told (%s); published without a parent.",
            reference,
            notice_id,
            error or "no answer in time",
        )
        return False


async def _publish(bus: Bus, envelope: EventEnvelope[Any]) -> PublishResult:
    """Publish; a delivery that differs from the first one is a duplicate too: a webhook cannot act on a 409."""
    try:
        return await bus.publisher.publish(envelope)
    except EventConflict:
        logger.warning(
            "Fireflies delivered event %s again with another body or another parent; the first one stays.",
            envelope.event_id,
        )
        lineage = Lineage.RECORDED if bus.publisher.tracking_enabled else Lineage.DISABLED
        return PublishResult(envelope.event_id, Status.DUPLICATE, lineage)
