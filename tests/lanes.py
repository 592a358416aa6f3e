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

#: Where an id begins so, a test takes more than a second, or the tests of a file some seconds. The
#: fast lane leaves them out; a run of all tests begins with them, so that no worker is left alone
#: with one at the end.
SLOW = (
    "tests/backends/quantisation/test_branches.py",
    "tests/backends/quantisation/test_models.py",
    "tests/backends/test_choices.py",
    "tests/backends/test_conversion.py::test_only_branches_with_an_unknown_operator_are_named",
    "tests/backends/test_default_scores.py",
    "tests/backends/test_export.py::test_a_chain_of_files_computes_what_torch_does",
    "tests/backends/test_export.py::test_the_export_is_verified_at_once",
    "tests/backends/test_export_advice.py",
    "tests/backends/test_export_sweep.py",
    "tests/backends/test_fusion_rules.py",
    "tests/backends/test_fusion_safety.py",
    "tests/backends/test_graph_fixes.py",
    "tests/backends/test_half_storage.py",
    "tests/backends/test_kernels.py::test_modules_exported_together_are_those_exported_alone",
    "tests/backends/test_lowering.py::test_a_batch_that_is_parted_is_exported",
    "tests/backends/test_lowering.py::test_windows_and_rounded_sizes_are_exported",
    "tests/backends/test_operators.py",
    "tests/backends/test_parity.py",
    "tests/backends/test_recurrent.py",
    "tests/backends/test_retrained_bundles.py",
    "tests/backends/test_sizes.py",
    "tests/backends/test_staging.py::test_another_process_that_writes_the_same_folder_is_named",
    "tests/backends/test_staging.py::test_kill_9_leaves_the_old_folder_or_none",
    "tests/backends/test_teacher.py::test_files_hold_for_no_row_one_row_and_many",
    "tests/backends/test_translations.py::test_a_mixture_of_experts_is_exported",
    "tests/branches/operators/test_block_operators.py::"
    "test_all_kinds_are_saved_loaded_and_exported",
    "tests/branches/operators/test_nested_ranks.py::test_files_hold_the_weights_once",
    "tests/branches/test_caches.py::test_each_kind_keeps_its_part_of_the_cache",
    "tests/branches/test_calibration.py",
    "tests/branches/test_exits.py",
    "tests/branches/test_folding.py",
    "tests/branches/test_kinds.py::"
    "test_another_packages_kind_takes_its_options_on_the_command_line",
    "tests/branches/test_new_branches.py::test_the_same_model_gives_the_same_branches",
    "tests/branches/test_plain_kind.py",
    "tests/branches/test_registry.py::test_kinds_are_imported_when_asked_for",
    "tests/branches/test_sizes.py",
    "tests/cli/test_app.py::test_closed_pipe_is_silent",
    "tests/cli/test_app.py::test_names_that_the_terminal_cannot_show_are_escaped",
    "tests/cli/test_check.py::test_a_real_model_end_to_end",
    "tests/cli/test_docs.py::test_a_stale_session_is_found",
    "tests/cli/test_docs.py::test_sessions_print_what_the_page_shows",
    "tests/cli/test_docs.py::test_the_recipe_for_pytest_works",
    "tests/cli/test_examples_run.py",
    "tests/cli/test_interrupts.py",
    "tests/cli/test_run.py",
    "tests/cli/test_serve_http.py",
    "tests/cli/test_specialise.py",
    "tests/cli/test_train.py",
    "tests/edge/cascades/test_guarantee.py::"
    "test_over_many_splits_the_loss_is_rarely_above_the_limit",
    "tests/edge/searching/test_evaluation.py",
    "tests/edge/searching/test_own_answers.py",
    "tests/edge/searching/test_schedule.py",
    "tests/edge/searching/test_strategies.py",
    "tests/edge/serving/test_background_preparation.py",
    "tests/edge/serving/test_chaos.py",
    "tests/edge/test_bombs.py",
    "tests/edge/test_bundle_tampering.py::test_a_mutated_manifest_loads_or_is_refused",
    "tests/edge/test_decoders.py",
    "tests/edge/test_empty_rows.py",
    "tests/edge/test_memory.py::test_many_subnets_at_a_large_batch_take_little_memory",
    "tests/edge/test_private_folder.py",
    "tests/edge/test_replaced_files.py",
    "tests/edge/test_synthetic_inputs.py",
    "tests/edge/test_whole_inputs.py",
    "tests/faults",
    "tests/hostile",
    "tests/ir/test_copyable.py::test_the_other_stages_and_subnets_are_copied",
    "tests/ir/test_graph_modules.py::test_what_is_moved_moves_its_operators",
    "tests/passes/test_canonical.py::test_memory_that_is_filled_in_parts",
    "tests/passes/test_capture_advice.py",
    "tests/passes/test_sizes.py::test_a_size_that_data_and_an_input_tell_ties_no_layers_together",
    "tests/report/test_page.py",
    "tests/test_acceptance.py::test_mobilenet_v2_has_one_block_per_inverted_residual",
    "tests/test_acceptance.py::test_resnet50_has_one_block_per_bottleneck",
    "tests/test_determinism.py",
    "tests/test_docs.py::test_python_blocks_run",
    "tests/test_examples.py",
    "tests/test_extras.py::test_a_device_works_without_torch",
    "tests/test_model_cases.py::test_published_architectures_have_their_published_sizes",
    "tests/test_names_of_inputs.py",
    "tests/test_names_of_parts.py::test_a_name_that_a_graph_module_has_for_itself_works",
    "tests/test_pretrained_benchmark.py::test_every_step_leaves_what_the_report_shows",
    "tests/test_properties.py",
    "tests/test_search_benchmark.py",
    "tests/test_specialising.py::test_an_awkward_model_is_specialised_saved_captured_and_exported",
    "tests/train/test_empty_rows.py",
    "tests/train/test_examples.py",
    "tests/train/test_held_out.py",
    "tests/train/test_interpolation.py",
    "tests/train/test_optimisation.py",
    "tests/train/test_processes.py",
    "tests/train/test_resume.py",
    "tests/train/test_stages.py",
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
