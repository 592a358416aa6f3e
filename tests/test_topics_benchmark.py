"""The generated texts of `benchmarks/topics.py`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks import topics


@pytest.fixture(scope="module")
def some() -> tuple[list[list[int]], list[int]]:
    words, classes = topics.texts(300, np.random.default_rng(3))
    return words.tolist(), classes.tolist()


def topics_in(text: list[int]) -> Counter[int]:
    return Counter(
        (word - topics.FIRST_TOPICAL) // topics.N_OF_A_TOPIC
        for word in text
        if topics.FIRST_TOPICAL <= word < topics.FIRST_NEUTRAL
    )


def test_a_class_is_the_topic_of_most_words_that_is_not_negated(
    some: tuple[list[list[int]], list[int]],
) -> None:
    for text, wanted in zip(*some, strict=True):
        counts = topics_in(text)
        for word in text:
            if topics.FIRST_NEGATION <= word < topics.FIRST_TOPICAL:
                counts.pop(word - topics.FIRST_NEGATION, None)
        (first, most), (_, second) = [*counts.most_common(2), (None, 0)][:2]
        assert first == wanted
        assert most > second


def test_texts_are_padded_at_the_end_alone(some: tuple[list[list[int]], list[int]]) -> None:
    for text, _ in zip(*some, strict=True):
        length = next((i for i, word in enumerate(text) if word == 0), topics.LENGTH)
        assert length >= topics.LENGTH // 2
        assert not any(text[length:])
        assert max(text) < topics.N_WORDS


def test_a_count_of_all_words_is_not_enough(some: tuple[list[list[int]], list[int]]) -> None:
    """Otherwise the first exit would always be right."""
    right = 0
    for text, wanted in zip(*some, strict=True):
        found = topics_in(text)
        right += found.most_common(1)[0][0] == wanted
    assert 0.5 < right / 300 < 0.85


def test_the_same_seed_gives_the_same_texts() -> None:
    first, second = (topics.texts(50, np.random.default_rng(1))[0] for _ in range(2))
    assert torch.equal(first, second)
