"""What holds for every kind of branch on every test model; a new kind is tested for free."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx

from fxelastic.ir.graph_modules import FrozenGraphModule
from fxelastic.ir.liveness import Liveness
from fxelastic.ir.supernet import Supernet
from tests.branches.elsewhere import ELSEWHERE, NOT_WITHOUT_DATA, named, run_elsewhere
from tests.branches.expanded import LARGE, NAMES, WITH_PLAIN, Expanded, expanded, shared
from tests.models.captured import grouped
from tests.models.compare import assert_same_output, tensors

#: Models whose repeating units have interior channels.
MERGED = [
    "resnet18",
    "resnet50",
    "wide_resnet",
    "mobilenet_v2",
    "googlenet",
    "densenet",
    "squeezenet",
    "efficientnet",
    "convnext",
    "shufflenet_v2",
    "resnext_grouped",
    "xception",
    "vit",
    "vit_fused_qkv",
    "swin",
    "mlp_mixer",
    "gmlp",
    "bert",
    "albert",
    "gpt2",
    "llama",
    "t5",
    "functional_resnet",
]
PRUNED = [name for name in MERGED if name not in ("resnext_grouped",)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in (*NAMES, *WITH_PLAIN)
    ],
)
def case(request: pytest.FixtureRequest) -> Iterator[Expanded]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield shared(request.param)
    torch.set_num_threads(n_threads)


def test_the_original_path_is_the_model(case: Expanded) -> None:
    for batch_size in case.batch_sizes:
        args, kwargs = case.case.inputs(batch_size)
        again, again_kwargs = case.case.inputs(batch_size)
        assert_same_output(case.supernet(*args, **kwargs), case.model(*again, **again_kwargs))


def test_branches_give_what_their_intervals_give(case: Expanded) -> None:
    for batch_size in case.batch_sizes:
        values = case.values(batch_size)
        for branch in case.new:
            before = {n: values[n].clone() for n in (*branch.inputs, *branch.context)}
            with torch.no_grad():
                found = Expanded.run(branch, values)
            wanted = values[branch.outputs[0]]
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), branch.id
            assert found.isfinite().all() or not wanted.isfinite().all(), branch.id
            for name, value in before.items():
                assert torch.equal(values[name], value), f"{branch.id} writes to {name}"


def test_gradients_reach_the_sampled_branches_only(case: Expanded) -> None:
    for arch in archs(case, 3 if case.case.name in LARGE else 20):
        case.supernet.zero_grad(set_to_none=True)
        args, kwargs = case.case.inputs(2)
        outputs = [t for t in tensors(case.supernet(*args, arch=arch, **kwargs)) if t.requires_grad]
        used = {id(p) for b in case.supernet.path(arch) for p in learned(b.module)}
        if outputs:
            sum(t.float().nan_to_num().sum() for t in outputs).backward()  # type: ignore[union-attr]
        for name, parameter in case.supernet.named_parameters():
            if parameter.grad is not None:
                assert id(parameter) in used, f"{name} has a gradient in {arch}"
    assert all(p.grad is None for p in case.model.parameters())
    case.supernet.zero_grad(set_to_none=True)


def test_a_subnet_alone_is_the_subnet(case: Expanded) -> None:
    for arch in archs(case, 2 if case.case.name in LARGE else 5):
        alone = case.supernet.subnet(arch)
        args, kwargs = case.case.inputs(2)
        again, again_kwargs = case.case.inputs(2)
        with torch.no_grad():
            assert_same_output(
                alone(*args, **kwargs), case.supernet(*again, arch=arch, **again_kwargs)
            )
        of_the_path = sum(branch.n_params for branch in case.supernet.path(arch))
        shared = sum(p.numel() for p in {id(p): p for p in alone.parameters()}.values())
        assert shared <= of_the_path + _shared(case.supernet)


def test_branches_compute_on_another_device(case: Expanded) -> None:
    if case.case.name in NOT_WITHOUT_DATA:
        return
    values = case.values(2)
    for branch in case.supernet.branches.values():
        if isinstance(branch.module, fx.GraphModule) and not named(branch.module):
            continue  # It computes where its operands are.
        operands = [values[name] for name in (*branch.inputs, *branch.context)]
        result = run_elsewhere(copy.deepcopy(branch.module), operands)
        assert {t.device for t in tensors(result)} == {ELSEWHERE}, branch.id


def test_weights_are_the_branchs_own(case: Expanded) -> None:
    taken = {t.untyped_storage().data_ptr() for t in case.model.state_dict().values()} - {0}
    for branch in case.new:
        for name, value in branch.module.state_dict().items():
            pointer = value.untyped_storage().data_ptr()
            assert pointer == 0 or pointer not in taken, f"{branch.id}: {name} is not its own"
            taken.add(pointer)


def test_specs_tell_the_truth(case: Expanded) -> None:
    liveness = Liveness(case.supernet.partition)
    for branch in case.new:
        assert branch.n_params == sum(p.numel() for p in branch.module.parameters()), branch.id
        assert branch.outputs == liveness.outputs(branch.start, branch.stop)
        replaced = case.supernet.partition.blocks[branch.start : branch.stop]
        if branch.kind == "pruned":
            (block,) = replaced
            assert branch.flops < block.flops or not block.flops, branch.id
            assert branch.n_params < block.n_params + _elements(case, block.shared_params)
        if branch.kind == "merged":
            largest = max(b.n_params + _elements(case, b.shared_params) for b in replaced)
            added = sum(
                p.numel()
                for name, p in branch.module.named_parameters()
                if name.startswith("projection_")
            )
            assert branch.n_params - added <= largest, branch.id
            assert not added or f"{added:,}" in branch.note
    for skip in case.supernet.skips:
        assert skip.reason


def test_norms_obey_training(case: Expanded) -> None:
    case.supernet.train()
    for branch in case.supernet.branches.values():
        frozen = isinstance(branch.module, FrozenGraphModule)
        assert all(m.training != frozen for m in branch.module.modules()) or not frozen, branch.id
        norms = [m for m in branch.module.modules() if type(m).__name__ == "BatchNorm"]
        assert frozen or all(m.training for m in norms), branch.id
    case.supernet.eval()


@pytest.mark.parametrize("kind", ["merged", "pruned"])
def test_repeated_units_have_branches(case: Expanded, kind: str) -> None:
    found = [branch for branch in case.new if branch.kind == kind]
    if case.case.name in (MERGED if kind == "merged" else PRUNED):
        assert found, [skip.reason for skip in case.supernet.skips if skip.kind == kind]
    else:
        assert found or any(skip.kind == kind for skip in case.supernet.skips) or no_run(case)


@pytest.mark.parametrize("name", [grouped("efficientnet"), grouped("vit")])
def test_the_same_model_gives_the_same_branches(name: str) -> None:
    """From two captures of two models built alike."""
    one, other = shared(name), expanded(name)
    assert one.supernet.space == other.supernet.space
    for branch in one.new:
        again = other.supernet.branches[branch.id]
        assert_same_output(branch.module.state_dict(), again.module.state_dict())
        assert branch.note == again.note


def archs(case: Expanded, n: int) -> list[object]:
    return list(dict.fromkeys(case.supernet.space.sample(n, seed=1)))


def learned(module: torch.nn.Module) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad]


def no_run(case: Expanded) -> bool:
    replaceable = [b for b in case.supernet.partition.blocks if b.kind in ("basic", "oversize")]
    return len(replaceable) < 2


def _elements(case: Expanded, names: tuple[str, ...]) -> int:
    get = case.supernet.partition.graph_module.get_parameter
    return sum(get(name).numel() for name in names)


def _shared(supernet: Supernet) -> int:
    """Parameters that some block reads though an earlier one counts them."""
    get = supernet.partition.graph_module.get_parameter
    names = {name for block in supernet.partition.blocks for name in block.shared_params}
    return sum(get(name).numel() for name in names)
