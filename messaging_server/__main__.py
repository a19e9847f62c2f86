"""The command line: `python -m messaging_server [COMMAND]`; without a command it serves."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Quiet at once, also while Python imports; who has something to clean up sets its own.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import errno
import math
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click

from messaging_server.config import AiConfig, Config
from messaging_server.config_sources import PASSWORD_VARIABLE, load_config, masked
from messaging_server.errors import DomainError, StartupError

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_CONFIG = Path("config.toml")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class OneLineErrors(click.Group):
    """Expected failures are one line on standard error and exit code 1, never a traceback."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            discard_output()
            click.echo(f"messaging_server: can't write ({error.strerror})", err=True)
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StartupError as error:
            click.echo(f"messaging_server: {error}", err=True)
            ctx.exit(1)
        except DomainError as error:
            click.echo(f"messaging_server: {error.message}", err=True)
            ctx.exit(1)


def discard_output() -> None:
    """What standard output did not take: Python would try again, and complain, at its end."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def config_options(command: F) -> F:
    """The options that every command takes."""
    for option in (
        click.option("--config", "config_path", type=click.Path(path_type=Path), metavar="FILE"),
        click.option("--data-dir", metavar="DIR", help="Where the database lives."),
    ):
        command = option(command)
    return command


def read_config(
    config_path: Path | None,
    data_dir: str | None,
    *,
    ai: dict[str, Any] | None = None,
    **server: Any,
) -> Config:
    """config.toml of the current folder unless another is named; options win."""
    import os

    if config_path is None and DEFAULT_CONFIG.is_file():
        config_path = DEFAULT_CONFIG
    given = {"data_dir": data_dir, **server}
    overrides = {
        "server": {key: value for key, value in given.items() if value is not None},
        "ai": ai or {},
    }
    return load_config(
        config_path, os.environ, {section: keys for section, keys in overrides.items() if keys}
    )


@click.group(cls=OneLineErrors, invoke_without_command=True)
@click.version_option(version("messaging-server"), prog_name="messaging_server")
@click.option("--host", metavar="ADDRESS")
@click.option("--port", type=int)
@config_options
@click.pass_context
def main(ctx: click.Context, /, **options: Any) -> None:
    """A shared inbox that triages itself. Without a command: serve."""
    ctx.obj = options
    if ctx.invoked_subcommand is None:
        run_server(**options)


@main.command()
@click.option("--host", metavar="ADDRESS")
@click.option("--port", type=int)
@config_options
@click.pass_obj
def serve(common: dict[str, Any], /, **options: Any) -> None:
    """Run the server (the default)."""
    run_server(**merged(common, options))


def merged(common: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Options may stand before or behind the command; those behind win."""
    return {**common, **{key: value for key, value in options.items() if value is not None}}


def run_server(
    *, config_path: Path | None, data_dir: str | None, host: str | None, port: int | None
) -> None:
    config = read_config(config_path, data_dir, host=host, port=port)
    from messaging_server import serving
    from messaging_server.logs import configure_logging

    configure_logging(config.log)
    listener = serving.listen(config)
    url, data_dir_in_use = serving.url_of(listener), serving.data_dir(config)
    where = {"--config": config_path, "--data-dir": data_dir}
    given = "".join(f" {name} {shlex.quote(str(path))}" for name, path in where.items() if path)
    announce = partial(welcome, config, url, data_dir_in_use, given)
    with (
        suppress(serving.Stopped),
        serving.StopSignals() as signals,
        serving.running_database(config, signals) as complete,
    ):
        serving.serve(complete, listener, signals, announce=announce)
    click.echo("Stopped.", err=True)
    end_at_once()


def end_at_once() -> None:
    """Else a thread that hangs would be waited for, such as one that looks up a webhook's name."""
    import os

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def welcome(config: Config, url: str, data_dir: Path, given: str) -> None:
    """`given` are the options by which another command finds the same database."""
    database = "database: DATABASE_URL" if config.database.url else "embedded Postgres"
    click.echo(
        f"\n  messaging_server {version('messaging-server')}\n\n"
        f"  Address     {url}\n"
        f"  API         {url}/docs\n"
        f"  Data        {data_dir} ({database})\n"
        f"  First user  python -m messaging_server create-user you@example.com{given}\n"
        f"              or POST {url}/api/v1/auth/register; the first user becomes ADMIN\n"
        f"  Stop        Ctrl-C\n",
        err=True,
    )


def refuse_nan(_ctx: click.Context, _option: click.Parameter, value: float) -> float:
    """It is neither below nor above the bounds of its range."""
    if math.isnan(value):
        raise click.BadParameter("nan is not a number.")
    return value


