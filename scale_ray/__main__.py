"""`python -m scale_ray` is `scale-ray`."""

import sys

from scale_ray.files.import_path import import_last_from, safe_path

# `python -m` puts the current folder before all libraries; a backbone of one's own is still found in it.
before, sys.path[:] = list(sys.path), safe_path()
import_last_from(before)

from scale_ray.cli.main import main  # noqa: E402

main()
