"""The verifier passes real partitions and catches every mutation of them."""

from __future__ import annotations

from functools import cache
from itertools import islice

import pytest

from fxelastic.errors import PartitionError
from fxelastic.ir.verify import verify
from tests.ir.mutations import MUTATIONS, Mutation
from tests.models.captured import grouped, partitioned

#: Models with every kind of block between them, each at a gamma that cuts it in an interesting way.
PARTITIONS = (
    ("resnet18", 0.05),
    ("efficientnet", 0.25),
    ("densenet", 0.1),
    ("fpn_detector", 0.1),
    ("shufflenet_v2", 0.05),
    ("bert", 0.1),
    ("llama", 0.25),
    ("t5", 0.05),
    ("lstm_classifier", 0.1),
    ("gru_tagger", 0.1),
    ("tied_autoencoder", 0.25),
    ("film", 0.1),
)
MOST_COPIES = 8


#: Kept, since the last test goes over all models again.
real_partition = cache(partitioned)


@pytest.mark.parametrize(("model", "gamma"), [grouped(*partition) for partition in PARTITIONS])
class TestRealPartition:
    def test_passes(self, model: str, gamma: float) -> None:
        verify(real_partition(model, gamma))

    @pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
    def test_mutation_is_caught(self, model: str, gamma: float, mutation: Mutation) -> None:
        partition = real_partition(model, gamma)
        for mutated in islice(mutation(partition), MOST_COPIES):
            with pytest.raises(PartitionError, match=MUTATIONS[mutation]):
                verify(mutated)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_mutation_applies_to_some_model(mutation: Mutation) -> None:
    assert any(
        next(mutation(real_partition(model, gamma)), None) is not None
        for model, gamma in PARTITIONS
    )
