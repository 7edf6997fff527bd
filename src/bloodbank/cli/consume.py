"""`bb consume`: the consumer of a program, run in one process or several."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bloodbank.cli.edge import ExitCode, at_edge, run_async
from bloodbank.cli.text import note
from bloodbank.errors import BloodbankError, ConfigurationError

if TYPE_CHECKING:
    from bloodbank.consumer import Consumer

MOST_WORKERS = 256
THREAD_SECONDS = 0.5
"""How long a thread of the program may take to end after all else has."""


@at_edge
def consume(
    target: Annotated[str, typer.Argument(metavar="MODULE:CONSUMER", help="Where the Consumer is: pipeline:consumer.")],
    workers: Annotated[int, typer.Option(min=1, max=MOST_WORKERS, help="Processes that share the events.")] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again whenever a .py file below this folder changes.")
    ] = False,
) -> None:
    """Call the handlers of a program with the events of the bus, until SIGTERM or Ctrl-C."""
    if workers == 1 and not reload:
        _consume_here(target)
        return
    from bloodbank.cli.workers import supervise
    from bloodbank.config import load_settings

    settings = load_settings()
    code = supervise(
        [sys.executable, "-m", "bloodbank.cli.main", "consume", target],
        count=workers,
        watched=Path.cwd() if reload else None,
        stop_timeout_seconds=settings.stop_timeout_seconds,
    )
    if code:
        raise typer.Exit(code)


def _consume_here(target: str) -> None:
    from bloodbank.config import load_settings

    level = load_settings().log_level
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("bloodbank").setLevel(level)
    # A consumer that the broker cancels begins again by itself; the driver warns of it all the same.
    logging.getLogger("aiormq").setLevel(logging.ERROR)
    consumer = load_consumer(target)
    if not consumer.handlers:
        raise ConfigurationError(f"The consumer {consumer.name} has no handlers. Register one with `on`.")
    handlers = ", ".join(f"{handler.name} ({handler.pattern}, group {handler.group})" for handler in consumer.handlers)
    note(f"Consuming: {handlers}.")
    run_async(consumer.run())
    _leave_threads()


def _leave_threads() -> None:
    """End the process although handlers that are plain functions are not ready: their events come again."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    for thread in others:
        thread.join(THREAD_SECONDS)
    late = sum(thread.is_alive() for thread in others)
    if late:
        note(f"{late} threads are still at work and are left; what they had comes again.")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ExitCode.OK)


def load_consumer(target: str) -> Consumer:
    """Return the consumer that `MODULE:NAME` names; the folder that one works in comes first on the path.

    Raises ConfigurationError.
    """
    from bloodbank.consumer import Consumer

    module_name, separator, name = target.partition(":")
    if module_name.endswith(".py") or "/" in module_name:
        module_name = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigurationError(
            f"{target!r} names a file. Write the name of its module: {module_name}:{name or 'consumer'}."
        )
    if not (module_name and separator and name.isidentifier()):
        raise ConfigurationError(f"{target!r} names no consumer. Write MODULE:CONSUMER, such as pipeline:consumer.")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = import_module(module_name)
    except BloodbankError as error:
        raise ConfigurationError(f"{module_name!r} cannot be imported: {error}{_place_of(error)}") from error
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"There is no module {error.name!r} in this folder, {folder}, nor in what is installed."
            ) from error
        # It is not our program that fails: its author needs the place.
        traceback.print_exception(error)
        reason = str(error).rstrip(".")
        raise ConfigurationError(f"{module_name!r} cannot be imported: {type(error).__name__}: {reason}.") from error
    found: object = getattr(module, name, None)
    if not isinstance(found, Consumer):
        what = "nothing" if found is None else f"a {type(found).__name__}"
        raise ConfigurationError(f"{name!r} is {what} in {module_name}; it must be a bloodbank.Consumer.")
    return found


def _place_of(error: BaseException) -> str:
    """Return the last line below the folder that one works in, which is the author's, or nothing."""
    folder = f"{Path.cwd()}/"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(folder)]
    frames = [frame for frame in frames if "site-packages" not in frame.filename]
    return f" ({frames[-1].filename.removeprefix(folder)}, line {frames[-1].lineno})" if frames else ""
