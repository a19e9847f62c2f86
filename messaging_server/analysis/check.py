"""`check-ai`: one real call of the configured analyser, so that one knows before customers write.

Needs no server and no database; it is neither in the ledger nor in the budget.
"""

import time
from collections.abc import Iterator

from messaging_server.analysis.analysers import AnalyserFailed, make_analyser
from messaging_server.analysis.runs import ask
from messaging_server.analysis.spending import MICRO_DOLLARS, Meter, cost_micro_dollars
from messaging_server.config import AiConfig
from messaging_server.errors import StartupError
from messaging_server.models import AnalysisResult, SenderType, TranscriptMessage

SAMPLE = (
    TranscriptMessage(
        sender=SenderType.LEAD, text="Hi, I was charged twice for order 1042 this morning."
    ),
    TranscriptMessage(sender=SenderType.AGENT, text="I'm sorry! Which card did you use?"),
    TranscriptMessage(
        sender=SenderType.LEAD, text="The Visa. Please refund it today, my rent is due tomorrow."
    ),
)


async def check_ai(config: AiConfig) -> list[str]:
    """Lines for people to read; raises `StartupError` with one line when there is no result."""
    analyser = make_analyser(config)
    meter = Meter()
    started = time.perf_counter()
    try:
        outcome = await ask(analyser, SAMPLE, meter)
    finally:
        await analyser.aclose()
    seconds = time.perf_counter() - started
    if isinstance(outcome, AnalyserFailed):
        raise StartupError(f"{analyser.name} {analyser.model}: {outcome.message}")
    return [
        f"Analyser  {analyser.name} {analyser.model}",
        *_result_lines(outcome),
        f"Time      {seconds:.2f} s, {meter.calls} call{'' if meter.calls == 1 else 's'}",
        *_cost_lines(meter, config),
    ]


def _result_lines(result: AnalysisResult) -> Iterator[str]:
    yield f"Summary   {result.summary}"
    yield f"Priority  {result.priority}: {result.priority_reason or 'no reason given'}"
    yield f"Tags      {', '.join(result.tags) or 'none'}"
    yield f"Language  {result.language or 'not said'}"
    if result.suggested_reply:
        yield f"Reply     {result.suggested_reply}"


def _cost_lines(meter: Meter, config: AiConfig) -> Iterator[str]:
    if config.provider == "local":
        yield "Cost      nothing: rules in this process, no tokens"
        return
    if meter.open_calls:
        yield "Tokens    the endpoint doesn't say"
        return
    tokens = meter.tokens
    yield f"Tokens    {tokens.input} in ({tokens.cached} cached), {tokens.output} out"
    if config.price is None:
        yield f"Cost      unknown: ai.prices has no entry for {config.model}"
        return
    dollars = cost_micro_dollars(tokens, config.price) / MICRO_DOLLARS
    yield f"Cost      ${dollars:.6f}, by ai.prices"
