"""The pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from scale_ray.evaluation import ProbeTable


def results_picture(table: ProbeTable, history: Sequence[Mapping[str, float]]) -> bytes:
    """PNG: both probes of every representation against chance, and the losses over the epochs."""
    # The object interface: pyplot would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    bars, losses = figure.subplots(1, 2, width_ratios=(3, 2))

    places = range(len(table.rows))
    bars.barh([place - 0.2 for place in places], [row.knn_top1 for row in table.rows], 0.38, label="k-NN")
    bars.barh([place + 0.2 for place in places], [row.linear_top1 for row in table.rows], 0.38, label="linear")
    for place, row in zip(places, table.rows, strict=True):
        for offset, value in ((-0.2, row.knn_top1), (0.2, row.linear_top1)):
            bars.text(value + 0.01, place + offset, f"{value:.2f}", va="center", fontsize=8)
    bars.axvline(table.chance, color="grey", linestyle=":", label="most frequent class")
    bars.set_yticks(list(places), [row.representation for row in table.rows])
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_xlabel(f"top-1 on {table.num_test_videos} test videos")
    bars.set_title("What the representations are worth")
    bars.legend(loc="upper right", fontsize=8)

    epochs = [row["epoch"] for row in history]
    for name, label in (("loss", "loss"), ("set_loss", "set loss"), ("clip_loss", "masked clip loss")):
        if name in history[0]:  # a loss of weight zero is not there
            losses.plot(epochs, [row[name] for row in history], label=label)
    losses.set_xlabel("epoch")
    losses.set_title("Pretraining")
    losses.set_ylim(bottom=0)
    losses.legend(fontsize=8)

    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()
