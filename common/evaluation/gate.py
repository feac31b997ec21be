"""What an evaluation comes to: where the distilled student is no better, and the gate."""

from collections.abc import Iterator

from common.errors import RetentionError
from common.evaluation.scores import Metrics
from common.evaluation.systems import SYSTEMS

_UNTRAINED = ("copy", "base", "base_few_shot")


def list_weaknesses(metrics: Metrics) -> Iterator[str]:
    """Where the distilled student is no better than a system without training, by the interval."""
    main = metrics["main_metric"]
    for found in metrics.get("comparisons", []):
        is_asked = found["system"] == "distilled" and found["than"] in _UNTRAINED
        if not is_asked or found["metric"] != main or found["interval"][0] > 0:
            continue
        low, high = found["interval"]
        yield (
            f"the distilled student is no better than {SYSTEMS[found['than']].title.lower()}: "
            f"{main} {found['difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
        )


def check_retention(metrics: Metrics, least: float, place: str) -> None:
    """Raises a RetentionError if the student's share of the teacher's score may be below `least`.

    The lower end of the 95 % interval counts; `place` is where the metrics are.
    """
    if not least:
        return
    kept, interval = metrics.get("retention"), metrics.get("retention_interval")
    if kept is None:
        finding = f"the teacher's {metrics['main_metric']} is 0, so that no share of it is kept"
    elif not interval:
        finding = f"the test rows are too few to say how much of {kept:.1%} is chance"
    elif interval[0] < least:
        finding = (
            f"the distilled student keeps {kept:.1%} of the teacher's {metrics['main_metric']} "
            f"(95 % interval {interval[0]:.1%} to {interval[1]:.1%})"
        )
    else:
        return
    raise RetentionError(
        f"{place}: {finding}, and DISTILL_EVALUATE__MIN_RETENTION={least:g} asks for at least "
        f"{least:.1%} at the interval's lower end; take more labels, more test rows or a larger "
        "student in another run, or lower the setting"
    )
