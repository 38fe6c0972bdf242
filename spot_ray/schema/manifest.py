"""The manifest: one row a frame, in small append-only Parquet parts; all that planning an epoch needs."""

from __future__ import annotations

import pyarrow as pa

SWEEP_MANIFEST = pa.schema(
    [
        pa.field("sequence_id", pa.string(), nullable=False),
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("timestamp_ns", pa.int64(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
        pa.field("num_points", pa.int32(), nullable=False),
        pa.field("class_point_counts", pa.list_(pa.int64())),
        pa.field("class_box_counts", pa.list_(pa.int64())),
        pa.field("keyframe", pa.bool_(), nullable=False),
        pa.field("split", pa.string()),
    ]
)
"""`shard` is relative to the dataset; the counts are by source class, in the order of the taxonomy's `sources`; null
where the frame has no point labels or no boxes. Parts of schema version 1 lack `keyframe` (all are) and `split`."""

OCCUPANCY_MANIFEST = pa.schema(
    [
        pa.field("sequence_id", pa.string(), nullable=False),
        pa.field("frame_id", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("row", pa.int32(), nullable=False),
    ]
)
"""`shard` is relative to the dataset too, so that one reader serves both."""
