"""What the command line does besides serving; works beside a running server or without one."""

import asyncio
import contextlib
import functools
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.progress import Progress

from messaging_server.analysis.analysers import make_analyser
from messaging_server.analysis.check import check_ai
from messaging_server.analysis.evaluation import Evaluation, evaluate
from messaging_server.analysis.labelled import LabelledConversation, Labels
from messaging_server.analysis.report import print_report
from messaging_server.analysis.report_html import render_html
from messaging_server.analysis.service import labelled_examples
from messaging_server.config import Config
from messaging_server.config_sources import is_utf_8
from messaging_server.database import Database
from messaging_server.errors import DataDirectoryInUse, StartupError, ValidationFailed
from messaging_server.events import Bus
from messaging_server.malformed import validation_failed
from messaging_server.migrations import migrate
from messaging_server.models import User
from messaging_server.postgres import EmbeddedPostgres
from messaging_server.security import Passwords
from messaging_server.serving import StopSignals, data_dir, running_database
from messaging_server.users import service as users

R = TypeVar("R")


def create_user_now(
    config: Config, *, email: str, password: str, name: str | None, role: str | None
) -> User:
    """Migrates first, so that it may be the very first command."""
    registration = _registration({"email": email, "password": password, "name": name, "role": role})

    async def create(database: Database) -> User:
        passwords = Passwords(rounds=config.auth.bcrypt_rounds)
        try:
            return await users.create_user(database, passwords, registration)
        finally:
            passwords.close()

    return with_database(config, create)


def _registration(fields: dict[str, str | None]) -> users.Registration:
    for field, text in fields.items():
        if text and not is_utf_8(text):
            raise ValidationFailed.of(field, "is not valid UTF-8")
    try:
        return msgspec.convert(fields, users.Registration)
    except msgspec.ValidationError as error:
        raise validation_failed(error) from None


def migrate_now(config: Config) -> int:
    """How many migrations were run."""
    with database_of(config) as complete:
        return asyncio.run(migrate(complete.database.url))


def check_ai_now(config: Config) -> list[str]:
    """Lines to print."""
    return asyncio.run(check_ai(config.ai))


def with_database(config: Config, work: Callable[[Database], Awaitable[R]]) -> R:
    """Run `work` on the up-to-date database of this configuration."""

    async def run(url: str) -> R:
        await migrate(url)
        database = Database(url, pool_size=2, bus=Bus())
        await database.start()
        try:
            return await work(database)
        finally:
            await database.stop()

    with database_of(config) as complete:
        return asyncio.run(run(complete.database.url))


@contextlib.contextmanager
def database_of(config: Config) -> Iterator[Config]:
    """The configuration with its database: a running server's, else started for this moment.

    A signal ends it in order, with `Stopped`.
    """
    with StopSignals() as signals, contextlib.ExitStack() as stack:
        try:
            complete = stack.enter_context(running_database(config, signals))
        except DataDirectoryInUse:
            url = EmbeddedPostgres(data_dir(config)).dsn
            complete = msgspec.structs.replace(
                config, database=msgspec.structs.replace(config.database, url=url)
            )
        yield complete


def read_feedback(config: Config) -> list[LabelledConversation]:
    """What people confirmed or corrected in this database; each is the one reader."""
    examples = with_database(config, labelled_examples)
    if not examples:
        raise StartupError("there is no feedback on analyses yet")
    return [
        LabelledConversation(
            id=str(example.analysis_id),
            messages=example.messages,
            labels=Labels(
                priority=(example.priority,) if example.priority else (),
                tags=() if example.tags is None else (example.tags,),
            ),
        )
        for example in examples
    ]


def evaluate_now(
    configs: Sequence[Config],
    conversations: Sequence[LabelledConversation],
    *,
    html_path: Path | None,
) -> None:
    """Measure the analyser of each configuration, and show what was found."""
    with StopSignals():
        evaluations = asyncio.run(_evaluate_all(configs, conversations))
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print_report(Console(highlight=False, markup=False, emoji=False), evaluations)
    if html_path is not None:
        _write(html_path, render_html(evaluations))
    for evaluation in evaluations:
        if not any(outcome.result for outcome in evaluation.outcomes):
            raise StartupError(f"{evaluation.name} gave no result")


async def _evaluate_all(
    configs: Sequence[Config], conversations: Sequence[LabelledConversation]
) -> list[Evaluation]:
    """One after the other, so that none waits for another's turn; progress on standard error."""
    evaluations: list[Evaluation] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for config in configs:
            analyser = make_analyser(config.ai)
            task = progress.add_task(analyser.name, total=len(conversations))
            try:
                evaluations.append(
                    await evaluate(
                        analyser,
                        conversations,
                        price=config.ai.price,
                        concurrency=config.analysis.concurrency,
                        on_progress=functools.partial(progress.advance, task),
                    )
                )
            finally:
                await analyser.aclose()
    return evaluations


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StartupError(f"{path}: can't be written ({error.strerror})") from None
