"""Pre-train LiDAR encoders by occupancy prediction (SPOT), from driving logs in Parquet, distributed with Ray.

The names below are loaded when they are first used, so that `import spot_ray` is quick and a machine that only writes
logs needs neither torch nor Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spot_ray.errors import SpotRayError as SpotRayError
    from spot_ray.finetune.predict import load_detector as load_detector
    from spot_ray.finetune.predict import predict_boxes as predict_boxes
    from spot_ray.operators.collate import to_openpcdet as to_openpcdet
    from spot_ray.operators.collate import to_pointcept as to_pointcept
    from spot_ray.operators.config import DataConfig as DataConfig
    from spot_ray.operators.mixture import DataSource as DataSource
    from spot_ray.recipes.detection import detection_recipe as detection_recipe
    from spot_ray.recipes.pretraining import pretraining_recipe as pretraining_recipe
    from spot_ray.schema.dataset import DatasetInfo as DatasetInfo
    from spot_ray.schema.dataset import ExtraColumn as ExtraColumn
    from spot_ray.schema.detections import Detections as Detections
    from spot_ray.schema.sensors import LidarSpec as LidarSpec
    from spot_ray.schema.subset import Subset as Subset
    from spot_ray.schema.sweep import Boxes as Boxes
    from spot_ray.schema.sweep import Sweep as Sweep
    from spot_ray.schema.taxonomy import PAPER_TAXONOMY as PAPER_TAXONOMY
    from spot_ray.schema.taxonomy import SemanticClass as SemanticClass
    from spot_ray.schema.taxonomy import SourceClass as SourceClass
    from spot_ray.schema.taxonomy import Taxonomy as Taxonomy
    from spot_ray.storage.dataset import DatasetWriter as DatasetWriter
    from spot_ray.storage.dataset import open_dataset as open_dataset
    from spot_ray.storage.occupancy import open_occupancy as open_occupancy
    from spot_ray.storage.subset import draw_subset as draw_subset
    from spot_ray.storage.subset import read_subset as read_subset
    from spot_ray.storage.toml_description import load_description as load_description
    from spot_ray.train.api import load_encoder as load_encoder
    from spot_ray.train.api import stream as stream
    from spot_ray.train.export import export as export

__version__ = "0.1.0"

_HOMES = {
    "Boxes": "schema.sweep",
    "DataConfig": "operators.config",
    "DataSource": "operators.mixture",
    "DatasetInfo": "schema.dataset",
    "DatasetWriter": "storage.dataset",
    "Detections": "schema.detections",
    "ExtraColumn": "schema.dataset",
    "LidarSpec": "schema.sensors",
    "PAPER_TAXONOMY": "schema.taxonomy",
    "SemanticClass": "schema.taxonomy",
    "SourceClass": "schema.taxonomy",
    "SpotRayError": "errors",
    "Subset": "schema.subset",
    "Sweep": "schema.sweep",
    "Taxonomy": "schema.taxonomy",
    "detection_recipe": "recipes.detection",
    "draw_subset": "storage.subset",
    "export": "train.export",
    "load_description": "storage.toml_description",
    "load_detector": "finetune.predict",
    "load_encoder": "train.api",
    "open_dataset": "storage.dataset",
    "open_occupancy": "storage.occupancy",
    "predict_boxes": "finetune.predict",
    "pretraining_recipe": "recipes.pretraining",
    "read_subset": "storage.subset",
    "stream": "train.api",
    "to_openpcdet": "operators.collate",
    "to_pointcept": "operators.collate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOMES:
        raise AttributeError(f"module 'spot_ray' has no attribute {name!r}")
    return getattr(importlib.import_module(f"spot_ray.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *_HOMES])
