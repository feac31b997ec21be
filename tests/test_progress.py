import logging
import sys

import pytest

from common.labels.progress import Progress, format_seconds, summarize_calls
from common.quota.protocol import Snapshot, Totals


@pytest.fixture(autouse=True)
def logs(caplog):
    caplog.set_level(logging.INFO, "common.labels.progress")
    return caplog


class Clock:
    now = 50.0

    def __call__(self):
        return self.now


def begin(calls, clock, has_price=False) -> Progress:
    """The progress of a job that has just begun."""
    progress = Progress(calls, has_price, clock=clock)
    progress.show(make_snapshot())
    return progress


def make_snapshot(answered=0, **values) -> Snapshot:
    state = {
        "totals": Totals(calls=answered, answered=answered),
        "workers": 1,
        "in_flight": 0,
        "slots": 64,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "pause_seconds": 0.0,
        "failure": None,
        "storage_error": None,
        "active_seconds": 0.0,
        "lost_calls": 0,
        "lost_workers": 0,
        "adaptations": frozenset(),
        "resting": (0, 0.0, ""),
        "outage": "",
        "refusal": None,
    }
    return Snapshot(**{**state, **values})


def run(progress, clock, rate, seconds):
    """So many answers a second, looked at four times a second."""
    begun = clock.now
    while clock.now < begun + seconds:
        clock.now += 0.25
        progress.show(make_snapshot(int((clock.now - 50) * rate)))


def test_a_line_tells_the_rate_the_time_left_and_the_cost(logs):
    clock = Clock()
    progress = begin(10_000, clock, has_price=True)
    clock.now += 20
    totals = Totals(calls=2_050, retries=30, answered=2_000, throttled=20, cost_usd=0.123456)
    progress.show(make_snapshot(totals=totals, pause_seconds=7.2, storage_error="the disk is full"))
    assert logs.messages == [
        "labels: 2,000 of 10,000 answers, 100/s, 0:01:20 left, $0.1235 of about $0.62, 429s: 20, "
        "retries: 30, paused for 7 s, the disk is full"
    ]


def test_a_line_is_silent_about_what_there_is_not(logs):
    clock = Clock()
    progress = begin(10, clock)
    clock.now += 20
    progress.show(make_snapshot())
    progress.show(make_snapshot(storage_error="the disk is full"), is_last=True)
    assert logs.messages == [
        "labels: 0 of 10 answers, 0.0/s",
        "labels: 0 of 10 answers, 0.0/s, the disk is full",
    ]


def test_the_time_before_the_first_answer_does_not_lower_the_rate(logs):
    clock = Clock()
    progress = begin(1_000, clock)
    for second in range(60):
        clock.now += 1
        progress.show(make_snapshot(max(0, second - 49) * 10))
    assert "100 of 1,000 answers, 10/s" in logs.messages[-1]


def test_the_figures_are_there_for_log_collectors(logs):
    clock = Clock()
    progress = begin(500, clock, has_price=True)
    clock.now += 10
    totals = Totals(answered=100, throttled=2, retries=3, cost_usd=0.01)
    progress.show(make_snapshot(totals=totals, in_flight=9))
    (record,) = logs.records
    assert record.figures == {
        "answered": 100,
        "of": 500,
        "answers_per_second": 10,
        "eta_seconds": 40,
        "cost_usd": 0.01,
        "throttled": 2,
        "retries": 3,
        "in_flight": 9,
        "pause_seconds": 0,
        "failed": 0,
        "outage": None,
        "quota_wait": None,
        "storage_error": None,
    }
    begin(500, clock).show(make_snapshot(), is_last=True)
    figures = logs.records[-1].figures
    assert (figures["cost_usd"], figures["eta_seconds"]) == (None, None)


def test_the_rate_is_that_of_the_last_seconds(logs):
    clock = Clock()
    progress = begin(100_000, clock)
    run(progress, clock, rate=100, seconds=100)
    begun, before = clock.now, 10_000
    while clock.now < begun + 40:
        clock.now += 1
        progress.show(make_snapshot(before + int((clock.now - begun) * 10)))
    assert "100/s" in logs.messages[-10]
    assert ", 10/s, 2:29:20 left" in logs.messages[-1]


def test_a_log_gets_a_line_every_few_seconds_and_the_last_one(logs):
    clock = Clock()
    progress = begin(6_000, clock)
    run(progress, clock, rate=100, seconds=60)
    assert 10 <= len(logs.messages) <= 12
    progress.show(make_snapshot(6_000), is_last=True)
    assert "6,000 of 6,000 answers, 100/s, 0:00:00 left" in logs.messages[-1]


def test_on_a_terminal_the_line_stays_in_its_place(monkeypatch, logs, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock()
    progress = begin(1_000, clock)
    run(progress, clock, rate=100, seconds=9.5)
    progress.show(make_snapshot(1_000), is_last=True)
    shown = capsys.readouterr().err
    assert logs.messages == []
    assert shown.count("\n") == 1
    assert shown.endswith("left\n")
    lines = shown.split("\r\033[K")
    assert lines[0] == ""
    assert 15 <= len(lines) <= 22


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3_725, "1:02:05"), (1e6, "277:46:40")]
)
def test_seconds_for_people(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("limits", "tokens", "best"),
    [((600, None), 0, 100), ((None, 60_000), 90_000, 90), ((None, None), 0, 25)],
)
def test_the_summary_names_the_optimum_and_the_efficiency(limits, tokens, best):
    totals = Totals(
        calls=1_000, answered=1_000, prompt_tokens=tokens, call_seconds=500.0, cost_usd=0.5
    )
    snapshot = make_snapshot(
        totals=totals,
        requests_per_minute=limits[0],
        tokens_per_minute=limits[1],
        active_seconds=125.0,
    )
    summary = summarize_calls(snapshot, concurrency=20, has_price=True)
    assert (summary["optimum_seconds"], summary["call_seconds"]) == (best, 125)
    assert summary["efficiency"] == pytest.approx(best / 125, abs=0.001)
    assert summary["cost_usd"] == 0.5
    assert summarize_calls(snapshot, 20, has_price=False)["cost_usd"] is None


def test_a_line_says_what_is_waited_for_and_counts_rows_that_failed(logs):
    clock = Clock()
    progress = begin(12, clock)
    clock.now += 20
    totals = Totals(calls=80, retries=60, answered=2, failed=10)
    outage = "the teacher is down for 14 s (503 overloaded)"
    progress.show(make_snapshot(totals=totals, resting=(3, 118.2, "503 busy"), outage=outage))
    assert logs.messages[-1].startswith("labels: 2 of 12 answers, 10 failed, ")
    assert "left" not in logs.messages[-1]
    assert logs.messages[-1].endswith(f"retries: 60, 3 calls wait up to 118 s (503 busy), {outage}")
