"""Errors as RFC 9457 problems: one table from the class of an error to status and title."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote
from uuid import UUID

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from bloodbank import errors
from bloodbank.errors import BloodbankError, InvalidEvent, InvalidQuery
from bloodbank.http import background, refusals, streams
from bloodbank.http.refusals import RequestRefused

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:bloodbank:problem:"
# A request can be wrong in more places, and longer ones, than an answer should repeat.
MOST_ERRORS = 50
LONGEST_DETAIL = 1000
LONGEST_PATH = 200


@dataclass(frozen=True, slots=True)
class Row:
    """What an error is over HTTP. retry_after_seconds: sent as Retry-After."""

    status: int
    title: str
    retry_after_seconds: int | None = None


TABLE: Mapping[type[BloodbankError], Row] = {
    BloodbankError: Row(500, "Internal error"),
    errors.ConfigurationError: Row(500, "Wrong setting"),
    errors.InvalidEvent: Row(422, "Invalid event"),
    errors.UnknownEventType: Row(422, "Unknown event type"),
    errors.InvalidQuery: Row(400, "Invalid question"),
    errors.AmbiguousEventId: Row(400, "Ambiguous event id"),
    errors.EventNotFound: Row(404, "Event not found"),
    errors.DeadLetterNotFound: Row(404, "Dead letter not found"),
    errors.TrackingDisabled: Row(503, "Correlation tracking is off", 60),
    errors.NotOpen: Row(503, "Not ready", 1),
    errors.PublishError: Row(500, "Publishing failed"),
    errors.PublishRejected: Row(422, "Refused by the bus"),
    errors.EventConflict: Row(409, "Event id taken"),
    errors.PublishUnknown: Row(504, "Outcome unknown"),
    errors.Unavailable: Row(503, "Unavailable", 5),
    errors.TransportUnavailable: Row(503, "Bus unavailable", 5),
    errors.OutboxFull: Row(503, "Outbox full", 5),
    background.TooManyJobs: Row(503, "Too many jobs", 5),
    streams.TooManyStreams: Row(503, "Too many streams", 5),
    errors.StoreUnavailable: Row(503, "Correlation store unavailable", 5),
    errors.StoreFormatError: Row(503, "Correlation store unreadable", 60),
    refusals.RequestRefused: Row(400, "Invalid request"),
    refusals.InvalidJson: Row(400, "Invalid JSON"),
    refusals.JsonTooDeep: Row(400, "JSON nested too deep"),
    refusals.KeyRequired: Row(401, "API key required"),
    refusals.InvalidSignature: Row(401, "Invalid signature"),
    refusals.ScopeMissing: Row(403, "Scope missing"),
    refusals.LoopbackOnly: Row(403, "Loopback only"),
    refusals.CrossSite: Row(403, "Request of another site"),
    refusals.WebhookSecretMissing: Row(403, "Webhook secret missing"),
    refusals.SchemaNotFound: Row(404, "Schema not found"),
    refusals.JobNotFound: Row(404, "Job not found"),
    refusals.DemoUnavailable: Row(409, "Demo not available"),
    refusals.BodyTimeout: Row(408, "Body not received in time"),
    refusals.BodyTooLarge: Row(413, "Body too large"),
    refusals.BatchTooLarge: Row(413, "Batch too large"),
    refusals.AddressTooLong: Row(414, "Address too long"),
    refusals.UnsupportedMediaType: Row(415, "Unsupported media type"),
    refusals.TooManyHeaders: Row(431, "Too many headers"),
}


def row_of(error: BloodbankError) -> Row:
    """Return the row of an error's class, or of the nearest base that has one."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def problem_of(error: BloodbankError, *, event_id: UUID | None = None) -> dict[str, Any]:
    """Return the problem document of an error, without an instance: as it stands among a batch's results.

    event_id: the event that the error is about; publishing it again must use this id.
    """
    row = row_of(error)
    problem = _document(row.status, row.title, error.code, str(error))
    if isinstance(error, InvalidEvent):
        problem["errors"] = _listed(error.problems)
    if event_id is not None:
        problem["event_id"] = str(event_id)
    return problem


def problem_response(error: BloodbankError, scope: Scope, *, event_id: UUID | None = None) -> Response:
    """Return the answer to a request that failed with an error."""
    headers = dict(error.headers) if isinstance(error, RequestRefused) else {}
    retry_after = row_of(error).retry_after_seconds
    if retry_after is not None:
        headers["Retry-After"] = str(retry_after)
    return _response(problem_of(error, event_id=event_id), scope, headers)


def install(app: FastAPI) -> None:
    """Make problems of whatever a route of the app raises, and of what Starlette itself answers."""
    app.add_exception_handler(BloodbankError, _answer_ours)
    app.add_exception_handler(RequestValidationError, _answer_query)
    app.add_exception_handler(HTTPException, _answer_starlette)
    app.add_exception_handler(Exception, _answer_unforeseen)


async def _answer_ours(request: Request, error: Exception) -> Response:
    return problem_response(cast("BloodbankError", error), request.scope)


async def _answer_query(request: Request, error: Exception) -> Response:
    """Parameters of the path or the query that FastAPI refused."""
    wrong = cast("RequestValidationError", error).errors()
    found = [(".".join(map(str, each["loc"])), str(each["msg"])) for each in wrong]
    detail = "; ".join(f"{path}: {message}" for path, message in found)
    row = TABLE[InvalidQuery]
    problem = _document(row.status, row.title, InvalidQuery.code, f"{detail}. Correct it and ask again.")
    problem["errors"] = _listed(found)
    return _response(problem, request.scope)


async def _answer_starlette(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    raised = cast("HTTPException", error)
    status = HTTPStatus(raised.status_code)
    details = {
        HTTPStatus.NOT_FOUND: "Nothing is served at this path. GET /openapi.json lists what is.",
        HTTPStatus.METHOD_NOT_ALLOWED: f"This path does not answer {request.method[:20]}; Allow says what it answers.",
    }
    code = {HTTPStatus.NOT_FOUND: "route_not_found"}.get(status, status.name.lower())
    problem = _document(status.value, status.phrase, code, details.get(status, status.description))
    return _response(problem, request.scope, raised.headers)


async def _answer_unforeseen(request: Request, _error: Exception) -> Response:
    """A defect of ours. The server logs it; the caller learns nothing of the inside."""
    row = TABLE[BloodbankError]
    detail = "The server failed to answer. It goes on; its log says more. Whether an event was published is unknown."
    return _response(_document(row.status, row.title, "internal_error", detail), request.scope)


def _document(status: int, title: str, code: str, detail: str) -> dict[str, Any]:
    if len(detail) > LONGEST_DETAIL:
        detail = f"{detail[:LONGEST_DETAIL]}…"
    return {"type": TYPE_PREFIX + code, "title": title, "status": status, "detail": detail, "code": code}


def _listed(found: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"path": path[:LONGEST_PATH], "message": message[:LONGEST_DETAIL]} for path, message in found[:MOST_ERRORS]]


def _response(problem: dict[str, Any], scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    problem["instance"] = quote(scope["path"][:LONGEST_DETAIL])
    return Response(orjson.dumps(problem), problem["status"], headers, MEDIA_TYPE)
