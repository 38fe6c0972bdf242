from spot_ray.view.labels import Rectangle, place_labels

FRAME = Rectangle(0.0, 0.0, 100.0, 100.0)
BOX = Rectangle(40.0, 40.0, 60.0, 60.0)


def test_a_label_stands_right_of_what_it_names_then_left_above_below_then_nowhere() -> None:
    places = place_labels([BOX] * 5, [(20.0, 10.0)] * 5, within=FRAME, gap=2.0)
    assert places == [
        Rectangle(62.0, 45.0, 82.0, 55.0),
        Rectangle(18.0, 45.0, 38.0, 55.0),
        Rectangle(40.0, 28.0, 60.0, 38.0),
        Rectangle(40.0, 62.0, 60.0, 72.0),
        None,
    ]


def test_no_label_leaves_the_frame_or_lies_on_what_is_taken() -> None:
    at_the_edge = Rectangle(80.0, 40.0, 95.0, 60.0)
    assert place_labels([at_the_edge], [(20.0, 10.0)], within=FRAME, gap=2.0) == [Rectangle(58.0, 45.0, 78.0, 55.0)]
    taken = [Rectangle(61.0, 0.0, 70.0, 100.0)]
    assert place_labels([BOX], [(20.0, 10.0)], within=FRAME, taken=taken, gap=2.0) == [
        Rectangle(18.0, 45.0, 38.0, 55.0)
    ]


def test_a_label_lies_on_what_is_to_be_avoided_only_where_it_must() -> None:
    right = Rectangle(61.0, 0.0, 70.0, 100.0)
    assert place_labels([BOX], [(20.0, 10.0)], within=FRAME, avoid=[right], gap=2.0)[0] == (18.0, 45.0, 38.0, 55.0)
    assert place_labels([BOX], [(20.0, 10.0)], within=FRAME, avoid=[FRAME], gap=2.0)[0] == (62.0, 45.0, 82.0, 55.0)
