import logging
import re

import pytest

from common.errors import RetentionError
from common.evaluation.gate import check_retention, list_weaknesses
from jobs import evaluate
from support.trained_run import make_trained_run


def test_the_gate_ends_a_finished_evaluation(settings, tmp_path, caplog):
    _, storage = make_trained_run(settings, tmp_path, TRAIN__MERGE="false")
    caplog.set_level(logging.INFO)
    strict = settings(EVALUATE__MIN_RETENTION=0.99)
    for _ in range(2):
        with pytest.raises(RetentionError) as caught:
            evaluate.main(strict)
        assert caught.value.exit_code == 6
        assert re.fullmatch(
            r"\S*/metrics\.json: .*DISTILL_EVALUATE__MIN_RETENTION=0\.99 .*", str(caught.value)
        )
        assert storage.exists("predictions/_manifest.json")
        assert caplog.messages[-1].startswith("evaluate: the distilled student is no better than")
    assert any("already done" in message for message in caplog.messages)
    evaluate.main(settings(EVALUATE__MIN_RETENTION=0))


def test_the_gate_is_at_the_lower_end():
    metrics = {"main_metric": "gleu", "retention": 0.95, "retention_interval": [0.91, 0.99]}
    check_retention(metrics, 0.0, "here")
    check_retention(metrics, 0.9, "here")
    with pytest.raises(RetentionError, match=r"95\.0% .*91\.0% to 99\.0%.*=0\.92"):
        check_retention(metrics, 0.92, "here")
    with pytest.raises(RetentionError, match="gleu is 0"):
        check_retention({"main_metric": "gleu", "retention": None}, 0.5, "here")


def test_where_the_student_is_no_better_is_said_by_the_interval():
    def compare(than, low, metric="gleu", system="distilled"):
        return {
            "system": system,
            "than": than,
            "metric": metric,
            "difference": low + 0.02,
            "interval": [low, low + 0.04],
        }

    comparisons = [
        compare("copy", -0.01),
        compare("base", 0.01),
        compare("base_few_shot", -0.03),
        compare("teacher", -0.5),
        compare("base", -0.5, metric="chrf"),
        compare("base", -0.5, system="merged"),
    ]
    found = list(list_weaknesses({"main_metric": "gleu", "comparisons": comparisons}))
    assert found == [
        "the distilled student is no better than copying the input: gleu +0.010 (95 % interval "
        "-0.010 to +0.030)",
        "the distilled student is no better than base student, few-shot: gleu -0.010 (95 % "
        "interval -0.030 to +0.010)",
    ]
