"""`python -m spot_ray`: the same as the `spot-ray` command."""

from spot_ray.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
