"""Occ3D's file forms: what its arrays hold, and how our labels turn into them and back.

The facts and where they stand (repository Tsinghua-MARS-Lab/Occ3D unless another is named):

- Grids, 0.4 m: `README.md`, tables "Occ3D-Waymo" and "Occ3D-nuScenes": [-40, -40, -1, 40, 40, 5.4] m, 200 × 200 × 16.
- Axes: arrays are `[x, y, z]`, ascending: `utils/vis_occ.py`, `voxel2points` on `master`. x is forward and y to the
  left: `docs/dataset.md` of Tsinghua-MARS-Lab/CVT-Occ says so of the vehicle's frame of Waymo.
- Classes and the value of free space: `README.md`; nuScenes' ids 0 to 16 are lidarseg's, free is 17. Of Waymo the
  README calls free 15, but its files hold 23: `projects/configs/bevformer/bevformer_base_occ_waymo.py` on the branch
  `code`, and `docs/dataset.md` of CVT-Occ. Both are read, 23 is written.
- Keys: `README.md`. `origin_voxel_state` of Waymo is nuScenes' `mask_lidar`, `final_voxel_state` is `mask_camera`;
  `infov` marks what lies in the field of view of Waymo's five cameras. Each is 0 or 1, 0 is unobserved; they are masks,
  in spite of their names: `projects/mmdet3d_plugin/datasets/pipelines/loading.py` on the branch `code`.
- What the LiDAR mask means: `README.md`, figure 1: what any of the aggregated sweeps observed. Voxels outside have
  classes nonetheless (issue 36 of the repository): here they are unobserved, whatever their class.

Not verified, since no official file was at hand: that the frame of Occ3D-nuScenes is the ego frame at the LiDAR's time
(the README does not tell; users found the ego frame in pictures, issue 40), and the dtypes. Readers treat the labels as
uint8; any integers are read, and uint8 is written. :func:`~spot_ray.occupancy.occ3d_run.import_labels` therefore
reports how many of the dataset's own points fall into occupied voxels: nearly all, if frames and axes agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from spot_ray.config.load import suggestion
from spot_ray.errors import ConfigError, DataError
from spot_ray.geometry.grid import VoxelGrid, pack_bits, unpack_bits
from spot_ray.schema.occupancy import Occupancy
from spot_ray.schema.taxonomy import IGNORE, PAPER_CLASSES, SemanticClass

CameraMasks = Literal["none", "observed"]
"""`none`: files lack the masks of cameras. `observed`: these repeat the LiDAR's, for readers that insist on them."""

UInt8 = npt.NDArray[np.uint8]

_GRID = VoxelGrid((-40.0, -40.0, -1.0), (0.4, 0.4, 0.4), (200, 200, 16))

_NUSCENES: tuple[tuple[str, tuple[int, int, int], str], ...] = (
    # lidarseg's id 0: what has no class of its own, e.g. animals, strollers, debris, and noise.
    ("others", (120, 120, 120), "general object"),
    ("barrier", (112, 128, 144), "general object"),
    ("bicycle", (220, 20, 60), "bicycle"),
    ("bus", (255, 127, 80), "vehicle"),
    ("car", (255, 158, 0), "vehicle"),
    ("construction_vehicle", (233, 150, 70), "vehicle"),
    ("motorcycle", (255, 61, 99), "motorcycle"),
    ("pedestrian", (0, 0, 230), "pedestrian"),
    ("traffic_cone", (47, 79, 79), "construction cone"),
    ("trailer", (255, 140, 0), "vehicle"),
    ("truck", (255, 99, 71), "vehicle"),
    ("driveable_surface", (0, 207, 191), "road"),
    ("other_flat", (175, 0, 75), "walkable"),
    ("sidewalk", (75, 0, 75), "walkable"),
    ("terrain", (112, 180, 60), "walkable"),
    ("manmade", (222, 184, 135), "building"),
    ("vegetation", (0, 175, 0), "vegetation"),
)
"""Name, colour (nuscenes-devkit, `utils/color_map.py`) and the paper's class, as the nuScenes converter has it."""

_PAPER = {c.name: c for c in PAPER_CLASSES}

