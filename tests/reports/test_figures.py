import io

import numpy as np
import pytest
from PIL import Image

from scale_ray.probes.bootstrap import Estimate
from scale_ray.probes.table import ProbeRow, ProbeTable
from scale_ray.reports.figures import _in_two_dimensions, map_figure, results_figure

ROW = ProbeRow("backbone feature alone", {"knn_top1": Estimate(0.5, 0.4, 0.6, [0.5])})
TABLE = ProbeTable([ROW], {}, 0.5, "classes", "default", 20, 10, 10, 2, 1)


@pytest.mark.parametrize("left_out", ["", "set_loss", "clip_loss"])
def test_a_run_with_one_loss_alone_has_a_picture(left_out):
    row = {"epoch": 1, "loss": 2.0, "set_loss": 1.0, "clip_loss": 3.0}
    history = [{name: value for name, value in row.items() if name != left_out} | {"epoch": n} for n in (1, 2)]
    picture = Image.open(io.BytesIO(results_figure(TABLE, history)))
    assert picture.format == "PNG"
    assert picture.width > 800


def test_equal_vectors_are_one_point_of_the_map():
    # scikit-learn's t-SNE ends the process if all are equal.
    vectors = {"equal": np.full((4, 96), 0.123, np.float32), "other": np.eye(4, 96, dtype=np.float32)}
    picture = Image.open(io.BytesIO(map_figure(vectors, np.array([0, 0, 1, 1]), ["a", "b"])))
    assert picture.format == "PNG"
    assert np.array_equal(_in_two_dimensions(vectors["equal"], 0), np.zeros((4, 2)))
    assert np.ptp(_in_two_dimensions(vectors["other"], 0), axis=0).all()
