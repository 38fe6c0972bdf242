"""Classes for points without one, from the labelled points around them."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from spot_ray.occupancy.cloud import Cloud
from spot_ray.schema.taxonomy import IGNORE

_CHUNK = 1_000_000


def propagate_labels(cloud: Cloud, *, neighbours: int, radius_m: float, beside: Cloud | None = None) -> Cloud:
    """Give unlabelled points the class that most of their nearest labelled neighbours have.

    As the public reproductions of Occ3D do (K = 5 within 0.5 m). Of two classes with the same count the one of the
    nearer neighbour wins. A point without a labelled neighbour in reach stays without a class.

    Args:
        cloud: Points, some of them labelled.
        neighbours: K.
        radius_m: How far a neighbour may be, metres.
        beside: More points that may be neighbours.

    Returns:
        The cloud with more labels.
    """
    known = cloud.label != IGNORE
    reference, reference_label = [cloud.xyz[known]], [cloud.label[known]]
    if beside is not None:
        labelled = beside.label != IGNORE
        reference.append(beside.xyz[labelled])
        reference_label.append(beside.label[labelled])
    xyz = np.concatenate(reference)
    if known.all() or not len(xyz):
        return cloud
    # Balancing and compacting the tree double the time to build it and gain nothing at this density.
    tree = cKDTree(xyz, balanced_tree=False, compact_nodes=False)
    known_label = np.concatenate([*reference_label, np.array([IGNORE], np.uint8)])
    label = cloud.label.copy()
    unknown = np.flatnonzero(~known)
    for start in range(0, len(unknown), _CHUNK):
        rows = unknown[start : start + _CHUNK]
        # Where there are fewer than K neighbours in reach, the index is the number of known points: class 255.
        _, nearest = tree.query(
            cloud.xyz[rows], k=list(range(1, neighbours + 1)), distance_upper_bound=radius_m, workers=1
        )
        label[rows] = _majority(known_label[nearest])
    return dataclasses.replace(cloud, label=label)


def _majority(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the (N,) most frequent class of (N, K), nearest first; 255 does not count unless there is nothing else."""
    votes = np.stack([(labels == column[:, None]).sum(axis=1) for column in labels.T], axis=1)
    votes[labels == IGNORE] = 0
    return labels[np.arange(len(labels)), votes.argmax(axis=1)]
