from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from spot_ray.convert.kitti import TAXONOMY as KITTI
from spot_ray.errors import ConfigError
from spot_ray.occupancy.classes import ClassKind, Tier, fallback_class, kind_for, label_classes, lookup_of, tier_of
from spot_ray.schema.manifest import SWEEP_MANIFEST
from spot_ray.schema.taxonomy import PAPER_TAXONOMY, SemanticClass, SourceClass, Taxonomy

TAXONOMY = Taxonomy(
    "mixed",
    (
        SemanticClass("tree", (1, 1, 1), paper_class="vegetation"),
        SemanticClass("car", (2, 2, 2), foreground=True, paper_class="vehicle"),
        SemanticClass("road", (3, 3, 3), ground=True, paper_class="road"),
        SemanticClass("cat", (4, 4, 4), foreground=True, labelled=False),
        SemanticClass("lane", (5, 5, 5), ground=True, labelled=False, paper_class="road"),
    ),
    (SourceClass(7, "Car", "car"), SourceClass(8, "DontCare", None), SourceClass(9, "Road", "road")),
)


def test_all_are_the_classes_of_the_dataset() -> None:
    classes, table = label_classes(TAXONOMY, "all")
    assert classes == TAXONOMY.classes
    assert table[:6].tolist() == [0, 1, 2, 3, 4, 5]
    assert set(table[6:].tolist()) == {255}


def test_foreground_keeps_objects_and_merges_the_rest() -> None:
    classes, table = label_classes(TAXONOMY, "foreground")
    assert classes == (
        TAXONOMY.classes[1],
        TAXONOMY.classes[3],
        SemanticClass("ground", (3, 3, 3), ground=True, paper_class="road"),
        SemanticClass("other", (120, 120, 120)),
    )
    assert (table.dtype, table.shape) == (np.uint8, (256,))
    assert table[[0, 1, 2, 3, 4, 5, 255]].tolist() == [0, 4, 1, 3, 2, 3, 4]
    assert set(table[6:255].tolist()) == {255}


def test_without_ground_classes_there_is_no_ground() -> None:
    taxonomy = Taxonomy.from_classes("t", (SemanticClass("wall", (1, 1, 1)), SemanticClass("car", (2, 2, 2), True)))
    classes, table = label_classes(taxonomy, "foreground")
    assert [c.name for c in classes] == ["car", "other"]
    assert table[[0, 1, 2, 255]].tolist() == [0, 2, 1, 2]


def test_ground_of_several_classes_of_the_paper_is_none_of_them() -> None:
    ground = next(c for c in label_classes(PAPER_TAXONOMY, "foreground")[0] if c.ground)
    assert (ground.name, ground.paper_class, ground.labelled) == ("ground", None, True)


def test_ground_that_the_source_cannot_label_is_found_by_its_shape() -> None:
    classes, _ = label_classes(KITTI, "foreground")
    assert [c.name for c in classes if c.labelled][-2:] == ["ground", "other"]
    assert not KITTI.classes[KITTI.id_of("road") - 1].labelled


def test_a_foreground_class_called_other_is_refused() -> None:
    taxonomy = Taxonomy.from_classes("t", (SemanticClass("other", (1, 1, 1), foreground=True),))
    with pytest.raises(ConfigError, match="foreground class 'other'"):
        label_classes(taxonomy, "foreground")


def test_binary_is_whatever_is_occupied() -> None:
    classes, table = label_classes(TAXONOMY, "binary")
    assert [(c.name, c.foreground, c.ground, c.labelled, c.paper_class) for c in classes] == [
        ("occupied", False, False, True, None)
    ]
    assert table[[0, 1, 2, 3, 4, 5, 255]].tolist() == [0, 1, 1, 1, 1, 1, 1]
    assert set(table[6:255].tolist()) == {255}


