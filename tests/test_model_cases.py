"""Every test model is deterministic, runs, and is what its tags say."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tests.models import CASES, TAGS, ModelCase, case, collect
from tests.models.captured import grouped
from tests.models.compare import assert_same_output, tensors

NAMES = tuple(grouped(name) for name in CASES)
EXPORTABLE = tuple(
    grouped(name) for name, item in CASES.items() if "no-plain-export" not in item.tags
)
BATCHES = (1, 2, 3)


@lru_cache(maxsize=1)
def built(name: str) -> nn.Module:
    """A model for tests that only call it."""
    return case(name).build()


def batch_dim(item: ModelCase) -> int:
    """The dimension that holds the batch."""
    return 1 if "batch-dim-1" in item.tags else 0


def run(model: nn.Module, item: ModelCase, batch: int) -> Any:
    """The model's output on fresh inputs."""
    args, kwargs = item.inputs(batch)
    return model(*args, **kwargs)


def map_tensors(value: Any, spec: Any) -> Any:
    """The same structure with ``spec`` in place of each tensor and ``None`` of all else."""
    if isinstance(value, Tensor):
        return spec
    if isinstance(value, dict):
        return {key: map_tensors(part, spec) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(part, spec) for part in value)
    return None


def export(model: nn.Module, item: ModelCase, dynamic: bool) -> ExportedProgram:
    """``torch.export`` at batch 2."""
    args, kwargs = item.inputs(2)
    shapes = None
    if dynamic:
        bound = inspect.signature(model.forward).bind(*args, **kwargs).arguments
        shapes = map_tensors(dict(bound), {batch_dim(item): Dim.AUTO})
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)


def parameter_uses(model: nn.Module, program: ExportedProgram) -> dict[Tensor, int]:
    """How many operators of the graph read each parameter object."""
    placeholders = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    uses: dict[Tensor, int] = defaultdict(int)
    for name, target in program.graph_signature.inputs_to_parameters.items():
        uses[model.get_parameter(target)] += len(placeholders[name].users)
    return uses


def targets(program: ExportedProgram) -> list[Any]:
    """The targets of all calls, those in subgraphs too."""
    return [
        node.target
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if node.op == "call_function"
    ]


def mutates(target: Any) -> bool:
    """Whether an operator writes to an argument."""
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are too small for threads to pay."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.mark.parametrize("name", NAMES)
def test_builds_the_same_model_every_time(name: str) -> None:
    state = torch.get_rng_state()
    first, second = case(name).build(), case(name).build()
    assert torch.equal(torch.get_rng_state(), state)
    assert first is not second
    assert not any(module.training for module in first.modules())
    assert_same_output(dict(first.state_dict()), dict(second.state_dict()))
    assert_same_output(case(name).inputs(2), case(name).inputs(2))
    assert_same_output(run(first, case(name), 2), run(second, case(name), 2))


@pytest.mark.parametrize("name", NAMES)
def test_runs_at_every_batch_size(name: str) -> None:
    item, model = case(name), built(name)
    for batch in BATCHES:
        found = tensors(run(model, item, batch))
        assert found
        for tensor in found:
            assert tensor.shape[batch_dim(item)] == batch
            assert tensor.isfinite().all()
        if batch == 1:
            continue
        for tensor in found:
            if tensor.is_floating_point():  # a dead network would hide every mistake
                spread = tensor.std(dim=batch_dim(item)).mean()
                assert spread > 1e-3 * tensor.abs().max(), "all samples give the same output"


@pytest.mark.parametrize("name", NAMES)
def test_signature_tags_are_true(name: str) -> None:
    item, model = case(name), built(name)
    args, kwargs = item.inputs(2)
    inputs = tensors([args, kwargs])
    before = [tensor.clone() for tensor in inputs]
    output = model(*args, **kwargs)
    mutated = any(not torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    simple = isinstance(output, Tensor) or (
        type(output) is tuple and all(isinstance(part, Tensor) for part in output)
    )
    found = {
        "multi-input": len(inputs) > 1,
        "kwargs": bool(kwargs),
        "multi-output": len(tensors(output)) > 1,
        "nested-output": not simple,
        "int-input": not inputs[0].is_floating_point(),
        "mutates-input": mutated,
        "hooks": hooks,
    }
    assert {tag for tag in found if found[tag]} == item.tags & found.keys()


@pytest.mark.parametrize("name", NAMES)
def test_symbolic_trace_fails_where_the_tag_says_so(name: str) -> None:
    try:
        torch.fx.symbolic_trace(built(name))
    except Exception:  # noqa: BLE001  # whatever the tracer meets first
        traced = False
    else:
        traced = True
    assert traced == ("no-symbolic-trace" not in case(name).tags)


@pytest.mark.parametrize("name", EXPORTABLE)
def test_exports(name: str) -> None:
    item, model = case(name), built(name)
    dynamic = "no-dynamic-export" not in item.tags
    program = export(model, item, dynamic)
    module = program.module()
    for batch in (2, 3, 5) if dynamic else (2,):
        assert_same_output(run(module, item, batch), run(model, item, batch))

    uses = parameter_uses(model, program)
    calls = targets(program)
    found = {
        "shared": any(count > 1 for count in uses.values()),
        "unused-params": any(uses[parameter] == 0 for parameter in model.parameters()),
        "inplace": any(mutates(target) for target in calls),
        "higher-order": any(isinstance(t, torch._ops.HigherOrderOperator) for t in calls),
    }
    assert {tag for tag in found if found[tag]} == item.tags & found.keys()


@pytest.mark.parametrize("name", [n for n in CASES if "no-plain-export" in CASES[n].tags])
def test_export_fails_where_the_tag_says_so(name: str) -> None:
    with pytest.raises((RuntimeError, torch._dynamo.exc.UserError)):
        export(case(name).build(), case(name), dynamic=False)


@pytest.mark.parametrize("name", [n for n in CASES if "no-dynamic-export" in CASES[n].tags])
def test_dynamic_export_fails_where_the_tag_says_so(name: str) -> None:
    with pytest.raises(AssertionError, match="tree_name"):
        export(case(name).build(), case(name), dynamic=True)


def test_published_architectures_have_their_published_sizes() -> None:
    published = {
        "resnet18": 11_689_512,
        "resnet50": 25_557_032,
        "mobilenet_v2": 3_504_872,
        "vgg11": 132_863_336,
    }
    assert {n for n in CASES if "real" in CASES[n].tags} == published.keys()
    for name, n_params in published.items():
        assert sum(p.numel() for p in case(name).build().parameters()) == n_params


def test_registry() -> None:
    assert len(CASES) >= 40
    assert all(name == item.name for name, item in CASES.items())
    assert {tag for item in CASES.values() for tag in item.tags} == TAGS.keys()
    with pytest.raises(KeyError, match="no model case 'resnet51'; there are resnet18"):
        case("resnet51")
    with pytest.raises(ValueError, match="two model cases are called 'resnet18'"):
        collect([CASES["resnet18"], CASES["resnet18"]])
