"""Run the branches of a bundle one by one."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from fxelastic.edge.bundle import Bundle
from fxelastic.edge.memory import GrowthLimit, resident_bytes
from fxelastic.edge.run_limit import RunTooLongError
from fxelastic.edge.sessions import SessionMaker, check_providers
from fxelastic.edge.verified_model import VerifiedModel
from fxelastic.errors import BundleError, UsageError
from fxelastic.spec import Arch
from fxelastic.spec.input_sizes import input_sizes
from fxelastic.spec.value_info import ValueInfo

Array: TypeAlias = NDArray[Any]

#: The named values between two blocks. They are shared and never changed.
State: TypeAlias = Mapping[str, Any]

# While a session is created, its weights exist in the file's bytes, the model and the session.
_OPENING = 3
_OPENING_BYTES = 2**20
#: The number of runs in which a session allocates memory: the first run makes a memory plan, and
#: the second allocates by it.
FIRST_RUNS = 2
# The default bound on the growth of the process: the larger of this and a multiple of the
# original's weights. A session takes up to three times its weights.
_LEAST_BYTES = 2**28
_TIMES_ORIGINAL = 4

logger = logging.getLogger(__name__)


class Executor:
    """Runs any subnet of a bundle, branch by branch.

    Values stay in onnxruntime's own memory between branches. Sessions are created when they are
    first needed; the most recently used ones are kept as far as memory allows. Branches with equal
    files share a session. An executor is not thread-safe.

    By default, the process may grow by 256 MiB, or by four times the original's weights if that is
    more, after the executor is created. Beyond that, the executor closes the least recently used
    sessions and frees the memory of computations. It always keeps as many sessions as the model
    has blocks, so that a subnet that runs repeatedly keeps all of its sessions.

    Attributes:
        bundle: The bundle.
        memory_bytes: The maximum size of all sessions' weights, in bytes; None if the caller gave
            no number. One session is always kept, however large.
        n_loaded: The number of sessions that were created.
        n_dropped: The number of sessions that were closed to make room.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 0,
        memory_bytes: int | Literal["auto"] | None = "auto",
        providers: Sequence[str] = ("CPUExecutionProvider",),
        *,
        shared_arena: bool = True,
        limit: GrowthLimit | None = None,
    ) -> None:
        """Check the arguments; no file is read yet.

        Args:
            bundle: The bundle.
            threads: The number of threads; 0 means one for each core.
            memory_bytes: The maximum size of all sessions' weights, in bytes. ``"auto"`` bounds
                the growth of the process instead, as described above; None means no bound.
            providers: The execution providers of onnxruntime, in order of preference.
            shared_arena: Whether the sessions share the memory that they compute in. Otherwise
                each session keeps the memory of its largest batch: this needs far more memory in
                total, but a session then takes as long as one that runs on its own.
            limit: Limit on the growth of the process, beyond which sessions are closed. None means
                no limit, or the default limit if ``memory_bytes`` is ``"auto"``.

        Raises:
            UsageError: A provider is not available, or a number is out of range.
        """
        bound = None if memory_bytes == "auto" else memory_bytes
        if threads < 0 or isinstance(bound, str) or (bound is not None and bound <= 0):
            raise UsageError(
                "threads must be at least 0, and memory_bytes above 0",
                expected='threads of at least 0; memory_bytes above 0, "auto" or None',
                got=f"threads={threads!r}, memory_bytes={memory_bytes!r}",
                fix="leave both out for one thread per core and the default bound",
            )
        check_providers(providers)
        self.bundle = bundle
        self.memory_bytes = bound
        self.n_loaded = 0
        self.n_dropped = 0
        # The caller's limit applies even if each run then has to create its sessions again.
        self._n_kept = 0
        if memory_bytes == "auto" and limit is None:
            limit, self._n_kept = GrowthLimit(default_bytes(bundle)), bundle.space.n_blocks
        self._limit = limit
        self._shrink = self._has_shrunk = False
        self._warned = False
        # If there is a limit: the number of remaining first runs, by session.
        self._fresh: dict[str, int] = {}
        self._run_bytes = 0  # the most memory that a first run allocated
        sizes_vary = bool(bundle.manifest.model.sizes)
        self._maker = SessionMaker(threads, tuple(providers), shared_arena, sizes_vary)
        self._sessions: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def start(self, inputs: Mapping[str, Array], arch: Arch | None = None) -> State:
        """The values before the first block.

        Args:
            inputs: An array for each of the bundle's inputs, by name.
            arch: The subnet whose caches they hold. If None, they hold the model's own: a branch
                that keeps a part of a cache cuts it.

        Raises:
            UsageError: An input is missing or unknown, or has the wrong dtype or shape.
        """
        sizes_of_inputs(self.bundle, inputs, arch)
        self._look_at_growth()
        constants = self.bundle.constants
        given = {info.name: np.asarray(inputs[info.name], order="C") for info in self.bundle.inputs}
        return {k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in {**constants, **given}.items()}

    def advance(self, branch: str, state: State) -> State:
        """Run a branch and return the values after it; ``state`` is not modified.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: Its file is missing or damaged, or can't be run.
        """
        segment = self.bundle.segment(branch)
        outputs = self.run_branch(branch, state)
        last_read = self.bundle.last_read
        return {
            name: value
            for name, value in {**state, **outputs}.items()
            if last_read.get(name, -1) >= segment.spec.stop
        }

    def run_branch(self, branch: str, values: State) -> dict[str, Any]:
        """Run a branch on values and return its outputs by name.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: Its file is missing or damaged, or can't be run.
        """
        segment = self.bundle.segment(branch)
        if not segment.outputs:
            return {}
        session = self.session(branch)
        feeds = {name: values[name] for name in segment.inputs}
        for kept in segment.spec.cache:
            past = feeds[kept.past]
            if past.shape()[kept.dim] != len(kept.kept):
                own = kept.cut(past.numpy())
                feeds[kept.past] = ort.OrtValue.ortvalue_from_numpy(own)
        try:
            if segment.sha256 in self._fresh:
                results = self._first_run(session, segment, feeds)
            else:
                results = self._run(session, segment, feeds)
        except RunTooLongError as e:
            what = f"branch {branch!r} ({segment.file}) does not end"
            raise BundleError(what, expected=e.expected, got=e.what, fix=e.fix) from e
        except Exception as e:
            raise BundleError(
                f"branch {branch!r} ({segment.file}) can't be run",
                expected="a file that onnxruntime can run on the values of this bundle",
                got=str(e).strip().splitlines()[-1] if str(e).strip() else type(e).__name__,
                fix="pass inputs that the model accepts: indices in range, and a batch size that "
                f"it supports (the example inputs have {self.bundle.manifest.model.batch_size})",
            ) from e
        return dict(zip(segment.outputs, results, strict=True))

    def results(self, state: State) -> list[Array]:
        """The model's flat results from the values after the last block."""
        return [state[info.name].numpy() for info in self.bundle.outputs]

    def run(self, arch: Arch, inputs: Mapping[str, Array]) -> list[Array]:
        """Run a subnet.

        Args:
            arch: The subnet.
            inputs: An array for each of the bundle's inputs, by name.

        Returns:
            An array for each of the bundle's outputs, in their order.

        Raises:
            UsageError: The arch is not in the search space, or the inputs do not fit the model.
            BundleError: A file is missing or damaged, or can't be run.
        """
        self.bundle.space.validate(arch)
        state = self.start(inputs, arch)
        for branch in arch:
            state = self.advance(branch, state)
        return self.results(state)

    def session(self, branch: str) -> Any:
        """The session of a branch; created if necessary.

        Raises:
            UsageError: The bundle has no such branch.
            BundleError: Its file is missing or damaged, or onnxruntime can't load it.
        """
        segment = self.bundle.segment(branch)
        key = segment.sha256
        if key in self._sessions:
            self._sessions.move_to_end(key)
            return self._sessions[key][0]
        self._make_room_for(segment.weight_bytes)
        session = self._open(self.bundle.model(branch), branch)
        self.n_loaded += 1
        self._sessions[key] = (session, segment.weight_bytes)
        if self._limit is not None:
            self._fresh[key] = FIRST_RUNS
        return session

    def is_loaded(self, branch: str) -> bool:
        """Whether the session of a branch is open."""
        return self.bundle.segment(branch).sha256 in self._sessions

    @property
    def resident_bytes(self) -> int:
        """The weights of the open sessions, in bytes."""
        return sum(n_bytes for _, n_bytes in self._sessions.values())

    def close(self) -> None:
        """Close all sessions. A shared arena is kept for other sessions of the process."""
        self._sessions.clear()
        self._fresh.clear()

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make_room(self, n_bytes: int) -> None:
        """Close sessions, least recently used first, until the process may grow by ``n_bytes``.

        Does nothing if there is no limit. Under the default limit, the last sessions are kept.
        """
        while self._limit is not None and not self._limit.has_room(n_bytes):
            n_spare = len(self._sessions) - self._n_kept
            if n_spare > 0:
                # Close several at once: each measurement of the process may take some ms.
                self._drop(min(1 + len(self._sessions) // 8, n_spare))
                continue
            if self._n_kept:
                return
            if not self._warned:
                logger.warning(
                    "a limit of %.0f MiB of memory is too low: the process exceeds it without any "
                    "session",
                    self._limit.n_bytes / 2**20,
                )
            self._warned = True
            # Reopening every session for each run would not help.
            self._limit.begin()
            return

    def _look_at_growth(self) -> None:
        """If the default limit is exceeded, make the next run return free memory."""
        if not self._n_kept or self._limit is None:
            return
        if self._limit.has_room():
            self._has_shrunk = False
        elif not self._has_shrunk:
            self._shrink = self._has_shrunk = True
        else:
            # The memory was allocated again, or does not belong to the executor.
            self._limit.begin()

    def _run(self, session: Any, segment: Any, feeds: State) -> Any:
        """Run a session, and return free memory afterwards if that was requested."""
        if not self._shrink:
            return session.run_with_ort_values(list(segment.outputs), feeds)
        self._shrink = False
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return session.run_with_ort_values(list(segment.outputs), feeds, options)

    def _make_room_for(self, weight_bytes: int) -> None:
        """Make room for a session with weights of this size."""
        if self.memory_bytes is not None:
            while self._sessions and self.resident_bytes + weight_bytes > self.memory_bytes:
                self._drop(1)
        self.make_room(_OPENING * weight_bytes + max(_OPENING_BYTES, self._run_bytes))

    def _first_run(self, session: Any, segment: Any, feeds: State) -> Any:
        """Run a session that still allocates memory, and enforce the limit afterwards."""
        self._fresh[segment.sha256] -= 1
        if not self._fresh[segment.sha256]:
            del self._fresh[segment.sha256]
        before_bytes = resident_bytes()
        results = self._run(session, segment, feeds)
        self._run_bytes = max(self._run_bytes, resident_bytes() - before_bytes)
        self.make_room(0)
        return results

    def _drop(self, n: int) -> None:
        """Close the least recently used sessions."""
        for _ in range(n):
            key, _ = self._sessions.popitem(last=False)
            self._fresh.pop(key, None)
        self.n_dropped += n

    def _open(self, model: VerifiedModel, branch: str) -> Any:
        try:
            return self._maker.open_branch(model)
        except Exception as e:
            raise BundleError(
                f"branch {branch!r} ({model.name}) can't be loaded",
                expected="an ONNX file that the installed onnxruntime can read",
                got=str(e).strip().splitlines()[-1] if str(e).strip() else type(e).__name__,
                fix="export the bundle again, or use a newer onnxruntime",
            ) from e


def default_bytes(bundle: Bundle) -> int:
    """The default bound on the growth of a process by an executor."""
    original = sum(bundle.segment(branch).weight_bytes for branch in bundle.space.original)
    return max(_LEAST_BYTES, _TIMES_ORIGINAL * original)


def check_inputs(bundle: Bundle, inputs: Mapping[str, Array]) -> int:
    """The batch size of arrays, which are checked by `sizes_of_inputs`; 1 without a batch."""
    return sizes_of_inputs(bundle, inputs).get(bundle.manifest.model.batch, 1)


def sizes_of_inputs(
    bundle: Bundle, inputs: Mapping[str, Array], arch: Arch | None = None
) -> dict[str, int]:
    """Check that arrays fit the model's inputs, and find their sizes.

    Args:
        bundle: The bundle.
        inputs: The arrays by name.
        arch: The subnet whose caches they hold; the model if None.

    Returns:
        The value of each size that may vary, the batch size included, by its name.

    Raises:
        UsageError: An input is missing or unknown, or has the wrong dtype or shape; or two inputs
            have different sizes for one symbol.
    """
    names = [info.name for info in bundle.inputs]
    if not isinstance(inputs, Mapping):
        raise UsageError(
            "inputs must be a mapping from names to arrays",
            expected=f"a mapping with {', '.join(map(str, bundle.inputs)) or 'nothing'}",
            got=type(inputs).__name__,
            fix="pass {name: array, …}",
        )
    if sorted(inputs) != sorted(names):
        raise UsageError(
            "the names of the inputs differ from those of the model",
            expected=", ".join(map(str, bundle.inputs)),
            got=", ".join(inputs) or "none",
        )
    infos = bundle.inputs if arch is None else bundle.inputs_of(arch)
    arrays = [inputs[info.name] for info in infos]
    for info, array in zip(infos, arrays, strict=True):
        if not hasattr(array, "shape"):
            raise _unfit(bundle, info, array)
    return input_sizes(
        [(info.name, info.dtype, info.dims) for info in infos],
        arrays,
        bundle.manifest.model.symbols,
        lambda i, _: _unfit(bundle, infos[i], arrays[i]),
    )


def _unfit(bundle: Bundle, info: ValueInfo, array: Any) -> UsageError:
    shape = getattr(array, "shape", None)
    got = type(array).__name__ if shape is None else f"{array.dtype}{list(shape)}"
    fix = None
    if info.name in {cache.past for cache in bundle.manifest.caches}:
        fix = (
            "pass the cache that this subnet returned, or begin the sequence again with "
            "bundle.first_cache(arch): subnets with other heads have other caches"
        )
    elif info.name not in bundle.manifest.sample_inputs:
        fix = "this input has no batch dimension: pass one array of that shape"
    return UsageError(
        f"input {info.name!r} does not fit the model",
        expected=str(info),
        got=got,
        fix=fix,
    )
