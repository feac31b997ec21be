"""The lane of batches: what is submitted, what is paid, and what a kill at any moment leaves."""

import asyncio
import itertools
import json
import threading
from collections import Counter
from contextlib import contextmanager

import pytest
from aiohttp import web

from common.builtin.teacher import StandIn
from common.errors import CostCapError, DistillError, InputError
from common.labels.lanes.batch import lane as module
from common.labels.lanes.batch.chunks import check_no_chunks
from common.labels.lanes.batch.lane import BatchLane
from common.run.storage import RunStorage
from common.teacher.journal import iterate_journal
from support.commands import run_job
from support.fake_teacher import running_teacher
from support.labelling import label_texts

PRICE = '[[price]]\nmodel = "stand-in"\ninput = 1000.0\noutput = 2000.0\n'


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(module, "_POLL_SECONDS", (0.02, 0.05))


@contextmanager
def running(stand_in):
    """Runs a stand-in in a thread; gives its URL."""
    loop = asyncio.new_event_loop()

    async def start():
        runner = web.AppRunner(stand_in.make_app(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


@pytest.fixture
def label(settings, tmp_path):
    """Labels texts in batches; gives the rows and the figures."""
    (tmp_path / "prices.toml").write_text(PRICE, "utf-8")

    def label(url, count=200, **values):
        given = {
            "TEACHER__BASE_URL": url,
            "TEACHER__MODEL": "stand-in",
            "TEACHER__PRICES": tmp_path / "prices.toml",
            "LABEL__BATCH_REQUESTS": 50,
        }
        texts = [f"text {i}" for i in range(count)]
        rows, figures = label_texts(settings(**given | values), texts, BatchLane)
        return Counter(row.error or row.status for row in rows.values()), figures

    return label


def count_requests(stand_in):
    """How often each request was submitted."""
    batches = stand_in.batches.batches.values()
    return Counter(line["custom_id"] for batch in batches for line in batch.lines)


def list_files(tmp_path):
    return [path.name for path in tmp_path.rglob("journal/*")]


def test_all_rows_are_answered_once_at_half_the_price(label, tmp_path):
    stand_in = StandIn(answer=str.upper)
    with running(stand_in) as url:
        statuses, figures = label(url)
        assert statuses == {"ok": 200}
        assert len(stand_in.batches.batches) == 4
        assert set(count_requests(stand_in).values()) == {1}
        tokens = figures["prompt_tokens"], figures["completion_tokens"]
        online = (tokens[0] * 1000 + tokens[1] * 2000) / 1e6
        assert figures["cost_usd"] == pytest.approx(online / 2, abs=1e-6)
        assert not [name for name in list_files(tmp_path) if name.endswith(".json")]
        statuses, figures = label(url)
        assert (statuses, figures) == ({"ok": 200}, {})
        assert len(stand_in.batches.batches) == 4


def test_a_batch_that_expires_is_asked_for_the_rest_alone(label):
    stand_in = StandIn(answer=str.upper)
    stand_in.batches.answered_share = 0.5
    with running(stand_in) as url:
        statuses, _ = label(url, count=50, TEACHER__MAX_ATTEMPTS=20)
        assert statuses == {"ok": 50}
        assert stand_in.served == 50
        sizes = [len(batch.lines) for batch in stand_in.batches.batches.values()]
        assert sizes[:3] == [50, 25, 12]


@pytest.mark.parametrize("most_queued", [120, 20])
def test_a_queue_that_is_full_is_waited_for_or_takes_smaller_batches(label, most_queued):
    stand_in = StandIn(answer=str.upper)
    stand_in.batches.seconds, stand_in.batches.most_queued = 0.1, most_queued
    with running(stand_in) as url:
        statuses, figures = label(url)
        assert (statuses, figures["calls"]) == ({"ok": 200}, 200)
        assert stand_in.served == 200
        sizes = {len(b.lines) for b in stand_in.batches.batches.values() if b.status == "completed"}
        assert min(sizes) >= 8


def test_a_batch_that_fails_for_good_says_why(label):
    stand_in = StandIn(answer=str.upper)
    stand_in.batches.most_queued = 0
    with (
        running(stand_in) as url,
        pytest.raises(DistillError, match=r"refuses the batch .*token_limit_exceeded"),
    ):
        label(url, count=1)


def test_what_a_batch_leaves_is_not_asked_for_in_batches_if_it_shall_be_asked_online(label):
    stand_in = StandIn(answer=str.upper)
    stand_in.batches.answered_share = 0.5
    with running(stand_in) as url:
        statuses, _ = label(url, count=50, LABEL__BATCH_REST="online")
        assert statuses == {"ok": 25, "timeout": 25}
        assert len(stand_in.batches.batches) == 1


def test_the_label_job_asks_online_for_what_a_batch_leaves(tmp_path):
    lines = [json.dumps({"text": f"She go to school {i} times."}) + "\n" for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("".join(lines), "utf-8")
    stand_in = StandIn(answer=str.upper)
    stand_in.batches.answered_share = 0.5
    with running(stand_in) as url:
        job = run_job(
            "label",
            tmp_path,
            DATA__SOURCE=tmp_path / "texts.jsonl",
            DATA__TEXT_COLUMN="text",
            DATA__TRAIN_LIMIT=0,
            TEACHER__BASE_URL=url,
            TEACHER__MODEL="stand-in",
            LABEL__LANE="batch",
            LABEL__BATCH_REST="online",
            LABEL__ACTORS=1,
        )
    assert job.returncode == 0, job.stderr
    summary = json.loads((tmp_path / "runs/default/labels/_manifest.json").read_text())["summary"]
    figures = {name: summary[name] for name in ("inputs", "ok", "filtered", "reused", "calls")}
    assert figures["ok"] + figures["filtered"] == 40
    assert (figures["reused"], figures["calls"]) == (0, 20)
    assert (stand_in.served, len(stand_in.batches.batches)) == (40, 1)


def test_refused_parameters_are_learned_and_cost_one_more_batch(label):
    stand_in = StandIn(answer=str.upper, is_reasoning=True)
    with running(stand_in) as url:
        statuses, figures = label(url, count=20)
        assert statuses == {"ok": 20}
        assert figures["adaptations"] == ["max_completion_tokens for max_tokens", "no temperature"]
        assert len(stand_in.batches.batches) == 3


def test_several_samples_vote(label):
    stand_in = StandIn(answer=str.upper)
    with running(stand_in) as url:
        statuses, figures = label(url, 20, LABEL__SAMPLES=3, TEACHER__TEMPERATURE=0.7)
        assert (statuses, figures["calls"]) == ({"ok": 20}, 60)


def test_a_job_that_waits_too_long_is_gone_on_with_later(label, settings):
    stand_in = StandIn(answer=str.upper)
    stand_in.batches.seconds = 1.5
    with running(stand_in) as url:
        with pytest.raises(DistillError, match=r"4 batches are at work .*run again later"):
            label(url, LABEL__BATCH_WAIT_SECONDS=0.1)
        with pytest.raises(InputError, match="4 batches of this run are at work"):
            check_no_chunks(RunStorage(settings()))
        statuses, _ = label(url, LABEL__BATCH_WAIT_SECONDS=60)
        assert statuses == {"ok": 200}
        assert set(count_requests(stand_in).values()) == {1}


class Killed(BaseException):
    """As a kill: no handler cleans up."""


@pytest.mark.parametrize("moment", range(14))
def test_a_kill_at_any_moment_submits_nothing_twice_and_loses_nothing(label, monkeypatch, moment):
    """Before or after each step that is seen outside: on storage and at the API."""
    stand_in, steps = StandIn(answer=str.upper), itertools.count()
    is_armed = True

    def wrap(owner, name):
        step = getattr(owner, name)

        def do(*args, **kwargs):
            if is_armed and next(steps) == moment:
                raise Killed
            result = step(*args, **kwargs)
            if is_armed and next(steps) == moment:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, do)

    wrap(module.Chunks, "write")
    wrap(module.Chunks, "remove")
    wrap(module.BatchApi, "submit")
    wrap(module, "write_batch")
    with running(stand_in) as url:
        with pytest.raises(Killed):
            label(url, count=100)
        is_armed = False
        statuses, _ = label(url, count=100)
        assert statuses == {"ok": 100}
        assert set(count_requests(stand_in).values()) == {1}
        assert stand_in.served == 100


def test_the_cap_holds_and_a_rerun_goes_on(label, tmp_path, settings):
    stand_in = StandIn(answer=str.upper)
    with running(stand_in) as url:
        values = {"TEACHER__MAX_TOKENS": 8, "LABEL__BATCH_REQUESTS": 10}
        with pytest.raises(CostCapError, match=r"MAX_COST_USD=2 is reached"):
            label(url, **values, LABEL__MAX_COST_USD=2)
        paid = sum(len(list(batch.output)) for batch in stand_in.batches.batches.values())
        assert 0 < paid < 200
        statuses, _ = label(url, **values, LABEL__MAX_COST_USD=200)
        assert statuses == {"ok": 200}
        assert set(count_requests(stand_in).values()) == {1}


def test_an_api_without_batches_is_told_of(label):
    with (
        running_teacher(lambda text, call: text) as teacher,
        pytest.raises(InputError, match=r"DISTILL_LABEL__LANE=batch.*has no batches"),
    ):
        label(teacher.url)


def test_the_journal_says_which_replies_are_of_a_batch(label, tmp_path, settings):
    with running(StandIn(answer=str.upper)) as url:
        label(url, count=3)
        storage = RunStorage(settings(TEACHER__BASE_URL=url))
        assert {reply.service_tier for reply in iterate_journal(storage)} == {"batch"}
