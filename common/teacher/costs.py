"""What a reply costs: by the provider's word, else by its usage, else at most."""

from common.prices.prices import Price
from common.teacher.replies import Answer, Reply

Rates = tuple[float, float]
"""Upper bounds of the dollars for a prompt's token and for a completion's."""


_MOST_USD = 1e6
"""A higher cost of a call is not believed."""


def find_told_cost(reply: Reply, answer: Answer) -> float | None:
    """The dollars that the provider or a gateway says, the higher figure; None if neither does."""
    told = (reply.cost_usd, answer.usage.cost_usd if answer.usage else None)
    return max((cost for cost in told if cost is not None and cost <= _MOST_USD), default=None)


def find_cost(price: Price | None, reply: Reply, answer: Answer, max_tokens: int) -> float:
    """Dollars for a reply, at most, if it does not tell its usage; 0 if nothing is known."""
    if (told := find_told_cost(reply, answer)) is not None:
        return told
    if price is None:
        return 0.0
    usage = answer.usage
    if usage is None or reply.http_status == 0:  # a timeout may have been answered
        return price.worst_cost(reply.most_prompt_tokens, max_tokens, reply.service_tier)
    return price.cost(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.written_tokens,
        reply.service_tier or usage.service_tier,
    )


def bound_rates(reply: Reply, answer: Answer) -> Rates | None:
    """Upper bounds of an unknown price, from the cost that a reply tells; None if it tells none.

    Whatever the price of either kind of token, the cost of this kind alone is no more than all.
    """
    told, usage = find_told_cost(reply, answer), answer.usage
    if not told or not usage or not (usage.prompt_tokens and usage.completion_tokens):
        return None
    return told / usage.prompt_tokens, told / usage.completion_tokens
