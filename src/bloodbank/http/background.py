"""Work that takes longer than an answer may: jobs, whose progress and outcome can be asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self
from uuid import UUID, uuid4

from bloodbank.config import Settings
from bloodbank.errors import BloodbankError, NotOpen, Unavailable
from bloodbank.http.refusals import JobNotFound
from bloodbank.progress import Progress, Report

logger = logging.getLogger(__name__)

Kind = Literal["retry", "discard", "replay", "count"]
Work = Callable[[Report], Awaitable[Progress]]
"""Reports its progress, with a total as soon as that is known, and returns the last one."""


class TooManyJobs(Unavailable):
    """As many jobs are running as the settings allow; this one was not begun."""

    code = "too_many_jobs"


class Job:
    """A piece of work under way, or its outcome. progress: how far it is. error: why it ended early; None otherwise."""

    def __init__(self, kind: Kind) -> None:
        self.job_id = uuid4()
        self.kind = kind
        self.progress = Progress()
        self.error: BloodbankError | None = None
        self.ended_at: float | None = None
        self.changed = asyncio.Event()

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.ended_at is not None

    def report(self, progress: Progress) -> None:
        """Take note of how far it is."""
        self.progress = progress
        self.changed.set()


class Jobs:
    """The jobs of one server. They end with it.

    clock: seconds that only grow.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._jobs: dict[UUID, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = False

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what is running; what it has settled stays settled."""
        self._open = False
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def begin(self, kind: Kind, work: Work) -> Job:
        """Begin a job, and return it when its total is known or the query timeout is over.

        Raises TooManyJobs, NotOpen, and what the work raises before it knows its total: then there is no job.
        """
        if not self._open:
            raise NotOpen("The server is stopping; nothing was begun.")
        self._forget_old()
        running = [job for job in self._jobs.values() if not job.finished]
        if len(running) >= min(self._settings.running_job_limit, self._settings.job_limit):
            raise TooManyJobs(
                f"{len(running)} jobs are running, as many as BLOODBANK_RUNNING_JOB_LIMIT allows. Nothing was begun; "
                "try again when one has ended."
            )
        job = Job(kind)
        self._jobs[job.job_id] = job
        task = asyncio.create_task(self._run(job, work), name=f"bloodbank-job-{job.job_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(self._settings.query_timeout_seconds):
                await job.changed.wait()
        except TimeoutError:
            return job
        if job.error is not None and job.progress.total is None:
            del self._jobs[job.job_id]
            raise job.error
        return job

    def get(self, job_id: UUID) -> Job:
        """Return a job. Raises JobNotFound."""
        self._forget_old()
        if job_id not in self._jobs:
            raise JobNotFound(
                "This server knows no such job: it ended long ago, or with the process that ran it, or another server "
                "runs it. What it settled stays settled."
            )
        return self._jobs[job_id]

    async def _run(self, job: Job, work: Work) -> None:
        try:
            job.progress = await work(job.report)
        except BloodbankError as error:
            job.error = error
            logger.warning("The job %s (%s) ended early: %s", job.job_id, job.kind, error)
        except asyncio.CancelledError:
            job.error = NotOpen("The server stopped before the job was done.")
            logger.warning("The job %s (%s) ended with the server, %s", job.job_id, job.kind, job.progress)
            raise
        except Exception:
            # The edge of the server: nobody awaits this task.
            job.error = BloodbankError("The server failed to do it; its log says more.")
            logger.exception("The job %s (%s) failed", job.job_id, job.kind)
        finally:
            job.ended_at = self._clock()
            job.changed.set()

    def _forget_old(self) -> None:
        now = self._clock()
        ended = sorted(
            ((job.ended_at, job.job_id) for job in self._jobs.values() if job.ended_at is not None), reverse=True
        )
        room = self._settings.job_limit - (len(self._jobs) - len(ended)) - 1
        for place, (ended_at, job_id) in enumerate(ended):
            if place >= room or now - ended_at > self._settings.job_keep_seconds:
                del self._jobs[job_id]