@pytest.mark.parametrize(
    ("tier", "auto", "refused"),
    [
        ("none", "binary", ("all", "foreground")),
        ("boxes", "foreground", ("all",)),
        ("points", "all", ()),
        ("both", "all", ()),
    ],
)
def test_a_tier_allows_what_its_labels_tell(tier: Tier, auto: ClassKind, refused: tuple[ClassKind, ...]) -> None:
    assert kind_for(tier, "auto") == auto
    kinds: tuple[ClassKind, ...] = ("all", "foreground", "binary")
    for kind in kinds:
        if kind in refused:
            with pytest.raises(ConfigError, match=f"labels with {kind} classes cannot be made from") as caught:
                kind_for(tier, kind)
            assert auto in caught.value.expected
            assert auto in caught.value.remedy
        else:
            assert kind_for(tier, kind) == kind


def test_what_would_help_is_named() -> None:
    asked: Literal["all", "foreground"] = "all"
    with pytest.raises(ConfigError, match="from boxes but no point labels") as caught:
        kind_for("boxes", asked)
    assert "point labels" in caught.value.remedy
    with pytest.raises(ConfigError, match="from neither point labels nor boxes") as caught:
        kind_for("none", "foreground")
    assert "with boxes" in caught.value.remedy


def rows(*counts: tuple[list[int] | None, list[int] | None]) -> pa.Table:
    """Return a manifest of frames with these counts of points and boxes by source class."""
    return pa.Table.from_pylist(
        [
            {
                "sequence_id": "s", "frame_id": str(i), "timestamp_ns": i, "shard": "x", "row_group": 0, "row": i,
                "num_points": 9, "class_point_counts": points, "class_box_counts": boxes, "keyframe": True,
            }
            for i, (points, boxes) in enumerate(counts)
        ],
        schema=SWEEP_MANIFEST,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "tier"),
    [
        ([(None, None)], "none"),
        ([], "none"),
        ([(None, None), (None, [2, 0, 0])], "boxes"),
        ([(None, [0, 0, 0]), ([0, 0, 1], None)], "points"),
        ([(None, [1, 0, 0]), ([0, 0, 1], None)], "both"),
        ([([0, 3, 0], [0, 1, 0])], "none"),  # of a source class without a class
        ([([0, 0, 0], [1, 0, 0])], "boxes"),  # all points unlabelled
    ],
)
def test_the_manifest_tells_which_labels_there_are(
    counts: list[tuple[list[int] | None, list[int] | None]], tier: Tier
) -> None:
    assert tier_of(rows(*counts), TAXONOMY) == tier


def test_a_dataset_without_source_classes_has_no_labels() -> None:
    taxonomy = Taxonomy("bare", (SemanticClass("thing", (1, 1, 1)),), ())
    assert tier_of(rows((None, None), ([], [])), taxonomy) == "none"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("tree", "car", "road", "cat", "lane"), [2, 255, 3]),
        (("car", "cat", "ground", "other"), [1, 255, 3]),
        (("occupied",), [1, 255, 1]),
    ],
)
def test_source_classes_are_found_in_a_label_set_by_the_names_of_its_classes(
    names: tuple[str, ...], expected: list[int]
) -> None:
    lookup = lookup_of(TAXONOMY, names)
    assert lookup is not None
    assert (lookup.dtype, lookup.shape) == (np.uint8, (65536,))
    assert lookup[[7, 8, 9]].tolist() == expected
    assert lookup[65535] == 255  # an unlabelled point is not other


def test_a_label_set_of_foreign_classes_has_no_lookup() -> None:
    assert lookup_of(TAXONOMY, ("car", "tree")) is None
    clashing = Taxonomy.from_classes("t", (SemanticClass("other", (1, 1, 1), foreground=True),))
    assert lookup_of(clashing, ("other", "other")) is None


def test_what_is_near_nothing_labelled_is_a_general_object() -> None:
    assert fallback_class(PAPER_TAXONOMY) == 1
    assert fallback_class(TAXONOMY) == 255
    things = (
        SemanticClass("general object", (1, 1, 1), labelled=False),
        SemanticClass("thing", (2, 2, 2), paper_class="general object"),
    )
    assert fallback_class(Taxonomy.from_classes("t", things)) == 2
