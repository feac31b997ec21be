"""Out-of-memory errors, with advice."""

import contextlib
from collections.abc import Iterator

from common.errors import explain_memory, is_memory_error
from common.settings import Settings


@contextlib.contextmanager
def explaining_memory(advice: str) -> Iterator[None]:
    """Turns an out-of-memory error into a SettingsError, which no job retries."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_memory_error(error):
            raise
        raise explain_memory(error, advice) from None


def advise_on_memory(settings: Settings) -> str:
    """The settings to lower when training runs out of memory."""
    return (
        f"lower DISTILL_TRAIN__BATCH_SIZE (now {settings.train.batch_size}), "
        f"DISTILL_STUDENT__MAX_TOKENS (now {settings.student.max_tokens}) or, if it ended in an "
        f"evaluation, DISTILL_EVALUATE__BATCH_TOKENS (now {settings.evaluate.batch_tokens}); or "
        "set DISTILL_TRAIN__GRADIENT_CHECKPOINTING=true"
    )
