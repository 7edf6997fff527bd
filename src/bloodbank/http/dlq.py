"""Dead letters: what consumers gave up is looked at, given to them again, or discarded."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import orjson
from fastapi import APIRouter, Path, Query, Request, Response

from bloodbank.http import description
from bloodbank.http.answers import group_page_answer, letter_answer, letter_page_answer
from bloodbank.http.bus import bus_of
from bloodbank.http.cursors import LARGEST_POSITION, LONGEST_CURSOR, cursor_of, position_of
from bloodbank.http.events import DEFAULT_PAGE
from bloodbank.http.jobs import job_response
from bloodbank.http.shapes import DeadLetterFull, DeadLetterGroups, DeadLetterPage, JobOut, LetterDiscarded, Retried

Number = Annotated[int, Path(ge=0, le=LARGEST_POSITION, description="Number of a dead letter.")]
Key = Annotated[str, Path(pattern="^[0-9a-f]{12}$", description="Key of a group of dead letters.")]
Cursor = Annotated[str | None, Query(max_length=LONGEST_CURSOR, description="`next` of the page before.")]

router = APIRouter(prefix="/dlq", tags=["dead letters"])


@router.get(
    "",
    summary="List dead letters, oldest first",
    response_class=Response,
    responses={200: description.answer(DeadLetterPage, "A page; ask again with its `next` as `cursor`.")}
    | description.refusals(400, 401, 403, 503),
)
async def list_dead_letters(
    request: Request,
    group: Annotated[str | None, Query(max_length=255, description="Only those of this group of consumers.")] = None,
    key: Annotated[str | None, Query(max_length=32, description="Only those of the group with this key.")] = None,
    cursor: Cursor = None,
    limit: Annotated[int | None, Query(ge=1, description="Most of them on the page; else 50.")] = None,
) -> Response:
    """List what consumers gave up, without the events' bodies. A page may be short, or empty, and have a `next`."""
    bus = bus_of(request)
    size = min(DEFAULT_PAGE, bus.settings.page_limit) if limit is None else limit
    after = None if cursor is None else position_of(cursor)
    page = await bus.dead_letters.page(group=group, key=key, after=after, limit=size)
    return _json(letter_page_answer(page) | {"next": None if page.next is None else cursor_of(page.next)})


@router.get(
    "/groups",
    summary="Count dead letters by consumer and error",
    response_class=Response,
    responses={200: description.answer(DeadLetterGroups, "The groups; counts of further pages add up.")}
    | description.refusals(400, 401, 403, 503),
)
async def list_groups(request: Request, cursor: Cursor = None) -> Response:
    """Tell what failed: the group of consumers, the handler and the class of the error, how many, when, and one."""
    after = None if cursor is None else position_of(cursor)
    page = await bus_of(request).dead_letters.groups(after=after)
    return _json(group_page_answer(page) | {"next": None if page.next is None else cursor_of(page.next)})


@router.get(
    "/{number}",
    summary="Read a dead letter",
    response_class=Response,
    responses={200: description.answer(DeadLetterFull, "With the beginning of the event's body.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def read_dead_letter(request: Request, number: Number) -> Response:
    """Return one, with the beginning of the body that the consumer got."""
    return _json(letter_answer(await bus_of(request).dead_letters.get(number), with_body=True))


@router.post(
    "/{number}/retry",
    summary="Give a dead letter to its consumers again",
    response_class=Response,
    responses={200: description.answer(Retried, "It waits for its consumers.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def retry_one(request: Request, number: Number) -> Response:
    """Put it back to the group that gave it up, and to no other. Id, body and parents stay; attempts begin anew."""
    await bus_of(request).dead_letters.retry(number)
    return _json({"retried": 1})


@router.delete(
    "/{number}",
    summary="Discard a dead letter",
    response_class=Response,
    responses={200: description.answer(LetterDiscarded, "It is off the list.")}
    | description.refusals(400, 401, 403, 404, 503),
)
async def discard_one(request: Request, number: Number) -> Response:
    """Take it off the list. Its event stays in the log."""
    await bus_of(request).dead_letters.discard(number)
    return _json({"number": number, "discarded": True})


@router.post(
    "/groups/{key}/retry",
    summary="Give a group of dead letters to its consumers again",
    response_class=Response,
    status_code=202,
    responses={202: description.answer(JobOut, "A job has begun.")} | description.refusals(400, 401, 403, 404, 503),
)
async def retry_group(request: Request, key: Key) -> Response:
    """Begin a job that puts all of a group back that are there now."""
    bus = bus_of(request)
    return job_response(await bus.jobs.begin("retry", partial(bus.dead_letters.retry_group, key)), 202)


@router.delete(
    "/groups/{key}",
    summary="Discard a group of dead letters",
    response_class=Response,
    status_code=202,
    responses={202: description.answer(JobOut, "A job has begun.")} | description.refusals(400, 401, 403, 404, 503),
)
async def discard_group(request: Request, key: Key) -> Response:
    """Begin a job that takes all of a group off the list that are there now."""
    bus = bus_of(request)
    return job_response(await bus.jobs.begin("discard", partial(bus.dead_letters.discard_group, key)), 202)


def _json(answer: object) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json")
