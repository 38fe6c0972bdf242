"""Pre-train LiDAR encoders by occupancy prediction (SPOT), from driving logs in Parquet, distributed with Ray."""
