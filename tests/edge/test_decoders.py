"""Decoders on the device: generation token by token, and caches that belong to a subnet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from fxelastic import Supernet, edge, export
from fxelastic.edge.executor import Executor
from fxelastic.edge.pool import PoolEntry, SubnetPool
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.manifest import Manifest
from tests.backends.test_schema import SCHEMA, problems
from tests.decoders import VOCABULARY, inputs_of, supernet_of

Run = Callable[[dict[str, Any]], Any]
PROMPT = np.array([[7, 3, 11, 2, 5]])
N_TOKENS = 12


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Supernet, edge.Bundle]:
    whole = supernet_of("llama")
    kinds = ("original", "pruned", "skip")
    branches = [b for b in whole.branches.values() if b.kind in kinds and "25" not in b.id]
    supernet = Supernet(whole.partition, branches)
    return supernet, export(supernet, tmp_path_factory.mktemp("decoders") / "bundle")


def generated(bundle: edge.Bundle, arch: Arch, run: Run) -> list[int]:
    """The tokens of a greedy generation."""
    past, ids, found = bundle.first_cache(arch), PROMPT, []
    for _ in range(N_TOKENS):
        results = run({"ids": ids, **past})
        past, ids = bundle.next_cache(results), results[0][:, -1:].argmax(-1)
        found.append(int(ids[0, 0]))
    return found


def in_torch(supernet: Supernet, arch: Arch) -> Run:
    """A step of a subnet in torch, with the device's names."""

    def run(feeds: dict[str, Any]) -> Any:
        flat = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in feeds.items()}
        past = [(flat[f"past_{i}_0"], flat[f"past_{i}_1"]) for i in range(2)]
        with torch.no_grad():
            logits, present = supernet(flat["ids"], past, arch=arch)
        return [logits.numpy(), *(part.numpy() for pair in present for part in pair)]

    return run


def of_kind(supernet: Supernet, kind: str) -> Arch:
    """The subnet of a layer's branch and originals."""
    branch = next(b for b in supernet.branches.values() if b.id.startswith(f"{kind}@"))
    ids = [b.id for b in supernet.path() if not branch.start <= b.start < branch.stop]
    return Arch((*ids[: branch.start], branch.id, *ids[branch.start :]))


@pytest.mark.parametrize("kind", ["original", "pruned50", "skip"])
def test_generation_gives_the_tokens_that_torch_gives(
    exported: tuple[Supernet, edge.Bundle], kind: str, tmp_path: Path
) -> None:
    supernet, bundle = exported
    arch = of_kind(supernet, kind)
    expected = generated(bundle, arch, in_torch(supernet, arch))
    session = onnxruntime.InferenceSession(edge.assemble(bundle, arch, tmp_path / "subnet.onnx"))
    assert len(set(expected)) > 1
    assert generated(bundle, arch, lambda feeds: session.run(None, feeds)) == expected
    with Executor(bundle, threads=1) as executor:
        assert generated(bundle, arch, lambda feeds: executor.run(arch, feeds)) == expected


