import io

import matplotlib.image
import numpy as np
import pytest

from spot_ray.view.beams import Density, densities_figure, draw_densities


def density(title: str, inclination_deg: list[float], distance_m: list[float] | None = None) -> Density:
    """Return points straight ahead, one a given inclination."""
    angle = np.array(inclination_deg)
    distance = np.full(len(angle), 10.0) if distance_m is None else np.array(distance_m)
    xyz = np.stack([distance, 0 * angle, np.tan(np.radians(angle))], axis=1)
    return Density(title, xyz, 0 * angle, angle, distance)


def images(*densities: Density, **options: object) -> list[np.ndarray]:
    """Return the image of every panel: from above, and as seen, of one density after the other."""
    return [axes.images[0].get_array() for axes in densities_figure(densities=densities, **options).axes]


def rows_drawn(image: np.ndarray) -> np.ndarray:
    return np.flatnonzero((image != image[0, 0]).any(axis=(1, 2)))


def test_every_beam_is_a_line_of_its_own() -> None:
    _, dense, _, sparse = images(
        density("all", [-15.0, -10.0, -5.0, 0.0]), density("half", [-15.0, -5.0]), window_deg=(-30.0, 30.0, -20.0, 20.0)
    )
    # 40 degrees in 200 rows: 5 rows a degree, 20 degrees on top.
    np.testing.assert_array_equal(rows_drawn(dense), [100, 125, 150, 175])
    np.testing.assert_array_equal(rows_drawn(sparse), [125, 175])


def test_left_is_left() -> None:
    one = density("one", [0.0])
    _, seen = images(Density("one", one.xyz, np.array([20.0]), one.inclination_deg, one.distance_m))
    column = np.flatnonzero((seen != seen[0, 0]).any(axis=(0, 2)))
    assert column.max() < seen.shape[1] / 2


def test_the_nearer_of_two_points_hides_the_other() -> None:
    near, far = (images(density("one", [-5.0], [distance]))[1] for distance in (5.0, 50.0))
    for order in ([5.0, 50.0], [50.0, 5.0]):
        np.testing.assert_array_equal(images(density("both", [-5.0, -5.0], order))[1], near)
    assert not np.array_equal(near, far)


def test_points_outside_of_the_window_are_left_out() -> None:
    _, seen = images(density("high", [60.0, -60.0]))
    assert not len(rows_drawn(seen))


def test_arrays_that_do_not_fit() -> None:
    one = density("one", [0.0, 1.0])
    with pytest.raises(ValueError, match="'short' differ in length"):
        densities_figure(
            densities=[Density("short", one.xyz, one.azimuth_deg[:1], one.inclination_deg, one.distance_m)]
        )


def test_the_picture_is_a_png_1800_pixels_wide() -> None:
    file = io.BytesIO()
    draw_densities(file, densities=[density("R = 1", [-3.0]), density("R = 0.5", [-1.0])], title="title")
    file.seek(0)
    assert matplotlib.image.imread(file).shape[1] == 1800
