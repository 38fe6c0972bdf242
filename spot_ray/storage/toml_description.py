"""A dataset described by hand, in TOML: its LiDARs, its classes, and the ids and columns that its frames carry.

    name = "fleet"
    licence = "ours"

    [[lidars]]
    name = "roof"
    kind = "spinning"                    # or "solid_state"
    num_beams = 32
    vfov_deg = [-25.0, 15.0]
    position_m = [1.1, 0.0, 1.9]         # in the ego frame: x forward, y left, z up from the ground
    yaw_deg = 0.0                        # to the left; pitch_deg tips it forward, roll_deg to the right

    [[classes]]
    name = "tram"
    color = "#0064e6"
    foreground = true
    paper_class = "vehicle"

    [extra.doppler]
    dtype = "float32"
    unit = "m/s"

Reading it needs NumPy and pyarrow alone.
"""

from __future__ import annotations

import colorsys
import os
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from spot_ray.config.load import suggestion
from spot_ray.config.toml_table import (
    FLAG,
    NUMBER,
    NUMBERS,
    TABLES,
    TEXT,
    TEXTS,
    WHOLE,
    Kind,
    TomlTable,
    parse_toml,
    read_numbers,
    read_whole,
)
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry import se3
from spot_ray.schema.dataset import DatasetInfo, ExtraColumn
from spot_ray.schema.lidars import LIDARS
from spot_ray.schema.sensors import LidarSpec, Matrix, as_matrix
from spot_ray.schema.taxonomy import PAPER_CLASSES, SemanticClass, SourceClass, Taxonomy
from spot_ray.storage import uri as uris

Color = tuple[int, int, int]

_PAPER = "paper"
_PAPER_CLASS = {c.name: c for c in PAPER_CLASSES}
_HEX_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_GOLDEN_TURN = 0.618034
"""Part of the colour wheel between the default colours of neighbours: no two of a few dozen are close to each other."""


def load_description(path: str | os.PathLike[str]) -> DatasetInfo:
    """Read the description of a dataset of one's own.

    Top level: `name`, and optionally `licence`, `provenance`, `compression`, `lossless`, `sequences_a_shard`,
    `detection_classes`, `segmentation_classes`.

    `[[lidars]]`: the fields of :class:`~spot_ray.schema.sensors.LidarSpec`. The mount is `position_m`, with `yaw_deg`,
    `pitch_deg` and `roll_deg` (turns about z, then the new y, then the new x axis, by the right-hand rule), or the
    4 × 4 `ego_SE3_lidar`. `lidar_id` is the place in the file, from 0, if not given. `model` takes what is not given
    from one of :data:`~spot_ray.schema.lidars.LIDARS`.

    `[[classes]]`: the fields of :class:`~spot_ray.schema.taxonomy.SemanticClass`; `color` is `"#rrggbb"` or
    `[red, green, blue]`. A class with a `paper_class` takes colour, `foreground` and `ground` from that, if not given.
    `classes = "paper"` stands for the paper's 15.

    `[[sources]]`: the ids that points and boxes carry: `id`, `name`, `target` (a class; without it the id counts as
    unlabelled), `detection`, `segmentation`. Without any, the ids are the classes' own, 1 to N in the file's order.

    `[extra.NAME]`: `dtype` and `unit` of a point column of one's own.

    Args:
        path: The TOML file; a path or a URI.

    Returns:
        What :class:`~spot_ray.storage.dataset.DatasetWriter` and a converter's `info` want.

    Raises:
        DataError: If there is no such file.
        ConfigError: If it is no TOML, or a key is unknown, missing, or has an impossible value.
    """
    where = os.fspath(path)
    table = parse_toml(uris.read_bytes(where), where=where)
    try:
        return _read_dataset(table)
    except DataError as error:  # values that contradict each other
        place = f"{where}: {error.where}" if error.where else where
        raise ConfigError(error.what, where=place, expected=error.expected, remedy=error.remedy) from None


def _read_pair(value: Any) -> tuple[float, float] | None:
    numbers = read_numbers(value) or ()
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _read_triple(value: Any) -> tuple[float, float, float] | None:
    numbers = read_numbers(value) or ()
    return (numbers[0], numbers[1], numbers[2]) if len(numbers) == 3 else None


def _read_matrix(value: Any) -> Matrix | None:
    rows = [read_numbers(row) or () for row in value] if isinstance(value, list) else []
    return as_matrix(rows) if [len(row) for row in rows] == [4, 4, 4, 4] else None


def _read_color(value: Any) -> Color | None:
    if isinstance(value, str) and _HEX_COLOR.fullmatch(value):
        red, green, blue = bytes.fromhex(value[1:])
        return red, green, blue
    parts = [read_whole(v) for v in value] if isinstance(value, list) else []
    rgb = [part for part in parts if part is not None and 0 <= part <= 255]
    return (rgb[0], rgb[1], rgb[2]) if len(parts) == len(rgb) == 3 else None


def _read_lidar_kind(value: Any) -> Literal["spinning", "solid_state"] | None:
    return value if value in ("spinning", "solid_state") else None


_RANGE = Kind("two numbers: [lowest, highest]", _read_pair)
_POSITION = Kind("three numbers: [x, y, z], metres", _read_triple)
_MATRIX = Kind("a list of four lists of four numbers", _read_matrix)
_COLOR = Kind('"#rrggbb" or [red, green, blue], each 0 to 255', _read_color)
_LIDAR_KIND: Kind[Literal["spinning", "solid_state"]] = Kind('"spinning" or "solid_state"', _read_lidar_kind)
_CLASSES: Kind[str | list[dict[str, Any]]] = Kind(
    f'tables [[classes]], or "{_PAPER}"', lambda v: v if v == _PAPER else TABLES.read(v)
)


