"""Runs an analyser over labelled conversations and measures it; needs no database.

What the figures mean stands in `docs/evaluate.md`; `report` and `report_html` show them.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct

from messaging_server.analysis import scoring
from messaging_server.analysis.analysers import Analyser, AnalyserFailed, LocalAnalyser
from messaging_server.analysis.labelled import LabelledConversation
from messaging_server.analysis.runs import ask
from messaging_server.analysis.scoring import Judged, Scores, Verdict
from messaging_server.analysis.spending import Meter, cost_micro_dollars
from messaging_server.config import PriceConfig
from messaging_server.models import AnalysisResult, Priority, TranscriptMessage

ATTEMPTS = 3
"""Only a provider that says when to come back is asked again."""

MAX_WAIT_SECONDS = 60.0


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of one conversation: a result, or why there is none."""

    result: AnalysisResult | None
    error: str | None
    seconds: float
    tokens_in: int = 0
    tokens_out: int = 0
    cost_micro_dollars: int = 0


class Evaluation(Struct, frozen=True, kw_only=True):
    """One analyser measured; `outcomes` stand in the order of `conversations`."""

    name: str
    conversations: Sequence[LabelledConversation]
    outcomes: Sequence[Outcome]
    scores: Scores

    @property
    def confusion(self) -> Counter[tuple[Priority, Verdict]]:
        verdicts = [o.result.priority if o.result else None for o in self.outcomes]
        return scoring.confusion(verdicts, [c.labels.priority for c in self.conversations])

    @property
    def errors(self) -> Counter[str]:
        return Counter(outcome.error for outcome in self.outcomes if outcome.error)


class Change(Struct, frozen=True, kw_only=True):
    """A conversation of which two analysers think differently."""

    conversation: LabelledConversation
    before: AnalysisResult | None
    after: AnalysisResult | None


async def evaluate(
    analyser: Analyser,
    conversations: Sequence[LabelledConversation],
    *,
    price: PriceConfig | None,
    concurrency: int,
    on_progress: Callable[[], None],
) -> Evaluation:
    """`local` is asked one at a time, so that its latency is not that of its queue."""
    places = asyncio.Semaphore(1 if isinstance(analyser, LocalAnalyser) else concurrency)

    async def measured(conversation: LabelledConversation) -> Outcome:
        async with places:
            outcome = await _ask(analyser, conversation.messages, price)
        on_progress()
        return outcome

    outcomes = await asyncio.gather(*map(measured, conversations))
    return Evaluation(
        name=f"{analyser.name} {analyser.model}",
        conversations=conversations,
        outcomes=outcomes,
        scores=scoring.score(judged(conversations, outcomes)),
    )


def judged(
    conversations: Sequence[LabelledConversation], outcomes: Sequence[Outcome]
) -> list[Judged]:
    pairs = zip(conversations, outcomes, strict=True)
    return [(outcome.result, conversation.labels) for conversation, outcome in pairs]


async def _ask(
    analyser: Analyser, transcript: Sequence[TranscriptMessage], price: PriceConfig | None
) -> Outcome:
    """The answer and the time of the last attempt, and what all attempts used."""
    meter = Meter()
    answer, seconds = await _ask_patiently(analyser, transcript, meter)
    return Outcome(
        result=None if isinstance(answer, AnalyserFailed) else answer,
        error=answer.message if isinstance(answer, AnalyserFailed) else None,
        seconds=seconds,
        tokens_in=meter.tokens.input,
        tokens_out=meter.tokens.output,
        cost_micro_dollars=cost_micro_dollars(meter.tokens, price),
    )


async def _ask_patiently(
    analyser: Analyser, transcript: Sequence[TranscriptMessage], meter: Meter
) -> tuple[AnalysisResult | AnalyserFailed, float]:
    for left in reversed(range(ATTEMPTS)):
        started = time.perf_counter()
        answer = await ask(analyser, transcript, meter)
        seconds = time.perf_counter() - started
        wait = answer.retry_after_seconds if isinstance(answer, AnalyserFailed) else None
        if wait is None or not left:
            break
        await asyncio.sleep(min(wait, MAX_WAIT_SECONDS))
    return answer, seconds


def changes(before: Evaluation, after: Evaluation) -> list[Change]:
    """Where the priority or the first tag differ."""
    found = zip(before.conversations, before.outcomes, after.outcomes, strict=True)
    return [
        Change(conversation=conversation, before=old.result, after=new.result)
        for conversation, old, new in found
        if _essence(old.result) != _essence(new.result)
    ]


def _essence(result: AnalysisResult | None) -> tuple[object, ...]:
    return (result.priority, result.tags[:1]) if result else ()


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]
