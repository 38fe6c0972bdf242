"""The classes of the synthetic cities as the detection benchmarks name them that the cities are in the style of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from spot_ray.schema.taxonomy import PAPER_TAXONOMY, Taxonomy

DETECTION_CLASSES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "waymo": {"vehicle": ("vehicle",), "pedestrian": ("pedestrian",), "cyclist": ("cyclist",)},
    "kitti": {"Car": ("vehicle",), "Pedestrian": ("pedestrian",), "Cyclist": ("cyclist",)},
    "nuscenes": {
        "car": ("vehicle",),
        "pedestrian": ("pedestrian",),
        "motorcycle": ("motorcycle",),
        # nuScenes annotates a bicycle, with its rider if it has one.
        "bicycle": ("cyclist", "bicycle"),
    },
    "once": {"Car": ("vehicle",), "Pedestrian": ("pedestrian",), "Cyclist": ("cyclist",)},
}
"""By preset: the benchmark's classes that the city has, in the benchmark's order, each with the classes of the paper
that count as it."""


def taxonomy_of(preset: str) -> Taxonomy:
    """Return the taxonomy of a preset's datasets: the paper's classes, and what counts as which in its benchmark."""
    counts_as = {own: name for name, classes in DETECTION_CLASSES[preset].items() for own in classes}
    return replace(
        PAPER_TAXONOMY,
        sources=tuple(replace(source, detection=counts_as.get(source.name)) for source in PAPER_TAXONOMY.sources),
        detection_classes=tuple(DETECTION_CLASSES[preset]),
    )
