"""The model card of an adapter, as the Hugging Face hub shows it."""

import json
from pathlib import Path
from typing import Any

from common.run.manifest import Manifest, code_version
from common.run.run import Run
from common.run.steps import LabelSummary, TrainSummary
from common.sections import BUILTIN

_CARD = """---
{base}library_name: peft
pipeline_tag: text-generation
tags: [distillation, lora, {task}]
---

# {task}: {student}, distilled from {teacher}

{description}

A LoRA adapter, trained by distill {version} on labels that the teacher gave to {source}; no label
is a person's.

| | |
| --- | --- |
| teacher | `{teacher}` |
| labels learned | {labels} |
| labels held out, to choose the checkpoint | {held_out} |
| agreement with the teacher on those (exact match) | {agreement} |
| updates | {updates}, the best after {best} |
| trainable parameters | {parameters:,} |

Prompt, in the student's chat template if it has one:

```text
{prompt}
```

Settings of the training:

```json
{settings}
```

In this folder, `task.jinja` is a chat template that puts this prompt around a plain text.

The licence is that of the base model and of the teacher's terms for its output: see theirs.
"""

_FIGURES = """
## Evaluation

On {rows:,} test rows that the student has not seen; by {title}:

| system | {title} | 95 % interval |
| --- | --- | --- |
{table}
"""


def render_card(
    run: Run, labels: Manifest[LabelSummary], counts: dict[str, int], summary: TrainSummary
) -> str:
    """The card as Markdown."""
    settings, task, agreement = run.settings, run.task, summary["agreement"]
    student = settings.student.model
    is_local = student == BUILTIN or Path(student).exists()  # the hub takes its own names only
    return _CARD.format(
        base="" if is_local else f"base_model: {student}\n",
        student=Path(student).name if is_local else student,
        task=task.name,
        description=task.description,
        teacher=labels.get_settings("teacher").get("model") or "the built-in stand-in",
        version=code_version(),
        source=f"`{labels.get_settings('data').get('source', 'examples')}`",
        labels=f"{counts['labels']:,}",
        held_out=f"{counts['held_out']:,}",
        agreement="not measured" if agreement is None else f"{agreement:.1%}",
        updates=summary["updates"],
        best=summary["best_update"],
        parameters=summary["trainable_parameters"],
        prompt=task.make_student_prompt("{text}"),
        settings=json.dumps(settings.train.model_dump(mode="json"), indent=2),
    )


def render_figures(metrics: dict[str, Any]) -> str:
    """The part of the card with the main metric of each system, from metrics.json."""
    main = metrics["main_metric"]
    facts = metrics.get("metrics", {}).get(main, {})
    digits = ".1%" if facts.get("is_share", True) else ".3f"
    lines = []
    for system, figures in metrics["systems"].items():
        figure = figures.get(main, {})
        if figure.get("value") is not None:
            interval = "–".join(format(bound, digits) for bound in figure.get("interval") or [])
            lines.append(f"| {system} | {figure['value']:{digits}} | {interval} |")
    return _FIGURES.format(
        rows=metrics["rows"]["test"],
        title=facts.get("title") or main,
        table="\n".join(lines),
    )
