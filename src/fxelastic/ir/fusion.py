"""Rules for the pairs of operators that an inference framework computes with one kernel.

A boundary between such a pair costs the fused kernel, so a partition must not put one there. A
backend provides the rules as data; the partitioner reads them and knows no backend. Rules name
operators by strings, so this file needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass


def canonical_operator(target: object) -> str:
    """The name of an operator in the rules, without its overload and in-place suffix.

    Args:
        target: The target of an fx node (``torch.ops.aten.relu_.default``), or its name
            (``"aten.relu_.default"``, ``"aten::relu_"``, ``"aten.relu"``).

    Returns:
        ``namespace.operator``, e.g. ``aten.relu``. For any other target, its text.
    """
    text = str(target).replace("::", ".")
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return text
    name = parts[1]
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return f"{parts[0]}.{name}"


@dataclass(frozen=True)
class FusionRule:
    """A producer and a consumer that the framework computes with one kernel.

    Every rule assumes that the producer's value has exactly one reader. With a second reader the
    value must exist in memory, and the framework fuses nothing.

    Attributes:
        name: Kebab-case, unique among the rules of a backend, e.g. ``conv-bn``.
        producer: Operators (see `canonical_operator`) that compute the value.
        consumer: Operators that read it.
        soft: Whether a boundary may separate the pair. The partition then lists it.
        constant_operand: Whether the consumer's other tensor operands must be constants
            (parameters, buffers, numbers), as for a scale that is folded into the weights.
        constant_producer: Whether all but one of the producer's tensor operands must be constants,
            as for a factor that becomes an attribute of the matrix product that follows.
        reason: What fuses the pair in the framework, in one sentence.
    """

    name: str
    producer: frozenset[str]
    consumer: frozenset[str]
    soft: bool = False
    constant_operand: bool = False
    constant_producer: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        for role, operators in (("producer", self.producer), ("consumer", self.consumer)):
            if not operators:
                raise ValueError(f"fusion rule {self.name!r} has no {role}")
            for operator in sorted(operators):
                if canonical_operator(operator) != operator:
                    raise ValueError(
                        f"fusion rule {self.name!r} names the {role} {operator!r}; "
                        f"expected {canonical_operator(operator)!r}"
                    )


@dataclass(frozen=True)
class FusionRules:
    """All rules of one backend.

    Attributes:
        name: The backend, e.g. ``onnxruntime``.
        rules: In order of precedence among rules of the same strength.
    """

    name: str
    rules: tuple[FusionRule, ...] = ()

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for rule in self.rules:
            if rule.name in seen:
                raise ValueError(f"fusion rules {self.name!r} define {rule.name!r} twice")
            seen.add(rule.name)

    def match(
        self,
        producer_op: object,
        consumer_op: object,
        other_is_constant: bool,
        producer_is_constant: bool | None = None,
    ) -> FusionRule | None:
        """Find the rule for a producer and the only reader of its value.

        Args:
            producer_op: The operator that computes the value, or its name, see
                `canonical_operator`.
            consumer_op: The operator that reads it, or its name.
            other_is_constant: Whether all other tensor operands of the consumer are constants
                (true if it has none).
            producer_is_constant: Whether exactly one tensor operand of the producer is not a
                constant. If this is unknown (None), soft rules that depend on it match and hard
                rules do not: the partition may list a pair too many, but forbids no cut.

        Returns:
            The first hard rule that matches, else the first soft rule, else None.
        """
        producer, consumer = canonical_operator(producer_op), canonical_operator(consumer_op)
        soft: FusionRule | None = None
        for rule in self.rules:
            if producer not in rule.producer or consumer not in rule.consumer:
                continue
            if rule.constant_operand and not other_is_constant:
                continue
            known = rule.soft if producer_is_constant is None else producer_is_constant
            if rule.constant_producer and not known:
                continue
            if not rule.soft:
                return rule
            soft = soft or rule
        return soft
