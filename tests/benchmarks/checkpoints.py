"""Which checkpoint to keep: `python -m tests.benchmarks.checkpoints --task reviews`.

A student is scored on the test rows and on held-out labels at each evaluation of its training. Then
held-out sets of several sizes are drawn from those labels, many times, and each rule says by their
agreement when it would have stopped and which checkpoint it would have kept: the mean test score
of those is the rule's. Raw figures go to build/checkpoints.json; a rerun does only the rest.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from common.builtin.correction import correct
from common.data.examples import load_examples
from common.data.testset import load_test_rows
from common.settings import Settings
from common.tasks.cleaning import clean
from common.tasks.task import load_task
from common.training.schedule import find_best, list_evaluations, stops_early
from tests.benchmarks.ladder import load_ladder_task, score_answers
from tests.benchmarks.ladder_student import configure, make_row, make_student, train_student
from tests.benchmarks.ladder_tasks import Asked, LadderTask
from tests.benchmarks.measure import BUILD, print_table

_HELD_OUT = 300
_DRAWS = 400
_SIZES = (30, 60, 150, 300)
Rule = Callable[[Settings, Sequence[dict[str, Any]]], int]
"""From the evaluations to the number of the one whose checkpoint is kept."""
Row = dict[int, float]


def take_last(settings: Settings, history: Sequence[dict[str, Any]]) -> int:
    del settings
    return len(history) - 1


def take_highest(settings: Settings, history: Sequence[dict[str, Any]]) -> int:
    """The highest agreement, the later one of equals; stops after three without gain."""
    best = 0
    for number, entry in enumerate(history):
        if entry["eval_agreement"] >= history[best]["eval_agreement"]:
            best = number
        if number - best >= settings.train.patience:
            break
    return best


def take_as_job(settings: Settings, history: Sequence[dict[str, Any]]) -> int:
    """As the train job."""
    seen = list(history)
    for count in range(1, len(history) + 1):
        seen = list(history[:count])
        if stops_early(settings.train, seen):
            break
    return [entry["step"] for entry in seen].index(find_best(seen))


RULES: dict[str, Rule] = {
    "the last": take_last,
    "the highest agreement": take_highest,
    "as the train job": take_as_job,
}


def load_builtin() -> LadderTask:
    """The built-in data and stand-in teacher, for the built-in student."""
    settings = configure_builtin({})
    task = load_task("gec")
    rows = load_test_rows(settings, task).rows[:500]
    texts = [example.text for example in load_examples(settings, task).first]
    return LadderTask(
        task, [Asked(t, (correct(t),)) for t in texts], rows, ["exact_match"], [], max_new_tokens=64
    )


def configure_builtin(variables: dict[str, str]) -> Settings:
    own = {"STUDENT__MODEL": "builtin", "TRAIN__PRESET": "builtin", "DATA__SOURCE": "builtin"}
    own |= {"DATA__TRAIN_LIMIT": "0", "TRAIN__EPOCHS": "3"}
    blank = LadderTask(load_task("gec"), [], [], [], [], max_new_tokens=64)
    return configure(blank, own | variables)


class Scores(TrainerCallback):
    """The scores at each evaluation of a training."""

    def __init__(self, settings: Settings, ladder: LadderTask, held_out: Sequence[Asked]) -> None:
        self._settings, self._ladder, self._held_out = settings, ladder, held_out
        self.found: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in list_evaluations(self._settings.train, state.max_steps):
            return
        model, ladder = kwargs["model"], self._ladder
        student = make_student(self._settings, model, ladder)
        rules = ladder.task.label_rules
        texts = [row.text for row in ladder.test] + [row.text for row in self._held_out]
        responses = student.answer(texts)
        answers = [clean(t, r.text, rules)[0] for t, r in zip(texts, responses, strict=True)]
        agrees = [
            answer == row.answers[0]
            for answer, row in zip(answers[len(ladder.test) :], self._held_out, strict=True)
        ]
        scores = score_answers(ladder, answers[: len(ladder.test)])
        self.found.append({"update": state.global_step, "agrees": agrees} | scores)
        print(state.global_step, statistics.mean(agrees), scores, flush=True)
        model.train()


def measure(settings: Settings, ladder: LadderTask, labels: int) -> list[dict[str, Any]]:
    """The scores of one training."""
    seed = settings.train.seed
    asked = random.Random(f"ladder {seed}").sample(list(ladder.pool), len(ladder.pool))
    learned, held_out = asked[:labels], asked[labels : labels + _HELD_OUT]
    scores = Scores(settings, ladder, held_out)
    rows = [make_row(ladder, one, one.answers[:1]) for one in learned]
    train_student(settings, ladder, rows, [scores])
    return scores.found


def judge(settings: Settings, found: Sequence[dict[str, Any]], rule: Rule, metric: str) -> Row:
    """The mean test score of what a rule keeps, in points, by the size of the held-out set."""
    rng = random.Random(0)
    row = {}
    for size in _SIZES:
        kept = []
        for _ in range(_DRAWS):
            places = rng.sample(range(_HELD_OUT), size)
            history = [_make_entry(entry, places) for entry in found]
            kept.append(found[rule(settings, history)][metric])
        row[size] = 100 * statistics.mean(kept)
    return row


def _make_entry(found: dict[str, Any], places: Sequence[int]) -> dict[str, Any]:
    """As the training logs it; of equal agreements the later one has the lower loss."""
    share = statistics.mean(found["agrees"][at] for at in places)
    return {
        "step": found["update"],
        "eval_agreement": share,
        "eval_agreement_error": math.sqrt(share * (1 - share) / len(places)),
        "eval_loss": -float(found["update"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=("builtin", "reviews", "grammar"), required=True)
    parser.add_argument("--source", default="juancavallotti/multilingual-gec", help="of grammar")
    parser.add_argument("--labels", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    BUILD.mkdir(exist_ok=True)
    path = BUILD / "checkpoints.json"
    known = json.loads(path.read_text("utf-8")) if path.exists() else {}
    is_builtin = options.task == "builtin"
    ladder = load_builtin() if is_builtin else load_ladder_task(options.task, options.source)
    trainings: list[tuple[Settings, list[dict[str, Any]]]] = []
    for seed in range(options.seeds):
        name = f"{options.task}; {options.labels}; {seed}"
        variables = {"TRAIN__SEED": str(seed)}
        settings = configure_builtin(variables) if is_builtin else configure(ladder, variables)
        if name not in known:
            known[name] = measure(settings, ladder, options.labels)
            path.write_text(json.dumps(known) + "\n", "utf-8")
        trainings.append((settings, known[name]))
    metric = ladder.metrics[0]
    rows = []
    for rule_name, rule in RULES.items():
        found = [judge(settings, scores, rule, metric) for settings, scores in trainings]
        cells = {f"of {n}": f"{statistics.mean(row[n] for row in found):.1f}" for n in _SIZES}
        rows.append({"rule": rule_name} | cells)
    title = f"{options.task}: {metric} with {options.labels} labels, {options.seeds} seeds"
    print_table(f"{title}, by the size of the held-out set", rows)


if __name__ == "__main__":
    main()
