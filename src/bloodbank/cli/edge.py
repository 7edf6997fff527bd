"""The edge of the process: every error becomes one sentence on standard error and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Coroutine, Mapping
from enum import IntEnum
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import typer

from bloodbank.errors import (
    BloodbankError,
    ConfigurationError,
    DeadLetterNotFound,
    EventNotFound,
    InvalidEvent,
    InvalidQuery,
    PublishRejected,
)

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

RAW = "data"
"""The argument that may be any bytes: it can name a file, and is read as bytes otherwise."""


class ExitCode(IntEnum):
    """What the command says to the shell."""

    OK = 0
    NOT_FOUND = 1
    USAGE = 2
    UNAVAILABLE = 3
    DEFECT = 70
    INTERRUPTED = 130
    PIPE_CLOSED = 141


def exit_code_of(error: BloodbankError) -> ExitCode:
    """Return the exit code of an error: what the caller must change is usage, all else is unavailable."""
    if isinstance(error, EventNotFound | DeadLetterNotFound):
        return ExitCode.NOT_FOUND
    if isinstance(error, InvalidEvent | InvalidQuery | ConfigurationError | PublishRejected):
        return ExitCode.USAGE
    return ExitCode.UNAVAILABLE


def run_async(answer: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine to its end. Raises KeyboardInterrupt when it is cancelled from outside."""
    import asyncio

    try:
        return asyncio.run(answer)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def at_edge(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorate a command: errors become a sentence on standard error and an exit code, never a traceback."""

    @wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            _require_text(kwargs)
            command(*args, **kwargs)
            sys.stdout.flush()
        except (typer.Exit, typer.BadParameter):
            raise
        except BloodbankError as error:
            sys.stderr.write(f"bb: {error}\n")
            raise typer.Exit(exit_code_of(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read the output has enough; what is still buffered must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.PIPE_CLOSED) from None
        except OSError as error:
            sys.stderr.write(f"bb: {error.strerror or error}\n")
            raise typer.Exit(ExitCode.UNAVAILABLE) from None
        except Exception as error:  # noqa: BLE001, the edge of the process
            _report_defect(error)
            raise typer.Exit(ExitCode.DEFECT) from None

    return guarded


def _require_text(arguments: Mapping[str, object]) -> None:
    """Raise InvalidQuery for an argument that is no UTF-8: it fits neither JSON nor a URL."""
    for name, value in arguments.items():
        for text in cast("list[object]", value) if isinstance(value, list) else [value]:
            if name != RAW and isinstance(text, str) and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InvalidQuery(f"{text[:80]!r} is no UTF-8 text.")


def _report_defect(error: Exception) -> None:
    if os.environ.get("BLOODBANK_LOG_LEVEL") == "DEBUG":
        traceback.print_exception(error)
    sys.stderr.write(
        f"bb: internal error, {type(error).__name__}: {error}. "
        "Please report it with what BLOODBANK_LOG_LEVEL=DEBUG shows.\n"
    )
