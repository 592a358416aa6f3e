"""Training: makes every path of a supernet accurate, and never touches the model.

A stage has an objective, branches that learn, a sampling and a length. `run` runs a list of stages
in one loop; `distill` and `tune` (AdaptiveNet, section 4.2) are lists of one.
"""

from fxelastic.train.batches import BatchReader
from fxelastic.train.callbacks import Callback, Csv, JsonLines, ProgressBar, TensorBoard
from fxelastic.train.evaluation import evaluate, range_accuracy
from fxelastic.train.interpolation import Interpolation, interpolate
from fxelastic.train.losses import (
    alpha_divergence,
    cross_entropy,
    normalised_error,
    soft_cross_entropy,
)
from fxelastic.train.metrics import accuracy, agreement, cosine, spearman
from fxelastic.train.norm_statistics import recalibrate
from fxelastic.train.objectives import Chained, EndToEnd, Objective, Supervised, TeacherForced
from fxelastic.train.reports import Bucket, EpochReport, HeldOutReport, History, StepReport
from fxelastic.train.sampling import Attentive, Bucketed, Fixed, Sampling, Sandwich, Turns, Uniform
from fxelastic.train.stages import distill, run, tune
from fxelastic.train.training import Stage, Training

__all__ = [
    "Attentive",
    "BatchReader",
    "Bucket",
    "Bucketed",
    "Callback",
    "Chained",
    "Csv",
    "EndToEnd",
    "EpochReport",
    "Fixed",
    "HeldOutReport",
    "History",
    "Interpolation",
    "JsonLines",
    "Objective",
    "ProgressBar",
    "Sampling",
    "Sandwich",
    "Stage",
    "StepReport",
    "Supervised",
    "TeacherForced",
    "TensorBoard",
    "Training",
    "Turns",
    "Uniform",
    "accuracy",
    "agreement",
    "alpha_divergence",
    "cosine",
    "cross_entropy",
    "distill",
    "evaluate",
    "interpolate",
    "normalised_error",
    "range_accuracy",
    "recalibrate",
    "run",
    "soft_cross_entropy",
    "spearman",
    "tune",
]
