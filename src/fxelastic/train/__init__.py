"""Training: makes every path of a supernet accurate, and never touches the model.

Two stages, `distill` and `tune` (AdaptiveNet §4.2), are one loop with two objectives. The loop
owns batches, checkpoints and reports; an objective turns a batch into gradients.
"""

from fxelastic.train.batches import BatchReader
from fxelastic.train.callbacks import Callback
from fxelastic.train.evaluation import evaluate
from fxelastic.train.logs import Csv, JsonLines, TensorBoard
from fxelastic.train.losses import cross_entropy, normalised_error, soft_cross_entropy
from fxelastic.train.metrics import accuracy, agreement, cosine, spearman
from fxelastic.train.progress_bar import ProgressBar
from fxelastic.train.range_accuracy import range_accuracy
from fxelastic.train.recalibration import recalibrate
from fxelastic.train.reports import Bucket, EpochReport, HeldOutReport, History, StepReport
from fxelastic.train.sampling import Bucketed, Sampling, Sandwich, Uniform
from fxelastic.train.stages import distill, tune
from fxelastic.train.training import Training

__all__ = [
    "BatchReader",
    "Bucket",
    "Bucketed",
    "Callback",
    "Csv",
    "EpochReport",
    "HeldOutReport",
    "History",
    "JsonLines",
    "ProgressBar",
    "Sampling",
    "Sandwich",
    "StepReport",
    "TensorBoard",
    "Training",
    "Uniform",
    "accuracy",
    "agreement",
    "cosine",
    "cross_entropy",
    "distill",
    "evaluate",
    "normalised_error",
    "range_accuracy",
    "recalibrate",
    "soft_cross_entropy",
    "spearman",
    "tune",
]
