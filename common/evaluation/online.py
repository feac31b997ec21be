"""Asks the systems behind an API: the teacher and the endpoints, by a session as the labels'."""

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from common.data.examples import Examples
from common.data.testset import TestRow
from common.environment import read_key
from common.errors import DistillError, SettingsError, StorageError
from common.evaluation.systems import SYSTEMS
from common.labels.endpoints import measure_costs, open_endpoint, record_model
from common.labels.label_row import Outcome
from common.labels.lanes.asking import ask_teacher, check_lost
from common.labels.resume import read_known
from common.records import Example, LabelRow, Response
from common.run.lock import hold_run
from common.run.run import Run
from common.sections import Endpoint
from common.settings import Settings
from common.teacher.connection import Connection
from common.teacher.listing import list_models

_SETTING = re.compile(r"DISTILL_TEACHER__(BASE_URL|MODEL|API_KEY|EXTRA_BODY|MAX_TOKENS)\b")
"""The teacher's settings that an endpoint has of its own."""
_FIELDS = {"API_KEY": "api_key_variable"}
"""Their names there, if others."""

log = logging.getLogger(__name__)


def ask_online(
    run: Run, rows: Sequence[TestRow], name: str = "teacher", within: Run | None = None
) -> list[LabelRow]:
    """The answers in the order of the rows; the journal keeps paid replies.

    `within` is the run that an endpoint's run is part of: its lock is held, and its cost counts.
    """
    examples = Examples.of(Example(row.id, row.text) for row in rows)
    answers: dict[str, LabelRow] = {}

    def keep(outcome: Outcome) -> None:
        answers[outcome.row.id] = outcome.row

    if len(read_known(run, examples, keep).missing):
        with hold_run((within or run).storage, "evaluate") as lock:
            spent_usd = None
            if within and run.settings.label.max_cost_usd is not None:
                labels = read_known(within, Examples.of([]), lambda outcome: None)
                spent_usd = labels.cost_usd + measure_costs(within)
            answers = ask_teacher(run, lock, examples, name, spent_usd)
    ordered = [answers[row.id] for row in rows]
    if within:
        ordered = [_keep_cut_answer(row) for row in ordered]
    _check_gaps(run, ordered, name)
    return ordered


def _check_gaps(run: Run, answers: list[LabelRow], name: str) -> None:
    """Logs the rows without a label. Raises a DistillError if more failed than allowed."""
    check_lost(run, answers)
    gaps = Counter(f"{a.status} ({a.error})" for a in answers if a.status != "ok")
    for kind, count in gaps.items():
        log.warning("evaluate: %d %s rows are %s and count as wrong", count, name, kind)


def check_endpoints(settings: Settings) -> None:
    """Raises a SettingsError if an endpoint has the name of a system, or its key is missing."""
    for name, endpoint in settings.evaluate.endpoints.items():
        if name in SYSTEMS:
            raise SettingsError(
                f"DISTILL_EVALUATE__ENDPOINTS: {name!r} is a system already; choose another name"
            )
        if endpoint.api_key_variable:
            with _naming(name):
                read_key(endpoint.api_key_variable)


def ask_endpoint(
    run: Run, name: str, endpoint: Endpoint, rows: Sequence[TestRow]
) -> list[Response]:
    """An endpoint's answers; as of students', none is filtered by a label rule.

    Raises a DistillError that names the endpoint if it cannot be asked.
    """
    with _naming(name):
        own = open_endpoint(run, name, endpoint)
        if not endpoint.model:
            found = endpoint.model_copy(update={"model": _find_model(own.settings)})
            own = open_endpoint(run, name, found)
        record_model(own)
        return [make_response(answer) for answer in ask_online(own, rows, name, within=run)]


def make_response(row: LabelRow) -> Response:
    """A label row as an answer, empty where there is no label."""
    return Response(row.label or "", row.completion_tokens, row.seconds, error=row.error)


def _keep_cut_answer(row: LabelRow) -> LabelRow:
    """A row whose answer was cut off at the limit has it as its label, as a student's answer is."""
    is_cut = row.error == "length" and row.response
    return replace(row, status="ok", label=row.response, error=None) if is_cut else row


def _find_model(settings: Settings) -> str:
    """The one model that an API lists. Raises a SettingsError unless it is one."""

    async def list_all() -> str:
        connection = Connection(settings.teacher, settings.teacher.base_url)
        try:
            return await connection.check()
        finally:
            await connection.close()

    models = list_models(asyncio.run(list_all()))
    if len(models) != 1:
        names = f"{len(models)} models ({', '.join(models[:5])})" if models else "no model"
        raise SettingsError(
            f"{settings.teacher.base_url}/models lists {names}; name the model: "
            '{"base_url": …, "model": …}'
        )
    return models[0]


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Names the endpoint in errors, and its settings instead of the teacher's."""
    try:
        yield
    except StorageError:
        raise
    except DistillError as error:
        text = _SETTING.sub(lambda found: _FIELDS.get(found[1], found[1].lower()), str(error))
        text = text.replace("the teacher", "the server")
        raise type(error)(f"DISTILL_EVALUATE__ENDPOINTS, {name!r}: {text}") from error
