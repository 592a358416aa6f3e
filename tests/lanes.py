"""The lanes that the tests run in: fast, all, exhaustive; see CONTRIBUTING.md.

The fast lane (``--fast``) runs every kind of check on models that differ in structure, and leaves
out what takes long. All of them are the default. The exhaustive lane takes also the models that
others stand for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

#: Set by ``FXELASTIC_EXHAUSTIVE=1``.
EXHAUSTIVE = bool(os.environ.get("FXELASTIC_EXHAUSTIVE"))

#: Test models that are left to the exhaustive lane, and the models with the same operators and
#: structure that stand for them.
STAND_INS = {
    "mobilenet_v2": ("efficientnet", "xception"),
    "resnet50": ("resnet18", "wide_resnet"),
    "vgg11": ("vgg11_small",),
}

#: The test models of the fast lane: together they have every tag but ``real`` and ``slow``.
FAST_MODELS = frozenset(
    {
        "resnext_grouped",
        "fpn_detector",
        "in_place_on_input",
        "functional_resnet",
        "vit",
        "albert",
        "gru_tagger",
        "gru_sequence_first",
        "dataclass_nested",
        "grad_mode_regions",
        "routed",
        "hooked",
        "fixed_features",
        "variadic_wrapper",
    }
)

#: Where an id begins so, a test takes more than a few seconds. The fast lane leaves it out; a run
#: of all tests begins with it, so that no worker is left alone with it at the end.
SLOW = (
    "tests/backends/test_conversion.py::test_only_branches_with_an_unknown_operator_are_named",
    "tests/backends/test_export.py::test_a_chain_of_files_computes_what_torch_does",
    "tests/backends/test_export.py::test_the_export_is_verified_at_once",
    "tests/backends/test_export_sweep.py",
    "tests/backends/test_fusion_rules.py",
    "tests/backends/test_fusion_safety.py",
    "tests/backends/test_kernels.py::test_modules_exported_together_are_those_exported_alone",
    "tests/backends/test_lowering.py::test_windows_and_rounded_sizes_are_exported",
    "tests/backends/test_operators.py",
    "tests/backends/quantisation/test_branches.py::"
    "test_operators_that_lose_most_stay_float_and_hopeless_branches_are_refused",
    "tests/backends/quantisation/test_branches.py::test_the_same_export_gives_the_same_bytes",
    "tests/backends/quantisation/test_models.py",
    "tests/backends/test_recurrent.py::test_a_projected_lstm_is_exported_from_given_states",
    "tests/backends/test_teacher.py::test_files_hold_for_no_row_one_row_and_many",
    "tests/branches/test_calibration.py",
    "tests/branches/test_folding.py::test_folded_weights_are_calibrated_trained_saved_and_exported",
    "tests/branches/test_kinds.py::test_another_packages_kind_takes_its_options_on_the_command_line",
    "tests/branches/test_new_branches.py::test_the_same_model_gives_the_same_branches",
    "tests/cli/test_check.py::test_a_real_model_end_to_end",
    "tests/cli/test_docs.py::test_a_stale_session_is_found",
    "tests/cli/test_docs.py::test_the_recipe_for_pytest_works",
    "tests/cli/test_examples_run.py",
    "tests/cli/test_interrupts.py",
    "tests/cli/test_run.py",
    "tests/cli/test_specialise.py",
    "tests/cli/test_train.py",
    "tests/edge/searching/test_strategies.py::test_the_optimum_of_a_small_space_is_found",
    "tests/edge/test_decoders.py",
    "tests/edge/test_replaced_files.py",
    "tests/edge/test_synthetic_inputs.py::test_a_profile_that_succeeds_prints_no_error_of_onnxruntime",
    "tests/edge/test_whole_inputs.py",
    "tests/faults",
    "tests/hostile",
    "tests/passes/test_canonical.py::test_memory_that_is_filled_in_parts",
    "tests/report/test_page.py::test_what_is_not_there_is_left_out",
    "tests/test_determinism.py",
    "tests/test_docs.py::test_python_blocks_run",
    "tests/test_examples.py",
    "tests/test_names_of_inputs.py::test_keyword_calls_work_whatever_the_inputs_are_called",
    "tests/test_pretrained_benchmark.py::test_every_step_leaves_what_the_report_shows",
    "tests/test_properties.py",
    "tests/test_search_benchmark.py",
    "tests/test_specialising.py::test_an_awkward_model_is_specialised_saved_captured_and_exported",
    "tests/train/test_examples.py",
    "tests/train/test_processes.py",
    "tests/train/test_resume.py",
    "tests/train/test_untouched.py",
)


def is_fast(nodeid: str, values: Iterable[object]) -> bool:
    """Whether a test is in the fast lane.

    Args:
        nodeid: Its id.
        values: What it is parametrised with; a name of a test model is for that model.
    """
    # Only here: it imports torch.
    from tests.models import CASES

    return not nodeid.startswith(SLOW) and _names(values).isdisjoint(CASES.keys() - FAST_MODELS)


def is_stood_for(values: Iterable[object]) -> bool:
    """Whether a test is for a model that others stand for.

    Args:
        values: See `is_fast`.
    """
    return not _names(values).isdisjoint(STAND_INS)


def _names(values: Iterable[object]) -> set[str]:
    return {value.partition(",")[0] for value in values if isinstance(value, str)}
