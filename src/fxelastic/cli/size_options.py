"""The options ``--sizes``: from texts to sizes of inputs."""

from __future__ import annotations

from collections.abc import Sequence

from fxelastic.errors import UsageError


def sizes_to_measure(texts: Sequence[str]) -> dict[str, tuple[int, ...]] | None:
    """Read the values of ``--sizes`` of ``fxelastic profile``: ``seq=16,64,256``.

    Returns:
        The sizes by name; None without texts.

    Raises:
        UsageError: A text has another form, or a name is given twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, sign, values = text.partition("=")
        try:
            sizes = tuple(int(value) for value in values.split(","))
        except ValueError as e:
            raise _malformed(text, "NAME=SIZE,SIZE,…, such as seq=16,64,256") from e
        if not sign or name.strip() in found:
            raise _malformed(text, "NAME=SIZE,SIZE,…, such as seq=16,64,256, once for each name")
        found[name.strip()] = sizes
    return found or None


def sizes_of(text: str | None) -> dict[str, int] | None:
    """Read the value of ``--sizes`` of ``fxelastic search``: ``H=224,W=320``.

    Returns:
        The sizes by name; None without a text.

    Raises:
        UsageError: The text has another form, or gives a name twice.
    """
    if text is None:
        return None
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not value.strip().isdecimal() or name.strip() in found:
            raise _malformed(text, "NAME=SIZE for each name, such as seq=128 or H=224,W=320")
        found[name.strip()] = int(value)
    return found


def _malformed(text: str, expected: str) -> UsageError:
    return UsageError(f"--sizes can't be read: {text!r}", expected=expected, got=repr(text))