_OF_PAPER: dict[str, str] = {
    "general object": "others",
    # The paper has one class for nuScenes' car, bus, truck, trailer and construction vehicle; most are cars.
    "vehicle": "car",
    "pedestrian": "pedestrian",
    "sign": "manmade",
    # nuScenes draws one box around a bicycle and who rides it.
    "cyclist": "bicycle",
    "traffic light": "manmade",
    "pole": "manmade",
    "construction cone": "traffic_cone",
    "bicycle": "bicycle",
    "motorcycle": "motorcycle",
    "building": "manmade",
    "vegetation": "vegetation",
    "tree trunk": "vegetation",
    "road": "driveable_surface",
    # The paper has one class for nuScenes' sidewalk, terrain and other_flat.
    "walkable": "sidewalk",
}


@dataclass(frozen=True)
class Form:
    """One of Occ3D's two forms of label files.

    Args:
        name: Its name on the command line.
        grid: Its grid, in the ego frame.
        classes: Its classes; the first has the value 0 in the files, and stands for what has no class of its own.
        free: Values of free space; the first is what is written.
        labels_key: The array of class values.
        observed_key: The mask of what any LiDAR sweep observed.
        camera_keys: The masks of what cameras see.
        of_paper: Which of its classes each of the paper's classes becomes.
    """

    name: str
    grid: VoxelGrid
    classes: tuple[SemanticClass, ...]
    free: tuple[int, ...]
    labels_key: str
    observed_key: str
    camera_keys: tuple[str, ...]
    of_paper: Mapping[str, str]


NUSCENES = Form(
    "occ3d-nuscenes",
    _GRID,
    tuple(
        SemanticClass(name, color, _PAPER[paper].foreground, _PAPER[paper].ground, paper_class=paper)
        for name, color, paper in _NUSCENES
    ),
    free=(17,),
    labels_key="semantics",
    observed_key="mask_lidar",
    camera_keys=("mask_camera",),
    of_paper=_OF_PAPER,
)
"""Occ3D-nuScenes: `gts/SCENE/SAMPLE_TOKEN/labels.npz`."""

WAYMO = Form(
    "occ3d-waymo",
    _GRID,
    PAPER_CLASSES,  # the paper took its classes, and their order, from there
    free=(23, 15),
    labels_key="voxel_label",
    observed_key="origin_voxel_state",
    camera_keys=("final_voxel_state", "infov"),
    of_paper={name: name for name in _PAPER},
)
"""Occ3D-Waymo at 0.4 m: `SPLIT/SEGMENT/FRAME_04.npz`."""

FORMS: dict[str, Form] = {form.name: form for form in (NUSCENES, WAYMO)}

GRIDS: dict[str, VoxelGrid] = {form.name: form.grid for form in FORMS.values()}
"""Grids to make labels on that can be exported; they are the same."""


