"""The model card of an adapter: what it was made of, and how, as the Hugging Face hub shows it."""

import json
from typing import Any

from common.manifest import code_version
from common.settings import Settings
from common.student import find_student
from common.tasks import Task

_CARD = """---
base_model: {base_model}
library_name: peft
pipeline_tag: text-generation
tags: [distillation, lora, {task}]
---

# {task}: {base_model}, distilled from {teacher}

{description}

A LoRA adapter, trained by [distill](https://pypi.org/project/distill/) {version} on labels that the
teacher gave to {source}; no label is a person's.

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

The licence is that of the base model and of the teacher's terms for its output: see theirs.
"""


def render_card(
    settings: Settings,
    task: Task,
    labels_manifest: dict[str, Any],
    counts: dict[str, int],
    summary: dict[str, Any],
) -> str:
    """The card as Markdown."""
    agreement = summary["agreement"]
    labels = labels_manifest.get("settings", {})
    return _CARD.format(
        base_model=find_student(settings) if settings.student.model != "builtin" else "builtin",
        task=task.name,
        description=task.description,
        teacher=labels.get("teacher", {}).get("model") or "the built-in stand-in",
        version=code_version(),
        source=f"`{labels.get('data', {}).get('source', 'examples')}`",
        labels=f"{counts['labels']:,}",
        held_out=f"{counts['held_out']:,}",
        agreement="not measured" if agreement is None else f"{agreement:.1%}",
        updates=summary["updates"],
        best=summary["best_update"],
        parameters=summary["trainable_parameters"],
        prompt=task.make_student_prompt("{text}"),
        settings=json.dumps(settings.train.model_dump(mode="json"), indent=2),
    )