def test_the_manifest_names_caches_and_their_parts(
    exported: tuple[Supernet, edge.Bundle],
) -> None:
    supernet, bundle = exported
    written = (bundle.path / "manifest.json").read_bytes()
    assert problems(json.loads(written), SCHEMA) == []
    manifest = Manifest.from_json(written)
    assert manifest == bundle.manifest
    assert [cache.past for cache in manifest.caches] == [
        f"past_{i}_{j}" for i in (0, 1) for j in (0, 1)
    ]
    half = of_kind(supernet, "pruned50")
    assert bundle.space.cache_of(half) == supernet.space.cache_of(half)
    shapes = {info.name: info.dims for info in bundle.inputs_of(half)}
    assert shapes["past_0_0"] == ("batch", 1, "past", 4)
    assert shapes["past_1_0"] == ("batch", 2, "past", 4)
    assert bundle.outputs_of(half)[1].dims == ("batch", 1, "new+past", 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["caches"][0].update(past="ids", dim=1), "changes the type"),
        (lambda m: m["caches"][0].update(past="nothing"), "names an unknown value"),
        (lambda m: m["caches"][0].update(dim=4), "does not lead to a result"),
        (lambda m: cached(m)[0].update(kept=[2]), "does not fit the model's cache"),
        (lambda m: cached(m)[0].update(kept=[1, 0]), "not in order"),
        (lambda m: cached(m)[0].update(kept=["0"]), "not an index"),
        (lambda m: cached(m)[0].update(dim=2), "does not fit the model's cache"),
        (lambda m: cached(m)[0].update(past="past_1_0"), "does not fit the model's cache"),
    ],
)
def test_damaged_caches_are_refused(
    exported: tuple[Supernet, edge.Bundle], change: Callable[[Any], None], said: str
) -> None:
    written = json.loads((exported[1].path / "manifest.json").read_bytes())
    change(written)
    with pytest.raises(BundleError, match=said):
        Manifest.from_json(json.dumps(written).encode())


def cached(manifest: Any) -> Any:
    return next(b["cache"] for b in manifest["branches"] if b.get("cache"))


def test_the_cache_of_another_subnet_is_refused(exported: tuple[Supernet, edge.Bundle]) -> None:
    supernet, bundle = exported
    half = of_kind(supernet, "pruned50")
    with Executor(bundle, threads=1) as executor:
        first = {"ids": PROMPT, **bundle.first_cache(bundle.space.original)}
        past = bundle.next_cache(executor.run(bundle.space.original, first))
        with pytest.raises(UsageError, match="input 'past_0_0' does not fit") as caught:
            executor.run(half, {"ids": PROMPT[:, :1], **past})
    assert "begin the sequence again" in str(caught.value)


def test_a_runtime_serves_subnets_of_one_cache(exported: tuple[Supernet, edge.Bundle]) -> None:
    supernet, bundle = exported
    kinds = {"original": (3.0, 0.9), "skip": (2.0, 0.8), "pruned50": (1.0, 0.7)}
    pool = SubnetPool.of(
        bundle.digest, [PoolEntry(of_kind(supernet, k), *v) for k, v in kinds.items()]
    )
    with edge.serve(bundle, None, pool, budget_ms=5, threads=1) as runtime:
        reply = runtime.infer(PROMPT, **bundle.first_cache(bundle.space.original))
        past = bundle.next_cache(reply.outputs)
        runtime.budget_ms = 0.5
        logits, _ = runtime(PROMPT[:, :1], **past)
        assert logits.shape == (1, 1, VOCABULARY)
        half = bundle.first_cache(of_kind(supernet, "pruned50"))
        with pytest.raises(UsageError, match="input 'past_0_0' is not what the model takes"):
            runtime(PROMPT, **half)
        assert [entry.arch for entry in runtime.entries] == [bundle.space.original]


@pytest.mark.parametrize("n_past", [0, 4])
def test_a_search_scores_subnets_with_their_own_caches(
    exported: tuple[Supernet, edge.Bundle], n_past: int
) -> None:
    supernet, bundle = exported
    inputs = inputs_of("llama", 6, 3, n_past)
    arrays = {"ids": inputs["ids"].numpy()}
    arrays |= {
        f"past_{i}_{j}": part.numpy()
        for i, pair in enumerate(inputs["past"])
        for j, part in enumerate(pair)
    }
    with Executor(bundle, threads=1) as executor:
        for kind in ("pruned50", "skip"):
            arch = of_kind(supernet, kind)
            state = executor.start(arrays)
            for branch in arch:
                state = executor.advance(branch, state)
            values = supernet.bind((), inputs)
            with torch.no_grad():
                for part in supernet.path(arch):
                    supernet.run_branch(part, values)
            expected = supernet.result(values)[0].numpy()
            np.testing.assert_allclose(executor.results(state)[0], expected, rtol=1e-4, atol=1e-5)
