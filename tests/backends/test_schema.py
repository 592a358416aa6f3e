"""docs/bundle.schema.json and docs/bundle.md describe what an export writes."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.backends.exported import bundle
from tests.edge.bundles import manifest

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCHEMA = json.loads((DOCS / "bundle.schema.json").read_text("utf-8"))
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def problems(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """What a value breaks of a schema, by the keywords that this one has."""
    if "anyOf" in schema:
        found = [problems(value, option, path) for option in schema["anyOf"]]
        return [] if [] in found else found[0]
    if "const" in schema or "enum" in schema:
        return [] if value in schema.get("enum", [schema.get("const")]) else [f"{path}: {value!r}"]
    kind = TYPES[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and schema["type"] != "boolean"):
        return [f"{path}: {value!r} is no {schema['type']}"]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        missing = [f"{path}: no {key}" for key in schema.get("required", ()) if key not in value]
        unknown = [f"{path}.{key}: unknown" for key in value if key not in known and rest is False]
        inner = [
            p for k in value if k in known for p in problems(value[k], known[k], f"{path}.{k}")
        ]
        if isinstance(rest, dict):
            inner += [
                p for k in value if k not in known for p in problems(value[k], rest, f"{path}.{k}")
            ]
        return missing + unknown + inner
    if isinstance(value, list):
        within = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        inner = [
            p for i, v in enumerate(value) for p in problems(v, schema["items"], f"{path}[{i}]")
        ]
        return inner if within else [f"{path}: {len(value)} items", *inner]
    if isinstance(value, str):
        return [] if re.search(schema.get("pattern", ""), value) else [f"{path}: {value!r}"]
    if value is None or isinstance(value, bool):
        return []
    inside = schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return [] if inside else [f"{path}: {value!r}"]


@pytest.mark.parametrize(
    "name",
    [
        # The worker of this group has exported it for other tests.
        pytest.param("fpn_detector", marks=pytest.mark.xdist_group("export of fpn_detector")),
        "late_write",
    ],
)
def test_what_is_exported_keeps_to_the_schema(name: str) -> None:
    written = json.loads((bundle(name).path / "manifest.json").read_text("utf-8"))
    assert problems(written, SCHEMA) == []


def test_it_keeps_to_the_schema_without_verification() -> None:
    assert problems(json.loads(manifest().to_json()), SCHEMA) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("model", "digest"), "0"),
        (("branches", 0, "start"), -1),
        (("branches", 0, "file"), "../x"),
        (("branches", 0, "file"), "/x"),
        (("branches", 0, "surplus"), 1),
        (("blocks",), []),
        (("values", 0, "dtype"), "float8"),
        (("inputs",), "x"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(path: tuple[Any, ...], value: object) -> None:
    changed = copy.deepcopy(json.loads(manifest().to_json()))
    *owners, last = path
    owner = changed
    for key in owners:
        owner = owner[key]
    owner[last] = value
    assert problems(changed, SCHEMA)


def test_the_page_names_every_field() -> None:
    page = (DOCS / "bundle.md").read_text("utf-8")
    fields = [*SCHEMA["properties"], *SCHEMA["properties"]["branches"]["items"]["properties"]]
    assert [field for field in fields if f"`{field}`" not in page] == []
