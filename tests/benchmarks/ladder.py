"""What each lever is worth on a real student: `make ladder`.

    python -m tests.benchmarks.ladder                          all, for a day on two cores
    python -m tests.benchmarks.ladder --task reviews --labels 500 --only 'learning rate*' --seeds 1
    python -m tests.benchmarks.ladder --task grammar --source ../shared/data/multilingual_gec
    python -m tests.benchmarks.ladder --at-once 12             as many trainings on a large GPU

SmolLM2-135M learns from a fixed budget of labels, by default settings and with one lever alone, and
is scored on the test rows: the task's metric, its 95 % interval over the rows, and that over the
seeds, each of which has labels of its own. The last update is scored, without the choice of a
checkpoint. Results go to build/ladder.json as they come; a rerun does only the rest.
"""

import argparse
import fnmatch
import json
import math
import multiprocessing
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from common.metrics.metrics import METRICS
from common.metrics.statistics import wilson_interval
from common.records import LabelRow
from common.settings import Settings
from common.student.weights import load_weights
from common.tasks.cleaning import clean
from common.training.choice import CANDIDATES, pick_unsure
from tests.benchmarks.ladder_family import load_family
from tests.benchmarks.ladder_levers import LEVERS, TASKS, Lever
from tests.benchmarks.ladder_student import configure, make_row, make_student, train_student
from tests.benchmarks.ladder_tasks import Asked, LadderTask, load_grammar, load_sentiment
from tests.benchmarks.measure import BUILD, describe_seeds, print_table

_SURE = 0.8
"""The probability of an answer's least likely token from which on it counts as sure."""


def measure(lever: Lever, budget: int, seed: int, ladder: LadderTask) -> dict[str, Any]:
    """Trains and scores once; with rounds, once for each."""
    if lever.rationale:
        student = ladder.task.student.model_copy(update={"rationale": lever.rationale})
        task = ladder.task.model_copy(update={"student": student})
        ladder = replace(ladder, task=task)
    settings = configure(ladder, {"TRAIN__SEED": str(seed), **lever.variables})
    asked = random.Random(f"ladder {seed}").sample(list(ladder.pool), len(ladder.pool))
    started = time.monotonic()
    chosen: list[Asked] = []
    model = None
    for number in range(lever.rounds):
        step = budget * (number + 1) // lever.rounds - len(chosen)
        if model is None:
            more = asked[:step]
        else:
            more = pick(settings, model, ladder, asked[: CANDIDATES * step], step)
        chosen += more
        asked = [row for row in asked if row not in set(more)]
        # the budget is of answers, which may be several to a text
        rows = [make_row(ladder, *one) for one in lever.choose(chosen, len(chosen))]
        rows = cross_filter(settings, ladder, rows) if lever.is_filtered else rows
        model = train_student(settings, ladder, rows)
    seconds = time.monotonic() - started
    return score(settings, model, ladder) | {"seconds": seconds, "labels": len(rows)}


def cross_filter(
    settings: Settings, ladder: LadderTask, rows: Sequence[LabelRow]
) -> list[LabelRow]:
    """The rows without those that a student of the other half surely answers otherwise."""
    kept = []
    for one, other in ((rows[::2], rows[1::2]), (rows[1::2], rows[::2])):
        student = make_student(settings, train_student(settings, ladder, one), ladder)
        for row, response in zip(other, student.answer([r.text for r in other]), strict=True):
            answer = clean(row.text, response.text, ladder.task.label_rules)[0]
            is_sure = (response.least_logprob or 0.0) > math.log(_SURE)
            if answer == row.label or not is_sure:
                kept.append(row)
    return kept


def pick(
    settings: Settings, model: Any, ladder: LadderTask, candidates: Sequence[Asked], count: int
) -> list[Asked]:
    """The texts of which the student is least sure, as `common.training.choice` picks them."""
    responses = make_student(settings, model, ladder).answer([row.text for row in candidates])
    sure = [response.least_logprob or 0.0 for response in responses]
    return pick_unsure(candidates, sure, count, settings.train.seed)


def score(
    settings: Settings, model: Any, ladder: LadderTask, with_few_shot: bool = False
) -> dict[str, Any]:
    """The task's metrics of a student."""
    student = make_student(settings, model, ladder)
    texts = [row.text for row in ladder.test]
    responses = student.answer(texts, with_few_shot=with_few_shot)
    rules = ladder.task.label_rules
    answers = [clean(t, r.text, rules)[0] for t, r in zip(texts, responses, strict=True)]
    return score_answers(ladder, answers)


def score_answers(ladder: LadderTask, answers: Sequence[str]) -> dict[str, Any]:
    texts, references = [r.text for r in ladder.test], [r.references for r in ladder.test]
    scores = {}
    for name in ladder.metrics:
        metric = METRICS[name]
        sums = metric.measure(texts, answers, references).sum(0)
        scores[name] = float(metric.combine(sums))
    return scores | {"n": len(texts)}


