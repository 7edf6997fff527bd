"""The `bb` command and its subcommands.

What takes long to import is imported by the command that needs it, so that `bb --help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from bloodbank.cli import ask, consume, dlq, doctor, events, outbox, publish, reindex, replay, top
from bloodbank.cli.edge import ExitCode, at_edge, run_async

app = typer.Typer(
    name="bb",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"bb {version('bloodbank')}")
        raise typer.Exit


def _quiet_logs() -> None:
    """Keep the log off the terminal: what commands have to say, they say themselves. DEBUG shows it all."""
    if os.environ.get("BLOODBANK_LOG_LEVEL") == "DEBUG":
        logging.basicConfig(level=logging.DEBUG)
    elif not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())


@app.callback(
    epilog="Exit codes: 0 ok, 1 not found, 2 wrong usage or invalid event, 3 unavailable. "
    "Commands speak to the server at BLOODBANK_URL or, without it, open the bus themselves."
)
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Bloodbank: an event bus that knows what caused what."""
    if context.invoked_subcommand not in ("serve", "consume"):
        _quiet_logs()


@at_edge
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: HTTP_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default: HTTP_PORT.")] = None,
) -> None:
    """Run the HTTP API and the explorer, its page to look at."""
    from bloodbank.config import load_settings
    from bloodbank.http.server import serve as run_server

    given = {"http_host": host, "http_port": port}
    run_server(load_settings(**{name: value for name, value in given.items() if value is not None}))


@at_edge
def demo(
    stay: Annotated[
        bool | None, typer.Option("--stay/--end", help="Keep the server, with the explorer; default: on a terminal.")
    ] = None,
) -> None:
    """Play a day of events through a server of its own, and ask why."""
    from bloodbank.cli.demo.play import play
    from bloodbank.config import load_settings

    if not run_async(play(load_settings(), stay=sys.stdout.isatty() if stay is None else stay)):
        raise typer.Exit(ExitCode.DEFECT)


app.command()(serve)
app.command()(publish.publish)
app.command()(ask.why)
app.command()(ask.effects)
app.add_typer(events.app, name="events", help="Read the events that the log keeps.")
app.command()(events.tail)
app.command()(top.top)
app.command()(consume.consume)
app.command()(doctor.doctor)
app.command()(reindex.reindex)
app.add_typer(outbox.app, name="outbox")
app.add_typer(dlq.app, name="dlq")
app.command()(replay.replay)
app.command()(demo)


def run() -> None:
    """Run the command: the entry point of `bb`."""
    app()


if __name__ == "__main__":
    run()
