"""Descriptions in TOML: what they mean, what they leave out, and every kind of mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import spot_ray
from spot_ray.errors import ConfigError, DataError
from spot_ray.schema.lidars import HDL_32E
from spot_ray.schema.taxonomy import PAPER_CLASSES

ROOF = """
[[lidars]]
name = "roof"
kind = "spinning"
num_beams = 2
vfov_deg = [-10, 2.5]
inclinations_deg = [-10.0, 2.5]
position_m = [1.0, 0, 2]
yaw_deg = 90
columns = 1800
rate_hz = 10
intensity_max = 255
"""
FRONT = """
[[lidars]]
name = "front"
kind = "solid_state"
num_beams = 40
vfov_deg = [-15.0, 15.0]
ego_SE3_lidar = [[1, 0, 0, 3.5], [0, 1, 0, 0], [0, 0, 1, 0.6], [0, 0, 0, 1]]
"""
CLASSES = """
[[classes]]
name = "tram"
color = "#0064E6"
foreground = true

[[classes]]
name = "rail"
color = [1, 2, 3]
ground = true
paper_class = "road"
"""
BODY = ROOF + FRONT + CLASSES


def load(tmp_path: Path, text: str) -> spot_ray.DatasetInfo:
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    return spot_ray.load_description(path)


def test_a_whole_description(tmp_path: Path) -> None:
    top = 'name = "fleet"\nlicence = "ours"\nprovenance = "depot"\nlossless = true\ncompression = "snappy"\n'
    top += 'sequences_a_shard = 5\ndetection_classes = ["Tram"]\nsegmentation_classes = ["flat"]\n'
    sources = """
