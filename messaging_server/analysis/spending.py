"""What calls of a model use and cost.

Prices are dollars per million tokens, which is micro-dollars per token; an amount is a whole
number of micro-dollars.
"""

from decimal import ROUND_HALF_UP, Decimal

from msgspec import Struct

from messaging_server.config import AiConfig, PriceConfig

MICRO_DOLLARS = 1_000_000


class Tokens(Struct, frozen=True, kw_only=True):
    """`cached` are those of the input that the provider had kept from earlier calls."""

    input: int = 0
    output: int = 0
    cached: int = 0


class Meter:
    """Counts what the calls of one run use; it can be read however the run ends.

    A call counts as open, and may be billed, until its answer said what it used.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.tokens = Tokens()
        self.open_calls = 0

    def begin(self) -> None:
        """A call is sent."""
        self.calls += 1
        self.open_calls += 1

    def used(self, tokens: Tokens) -> None:
        """The call was answered and used so many."""
        self.open_calls -= 1
        self.tokens = Tokens(
            input=self.tokens.input + tokens.input,
            output=self.tokens.output + tokens.output,
            cached=self.tokens.cached + tokens.cached,
        )

    def refused(self) -> None:
        """The call was not carried out and costs nothing."""
        self.open_calls -= 1


class Budget(Struct, frozen=True, kw_only=True):
    """The most that may be spent in a day and in a month of UTC, in micro-dollars; 0: no limit."""

    daily: int = 0
    monthly: int = 0


def budget_of(config: AiConfig) -> Budget:
    return Budget(
        daily=round(config.daily_budget_dollars * MICRO_DOLLARS),
        monthly=round(config.monthly_budget_dollars * MICRO_DOLLARS),
    )


def cost_micro_dollars(tokens: Tokens, price: PriceConfig | None) -> int:
    """Rounded to the nearest, half up; 0 for a model without a price."""
    if price is None:
        return 0
    cached_price = price.input if price.cached is None else price.cached
    exact = (
        (tokens.input - tokens.cached) * Decimal(str(price.input))
        + tokens.cached * Decimal(str(cached_price))
        + tokens.output * Decimal(str(price.output))
    )
    return int(exact.to_integral_value(ROUND_HALF_UP))


def run_micro_dollars(meter: Meter, price: PriceConfig | None, *, reserved: int) -> int:
    """What a run cost; all that was reserved where a call may be billed that nobody counted."""
    if meter.open_calls:
        return reserved
    return cost_micro_dollars(meter.tokens, price)
