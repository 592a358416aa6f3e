"""The comparison finds every difference, and says in words what a person would say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxelastic.ir import Partition
from fxelastic.ir.diff import TextDiff, settings
from fxelastic.ir.text import FORMAT_VERSION, to_text
from tests.ir.hand_written import convolutional, tied


def changed(block: str, **fields: object) -> Partition:
    """The convolutional partition with some fields of one block replaced."""
    made = convolutional()
    blocks = tuple(replace(b, **fields) if b.name == block else b for b in made.blocks)
    return replace(made, blocks=blocks)


def compare(actual: Partition, golden: Partition | None = None) -> TextDiff:
    return TextDiff(to_text(golden or convolutional()), to_text(actual))


def test_equal_texts_have_no_differences() -> None:
    diff = compare(convolutional())
    assert diff.equal
    assert diff.summary() == []
    assert diff.report() == ""
    assert diff.unified() == ""


def test_line_ends_are_no_difference() -> None:
    text = to_text(convolutional())
    assert TextDiff(text.replace("\n", "\r\n"), text).equal


def test_every_line_matters() -> None:
    """The comparator must fail whichever line is changed, dropped or doubled."""
    text = to_text(tied())
    lines = text.splitlines()
    for i, line in enumerate(lines):
        for spoilt in ([line + "x"], [], [line, line]):
            other = "\n".join([*lines[:i], *spoilt, *lines[i + 1 :]]) + "\n"
            diff = TextDiff(other, text)
            assert not diff.equal
            assert diff.summary()
            assert diff.unified()


def test_changed_parameters_and_boundaries_are_named() -> None:
    diff = compare(changed("body", n_params=999, output="body_conv", outputs=("body_bn",)))
    assert [str(change) for change in diff.changed] == ["body: params 152 -> 999"]
    assert [change.key for change in diff.settings] == ["parameters", "cap"]
    diff = compare(changed("stem", inputs=("mask",)))
    (change,) = diff.changed
    assert change.name == "stem"
    assert change.golden == "float32[2, 3, 8, 8] from input x"
    assert change.actual == "float32[2, 4, 1, 1] from input mask"


def test_a_change_of_operators_is_said_shortly() -> None:
    diff = compare(changed("stem", nodes=("stem_conv", "stem_bn")))
    assert diff.summary() == ["block changed: stem: operators 3 -> 2 (see the diff)"]
    assert "-  operators   3: conv2d batch_norm relu" in diff.report()


def test_vanished_and_appeared_blocks() -> None:
    made = convolutional()
    fewer = replace(made, blocks=tuple(b for b in made.blocks if b.name != "body"))
    diff = compare(fewer)
    assert (diff.vanished, diff.appeared) == (("body",), ())
    line = "block vanished: body (basic, 152 parameters, output float32[2, 4, 8, 8])"
    assert line in diff.summary()
    diff = compare(made, golden=fewer)
    assert (diff.vanished, diff.appeared) == ((), ("body",))


def test_a_renamed_block_is_not_a_changed_neighbour() -> None:
    diff = compare(changed("stem", name="root"))
    assert diff.renamed == (("stem", "root"),)
    assert diff.changed == ()
    assert diff.summary() == ["block renamed: stem -> root"]


def test_a_block_of_the_same_content_elsewhere_is_not_a_renamed_one() -> None:
    made = convolutional()
    *others, head = made.blocks
    copy = replace(made.blocks[2], name="copy")
    without = tuple(block for block in others if block.name != "body")
    diff = compare(replace(made, blocks=(*without, copy, head)))
    assert diff.renamed == ()
    assert (diff.vanished, diff.appeared) == (("body",), ("copy",))


def test_moved_blocks() -> None:
    made = convolutional()
    diff = compare(replace(made, blocks=(made.blocks[1], made.blocks[0], *made.blocks[2:])))
    assert diff.moved
    assert diff.summary() == ["the blocks are in another order"]


def test_settings_are_compared() -> None:
    diff = compare(replace(convolutional(), gamma=0.3))
    assert [str(change) for change in diff.settings] == ["gamma 0.6 -> 0.3", "cap 172 -> 86"]


def test_soft_fusions_are_compared() -> None:
    diff = compare(replace(tied(), soft_fusions=()), golden=tied())
    assert diff.summary() == ["soft fusions or unused parameters changed"]


def test_many_changes_are_counted() -> None:
    made = convolutional()
    copies = [replace(made.blocks[2], name=f"copy{i}") for i in range(30)]
    diff = compare(replace(made, blocks=(*made.blocks, *copies)))
    assert sum(line.startswith("block appeared") for line in diff.summary()) == 10
    assert "blocks appeared: 20 more" in diff.summary()


def test_a_long_diff_is_cut_and_says_so() -> None:
    report = TextDiff(to_text(tied()), to_text(convolutional())).report(max_lines=5)
    assert report.splitlines()[-1].startswith("... and ")


@pytest.mark.parametrize("other", ["", "something else\n", "<<<<<<< HEAD\n"])
def test_another_file_is_recognised(other: str) -> None:
    diff = TextDiff(other, to_text(convolutional()))
    assert not diff.equal
    assert diff.summary() == ["the golden file is not a partition text of fxelastic"]
    assert settings(other) == {}


def test_another_format_is_recognised() -> None:
    text = to_text(convolutional())
    old = text.replace(f"format {FORMAT_VERSION}", "format 0")
    (line,) = TextDiff(old, text).summary()
    assert line.startswith("the golden file has format 0, fxelastic writes 1 now")


def test_settings_of_a_text() -> None:
    header = settings(to_text(convolutional()))
    assert header["gamma"] == "0.6"
    assert header["fusion"] == "test"


def test_continued_lines_belong_to_their_entry() -> None:
    reason = "because " * 40
    made = changed("join", reason=reason)
    (change,) = compare(made).changed
    assert change.actual == reason.strip()
