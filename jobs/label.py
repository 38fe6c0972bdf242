r"""Make occupancy labels on the cluster that this job was submitted to.

    ray job submit --working-dir . -- python jobs/label.py --data s3://logs/waymo --name default

The arguments are those of `spot-ray label`. A job that is submitted again goes on where it was stopped.
"""

import sys

from spot_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
