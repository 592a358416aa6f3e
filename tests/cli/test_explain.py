"""``fxelastic explain``: what it prints, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fxelastic.cli import main
from fxelastic.cli.explain_json import SCHEMA, report
from fxelastic.cli.explain_text import sections
from fxelastic.ir import Block, Partition, UntakenCut
from tests.cli.commands import fxelastic
from tests.cli.conftest import Partitioner
from tests.ir.hand_written import convolutional, gated, relative_bias, tied


def text(partition: Partition, *, all_cuts: bool = False) -> str:
    return "\n".join(sections(partition, all_cuts=all_cuts))


def test_table_comes_first() -> None:
    assert text(tied()).startswith(str(tied()))


def test_oversize_blocks_have_their_reasons() -> None:
    assert "nothing to cut at\n  a (80.0 %): one operator\n" in text(tied())


def test_glue_is_grouped_by_reason() -> None:
    assert "\n  one operator with parameters joins two streams: both" in text(gated())


def test_contexts_have_types_and_readers() -> None:
    out = text(convolutional())
    assert "\n  mask float32[2, 4, 1, 1]: read by head" in out
    assert "\n  input mask float32[2, 4, 1, 1]: read by mask" in out
    assert "\n  bias float32[4, 4]: read by layer" in text(relative_bias())


def test_soft_fusions_are_listed() -> None:
    assert "\n  1 x add-norm: the add is glue (sum -> b)" in text(tied())


def test_opaque_and_unused_are_listed() -> None:
    out = text(replace(tied(), opaque=(("odd.cell", "a loop"),), unused_params=("aux.weight",)))
    assert "\n  odd.cell: a loop" in out
    assert "\n  aux.weight" in out


def test_sections_without_content_are_left_out() -> None:
    out = text(relative_bias())
    for word in ("oversize:", "glue:", "soft fusions", "opaque", "unused", "cuts not taken"):
        assert word not in out


def test_cuts_are_grouped_by_reason_and_listed_when_asked_for() -> None:
    reasons = [
        "stem_conv and 116 parameters of net.0.stem fit",
        "body_conv and 1,520 parameters of net.11.stem fit",
        "something else",
    ]
    names = ["stem", "body", "stem"]
    cuts = tuple(UntakenCut(f"v{i}", names[i], reasons[i]) for i in range(3))
    made = replace(convolutional(), untaken_cuts=cuts)
    grouped = text(made)
    line = "2 x conv2d and 116 to 1,520 parameters of net.*.stem fit (in stem, body)"
    assert f"\n  {line}\n  1 x something else (in stem)\n  --cuts lists each" in grouped
    listed = text(made, all_cuts=True)
    for i in range(3):
        assert f"\n  {names[i]} at v{i}: {reasons[i]}" in listed
    assert "--cuts lists each" not in listed


def test_long_lists_of_names_are_cut() -> None:
    made = convolutional()
    glue = [replace(made.blocks[3], name=f"join{i}", reason="joins") for i in range(9)]
    out = text(replace(made, blocks=(*made.blocks, *glue)))
    assert "joins: join0, join1 and 7 more" in out


def test_json_report_is_complete() -> None:
    made = tied()
    data = json.loads(json.dumps(report(made)))
    assert data["schema"] == SCHEMA
    assert data["n_params"] == sum(block["n_params"] for block in data["blocks"]) == 20
    assert [block["name"] for block in data["blocks"]] == ["a", "sum", "b"]
    # Every field of a block is there, the single input and output as members of the lists.
    fields = set(Block.__dataclass_fields__) - {"input", "output"}
    assert fields <= set(data["blocks"][0])
    first = data["blocks"][0]
    assert first["reason"] == "one operator"
    assert first["share"] == 0.8
    assert first["inputs"] == [
        {"name": "x", "source": "input x", "dtype": "float32", "shape": ["2", "6", "4"]}
    ]
    assert data["blocks"][2]["shared_params"] == ["w"]
    assert data["soft_fusions"] == [
        {"rule": "add-norm", "producer": "added", "consumer": "normed", "reason": "the add is glue"}
    ]
    for name in ("untaken_cuts", "unused_params", "opaque", "warnings", "inputs", "results"):
        assert isinstance(data[name], list)


def test_options_reach_the_partitioner(partitioner: Partitioner) -> None:
    argv = ["explain", "model.py:build", "--model-arg", "depth=1", "--gamma", "0.25"]
    argv += ["--fusion", "none", "--example-input", "x=1x3x16x16"]
    assert main(argv) == 0
    (call,) = partitioner.calls
    assert len(call["model"].body) == 1
    assert (call["gamma"], call["fusion"]) == (0.25, "none")
    assert list(call["example_inputs"]) == ["x"]


def test_defaults(partitioner: Partitioner) -> None:
    assert main(["explain", "model.py:build"]) == 0
    (call,) = partitioner.calls
    del call["model"]
    given = ("example_inputs", "batched", "dynamic_shapes")
    assert call == {"gamma": 0.1, "fusion": "onnxruntime", **dict.fromkeys(given)}


def test_stdout_holds_the_report_alone(
    partitioner: Partitioner, capsys: pytest.CaptureFixture[str]
) -> None:
    """Symptom: what the model's code prints gets between the lines of the JSON."""
    partitioner.result = replace(partitioner.result, warnings=("something to know",))
    assert main(["explain", "model.py:build", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["warnings"] == ["something to know"]
    assert "printed while building" in captured.err
    assert "fxelastic: warning: something to know" in captured.err
    assert "fxelastic: loading model.py:build" in captured.err


def test_quiet(partitioner: Partitioner, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "model.py:instance", "--quiet"]) == 0
    assert "fxelastic:" not in capsys.readouterr().err


def test_dot_to_stdout_and_to_a_file(
    partitioner: Partitioner, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "model.py:build", "--dot"]) == 0
    dot = capsys.readouterr().out
    assert dot.startswith('digraph "Net" {')
    assert dot.endswith("}\n")
    assert main(["explain", "model.py:build", "--dot", "net.dot"]) == 0
    assert (folder / "net.dot").read_text() == dot
    assert "5 blocks" in capsys.readouterr().out
    assert main(["explain", "model.py:build", "--dot", "net.dot", "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_dot_that_cannot_be_written(
    partitioner: Partitioner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "model.py:build", "--dot", "nowhere/net.dot"]) == 2
    assert "can't write nowhere/net.dot" in capsys.readouterr().err


def test_dot_and_json_do_not_share_stdout(
    partitioner: Partitioner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "model.py:build", "--json", "--dot"]) == 2
    assert partitioner.calls == []
    assert "both want stdout" in capsys.readouterr().err


def test_a_real_model_end_to_end(folder: Path) -> None:
    done = fxelastic(
        "explain", "model.py:build", "--gamma", "0.5", "--example-input", "2x3x16x16", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Net: 2,021 parameters (P0), gamma 0.5")
    assert any(line.startswith("stem") and "[N, 3, 16, 16]" in line for line in lines)
    assert "printed" not in done.stdout


def test_a_real_model_without_example_inputs_as_json(folder: Path) -> None:
    done = fxelastic("explain", "model:build", "--json", "--model-arg", "depth=1", cwd=folder)
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    model_params = sum(p.numel() for p in torch.nn.Conv2d(3, 8, 3).parameters()) + 584 + 45
    assert data["n_params"] == model_params
    assert data["inputs"][0]["shape"][:2] == ["N", "3"]