@main.command()
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Conversations to play, one JSON object a line.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, max=1_000),
    callback=refuse_nan,
    default=1.0,
    show_default=True,
    help="Divides the pauses; 0 leaves them out.",
)
@click.option("--keep", is_flag=True, help="Keep the data directory.")
@click.option("--exit", "exit_when_done", is_flag=True, help="Do not wait for Ctrl-C at the end.")
@click.pass_context
def demo(
    ctx: click.Context, /, *, source: Path | None, speed: float, keep: bool, exit_when_done: bool
) -> None:
    """Play conversations on a throwaway server and check what it promises."""
    from messaging_server.demo import run_demo

    ctx.exit(run_demo(source=source, speed=speed, keep=keep, exit_when_done=exit_when_done))


@main.command("create-user")
@click.argument("email")
@click.option("--name")
@click.option("--role", type=click.Choice(["ADMIN", "SALES_AGENT"]))
@click.option("--password", help="Asked for when not given.", envvar=PASSWORD_VARIABLE)
@config_options
@click.pass_obj
def create_user(
    common: dict[str, Any],
    /,
    *,
    email: str,
    name: str | None,
    role: str | None,
    password: str | None,
    **options: Any,
) -> None:
    """Create a user; the first one becomes ADMIN. Works while the server runs."""
    from messaging_server.commands import create_user_now
    from messaging_server.serving import StopSignals

    options = merged(common, options)
    config = read_config(options["config_path"], options["data_dir"])
    if password is None:
        with StopSignals():  # the terminal shows again what is typed
            password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    user = create_user_now(config, email=email, password=password, name=name, role=role)
    click.echo(f"Created {user.email} ({user.role}).")


@main.command()
@config_options
@click.pass_obj
def migrate(common: dict[str, Any], /, **options: Any) -> None:
    """Bring the database's schema up to date (the server does it too when it starts)."""
    from messaging_server.commands import migrate_now

    options = merged(common, options)
    count = migrate_now(read_config(options["config_path"], options["data_dir"]))
    click.echo(f"{count} migrations run." if count else "The schema is up to date.")


@main.command()
@click.argument("path", required=False, metavar="[FILE.jsonl]", type=click.Path(path_type=Path))
@click.option(
    "--analyser",
    "choice",
    metavar="NAME[:MODEL]",
    help="local, openai or anthropic; by default what is configured.",
)
@click.option(
    "--from-feedback",
    is_flag=True,
    help="Also what people said of analyses; needs the database.",
)
@click.option("--against", metavar="NAME[:MODEL]", help="A second one, and what it changes.")
@click.option(
    "--html",
    "html_path",
    metavar="REPORT.html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a report with charts.",
)
@config_options
@click.pass_obj
def evaluate(
    common: dict[str, Any],
    /,
    *,
    path: Path | None,
    from_feedback: bool,
    choice: str | None,
    against: str | None,
    html_path: Path | None,
    **options: Any,
) -> None:
    """Measure analysers on labelled conversations; needs no server and no database."""
    from messaging_server.analysis.labelled import read_labelled
    from messaging_server.commands import evaluate_now, read_feedback

    if path is None and not from_feedback:
        raise StartupError(
            "evaluate needs a file of labelled conversations, or --from-feedback (docs/evaluate.md)"
        )
    options = merged(common, options)
    places = options["config_path"], options["data_dir"]
    config = read_config(*places)
    choices = [choice or config.ai.provider, *([against] if against else [])]
    configs = [read_config(*places, ai=analyser_keys(config.ai, each)) for each in choices]
    conversations = read_labelled(path) if path else []
    conversations += read_feedback(config) if from_feedback else []
    evaluate_now(configs, conversations, html_path=html_path)


def analyser_keys(configured: AiConfig, choice: str) -> dict[str, Any]:
    """The keys of `[ai]` for NAME or NAME:MODEL.

    Another provider gets neither the model nor the endpoint nor the key of the configured one, and
    an evaluation has no budget.
    """
    import os

    provider, _, model = choice.partition(":")
    keys: dict[str, Any] = {
        "provider": provider,
        "daily_budget_dollars": 0.0,
        "monthly_budget_dollars": 0.0,
    }
    if configured.provider not in ("local", provider):
        key = os.environ.get(f"{provider.upper()}_API_KEY", "")
        keys |= {"model": "", "base_url": "", "api_key": key, "api_key_file": ""}
    return keys | ({"model": model} if model else {})


@main.command("check-ai")
@config_options
@click.pass_obj
def check_ai(common: dict[str, Any], /, **options: Any) -> None:
    """Make one real call of the configured analyser; print what came back and what it cost."""
    from messaging_server.commands import check_ai_now

    options = merged(common, options)
    for line in check_ai_now(read_config(options["config_path"], options["data_dir"])):
        click.echo(line)


@main.command("check-config")
@config_options
@click.pass_obj
def check_config(common: dict[str, Any], /, **options: Any) -> None:
    """Print the configuration in force, secrets masked; exit 1 when it is not valid."""
    import json

    options = merged(common, options)
    config = read_config(options["config_path"], options["data_dir"])
    for section, keys in masked(config).items():
        click.echo(f"[{section}]")
        for key, value in keys.items():
            click.echo(f"{key} = {json.dumps(value, ensure_ascii=False)}")
        click.echo()


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m messaging_server"))