def measure_others(task: str, source: str) -> dict[str, Any]:
    """What learns nothing: the text or the commonest answer, the teacher, the base student."""
    ladder = load_ladder_task(task, source)
    settings = configure(ladder, {})
    commonest = Counter(row.answers[0] for row in ladder.pool).most_common(1)[0][0]
    is_class = bool(ladder.task.label_rules.allowed)
    copied = [commonest if is_class else row.text for row in ladder.test]
    model = load_weights(settings)
    found = {
        "the commonest answer" if is_class else "copying the text": score_answers(ladder, copied),
        "base student": score(settings, model, ladder),
        "base student, few-shot": score(settings, model, ladder, with_few_shot=True),
        "teacher": score_answers(ladder, ladder.teacher),
    }
    return {f"{task}; {name}": scores for name, scores in found.items()}


@cache
def load_ladder_task(name: str, source: str) -> LadderTask:
    """A task of `TASKS`; `source` is a data set like multilingual-gec, whose English rows count."""
    if name == "reviews":
        return load_sentiment()
    return load_grammar(source) if name == "grammar" else load_family(source)


@dataclass(frozen=True)
class Place:
    """A cell of the table: a training of a lever."""

    task: str
    budget: int
    lever: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}; {self.budget}; {self.lever}; {self.seed}"


def show(task: str, budget: int, results: dict[str, Any], seeds: int) -> None:
    """Prints the table of a task and a budget."""
    others = [name.split("; ", 1) for name in results if name.startswith(f"{task}; ")]
    rows = [
        {"lever": name} | describe([results[f"{task}; {name}"]])
        for _, name in others
        if "; " not in name
    ]
    for lever in LEVERS:
        names = [Place(task, budget, lever.name, seed).name for seed in range(seeds)]
        if found := [results[name] for name in names if name in results]:
            rows.append({"lever": lever.name} | describe(found))
    if rows:
        print_table(f"{task}: {budget:,} labels, {seeds} seeds", rows)


def describe(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The cells of a line."""
    cells = {}
    n = found[0]["n"]
    for name in (name for name in METRICS if name in found[0]):
        scores = [result[name] for result in found]
        mean = statistics.mean(scores)
        low, high = wilson_interval(mean, n)
        rows = f" ({100 * low:.1f} – {100 * high:.1f})" if METRICS[name].is_share else ""
        cells[name] = f"{100 * mean:.1f} {describe_seeds(scores)}{rows}"
    seconds = [result["seconds"] for result in found if "seconds" in result]
    return cells | {"seconds": f"{statistics.mean(seconds):.0f}" if seconds else ""}


def measure_place(place: Place, source: str) -> dict[str, Any]:
    (lever,) = (lever for lever in LEVERS if lever.name == place.lever)
    ladder = load_ladder_task(place.task, source)
    return {place.name: measure(lever, place.budget, place.seed, ladder)}


Call = tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]


def call_all(calls: Sequence[Call], at_once: int) -> Iterator[dict[str, Any]]:
    """The results as they come, of so many processes."""
    if at_once == 1:
        yield from (function(*arguments) for function, arguments in calls)
        return
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(at_once, spawning) as pool:
        futures = [pool.submit(function, *arguments) for function, arguments in calls]
        done = as_completed(futures)
        yield from (future.result() for future in done if not future.exception())
        for future in futures:
            future.result()  # raises what one has raised, when all have ended


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument(
        "--source", default="juancavallotti/multilingual-gec", help="of grammar and family"
    )
    parser.add_argument("--labels", type=int, action="append", help="250, 500, 1000 and 2000")
    parser.add_argument("--only", action="append", help="pattern of the levers' names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side (1)")
    options = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    path = BUILD / "ladder.json"
    results = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def keep(found: dict[str, Any]) -> None:
        results.update(found)
        path.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        print(found, flush=True)

    tasks, budgets = options.task or TASKS, options.labels or (250, 500, 1_000, 2_000)
    if "family" in tasks:
        load_ladder_task("family", options.source)  # makes the teacher's answers, once
    calls: list[Call] = [
        (measure_others, (task, options.source))
        for task in tasks
        if f"{task}; teacher" not in results
    ]
    for budget, seed in product(budgets, range(options.first_seed, options.seeds)):
        for task, lever in product(tasks, LEVERS):
            place = Place(task, budget, lever.name, seed)
            patterns = options.only or ["*"]
            is_chosen = any(fnmatch.fnmatch(lever.name, pattern) for pattern in patterns)
            if task in lever.tasks and is_chosen and place.name not in results:
                calls.append((measure_place, (place, options.source)))
    for found in call_all(calls, options.at_once):
        keep(found)
    for task, budget in product(tasks, budgets):
        show(task, budget, results, options.seeds)


if __name__ == "__main__":
    main()
