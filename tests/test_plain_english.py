"""Messages, docstrings, comments and documents keep clear of phrases that readers stumble over.

CONTRIBUTING.md has the rules; these are the phrases that once were everywhere.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.commands import ROOT

SOURCES = sorted((ROOT / "src").rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

# A pattern's blank stands for any white space, so that a phrase is found across lines.
PHRASES = {
    r"(?<![Tt]here )\b(?:is|are|was|were|be) none\b": "say what the value must be, and what it is",
    r"(?<![Tt]here )\b(?:is|are) no (?!longer\b|more\b|less\b|better\b|worse\b|\w+er\b)[a-z]+": (
        "say that it 'is not a …' or 'must be a …'"
    ),
    r"\bTold\b": "'called with …'",
    r"\b(?:is|are|was|were|be|been|gets) told (?!to\b|apart\b)": "'is called with …', 'receives …'",
    r"\bPrepare to prepare\b": "say what it does",
    r"\b[Rr]efuse (?:an? )?\w+(?: of \w+)? that (?:is|are)\b": "'Raises UsageError if …'",
    r"\bwhat (?:is|are|was)\b[^.;:|]{0,60}\bwhat (?:is|are|was)\b": "split the sentence",
    r"\b[Ww]hat (?:is|are|was|were) \w+ (?:is|are|was|were)\b": "name it",
    r"\b[Ww]hat (?:comes|fails) (?:is|raises)\b": "name it",
    r"\bstands? (?:there )?twice\b": "'appears twice'",
    r"\b(?:that|those) of\b[^.;:|]{0,60}\b(?:that|those) of\b": "split the sentence",
    r"\bmade[- ]up inputs?\b": "'synthetic inputs'",
    r"\b(?:courtesy|guardian)\b": "'throttle', 'supervisor'",
}
COMPILED = {
    re.compile(
        pattern.replace(" ", r"\s+").replace(r"(?<![Tt]here\s+)", r"(?<![Tt]here\s)")
    ): advice
    for pattern, advice in PHRASES.items()
}


@dataclass(frozen=True)
class Text:
    """Prose of a file, and the line that it begins in."""

    line: int
    text: str


def texts_of_python(source: str) -> Iterator[Text]:
    """String literals, joined where they stand side by side, and comments of several lines."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if literal or isinstance(node, ast.JoinedStr):
            text = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            yield Text(node.lineno, re.sub(r"[\"']\s*\n\s*[a-zA-Z]{0,2}[\"']", "\n", text))
    comments: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if comments and token.start[0] != comments[-1].start[0] + 1:
                yield _joined(comments)
                comments = []
            comments.append(token)
    if comments:
        yield _joined(comments)


def _joined(comments: list[tokenize.TokenInfo]) -> Text:
    return Text(comments[0].start[0], "\n".join(c.string.lstrip("#: ") for c in comments))


def found(texts: Iterator[Text] | list[Text]) -> list[str]:
    """``LINE: PHRASE: ADVICE`` for each phrase in texts."""
    faults = {}
    for text in texts:
        # A single blank between words, so that looking behind works; lines stay where they are.
        plain = re.sub(r"[ \t]*\n[ \t]*", "\n", text.text)
        for pattern, advice in COMPILED.items():
            for match in pattern.finditer(plain):
                line = text.line + plain.count("\n", 0, match.start())
                phrase = " ".join(match[0].split())
                faults[line, phrase] = f"{line}: {phrase!r}: {advice}"
    return [faults[key] for key in sorted(faults)]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_source_is_in_plain_english() -> None:
    faults = [
        f"{relative(path)}:{fault}"
        for path in SOURCES
        for fault in found(texts_of_python(path.read_text("utf-8")))
    ]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_documents_are_in_plain_english(page: Path) -> None:
    faults = found([Text(1, page.read_text("utf-8"))])
    assert not faults, "\n" + "\n".join(f"{relative(page)}:{fault}" for fault in faults)


@pytest.mark.parametrize(
    "text",
    [
        "batch_size is none",
        "a callback is none",
        "The arch is none of the search space.",
        "costs or bounds are none",
        "seed is no seed",
        "kinds is no sequence",
        "the branches are no search space",
        "Told what is being done.",
        "Who is told of a run",
        "Prepare to prepare.",
        "Refuse a share that is none.",
        "the sum of those of the block and those of its parts",
        "what is measured is what is served",
        "what is exported is a supernet",
        "0; what fails raises",
        "an id stands there twice",
        "made-up inputs",
    ],
)
def test_a_phrase_is_found(text: str) -> None:
    for space in (" ", "\n", "\n    "):
        assert found([Text(1, text.replace(" ", space))])
    assert found(texts_of_python(f'"""{text}"""'))
    assert found(texts_of_python(f"# {text}\n"))
    middle = text.rindex(" ")
    assert found(texts_of_python(f'f(\n    f"{text[:middle]} "\n    "{text[middle + 1 :]}"\n)'))
    assert found(texts_of_python(f"# {text[:middle]}\n# {text[middle + 1 :]}\n"))


@pytest.mark.parametrize(
    "text",
    [
        "there is none",
        "where there is no folder",
        "it is no longer read",
        "x is None",
        "the arch is not in the search space",
        "no value is given",
        "nodes are told apart by their names",
    ],
)
def test_plain_words_are_not(text: str) -> None:
    for space in (" ", "\n"):
        assert not found([Text(1, text.replace(" ", space))])


def test_a_fault_has_the_line_of_the_phrase() -> None:
    source = 'x = 1\n"""One line.\n\nThe seed\nis no seed.\n"""\n# A\n# share is\n# none\n'
    assert [fault.split(":")[0] for fault in found(texts_of_python(source))] == ["5", "8"]
