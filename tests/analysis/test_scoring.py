"""The scores, against figures worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging_server.analysis import scoring
from messaging_server.analysis.labelled import Labels
from messaging_server.analysis.scoring import Verdict
from messaging_server.models import AnalysisResult, Priority

HIGH, MEDIUM, LOW = Priority.HIGH, Priority.MEDIUM, Priority.LOW


def result(
    priority: Priority = MEDIUM, tags: tuple[str, ...] = (), summary: str = "s"
) -> AnalysisResult:
    return AnalysisResult(
        summary=summary, priority=priority, priority_reason=None, tags=tags, language=None
    )


def labels(
    *priority: Priority,
    tags: list[list[str]] | None = None,
    keywords: list[list[str]] | None = None,
) -> Labels:
    return Labels(
        priority=priority or (MEDIUM,),
        tags=tuple(map(tuple, tags or [])),
        keywords=tuple(map(tuple, keywords or [])),
    )


def test_macro_f1_is_the_mean_over_priorities_and_readers() -> None:
    verdicts: list[Verdict] = [HIGH, HIGH, MEDIUM, LOW]
    one_reader = [(HIGH,), (MEDIUM,), (MEDIUM,), (LOW,)]
    assert scoring.macro_f1(verdicts, one_reader) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    two_readers = [(HIGH, HIGH), (MEDIUM, HIGH), (MEDIUM, MEDIUM), (LOW, LOW)]
    assert scoring.macro_f1(verdicts, two_readers) == pytest.approx((7 / 9 + 1) / 2)


def test_accuracy_is_against_each_reader() -> None:
    assert scoring.accuracy([HIGH, LOW], [(HIGH, MEDIUM), (LOW, LOW)]) == 0.75


def test_readers_need_not_have_read_everything() -> None:
    readings = [(HIGH, HIGH, LOW), (LOW,)]
    assert scoring.accuracy([HIGH, LOW], readings) == pytest.approx((1 + 1 + 0) / 3)


def test_a_priority_that_nobody_names_does_not_count() -> None:
    assert scoring.macro_f1([HIGH, LOW], [(HIGH,), (LOW,)]) == 1.0


def test_a_failure_is_wrong() -> None:
    assert scoring.accuracy([None, LOW], [(HIGH,), (LOW,)]) == 0.5
    assert scoring.macro_f1([None, LOW], [(HIGH,), (LOW,)]) == 0.5
    judged = [(None, labels(tags=[["bug"]], keywords=[["crash"]]))]
    scores = scoring.score(judged)
    assert (scores.first_tag, scores.coverage, scores.tag_precision) == (0.0, 0.0, None)


def test_confusion_counts_every_reader() -> None:
    counts = scoring.confusion([HIGH, None], [(HIGH, MEDIUM), (LOW, LOW)])
    assert counts == {(HIGH, HIGH): 1, (MEDIUM, HIGH): 1, (LOW, None): 2}


def test_the_first_tag_may_be_any_reader_s() -> None:
    judged = [
        (result(tags=("refund", "bug")), labels(tags=[["billing"], ["billing", "refund"]])),
        (result(tags=("bug", "billing")), labels(tags=[["billing"], ["order"]])),
        (result(), labels(tags=[["billing"]])),
        (result(tags=("bug",)), labels(tags=[[]])),
        (result(tags=("bug",)), labels()),
    ]
    scores = scoring.score(judged)
    assert scores.first_tag == pytest.approx(1 / 3)
    assert scores.tag_precision == pytest.approx(2 / 5)


@pytest.mark.parametrize(
    ("summary", "keyword", "found"),
    [
        ("The REFUND is late", "refund", True),
        ("Two refunds are late", "refund", True),
        ("A refundable deposit", "refund", False),
        ("A prefund", "refund", False),
        ("Wants fair use (really)", "fair use", True),
        ("¿Dónde está mi devolución?", "devolución", True),
        ("Costs a.b", "a.b", True),
        ("Costs acb", "a.b", False),
    ],
)
def test_coverage_takes_whole_words_and_inflections(
    summary: str, keyword: str, found: bool
) -> None:
    assert scoring.covers(summary, [["nothing"], [keyword]]) is found


def test_what_cannot_be_measured_is_none() -> None:
    scores = scoring.score([(result(HIGH), labels(HIGH))])
    assert (scores.accuracy, scores.macro_f1) == (1.0, 1.0)
    assert scores.first_tag is scores.tag_precision is scores.coverage is None


@given(
    st.lists(
        st.tuples(
            st.none() | st.sampled_from(Priority),
            st.lists(st.sampled_from(Priority), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_scores_are_shares(judged: list[tuple[Verdict, list[Priority]]]) -> None:
    verdicts, readings = zip(*judged, strict=True)
    for figure in (scoring.accuracy(verdicts, readings), scoring.macro_f1(verdicts, readings)):
        assert figure is not None
        assert 0 <= figure <= 1
    assert sum(scoring.confusion(verdicts, readings).values()) == sum(map(len, readings))
    first = [reading[0] for reading in readings]
    assert scoring.macro_f1(first, [[each] for each in first]) == 1
