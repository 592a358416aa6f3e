"""A supernet computes what the model does, by whatever tiling, and leaves the model alone."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxelastic
from fxelastic import Supernet, UsageError
from fxelastic.branches import branch_kind
from fxelastic.ir.branch import Branch, Refusal
from fxelastic.ir.liveness import Liveness
from fxelastic.spec import Arch, BranchSpec, branch_id
from tests.branches.composed import all_composed, compose
from tests.models import CASES, ModelCase
from tests.models.captured import captured, grouped, partitioned
from tests.models.compare import assert_same_output, assert_unchanged, snapshot

NAMES = tuple(grouped(name) for name, item in CASES.items() if "slow" not in item.tags)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


class Net(nn.Module):
    """Four linear layers with a shortcut over two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.layers[0](x))
        y = torch.relu(self.layers[1](x))
        x = x + self.layers[2](y)
        x = torch.relu(self.layers[3](x))
        return {"logits": self.head(x), "features": x}


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def originals(partition: fxelastic.Partition) -> list[Branch]:
    return [b for b in branch_kind("original")().make(partition) if isinstance(b, Branch)]


def trainable(original: Branch) -> Branch:
    """A new branch of a block: one linear layer with a dropout."""
    spec = BranchSpec(f"new@{original.start}", "new", original.start, original.stop, 72, 0)
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    return dataclasses.replace(original, spec=spec, module=module)


def with_new_branches(model: nn.Module) -> Supernet:
    partition = fxelastic.partition(model, 0.3, X)
    made = originals(partition)
    torch.manual_seed(1)
    new = [trainable(branch) for branch in made if branch.n_params == 72]
    assert len(new) == 4
    return Supernet(partition, made + new)


def inputs(item: ModelCase, batch: int) -> Any:
    args, kwargs = item.inputs(batch)
    return copy.deepcopy((args, kwargs))


def call(module: Any, item: ModelCase, batch: int, **more: Any) -> Any:
    args, kwargs = inputs(item, batch)
    return module(*args, **kwargs, **more)


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_the_model_does(name: str) -> None:
    item = CASES[name]
    model, before = captured(name).model, captured(name).before
    partition = partitioned(name, 0.1)
    batches = (2, 3) if partition.dynamic_batch else (2,)

    supernet = Supernet(partition, originals(partition))
    subnet = supernet.subnet()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for batch in batches:
                # Without gradients, some of torch's own modules take a fast path that rounds
                # differently; the graph that was captured is the one with gradients.
                expected = call(model if grad else partition, item, batch)
                assert_same_output(call(supernet, item, batch), expected)
                assert_same_output(call(subnet, item, batch), expected)
    assert_unchanged(before, snapshot(model))
    own = {id(parameter) for parameter in model.parameters()}
    for module in (supernet, subnet):
        held = list(module.parameters())
        assert not {id(parameter) for parameter in held} & own
        assert len(held) == len(own) - len(partition.unused_params)
        assert sum(parameter.numel() for parameter in held) == partition.n_params