def form_named(name: str) -> Form:
    """Return a form by its name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in FORMS:
        raise ConfigError(f"no form {name!r}", where="--form", remedy=suggestion(name, list(FORMS)))
    return FORMS[name]


def values_of_classes(classes: tuple[SemanticClass, ...], form: Form, *, where: str = "") -> UInt8:
    """Return the (256,) uint8 table from class ids of a label set (1 to N, or 255: none) to a form's values.

    A class becomes the form's class of its own name, else that of its `paper_class`. What has no class becomes the
    form's value 0, its class for everything else.

    Args:
        classes: The label set's classes.
        form: The form.
        where: The label set, for messages.

    Raises:
        DataError: If a class is neither of the form's nor of the paper's.
    """
    names = [c.name for c in form.classes]
    table = np.full(256, form.free[0], np.uint8)
    table[IGNORE] = 0
    for i, c in enumerate(classes):
        target = c.name if c.name in names else form.of_paper.get(c.paper_class or "")
        if target is None:
            raise DataError(
                f"class {c.name!r} of the labels is none of {form.name}'s, nor does it name one of the paper's",
                where=where,
                expected=f"classes with one of these names or with a paper_class: {', '.join(names)}",
                remedy="export labels that have the dataset's own classes",
            )
        table[i + 1] = names.index(target)
    return table


def encode(occupancy: Occupancy, form: Form, values: UInt8, *, camera_masks: CameraMasks = "none") -> dict[str, UInt8]:
    """Return the arrays of a frame's file.

    A voxel that is occupied by something without a class has the form's value 0 and lies outside the LiDAR mask: what
    is there is not known, so no loss or metric that heeds the mask may use it.

    Args:
        occupancy: The labels on the form's grid.
        form: The form.
        values: What :func:`values_of_classes` returned.
        camera_masks: What becomes of the masks of cameras; a dataset of LiDAR sweeps does not tell them.

    Returns:
        Each of the form's grid's shape `[x, y, z]`, uint8.
    """
    labels = np.full(form.grid.num_voxels, form.free[0], np.uint8)
    labels[occupancy.index] = values[occupancy.semantic]
    observed = unpack_bits(occupancy.observed, (form.grid.num_voxels,))
    observed[occupancy.index[occupancy.semantic == IGNORE]] = False
    mask = observed.astype(np.uint8).reshape(form.grid.shape)
    arrays = {form.labels_key: labels.reshape(form.grid.shape), form.observed_key: mask}
    return arrays | (dict.fromkeys(form.camera_keys, mask) if camera_masks == "observed" else {})


@dataclass(frozen=True, eq=False)
class Decoded:
    """The labels that a file holds.

    Args:
        index: (M,) int32 linear indices of the occupied voxels that the LiDAR mask holds, ascending.
        semantic: (M,) uint8 their classes, 1 to N.
        observed: The bits of the LiDAR mask.
        num_unobserved: Number of voxels that the file calls occupied outside the LiDAR mask.
    """

    index: npt.NDArray[np.int32]
    semantic: UInt8
    observed: UInt8
    num_unobserved: int


def decode(arrays: Mapping[str, npt.NDArray[np.generic]], form: Form, *, where: str) -> Decoded:
    """Return the labels of a frame's file. Masks of cameras are not read: the labels here are for LiDAR.

    Args:
        arrays: The arrays of the file.
        form: Its form.
        where: The file, for messages.

    Raises:
        DataError: If an array is missing, or has another shape, dtype or values than the form's.
    """
    free = np.zeros(256, bool)
    free[list(form.free)] = True
    labels = _values(arrays, form.labels_key, {*range(len(form.classes)), *form.free}, form, where)
    observed = _values(arrays, form.observed_key, {0, 1}, form, where).astype(bool)
    occupied = ~free[labels]
    index = np.flatnonzero(occupied & observed).astype(np.int32)
    return Decoded(index, labels[index] + np.uint8(1), pack_bits(observed), int((occupied & ~observed).sum()))


def _values(
    arrays: Mapping[str, npt.NDArray[np.generic]], key: str, allowed: set[int], form: Form, where: str
) -> UInt8:
    """Return an array of the file, flat, after checking it."""
    if key not in arrays:
        raise DataError(
            f"there is no array {key!r}, but {', '.join(sorted(arrays)) or 'nothing'}",
            where=where,
            expected=f"{form.labels_key!r} and {form.observed_key!r}, as files of {form.name} have them",
            remedy="is it of the other form? See --form",
        )
    array = np.asarray(arrays[key])
    if array.shape != form.grid.shape or array.dtype.kind not in "iub":
        raise DataError(
            f"array {key!r} has shape {array.shape} and dtype {array.dtype}",
            where=where,
            expected=f"shape {form.grid.shape} and integers",
            remedy="download the file again",
        )
    flat = array.reshape(-1)
    in_a_byte = int(flat.min()) >= 0 and int(flat.max()) <= 255
    values = flat.astype(np.uint8)
    found = np.flatnonzero(np.bincount(values, minlength=256)) if in_a_byte else np.unique(flat)
    wrong = sorted(set(found.tolist()) - allowed)
    if wrong:
        raise DataError(
            f"array {key!r} holds {', '.join(map(str, wrong[:5]))}{', …' if len(wrong) > 5 else ''}",
            where=where,
            expected=f"only {', '.join(map(str, sorted(allowed)))}",
            remedy="download the file again",
        )
    return values
