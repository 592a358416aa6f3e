"""Sentences of installed packages' documentation: their descriptions and docstrings."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

# This project's own sentences change with every commit.
_LEFT_OUT = ("fxelastic",)
_MOST = 150  # of a package
_LEAST = 20
_MOST_FILES = 400
_MOST_BYTES = 200_000
# A run of words that begins with a capital and ends with a full stop, in plain prose.
_SENTENCE = re.compile(r"(?<![^\s])[A-Z][A-Za-z0-9 ,;:'()/%-]{30,240}[a-z)]\.(?=\s|$)")


def sentences_by_package() -> dict[str, list[str]]:
    """The sentences of each installed package that has enough of them, in a random order.

    No sentence occurs twice. The same packages give the same sentences.
    """
    installed = {(d.metadata["Name"] or "").lower(): d for d in distributions()}
    found: dict[str, list[str]] = {}
    known: set[str] = set()
    for name, distribution in sorted(installed.items()):
        if not name or name in _LEFT_OUT:
            continue
        sentences: list[str] = []
        for text in _texts(name, distribution):
            for sentence in sentences_of(text):
                if sentence.lower() not in known:
                    known.add(sentence.lower())
                    sentences.append(sentence)
            if len(sentences) >= 4 * _MOST:
                break
        if len(sentences) >= _LEAST:
            random.Random(name).shuffle(sentences)
            found[name] = sentences[:_MOST]
    return found


def sentences_of_file(path: Path) -> dict[str, list[str]]:
    """The sentences of a text file, a line each; blank lines separate the sources."""
    parts = [part.splitlines() for part in re.split(r"\n\s*\n", path.read_text("utf-8"))]
    lines = [[line.strip() for line in part if line.strip()] for part in parts]
    return {f"{i:06}": part for i, part in enumerate(lines) if part}


def sentences_of(text: str) -> list[str]:
    """The sentences of plain prose in a text with any markup."""
    joined = re.sub(r"(?<=\S)[ \t]*\n[ \t]*(?=[a-z])", " ", text)
    found = (" ".join(match.group().split()) for match in _SENTENCE.finditer(joined))
    return [sentence for sentence in found if 6 <= len(sentence.split()) <= 40]


def _texts(name: str, distribution: Distribution) -> Iterator[str]:
    """The description of a package, then the docstrings of its modules in a random order."""
    yield str(distribution.metadata.json.get("description", ""))
    files = sorted(str(file) for file in distribution.files or () if file.suffix == ".py")
    random.Random(name).shuffle(files)
    for file in files[:_MOST_FILES]:
        path = Path(str(distribution.locate_file(file)))
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            continue
        try:
            module = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(module):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield ast.get_docstring(node) or ""