@pytest.mark.parametrize("name", NAMES)
def test_any_tiling_computes_what_the_model_does(name: str) -> None:
    """By branches that compute what the blocks do."""
    item = CASES[name]
    partition = partitioned(name, 0.1)
    # Over weights that require no gradients: torch rounds differently over those that do.
    trained = [p for p in captured(name).model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        check_tilings(partition, item)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def check_tilings(partition: fxelastic.Partition, item: ModelCase) -> None:
    composed = all_composed(partition, (1, 2, 5))
    supernet = Supernet(partition, [*originals(partition), *composed])
    archs = supernet.space.sample(5, seed=1)
    assert any("composed" in str(arch) for arch in archs)
    expected = call(partition, item, 2)
    for arch in archs:
        assert_same_output(call(supernet, item, 2, arch=arch), expected)
    assert_same_output(call(supernet.subnet(archs[0]), item, 2), expected)


def test_subnet_is_chosen_by_arch() -> None:
    supernet = with_new_branches(net())
    assert supernet.space.count() == 2**4
    outputs = {
        tuple(supernet(X, arch=arch)["logits"].flatten().tolist())
        for arch in set(supernet.space.sample(200))
    }
    assert len(outputs) == 2**4


def test_subnet_equals_its_path_in_the_supernet() -> None:
    supernet = with_new_branches(net())
    for arch in supernet.space.sample(8, seed=2):
        subnet = supernet.subnet(arch)
        assert_same_output(subnet(X), supernet(X, arch=arch))
        assert_same_output(subnet(x=X), supernet(X, arch=arch))
        assert subnet.meta["arch"] == str(arch)
        n_params = sum(parameter.numel() for parameter in subnet.parameters())
        assert n_params == sum(spec.n_params for spec in supernet.space.specs(arch))


def test_subnet_is_a_copy() -> None:
    model = net()
    supernet = with_new_branches(model)
    before = snapshot(model)
    arch = next(a for a in supernet.space.sample(50) if str(a).count("new") == 2)
    expected = supernet(X, arch=arch)
    subnet = supernet.subnet(arch)
    with torch.no_grad():
        for parameter in subnet.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    subnet.double()
    assert {parameter.dtype for parameter in subnet.parameters()} == {torch.float64}
    assert_same_output(supernet(X, arch=arch), expected)
    assert_unchanged(before, snapshot(model))
    again = copy.deepcopy(supernet.subnet(arch))
    del supernet
    assert_same_output(again(X), expected)


def test_subnet_can_be_interpreted_and_shows_its_shapes() -> None:
    supernet = with_new_branches(net())
    subnet = supernet.subnet()
    assert_same_output(fx.Interpreter(subnet).run(X), supernet(X))
    subnet.graph.lint()
    called = [n for n in subnet.graph.nodes if n.op == "call_module" and "original" in n.target]
    assert [node.meta["val"].shape[1] for node in called] == [8] * (len(called) - 1) + [3]


def test_gradients_reach_the_sampled_new_branches_only() -> None:
    model = net()
    supernet = with_new_branches(model)
    before = snapshot(model)
    seen = set()
    for arch in supernet.space.sample(20, seed=3):
        supernet.zero_grad()
        logits = supernet(X, arch=arch)["logits"]
        sampled = {branch.id for branch in supernet.path(arch) if not branch.frozen}
        logits.square().sum().backward()
        for branch in supernet.branches.values():
            for parameter in branch.module.parameters():
                assert (parameter.grad is not None) == (branch.id in sampled)
                assert parameter.requires_grad == (not branch.frozen)
        seen |= sampled
    assert len(seen) == 4  # the first among them: gradients pass through originals
    assert_unchanged(before, snapshot(model))


def test_originals_stay_in_eval_mode() -> None:
    supernet = with_new_branches(net())
    assert not any(module.training for module in supernet.modules())
    supernet.train()
    for branch in supernet.branches.values():
        assert all(module.training != branch.frozen for module in branch.module.modules())
    arch = next(a for a in supernet.space.sample(50) if 0 < str(a).count("new") < 4)
    modules = dict(supernet.subnet(arch).named_children())
    for branch in supernet.path(arch):
        assert modules[branch.id.replace("@", "_")].training != branch.frozen


def test_moving_the_supernet_leaves_the_model_where_it_was() -> None:
    model = net()
    before = snapshot(model)
    supernet = with_new_branches(model)
    supernet.double()
    supernet.requires_grad_(True)
    assert all(p.dtype is torch.float64 for p in supernet.parameters())
    assert_unchanged(before, snapshot(model))


def test_weights_share_memory_with_the_model() -> None:
    model = net()
    supernet = with_new_branches(model)
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    for branch in supernet.branches.values():
        for parameter in branch.module.parameters():
            assert (parameter.data_ptr() in pointers) == branch.frozen
    with torch.no_grad():
        model.head.bias.add_(1)
    assert_same_output(supernet(X), model(X))


def test_values_are_dropped_when_nothing_reads_them() -> None:
    supernet = with_new_branches(net())
    values = supernet.bind((X,), {})
    sizes = []
    for branch in supernet.path():
        supernet.run_branch(branch, values)
        sizes.append(len(values))
        live = Liveness(supernet.partition).live(branch.stop)
        assert sorted(values) == sorted(live)
    assert max(sizes) <= 2


def test_arch_of_another_space_is_refused() -> None:
    supernet = with_new_branches(net())
    with pytest.raises(UsageError, match="position 0 of the arch: there is no branch 'x'"):
        supernet(X, arch=Arch(("x",)))
    with pytest.raises(UsageError, match="arch must be an Arch"):
        supernet.subnet("original@0")  # type: ignore[arg-type]


def test_wrong_inputs_are_refused() -> None:
    supernet = with_new_branches(net())
    for module in (supernet, supernet.subnet()):
        with pytest.raises(UsageError, match=r"is not a tensor|structure"):
            module([1.0])
        with pytest.raises(UsageError, match="another shape or dtype"):
            module(torch.randn(3, 9))


def test_branch_that_reads_what_need_not_be_there_is_refused() -> None:
    partition = fxelastic.partition(net(), 0.3, X)
    made = originals(partition)
    liveness = Liveness(partition)
    inner = next(v for v in partition.blocks[1].outputs if v not in liveness.live(len(made) - 1))
    bad = dataclasses.replace(
        compose(partition, len(made) - 1, len(made)),  # type: ignore[type-var]
        inputs=(inner,),
    )
    with pytest.raises(UsageError, match=f"reads {inner!r}, which is not live before"):
        Supernet(partition, [*made, bad])


def test_branch_that_leaves_a_value_out_is_refused() -> None:
    partition = fxelastic.partition(net(), 0.3, X)
    made = originals(partition)
    for outputs in ((), ("nonsense",), (*made[0].outputs, made[1].outputs[0])):
        bad = dataclasses.replace(trainable(made[0]), outputs=outputs)
        with pytest.raises(UsageError, match="does not compute the values of its interval"):
            Supernet(partition, [*made, bad])


def test_missing_original_is_refused() -> None:
    partition = fxelastic.partition(net(), 0.3, X)
    with pytest.raises(UsageError, match="block 2 has no original branch"):
        Supernet(partition, [b for b in originals(partition) if b.start != 2])


def test_ids_that_look_alike_are_different_modules() -> None:
    partition = fxelastic.partition(net(), 0.3, X)
    made = originals(partition)
    new = [
        dataclasses.replace(
            trainable(made[0]), spec=dataclasses.replace(trainable(made[0]).spec, id=name)
        )
        for name in ("a.b", "a-b", "forward", "children")
    ]
    supernet = Supernet(partition, [*made, *new])
    n_own = sum(len(list(branch.module.parameters())) for branch in supernet.branches.values())
    assert len(list(supernet.parameters())) == n_own
    for branch in new:
        arch = Arch((branch.id, *supernet.space.original.branches[1:]))
        assert_same_output(supernet.subnet(arch)(X), supernet(X, arch=arch))


class ReturnsState(nn.Module):
    """Returns its input, a buffer and a parameter beside its result."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("scale", torch.arange(3.0))

    def forward(self, x: Tensor) -> Any:
        return x, self.layer(x), self.scale, self.layer.bias


def test_a_constant_and_an_input_may_be_results() -> None:
    model = ReturnsState().eval()
    supernet = fxelastic.expand(model, 1.0, example_inputs=X)
    assert_same_output(tuple(supernet(X)), tuple(t.detach() for t in model(X)))
    assert_same_output(supernet.subnet()(X), supernet(X))
    assert len(list(supernet.parameters())) == 2


def test_summary() -> None:
    partition = fxelastic.partition(net(), 0.3, X)
    made = originals(partition)
    new = dataclasses.replace(trainable(made[0]), approximate=True)
    supernet = Supernet(
        partition, [*made, new], [Refusal("shapes differ", "skip", 1, 2), Refusal("no reason")]
    )
    n = len(made)
    text = str(supernet)
    assert text.splitlines()[0] == f"Supernet of Net: {n} blocks, {n + 1} branches, 2 subnets"
    assert "new              1      72      -            1" in text
    assert "387 parameters, 1.23 × the model's 315" in text
    assert "2 branches not made:\n   1 × skip: shapes differ\n   1 × no reason" in text
    assert math.isclose(supernet.n_params / partition.n_params, 387 / 315)


def test_branch_tells_its_spec() -> None:
    partition = fxelastic.partition(net(), 0.3, X)
    branch = originals(partition)[1]
    assert (branch.id, branch.kind) == (branch_id("original", 1, 2), "original")
    assert (branch.start, branch.stop) == (1, 2)
    assert branch.n_params == partition.blocks[1].n_params
    assert branch.flops == partition.blocks[1].flops
    assert str(branch) == "original@1 [1, 2)"


def test_a_constant_result_may_be_named_as_a_method_is() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.load = nn.ModuleDict({"state": nn.ParameterDict({"dict": torch.ones(2)})})

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.linear(x), self.load["state"]["dict"]  # the node load_state_dict

    model, x = Net().eval(), torch.randn(4, 8)
    supernet = fxelastic.expand(model, 1.0, example_inputs=x)
    assert torch.equal(supernet(x)[1], model(x)[1])
    assert torch.equal(supernet.subnet()(x)[1], model(x)[1])
