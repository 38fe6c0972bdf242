"""A network labels a dataset from Ray actors as it does in one process."""

import dataclasses

import numpy as np
import pytest

from spot_ray.errors import DataError
from spot_ray.geometry.grid import VoxelGrid
from spot_ray.models.config import BevConfig, DecoderConfig, EncoderConfig, VoxelConfig
from spot_ray.recipes.pretraining import pretraining_recipe
from spot_ray.storage.occupancy import list_label_sets, open_occupancy
from spot_ray.synthetic.run import synthesize
from spot_ray.train.pseudo_label_run import label_with_checkpoint
from spot_ray.train.pseudo_labels import PseudoLabelConfig
from spot_ray.train.worker import pretrain_here

# Ray Data copies its own deprecated settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")

GRID = VoxelGrid((-6.4, -6.4, -1.6), (0.8, 0.8, 0.8), (16, 16, 4))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = synthesized(folder / "data", sequences=1, exact_grid=GRID)
    tiny = pretraining_recipe("spot-tiny")
    model = dataclasses.replace(
        tiny.model,
        voxel=VoxelConfig((-6.4, -6.4, -1.3, 6.4, 6.4, 1.3), (0.1, 0.1, 0.1)),
        encoder=EncoderConfig((4, 8, 8, 8), 8, 1),
        bev=BevConfig((1,), (1,), (16,), (1,), (16,)),
        decoder=DecoderConfig((16,), (1,)),
    )
    config = dataclasses.replace(
        tiny,
        grid=GRID,
        model=model,
        data=dataclasses.replace(tiny.data, labels="exact"),
        train=dataclasses.replace(tiny.train, epochs=2, micro_batch_size=1),
    )
    return pretrain_here(config, data=data, out=str(folder / "run")).checkpoint


def synthesized(path, *, sequences, exact_grid=None):
    synthesize(
        str(path), preset="nuscenes", num_sequences=sequences, num_frames=2, seed=sequences, exact_grid=exact_grid
    )
    return str(path)


def contents(uri, name):
    labels = open_occupancy(uri, name)
    rows = zip(*(labels.manifest.column(c).to_pylist() for c in ("sequence_id", "frame_id")), strict=True)
    return {key: (labels.get(*key).semantic.tolist(), labels.get(*key).observed.tolist()) for key in rows}


def test_actors_and_one_process_make_the_same_labels(checkpoint, tmp_path):
    uri = synthesized(tmp_path / "data", sequences=3)
    config = PseudoLabelConfig(min_confidence=0.0, min_confidence_empty=0.0, only_seen=True)
    told = []
    by_ray = label_with_checkpoint(
        uri, checkpoint=checkpoint, name="ray", config=config, num_workers=2, on_progress=told.append
    )
    alone = label_with_checkpoint(uri, checkpoint=checkpoint, name="alone", config=config, num_workers=1)
    assert by_ray == alone
    assert by_ray["frames"] == told[-1].num_frames == 6
    assert contents(uri, "ray") == contents(uri, "alone")
    assert any(np.any(observed) for _, observed in contents(uri, "ray").values())


def test_an_error_in_an_actor_is_the_users_error_and_leaves_no_set(checkpoint, tmp_path):
    uri = synthesized(tmp_path / "data", sequences=3)
    sorted((tmp_path / "data").rglob("shards/*.parquet"))[-1].write_bytes(b"not parquet")
    with pytest.raises(DataError):
        label_with_checkpoint(uri, checkpoint=checkpoint, name="ray", config=PseudoLabelConfig(), num_workers=2)
    assert list_label_sets(uri) == []
