import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.schema.taxonomy import PAPER_TAXONOMY, SemanticClass, SourceClass, Taxonomy

CAR, ROAD = SemanticClass("car", (1, 2, 3), foreground=True), SemanticClass("road", (4, 5, 6), ground=True)
SOURCES = (
    SourceClass(40, "van", "car"),
    SourceClass(0, "noise", None),
    SourceClass(255, "road", "road"),
    SourceClass(65534, "car", "car"),
)
TAXONOMY = Taxonomy("two", (CAR, ROAD), SOURCES)


def test_source_ids_map_by_hand_and_all_others_are_unlabelled() -> None:
    table = TAXONOMY.lookup()
    assert table.shape == (65536,)
    assert {i: int(table[i]) for i in np.flatnonzero(table != 255)} == {40: 1, 255: 2, 65534: 1}
    assert table[0] == table[1] == table[65535] == 255


def test_counts_add_up_by_class() -> None:
    counts = TAXONOMY.class_counts(np.array([[5, 7, 2, 10], [0, 3, 0, 1]]))
    assert counts.tolist() == [[0, 15, 2], [0, 1, 0]]


def test_masks_and_colors_begin_with_empty() -> None:
    assert TAXONOMY.mask("foreground").tolist() == [False, True, False]
    assert TAXONOMY.mask("ground").tolist() == [False, False, True]
    assert TAXONOMY.colors().tolist() == [[255, 255, 255], [1, 2, 3], [4, 5, 6]]


def test_the_papers_classes_keep_their_ids() -> None:
    names = dict(enumerate(PAPER_TAXONOMY.class_names, start=1))
    assert (len(names), names[1], names[2], names[15]) == (15, "general object", "vehicle", "walkable")
    foreground = np.flatnonzero(PAPER_TAXONOMY.mask("foreground"))
    assert [names[i] for i in foreground] == ["vehicle", "pedestrian", "cyclist", "bicycle", "motorcycle"]


def test_a_class_that_is_not_labelled_has_no_source() -> None:
    sign = SemanticClass("sign", (7, 8, 9), labelled=False)
    assert Taxonomy.from_classes("three", (CAR, sign, ROAD)).lookup()[:5].tolist() == [255, 1, 255, 3, 255]
    with pytest.raises(DataError, match="'board' maps to 'sign', which is marked as not labelled"):
        Taxonomy("wrong", (CAR, sign), (SourceClass(1, "board", "sign"),))


@pytest.mark.parametrize(
    ("classes", "sources", "message"),
    [
        ((), (), "0 classes"),
        ((CAR, CAR), (), "class car occurs twice"),
        ((CAR,), (SourceClass(1, "a", "car"), SourceClass(1, "b", None)), "source id 1 occurs twice"),
        ((CAR,), (SourceClass(65535, "a", "car"),), "source id 65535"),
        ((CAR,), (SourceClass(1, "a", "cra"),), "maps to 'cra', which is not a class"),
    ],
)
def test_contradictions_are_named(
    classes: tuple[SemanticClass, ...], sources: tuple[SourceClass, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Taxonomy("wrong", classes, sources)


def test_a_benchmarks_classes_are_a_taxonomy_of_their_own() -> None:
    taxonomy = Taxonomy(
        "two",
        (CAR, ROAD),
        (SourceClass(3, "bus", "car", detection="Bus"), SourceClass(4, "tram", None, detection="Rail"),
         SourceClass(5, "coach", "road", detection="Bus"), SourceClass(6, "kerb", "road")),
        detection_classes=("Rail", "Bus"),
    )  # fmt: skip
    found = taxonomy.of_detection()
    assert found is not None
    assert found.class_names == ("Rail", "Bus")
    assert found.classes[1].color == CAR.color
    assert all(c.foreground for c in found.classes)
    np.testing.assert_array_equal(found.lookup(), taxonomy.benchmark_lookup("detection"))
    assert found.lookup()[3:7].tolist() == [2, 1, 2, 255]
    assert PAPER_TAXONOMY.of_detection() is None
