"""How far KITTI's boxes overlap: in the image, on the ground plane and in space.

Frame by frame, only pairs that overlap at all are kept, in the order of truth and then detection in which the
benchmark's evaluator looks at them; that order decides between equals. Every class, level and score threshold then
walks over these pairs alone, as `hits.py` does.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import numpy.typing as npt

from spot_ray.geometry.rotated_iou import clip_scratch, rectangles_share

IMAGE, GROUND, SPACE = 0, 1, 2
"""Columns of overlaps: in the image, on the ground plane, in space."""

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@numba.njit(cache=True, nogil=True)
def overlapping_pairs(
    truth_start: Int,
    found_start: Int,
    is_region: Bool,
    truth_2d: Float,
    found_2d: Float,
    truth_3d: Float,
    found_3d: Float,
) -> tuple[Int, Int, Float, Float]:
    """Return how far truths and detections of the same frame overlap.

    Args:
        truth_start: (F + 1,) first truth of each frame.
        found_start: (F + 1,) first detection of each frame.
        is_region: (T,) the truth is a region in which nothing counts, not an object.
        truth_2d: (T, 4) left, top, right, bottom.
        found_2d: (D, 4), the same.
        truth_3d: (T, 7) height, width, length, x, y, z, rotation_y; x, y, z at the bottom, y down.
        found_3d: (D, 7), the same.

    Returns:
        (T + 1,) first pair of each truth; (P,) detections; (P, 3) intersections over union in the image, on the ground
        and in space; and (D, 3) the largest share of each detection that lies in a region.
    """
    first = np.zeros(len(truth_2d) + 1, np.int64)
    member = np.empty(max(2 * len(truth_2d), 16), np.int64)
    over_union = np.empty((len(member), 3))
    in_region = np.zeros((len(found_2d), 3))
    corners, clipped = clip_scratch()
    count = 0
    for f in range(len(truth_start) - 1):
        for i in range(truth_start[f], truth_start[f + 1]):
            t2, t3 = truth_2d[i], truth_3d[i]
            half_tx, half_ty = abs(t3[2]) / 2, abs(t3[1]) / 2
            reach_t = math.hypot(half_tx, half_ty)
            area_t2, area_t = (t2[2] - t2[0]) * (t2[3] - t2[1]), 4 * half_tx * half_ty
            c, s = math.cos(t3[6]), math.sin(t3[6])
            for j in range(found_start[f], found_start[f + 1]):
                d2, d3 = found_2d[j], found_3d[j]
                wide, high = min(t2[2], d2[2]) - max(t2[0], d2[0]), min(t2[3], d2[3]) - max(t2[1], d2[1])
                image = wide * high if wide > 0 and high > 0 else 0.0
                half_dx, half_dy = abs(d3[2]) / 2, abs(d3[1]) / 2
                x, z = d3[3] - t3[3], d3[5] - t3[5]
                reach = reach_t + math.hypot(half_dx, half_dy)
                ground = 0.0
                if x * x + z * z < reach * reach:
                    # Seen with z upwards, a turn about y, which points down, is one by its negative.
                    ground = rectangles_share(
                        x * c - z * s,
                        x * s + z * c,
                        t3[6] - d3[6],
                        half_dx,
                        half_dy,
                        half_tx,
                        half_ty,
                        corners,
                        clipped,
                    )
                if image == 0.0 and ground == 0.0:
                    continue
                space = ground * max(0.0, min(d3[4], t3[4]) - max(d3[4] - d3[0], t3[4] - t3[0]))
                area_d2, area_d = (d2[2] - d2[0]) * (d2[3] - d2[1]), 4 * half_dx * half_dy
                if is_region[i]:
                    share = in_region[j]
                    if image > 0.0:
                        share[IMAGE] = max(share[IMAGE], image / area_d2)
                    if ground > 0.0:
                        share[GROUND] = max(share[GROUND], ground / area_d)
                    if space > 0.0:
                        share[SPACE] = max(share[SPACE], space / (area_d * d3[0]))
                    continue
                if count == len(member):
                    member = np.concatenate((member, np.empty_like(member)))
                    over_union = np.concatenate((over_union, np.empty_like(over_union)))
                member[count] = j
                over_union[count, IMAGE] = image / (area_t2 + area_d2 - image) if image > 0.0 else 0.0
                over_union[count, GROUND] = ground / (area_t + area_d - ground) if ground > 0.0 else 0.0
                union = area_t * t3[0] + area_d * d3[0] - space
                over_union[count, SPACE] = space / union if space > 0.0 else 0.0
                count += 1
            first[i + 1] = count
    return first, member[:count], over_union[:count], in_region
