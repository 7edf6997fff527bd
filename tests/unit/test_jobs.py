"""The jobs of a server: bounded, remembered for a while, and never silent about their end."""

from __future__ import annotations

import asyncio

import pytest

from bloodbank.config import Settings
from bloodbank.errors import NotOpen, TransportUnavailable
from bloodbank.http.background import Job, Jobs, TooManyJobs
from bloodbank.http.refusals import JobNotFound
from bloodbank.progress import Progress, Report


def settings() -> Settings:
    return Settings(_env_file=None, running_job_limit=2, job_limit=3, job_keep_seconds=100, query_timeout_seconds=60)


async def nothing(report: Report) -> Progress:
    return Progress(0)


async def test_too_many_at_a_time_are_refused_until_one_has_ended() -> None:
    go = asyncio.Event()

    async def wait(report: Report) -> Progress:
        report(Progress(1))
        await go.wait()
        return Progress(1, 1)

    async with Jobs(settings()) as jobs:
        begun = [await jobs.begin("retry", wait) for _ in range(2)]
        with pytest.raises(TooManyJobs, match="BLOODBANK_RUNNING_JOB_LIMIT"):
            await jobs.begin("retry", nothing)
        assert [(job.finished, job.progress) for job in begun] == [(False, Progress(1))] * 2
        go.set()
        async with asyncio.timeout(60):
            while not all(job.finished for job in begun):
                await asyncio.sleep(0)
        assert [job.progress for job in begun] == [Progress(1, 1)] * 2
        await jobs.begin("retry", nothing)


async def test_outcomes_are_forgotten_in_time_and_the_oldest_first() -> None:
    now = 0.0
    async with Jobs(settings(), clock=lambda: now) as jobs:
        begun: list[Job] = []
        while len(begun) < 4:
            now = float(len(begun))
            begun.append(await jobs.begin("retry", nothing))
        with pytest.raises(JobNotFound):
            jobs.get(begun[0].job_id)
        assert [jobs.get(job.job_id) for job in begun[2:]] == begun[2:]
        now = 102.5
        with pytest.raises(JobNotFound):
            jobs.get(begun[2].job_id)
        assert jobs.get(begun[3].job_id) is begun[3]


async def test_what_fails_before_it_is_counted_is_no_job_and_what_fails_later_says_why() -> None:
    async def at_once(report: Report) -> Progress:
        raise TransportUnavailable("away")

    async def later(report: Report) -> Progress:
        report(Progress(10))
        report(Progress(10, 4, 1))
        raise TransportUnavailable("gone")

    async def broken(report: Report) -> Progress:
        report(Progress(10))
        raise ValueError("secret")

    async with Jobs(settings()) as jobs:
        with pytest.raises(TransportUnavailable, match="away"):
            await jobs.begin("retry", at_once)
        job = await jobs.begin("retry", later)
        assert (job.finished, str(job.error), job.progress) == (True, "gone", Progress(10, 4, 1))
        defect = await jobs.begin("retry", broken)
        assert defect.finished
        assert "secret" not in str(defect.error)
        assert "its log says more" in str(defect.error)


async def test_after_the_end_nothing_is_begun() -> None:
    async with Jobs(settings()) as jobs:
        pass
    with pytest.raises(NotOpen):
        await jobs.begin("retry", nothing)
