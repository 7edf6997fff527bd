"""Routing patterns: words, `*` for one, `#` for any number."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bloodbank.errors import InvalidQuery
from bloodbank.transports.base import compile_pattern, matches


@pytest.mark.parametrize(
    ("pattern", "fitting", "other"),
    [
        ("llm.prompt", ["llm.prompt"], ["llm.prompts", "llm", "xllm.prompt", "llm.prompt.x", "llmxprompt"]),
        ("llm.*", ["llm.prompt", "llm.error"], ["llm", "llm.a.b", "llmx.a", "x.llm.a"]),
        ("*.error", ["llm.error"], ["error", "a.b.error"]),
        ("*", ["llm"], ["llm.prompt"]),
        ("#", ["a", "a.b", "a.b.c.d.e.f.g.h"], []),
        ("fireflies.#", ["fireflies", "fireflies.a", "fireflies.a.b.c"], ["firefliesx.a", "a.fireflies"]),
        ("#.failed", ["failed", "a.failed", "a.b.c.failed"], ["a.failed.b", "a.xfailed", "failedx"]),
        ("a.#.z", ["a.z", "a.b.z", "a.b.c.z"], ["a", "z", "az", "a.b"]),
        ("#.a.#", ["a", "a.b", "b.a", "ab.a", "a.ab"], ["ab", "ab.ba"]),
        ("#.*", ["a", "a.b", "a.b.c"], []),
        ("*.#.*", ["a.b", "a.b.c"], ["a"]),
        ("a.*.#.b", ["a.x.b", "a.x.y.b"], ["a.b"]),
        ("a+b.[c]", ["a+b.[c]"], ["aab.c"]),
        ("a-b_c.1", ["a-b_c.1"], ["a-b_c.2"]),
    ],
)
def test_patterns(pattern: str, fitting: list[str], other: list[str]) -> None:
    assert [key for key in fitting if not matches(pattern, key)] == []
    assert [key for key in other if matches(pattern, key)] == []


def fits(pattern: list[str], words: list[str]) -> bool:
    """The rule itself, word by word: slow and obviously right."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(fits(pattern[1:], words[taken:]) for taken in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and fits(pattern[1:], words[1:])


WORD = st.sampled_from(["a", "b", "ab", "ba"])


@given(st.lists(WORD | st.sampled_from(["*", "#"]), min_size=1, max_size=6), st.lists(WORD, min_size=1, max_size=6))
@example(["#", "a", "b", "#", "b"], ["a", "a", "b", "b"])
@example(["#", "a", "#", "a"], ["a"])
def test_patterns_are_those_of_amqp(pattern: list[str], words: list[str]) -> None:
    assert matches(".".join(pattern), ".".join(words)) is fits(pattern, words)


@pytest.mark.parametrize("wildcards", ["#.", "#.*.", "#.a.", "*.#.a."])
def test_a_hostile_pattern_costs_no_time(wildcards: str) -> None:
    pattern = wildcards * (250 // len(wildcards)) + "z"
    began = time.perf_counter()
    assert not matches(pattern, ".".join(["a"] * 127))
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("pattern", ["", ".", "a.", ".a", "a..b", "a" * 256, "ü" * 128, "a.\x00"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidQuery, match="no routing pattern"):
        compile_pattern(pattern)


def test_the_longest_pattern_is_taken() -> None:
    assert matches("a" * 255, "a" * 255)
