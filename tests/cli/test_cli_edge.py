"""How commands end."""

from __future__ import annotations

import pytest
import typer

from bloodbank import errors
from bloodbank.cli.edge import ExitCode, at_edge, exit_code_of
from bloodbank.errors import BloodbankError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EventNotFound("x"), ExitCode.NOT_FOUND),
        (errors.InvalidEvent("x"), ExitCode.USAGE),
        (errors.AmbiguousEventId("x", []), ExitCode.USAGE),
        (errors.EventConflict("x"), ExitCode.USAGE),
        (errors.ConfigurationError("x"), ExitCode.USAGE),
        (errors.PublishUnknown("x"), ExitCode.UNAVAILABLE),
        (errors.TransportUnavailable("x"), ExitCode.UNAVAILABLE),
        (errors.StoreUnavailable("x"), ExitCode.UNAVAILABLE),
        (errors.TrackingDisabled("x"), ExitCode.UNAVAILABLE),
    ],
)
def test_each_error_has_its_exit_code(error: BloodbankError, code: ExitCode) -> None:
    assert exit_code_of(error) is code


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), ExitCode.INTERRUPTED), (ZeroDivisionError("of ours"), ExitCode.DEFECT)],
)
def test_interrupts_and_defects_end_without_a_traceback(
    error: BaseException, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    @at_edge
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as left:
        command()
    assert left.value.exit_code == code
    assert "Traceback" not in capsys.readouterr().err
