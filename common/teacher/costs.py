"""What a reply costs."""

from common.prices.prices import Price
from common.teacher.replies import Answer, Reply


def find_cost(price: Price | None, reply: Reply, answer: Answer, max_tokens: int) -> float:
    """Dollars for a reply, at most, if it does not tell its usage; 0 without a price."""
    if price is None:
        return 0.0
    usage = answer.usage
    if usage is None or reply.http_status == 0:  # a timeout may have been answered
        return price.worst_cost(reply.most_prompt_tokens, max_tokens)
    return price.cost(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)
