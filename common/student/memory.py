"""Out-of-memory errors, with advice."""

import contextlib
from collections.abc import Iterator

from common.errors import SettingsError
from common.settings import Settings

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


@contextlib.contextmanager
def explaining_memory(advice: str) -> Iterator[None]:
    """Turns an out-of-memory error into a SettingsError, which no job retries."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_memory_error(error):
            raise
        raise SettingsError(f"the memory does not suffice ({_shorten(error)}); {advice}") from None


def is_memory_error(error: Exception) -> bool:
    """Whether an error says that memory is used up."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def _shorten(error: Exception) -> str:
    """The sentence that says what could not be allocated; torch's begins with a place in C++."""
    sentences = " ".join(str(error).split()).split(". ")
    telling = (text for text in sentences if any(sign in text for sign in _SIGNS))
    return next(telling, sentences[0]) or type(error).__name__


def advise_on_memory(settings: Settings) -> str:
    """The settings to lower when training runs out of memory."""
    return (
        f"lower DISTILL_TRAIN__BATCH_SIZE (now {settings.train.batch_size}), "
        f"DISTILL_STUDENT__MAX_TOKENS (now {settings.student.max_tokens}) or, if it ended in an "
        f"evaluation, DISTILL_EVALUATE__BATCH_TOKENS (now {settings.evaluate.batch_tokens}); or "
        "set DISTILL_TRAIN__GRADIENT_CHECKPOINTING=true"
    )