[[sources]]
id = 7
name = "Tram"
target = "tram"
detection = "Tram"
[[sources]]
id = 9
name = "Rail"
target = "rail"
segmentation = "flat"
[[sources]]
id = 200
name = "Other"
[extra.doppler]
dtype = "float32"
unit = "m/s"
"""
    info = load(tmp_path, top + BODY + sources)
    assert (info.name, info.licence, info.provenance) == ("fleet", "ours", "depot")
    assert (info.lossless, info.compression, info.sequences_a_shard) == (True, "snappy", 5)
    assert info.extra == {"doppler": spot_ray.ExtraColumn("float32", "m/s")}
    roof, front = info.rig
    assert (roof.name, roof.lidar_id, roof.kind, roof.num_beams) == ("roof", 0, "spinning", 2)
    assert (roof.vfov_deg, roof.inclinations_deg, roof.columns) == ((-10.0, 2.5), (-10.0, 2.5), 1800)
    assert (roof.rate_hz, roof.intensity_max) == (10.0, 255.0)
    np.testing.assert_allclose(roof.pose, [[0, -1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]], atol=1e-12)
    assert (front.lidar_id, front.kind, front.height_m, front.intensity_max) == (1, "solid_state", 0.6, None)
    tram, rail = info.taxonomy.classes
    assert tram == spot_ray.SemanticClass("tram", (0, 100, 230), foreground=True)
    assert rail == spot_ray.SemanticClass("rail", (1, 2, 3), ground=True, paper_class="road")
    assert info.taxonomy.lookup()[[7, 9, 200]].tolist() == [1, 2, 255]
    assert info.taxonomy.benchmark_lookup("detection")[[7, 9]].tolist() == [1, 255]
    assert info.taxonomy.segmentation_classes == ("flat",)


def test_what_is_left_out_has_the_defaults_of_the_schema(tmp_path: Path) -> None:
    info = load(tmp_path, 'name = "fleet"' + BODY)
    by_hand = spot_ray.DatasetInfo("fleet", info.rig, spot_ray.Taxonomy.from_classes("fleet", info.taxonomy.classes))
    assert info == by_hand
    assert [(s.id, s.name, s.target) for s in info.taxonomy.sources] == [(1, "tram", "tram"), (2, "rail", "rail")]


@pytest.mark.parametrize(
    ("angles", "forward", "left"),
    [
        ("yaw_deg = 30", [np.sqrt(3) / 2, 0.5, 0], [-0.5, np.sqrt(3) / 2, 0]),
        ("pitch_deg = 30", [np.sqrt(3) / 2, 0, -0.5], [0, 1, 0]),
        ("roll_deg = 30", [1, 0, 0], [0, np.sqrt(3) / 2, 0.5]),
        # First about z, then about the turned y: the sensor looks left and down.
        ("yaw_deg = 90\npitch_deg = 30", [0, np.sqrt(3) / 2, -0.5], [-1, 0, 0]),
    ],
)
def test_angles_turn_as_documented(tmp_path: Path, angles: str, forward: list[float], left: list[float]) -> None:
    pose = load(tmp_path, 'name = "fleet"' + ROOF.replace("yaw_deg = 90", angles) + CLASSES).rig[0].pose
    np.testing.assert_allclose(pose[:3, 0], forward, atol=1e-12)
    np.testing.assert_allclose(pose[:3, 1], left, atol=1e-12)
    np.testing.assert_allclose(pose[:3, 3], [1, 0, 2], atol=1e-12)


def test_a_known_model_gives_what_is_not_said(tmp_path: Path) -> None:
    text = 'name = "fleet"\nclasses = "paper"\n[[lidars]]\nmodel = "hdl-32e"\nlidar_id = 4\nposition_m = [0, 0, 2.5]\n'
    lidar = load(tmp_path, text).rig[0]
    assert (lidar.lidar_id, lidar.height_m, lidar.name) == (4, 2.5, "hdl-32e")
    assert (lidar.inclinations_deg, lidar.rate_hz) == (HDL_32E.inclinations_deg, HDL_32E.rate_hz)
    as_mounted = load(tmp_path, text.replace("position_m = [0, 0, 2.5]", 'name = "mine"')).rig[0]
    assert (as_mounted.name, as_mounted.ego_SE3_lidar) == ("mine", HDL_32E.ego_SE3_lidar)


def test_classes_of_the_paper_give_flags_and_colours_and_no_two_look_alike(tmp_path: Path) -> None:
    paper = {c.name: c for c in PAPER_CLASSES}
    rows = [("car", "vehicle"), ("bus", "vehicle"), ("road", "road"), ("barrow", None), ("crate", None)]
    text = 'name = "fleet"' + ROOF
    for name, paper_class in rows:
        text += f'[[classes]]\nname = "{name}"\n' + (f'paper_class = "{paper_class}"\n' if paper_class else "")
    text += "labelled = false\n"
    classes = load(tmp_path, text).taxonomy.classes
    assert [c.foreground for c in classes] == [True, True, False, False, False]
    assert [c.ground for c in classes] == [False, False, True, False, False]
    assert [c.labelled for c in classes] == [True, True, True, True, False]
    assert (classes[0].color, classes[2].color) == (paper["vehicle"].color, paper["road"].color)
    colors = np.array([c.color for c in classes])
    apart = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(len(colors), dtype=int)
    assert apart.min() > 60
    plain = load(tmp_path, text.replace("[[classes]]", "[[classes]]\nforeground = false\nground = false"))
    assert not any(c.foreground or c.ground for c in plain.taxonomy.classes)


@pytest.mark.parametrize(
    ("change", "what", "expected", "remedy"),
    [
        (("num_beams", "num_beam"), "lidars[0].num_beams is missing", "a whole number", "is 'num_beam' meant"),
        (("rate_hz", "rate_khz"), "unknown key 'lidars[0].rate_khz'", "", "did you mean 'rate_hz'?"),
        (("\nground = true", "\ngrounds = true"), "unknown key 'classes[1].grounds'", "", "did you mean 'ground'?"),
        (('name = "fleet"', 'name = "fleet"\nlicense = "x"'), "unknown key 'license'", "", "did you mean 'licence'?"),
        (("num_beams = 2", "num_beams = 2.5"), "lidars[0].num_beams is 2.5", "a whole number", ""),
        (("num_beams = 2", "num_beams = true"), "lidars[0].num_beams is True", "a whole number", ""),
        (("rate_hz = 10", "rate_hz = nan"), "lidars[0].rate_hz is nan", "a number", ""),
        (("[-10, 2.5]", "[-10]"), "lidars[0].vfov_deg is [-10]", "[lowest, highest]", ""),
        (("[1.0, 0, 2]", '"here"'), "lidars[0].position_m is 'here'", "[x, y, z], metres", ""),
        (("position_m = [1.0, 0, 2]", ""), "lidars[0].position_m is missing", "[x, y, z], metres", ""),
        (("position_m", "ego_SE3_lidar"), "lidars[0].ego_SE3_lidar is [1.0, 0, 2]", "four lists", ""),
        (("ego_SE3", "position_m = [0, 0, 1]\nego_SE3"), "ego_SE3_lidar stands beside", "one of the two", ""),
        (('"spinning"', '"rotating"'), "lidars[0].kind is 'rotating'", '"spinning" or "solid_state"', ""),
        (("[-10.0, 2.5]", "[-10.0, 0, 2.5]"), "3 inclinations for 2 beams", "one inclination a beam", ""),
        (('name = "roof"', 'model = "hdl-32"'), "lidars[0].model is 'hdl-32'", "hdl-32e", "did you mean 'hdl-32e'?"),
        (('kind = "spinning"', 'kind = "spinning"\nlidar_id = 1'), "lidar_ids of the rig are [1, 1]", "unique", ""),
        (('"#0064E6"', '"blue"'), "classes[0].color is 'blue'", "#rrggbb", ""),
        (("[1, 2, 3]", "[1, 2, 300]"), "classes[1].color is [1, 2, 300]", "0 to 255", ""),
        (('"road"', '"raod"'), "classes[1].paper_class is 'raod'", "general object", "did you mean 'road'?"),
        (('name = "rail"', 'name = "tram"'), "class tram occurs twice", "unique", ""),
        (('name = "fleet"', ""), "name is missing", "a text", ""),
        (('name = "fleet"', 'name = ""'), "name is ''", "a text, not empty", ""),
        (('name = "fleet"', 'name = "fleet"\nextra = 3'), "extra is 3", "tables with a name each", ""),
        (('name = "fleet"', 'name = "fleet"\nlossless = "yes"'), "lossless is 'yes'", "true or false", ""),
        ((CLASSES, CLASSES + "[extra.snr]\ndtype='text'\nunit='dB'"), "'text' is no dtype", "float32", ""),
        ((CLASSES, CLASSES + "[extra.snr]\ndtype='float32'"), "extra.snr.unit is missing", "a text", ""),
        ((CLASSES, CLASSES + "[[sources]]\nid=1\nname='T'\ntarget='trams'"), "maps to 'trams'", "tram, rail", ""),
        ((CLASSES, ""), "classes is missing", 'or "paper"', ""),
        ((ROOF + FRONT, ""), "lidars is missing", "double brackets", ""),
        (("[[classes]]", "[classes]"), "not valid TOML", "", ""),
        (('"fleet"', '"fleet'), "not valid TOML", "", ""),
    ],
)
def test_a_mistake_names_file_and_place(
    tmp_path: Path, change: tuple[str, str], what: str, expected: str, remedy: str
) -> None:
    text = 'name = "fleet"' + BODY
    assert change[0] in text
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text.replace(*change))
    assert what in caught.value.what
    assert expected in caught.value.expected
    assert remedy in caught.value.remedy
    assert "fleet.toml" in caught.value.where


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        spot_ray.load_description(tmp_path / "nowhere.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        spot_ray.load_description(str(tmp_path / "binary.toml"))
