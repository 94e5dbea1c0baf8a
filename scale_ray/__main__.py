"""`python -m scale_ray` is `scale-ray`."""

from scale_ray.cli.main import main

main()