def _read_dataset(table: TomlTable) -> DatasetInfo:
    table.required("lidars", TABLES)
    info = DatasetInfo(
        name=table.required("name", TEXT),
        rig=tuple(_read_lidar(lidar, i) for i, lidar in enumerate(table.tables("lidars"))),
        taxonomy=_read_taxonomy(table),
        extra={name: _read_extra(column) for name, column in table.named_tables("extra").items()},
        **_given(
            licence=table.optional("licence", TEXT),
            provenance=table.optional("provenance", TEXT),
            compression=table.optional("compression", TEXT),
            lossless=table.optional("lossless", FLAG),
            sequences_a_shard=table.optional("sequences_a_shard", WHOLE),
        ),
    )
    table.end()
    return info


def _read_lidar(table: TomlTable, index: int) -> LidarSpec:
    model = table.optional("model", TEXT)
    _check_known(table, "model", model, list(LIDARS))
    base: dict[str, Any] = {} if model is None else vars(LIDARS[model])
    take: Callable[[str, Kind[Any]], Any] = table.required if model is None else table.optional
    given = _given(
        name=take("name", TEXT),
        lidar_id=table.optional("lidar_id", WHOLE),
        kind=take("kind", _LIDAR_KIND),
        num_beams=take("num_beams", WHOLE),
        vfov_deg=take("vfov_deg", _RANGE),
        inclinations_deg=table.optional("inclinations_deg", NUMBERS),
        ego_SE3_lidar=_read_mount(table, take),
        columns=table.optional("columns", WHOLE),
        rate_hz=table.optional("rate_hz", NUMBER),
        intensity_max=table.optional("intensity_max", NUMBER),
    )
    table.end()
    return LidarSpec(**{**base, "lidar_id": index, **given})


def _read_mount(table: TomlTable, take: Callable[[str, Kind[Any]], Any]) -> Matrix | None:
    """Return `ego_SE3_lidar`, or None where `take` lets it be left to the model."""
    matrix = table.optional("ego_SE3_lidar", _MATRIX)
    angles_deg = [table.optional(f"{name}_deg", NUMBER) for name in ("yaw", "pitch", "roll")]
    if matrix is not None:
        if table.optional("position_m", _POSITION) is not None or any(angle is not None for angle in angles_deg):
            raise table.error(
                f"{table.place('ego_SE3_lidar')} stands beside a position or angles", "one of the two", "take one out"
            )
        return matrix
    turned = any(angle is not None for angle in angles_deg)
    position = table.required("position_m", _POSITION) if turned else take("position_m", _POSITION)
    if position is None:
        return None
    turn = np.eye(3)
    for angle_deg, (a, b) in zip(angles_deg, ((0, 1), (2, 0), (1, 2)), strict=True):
        angle = np.radians(angle_deg or 0.0)
        about_axis = np.eye(3)
        about_axis[a, a] = about_axis[b, b] = np.cos(angle)
        about_axis[b, a], about_axis[a, b] = np.sin(angle), -np.sin(angle)
        turn = turn @ about_axis
    return as_matrix(se3.from_rotation_translation(turn, position))


def _read_taxonomy(table: TomlTable) -> Taxonomy:
    name = table.required("name", TEXT)
    given = table.required("classes", _CLASSES)
    classes = PAPER_CLASSES if given == _PAPER else _read_classes(table.tables("classes"))
    sources = tuple(_read_source(row) for row in table.tables("sources"))
    return Taxonomy(
        name,
        classes,
        sources or Taxonomy.from_classes(name, classes).sources,
        **{key: table.optional(key, TEXTS) or () for key in ("detection_classes", "segmentation_classes")},
    )


def _read_classes(tables: list[TomlTable]) -> tuple[SemanticClass, ...]:
    colors = [table.optional("color", _COLOR) for table in tables]
    classes = []
    for i, table in enumerate(tables):
        paper_class = table.optional("paper_class", TEXT)
        _check_known(table, "paper_class", paper_class, list(_PAPER_CLASS))
        paper = _PAPER_CLASS.get(paper_class or "")
        color = colors[i]
        if color is None:
            # Two classes may share their class of the paper, but should not look alike.
            color = paper.color if paper is not None and paper.color not in colors else _default_color(i)
            colors[i] = color
        is_labelled = table.optional("labelled", FLAG)
        flags = {
            "foreground": paper is not None and paper.foreground,
            "ground": paper is not None and paper.ground,
            **_given(foreground=table.optional("foreground", FLAG), ground=table.optional("ground", FLAG)),
        }
        classes.append(
            SemanticClass(
                table.required("name", TEXT),
                color,
                labelled=is_labelled is not False,
                paper_class=paper_class,
                **flags,
            )
        )
        table.end()
    return tuple(classes)


def _default_color(index: int) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_TURN % 1.0, 0.75, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _read_source(table: TomlTable) -> SourceClass:
    source = SourceClass(
        id=table.required("id", WHOLE),
        name=table.required("name", TEXT),
        target=table.optional("target", TEXT),
        detection=table.optional("detection", TEXT),
        segmentation=table.optional("segmentation", TEXT),
    )
    table.end()
    return source


def _read_extra(table: TomlTable) -> ExtraColumn:
    column = ExtraColumn(dtype=table.required("dtype", TEXT), unit=table.required("unit", TEXT))
    table.end()
    return column


def _check_known(table: TomlTable, key: str, value: str | None, known: list[str]) -> None:
    if value is not None and value not in known:
        raise table.error(f"{table.place(key)} is {value!r}", f"one of {', '.join(known)}", suggestion(value, known))


def _given(**values: Any) -> dict[str, Any]:
    """Return the values that are not None: for the others, what they are passed to has its default."""
    return {name: value for name, value in values.items() if value is not None}
