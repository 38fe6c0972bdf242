"""A whole fine-tuning run of a detector: what a recipe returns, the command line overrides and a checkpoint keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError
from spot_ray.losses.config import AnchorLossConfig, CenterLossConfig
from spot_ray.models.detection.config import CenterHeadConfig, DetectorConfig
from spot_ray.train.config import RunConfig


@dataclass(frozen=True)
class TransferConfig:
    """How the encoders that a checkpoint gives are fine-tuned.

    Args:
        lr_factor: Their learning rate over that of the head.
        freeze: What does not learn, batch norm's statistics included: nothing, the 3D `encoder`, or both `encoders`.
        batch_norm_momentum: Part of a step's statistics in those that batch norm keeps for prediction. The networks'
            own, 0.01, is for long runs: after 240 steps a tenth of them is still what they began with.
    """

    lr_factor: float = 1.0
    freeze: Literal["nothing", "encoder", "encoders"] = "nothing"
    batch_norm_momentum: float = 0.01

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.batch_norm_momentum <= 1:
            raise ConfigError(
                f"batch_norm_momentum is {self.batch_norm_momentum}",
                where="transfer.batch_norm_momentum",
                expected="over 0, and 1 at most",
            )
        if not 0 < self.lr_factor <= 100:
            raise ConfigError(
                f"lr_factor is {self.lr_factor}", where="transfer.lr_factor", expected="over 0; to freeze, use freeze"
            )


@dataclass(frozen=True, kw_only=True)
class DetectionConfig(RunConfig):
    """A whole fine-tuning run of a detector.

    Args:
        benchmark: The metric that it is scored by: a name of `spot-ray score --metric`.
        model: The detector.
        loss: The loss of its head.
        transfer: How the encoders are fine-tuned.
    """

    benchmark: str
    model: DetectorConfig
    loss: CenterLossConfig | AnchorLossConfig
    transfer: TransferConfig = field(default_factory=TransferConfig)

    def __post_init__(self) -> None:
        """Check what no section can check alone."""
        RunConfig.__post_init__(self)
        self._check_benchmark()
        if isinstance(self.model.head, CenterHeadConfig) != isinstance(self.loss, CenterLossConfig):
            raise ConfigError(
                f"the loss {type(self.loss).__name__} is not that of the head {type(self.model.head).__name__}",
                where="loss",
                expected="CenterLossConfig with a CenterHeadConfig, AnchorLossConfig with an AnchorHeadConfig",
            )
        if self.data.labels is not None or self.data.boxes.classes != "detection":
            raise ConfigError(
                "a detector learns from the boxes of the benchmark's classes, not from occupancy",
                where="data",
                expected="labels=None and boxes.classes=detection",
            )

    def _check_benchmark(self) -> None:
        from spot_ray.evaluate.benchmarks import BENCHMARK_NAMES  # what reads datasets is slow to import

        if self.benchmark not in BENCHMARK_NAMES:
            raise ConfigError(
                f"there is no benchmark {self.benchmark!r}",
                where="benchmark",
                expected=f"one of {', '.join(BENCHMARK_NAMES)}",
                remedy=suggestion(self.benchmark, list(BENCHMARK_NAMES)),
            )
