"""A run that is killed at chosen points, each time in a process of its own.

``python -m tests.train.killed_runs FOLDER`` prints a digest of the weights after an uninterrupted
run, and for each point after a run that was killed there and resumed. One process imports torch
and forks the others.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import fxelastic
from fxelastic import row_store
from fxelastic.specialising import specialised
from fxelastic.train import (
    Callback,
    EndToEnd,
    History,
    Sandwich,
    Stage,
    StepReport,
    TeacherForced,
    Turns,
    checkpoints,
    run,
)
from tests.train import staged
from tests.train.supernets import conv_supernet, image_batches, weights


class Kill(Callback):
    """Ends this process as `kill -9` does, after a step of a stage (any where None)."""

    def __init__(self, step: int, stage: str | None = None) -> None:
        self.step = step
        self.stage = stage

    def on_step(self, report: StepReport) -> None:
        if report.step == self.step and self.stage in (None, report.stage):
            kill()


class Ended(Callback):
    """Keeps what stages did."""

    def __init__(self, histories: list[History]) -> None:
        self.histories = histories

    def on_end(self, history: History | None) -> None:
        if history is not None:
            self.histories.append(history)


class Stop(Callback):
    """Interrupts a run in a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, report: StepReport) -> None:
        if report.step == self.step:
            raise KeyboardInterrupt


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train(stage: str, folder: Path, callbacks: tuple[Callback, ...] = ()) -> dict[str, Any]:
    """Train, with dropout, a loader that shuffles, momentum and a decaying learning rate."""
    supernet = conv_supernet(dropout=0.4)
    images, labels = (torch.cat(parts) for parts in zip(*image_batches(5), strict=True))
    # A generator of the loader's own is another thing to resume than the global one.
    generator = torch.Generator() if stage == "tune" else None
    data = TensorDataset(images, labels)
    loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    options: dict[str, Any] = {
        "epochs": 3,
        "checkpoints": folder,
        "checkpoint_every": 2,
        "accumulate": 2,
        "warmup": 0.2,
        "log": folder / "log.jsonl",
        "callbacks": callbacks,
    }
    if stage == "stages":
        stages = (
            Stage(TeacherForced(), sampling=Turns(3), epochs=1),
            Stage(EndToEnd(soft=0.5), learns=["student@1", "student@2"], lr=0.01),
            Stage(EndToEnd(), sampling=Sandwich(), epochs=2),
        )
        *earlier, history = run(supernet, loader, stages, **options)
        assert [h.steps for h in earlier] == [3, 9]
    elif stage == "specialise":
        arch = supernet.space.sample(1, 1)[0]
        objective = EndToEnd(soft=0.5, features=1.0)
        module, history = specialised(supernet, arch, loader, objective, options)
        state = module.state_dict()
    elif stage == "tune":
        history = fxelastic.tune(supernet, loader, sampling=Sandwich(), **options)
    elif stage == "multi_stage":
        ended: list[History] = []
        options |= {"callbacks": (*callbacks, Ended(ended)), "cache_bytes": 2**20}
        options |= {"validate": staged.validation(), "until": 2.0, "warmup": 0.0}
        state = staged.state(staged.train(**options))
        history = ended[-1]
        resumed = [h.resumed_at for h in ended]
    else:
        history = fxelastic.distill(supernet, loader, mode=stage, **options)
    digest = hashlib.sha256()
    if stage != "multi_stage":
        resumed = [history.resumed_at]
    if stage not in ("multi_stage", "specialise"):
        state = weights(supernet)
    for name, value in state.items():
        digest.update(name.encode() + value.numpy().tobytes())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "weights": digest.hexdigest(),
        "losses": [e.loss for e in history.epochs],
        "coverage": dict(history.coverage),
        "logged": [(line["event"], line["step"], line["loss"]) for line in log],
        "resumed_at": history.resumed_at,
        "resumed": resumed,
        "left": sorted(path.name for path in folder.glob("*features*")),
    }


def in_child(work: Any) -> int:
    """Run in a fork; the exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def while_writing(stage: str, folder: Path, when: int, where: str) -> None:
    """Train until the process is killed in the middle of writing a checkpoint."""
    real = getattr(checkpoints, where)
    calls = 0

    def dies(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            if where == "write_durably":
                path, data = args
                path.write_bytes(data[: len(data) // 2])
            kill()
        real(*args)

    setattr(checkpoints, where, dies)
    train(stage, folder)


def while_keeping_features(folder: Path, when: int, where: str) -> None:
    """Train in stages until the process is killed while it writes features, or gives the name."""
    real = getattr(row_store.RowStore, where)
    calls = 0

    def dies(self: Any, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == when:
            if where == "add":
                self._file.write(args[-1][0][:3])
                self._file.flush()
            else:
                real(self)
            kill()
        real(self, *args)

    setattr(row_store.RowStore, where, dies)
    train("multi_stage", folder)


def main(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for stage in ("teacher_forced", "chained", "tune", "stages", "multi_stage", "specialise"):
        plain = train(stage, folder / "plain")
        shutil.rmtree(folder / "plain")
        killed = []
        # Nine steps, three an epoch: before the first checkpoint, in the middle of an epoch, at
        # its end, and one after another.
        points: list[tuple[int, ...]] = [(1,), (3, 7)] if stage == "tune" else [(4, 5)]
        points = [] if stage in ("stages", "multi_stage") else points
        for steps in points:
            here = folder / f"{stage}-{steps}"
            codes = [in_child(partial(train, stage, here, (Kill(step),))) for step in steps]
            killed.append({"codes": codes, "at": steps, **train(stage, here)})
        if stage == "stages":
            # In the middle of the second stage, then in the third.
            here = folder / "stages-later"
            codes = [
                in_child(partial(train, stage, here, (Kill(step, name),)))
                for name, step in (("tune", 5), ("tune-2", 4))
            ]
            killed.append({"codes": codes, "at": ["tune", "tune-2"], **train(stage, here)})
        if stage == "tune":
            # The ninth file is of the checkpoint at the end of the second epoch, which has a line
            # in the log already, at the step of the checkpoint before.
            for when, where in ((4, "write_durably"), (9, "write_durably"), (4, "sync")):
                here = folder / f"{stage}-{where}-{when}"
                code = in_child(partial(while_writing, stage, here, when, where))
                killed.append({"codes": [code], "at": [where, when], **train(stage, here)})
        if stage == "multi_stage":
            # In each stage, and in one process after another.
            here = folder / "stage-by-stage"
            points_of_stages = [("stage-1", 5), ("stage-2", 4), ("stage-3", 8)]
            codes = [
                in_child(partial(train, stage, here, (Kill(step, name),)))
                for name, step in points_of_stages
            ]
            killed.append({"codes": codes, "at": points_of_stages, **train(stage, here)})
            # While features are written for the third stage, and when those for the second are.
            for when, where in ((80, "add"), (1, "seal")):
                here = folder / f"{stage}-{where}-{when}"
                code = in_child(partial(while_keeping_features, here, when, where))
                killed.append({"codes": [code], "at": [where, when], **train(stage, here)})
        results[stage] = {"plain": plain, "killed": killed}
    return results


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
