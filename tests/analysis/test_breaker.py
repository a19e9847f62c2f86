"""The circuit breaker, with a clock of the test's own."""

from messaging_server.analysis.breaker import (
    FAILURES,
    OPEN_MAX_SECONDS,
    OPEN_SECONDS,
    Breaker,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        assert breaker.admit() == 0
        breaker.failed()
    return breaker


def test_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(Clock())
    for _ in range(3):
        for _ in range(FAILURES - 1):
            breaker.failed()
        breaker.succeeded()
    assert not breaker.is_open
    assert breaker.admit() == 0


def test_open_it_says_how_long() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert breaker.is_open
    assert breaker.admit() == OPEN_SECONDS
    clock.now += OPEN_SECONDS - 1
    assert breaker.admit() == 1


def test_then_one_may_try_and_a_success_closes_it() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += OPEN_SECONDS
    assert breaker.admit() == 0
    assert breaker.admit() > 0
    breaker.succeeded()
    assert not breaker.is_open
    assert [breaker.admit() for _ in range(3)] == [0, 0, 0]


def test_trials_that_fail_come_less_and_less_often() -> None:
    clock = Clock()
    breaker = opened(clock)
    waits = []
    for _ in range(7):
        clock.now += breaker.admit()
        assert breaker.admit() == 0
        breaker.failed()
        waits.append(breaker.admit())
    assert waits == [30, 60, 120, 240, *[OPEN_MAX_SECONDS] * 3]


def test_calls_that_were_under_way_when_it_opened_do_not_double_it() -> None:
    breaker = opened(Clock())
    for _ in range(10):
        breaker.failed()
    assert breaker.admit() == OPEN_SECONDS


def test_a_trial_that_never_ends_is_forgotten() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += OPEN_SECONDS
    assert breaker.admit() == 0
    clock.now += OPEN_SECONDS
    assert breaker.admit() == 0


def test_retry_after_is_kept_up_to_five_minutes() -> None:
    clock = Clock()
    breaker = opened(clock)
    breaker.failed(retry_after_seconds=100)
    assert breaker.admit() == 100
    breaker.failed(retry_after_seconds=10_000)
    assert breaker.admit() == OPEN_MAX_SECONDS
