"""The pictures: each is a PNG's bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scale_ray.probes import ProbeTable, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
_BARS_SHOWN = 3
_CLASSES_SHOWN = 30
_VIDEOS_OF_MAP = 2000


class _Picture:
    png = b""


@contextmanager
def drawn(width_in: float, height_in: float) -> Iterator[tuple[Figure, _Picture]]:
    """A figure to draw on; the picture when it is done."""
    # The object interface: pyplot would look for a screen.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, picture = Figure(figsize=(width_in, height_in), layout="constrained"), _Picture()
    FigureCanvasAgg(figure)
    yield figure, picture
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    picture.png = out.getvalue()


def results_figure(table: ProbeTable, history: Sequence[Mapping[str, float]] | None = None) -> bytes:
    """The first metrics of every representation with their intervals, and the losses over the epochs."""
    names = [name for name in table.metric_names(main=True) if not name.endswith("_mse")][:_BARS_SHOWN]
    names = names or table.metric_names(main=True)[:1]
    with drawn(11 if history else 7.5, 0.75 * len(table.rows) + 1.2) as (figure, picture):
        axes = figure.subplots(1, 2 if history else 1, squeeze=False, width_ratios=(3, 2) if history else (1,))[0]
        _bars(axes[0], table, names)
        if history:
            _losses(axes[1], history)
    return picture.png


def losses_figure(history: Sequence[Mapping[str, float]]) -> bytes:
    """The losses of a pretraining over its epochs."""
    with drawn(5, 3.5) as (figure, picture):
        _losses(figure.subplots(), history)
    return picture.png


def _bars(axes: Any, table: ProbeTable, names: Sequence[str]) -> None:
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        shown = [(at, row.metrics[name]) for at, row in enumerate(table.rows) if name in row.metrics]
        middles = [at + (place - (len(names) - 1) / 2) * height for at, _ in shown]
        values = [of.value for _, of in shown]
        spread = [[of.value - of.low for _, of in shown], [of.high - of.value for _, of in shown]]
        axes.barh(middles, values, height * 0.92, label=title_of(name))
        # An interval by percentiles need not hold the value itself.
        axes.errorbar(values, middles, xerr=np.maximum(spread, 0), fmt="none", ecolor="black", elinewidth=0.8)
        for middle, of in zip(middles, (of for _, of in shown), strict=True):
            axes.text(max(of.high, of.value) + 0.01, middle, f"{of.value:.2f}", va="center", fontsize=8)
    if table.kind == "classes":
        axes.axvline(table.chance, color="grey", linestyle=":", label="most frequent class")
    axes.set_yticks(range(len(table.rows)), [row.representation for row in table.rows])
    axes.invert_yaxis()
    if not names[0].endswith("_mse"):
        axes.set_xlim(0, 1.08)
    axes.set_xlabel(f"on {table.num_test_videos} test videos, with 95 % intervals")
    axes.set_title("What the representations are worth")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=4)


def _losses(axes: Any, history: Sequence[Mapping[str, float]]) -> None:
    epochs = [row["epoch"] for row in history]
    for name, label in (("loss", "loss"), ("set_loss", "set loss"), ("clip_loss", "masked clip loss")):
        if name in history[0]:  # a loss of weight zero is not there
            axes.plot(epochs, [row[name] for row in history], label=label)
    axes.set_xlabel("epoch")
    axes.set_title("Pretraining")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def confusion_figure(names: Sequence[str], true: np.ndarray, predicted: np.ndarray, title: str) -> bytes:
    """Which class was taken for which, as shares of the true one."""
    from sklearn.metrics import confusion_matrix

    shares = confusion_matrix(true, predicted, labels=range(len(names)))
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1)
    few = len(names) <= _CLASSES_SHOWN
    side = min(2.6 + 0.42 * len(names), 12)
    with drawn(side + 1.4, side) as (figure, picture):
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
        axes.set_xlabel("told")
        axes.set_ylabel("true")
        axes.set_title(title)
        if few:
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            for row, column in np.ndindex(*shares.shape):
                if shares[row, column] >= 0.005:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(
                        column, row, f"{shares[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=7
                    )
    return picture.png


def classes_figure(
    names: Sequence[str], true: np.ndarray, predicted: Mapping[str, np.ndarray], ours: str, baseline: str
) -> bytes:
    """The share of each class that was told rightly, ours beside the baseline's; of many classes the most moved."""
    of = {
        which: np.array([(predicted[which][true == place] == place).mean() if (true == place).any() else np.nan
                         for place in range(len(names))])
        for which in (ours, baseline)
    }  # fmt: skip
    gain = of[ours] - of[baseline]
    order = [place for place in np.argsort(-np.nan_to_num(gain), kind="stable") if not np.isnan(gain[place])]
    if len(order) > _CLASSES_SHOWN:
        order = [*order[: _CLASSES_SHOWN // 2], *order[-(_CLASSES_SHOWN // 2) :]]
    with drawn(8, 0.36 * len(order) + 1.4) as (figure, picture):
        axes = figure.subplots()
        places = np.arange(len(order))
        axes.barh(places - 0.2, of[ours][order], 0.38, label=ours)
        axes.barh(places + 0.2, of[baseline][order], 0.38, label=baseline)
        axes.set_yticks(places, [f"{names[place]} ({(true == place).sum()})" for place in order], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("share of the class's test videos that the linear probe told rightly")
        axes.set_title("Class by class, the most gained first")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12 - 1 / (len(order) + 4)), ncols=2)
    return picture.png


def map_figure(vectors: Mapping[str, np.ndarray], classes: np.ndarray, names: Sequence[str], seed: int = 0) -> bytes:
    """Video representations in two dimensions by t-SNE, one map a representation, coloured by class."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    kept = np.random.default_rng(seed).permutation(len(classes))[:_VIDEOS_OF_MAP]
    with drawn(5.2 * len(vectors) + 1.8, 5) as (figure, picture):
        for axes, (title, of) in zip(figure.subplots(1, len(vectors), squeeze=False)[0], vectors.items(), strict=True):
            components = min(50, len(kept) - 1, of.shape[1])
            reduced = PCA(components, random_state=seed).fit_transform(of[kept])
            perplexity = min(30.0, (len(kept) - 1) / 3)
            flat = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
            for place, name in enumerate(names):
                some = flat[classes[kept] == place]
                if len(some):
                    axes.scatter(*some.T, s=14, color=_colour(place, len(names)), label=name)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{title}\n{len(kept)} test videos, t-SNE", fontsize=10)
        if len(names) <= _CLASSES_SHOWN:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture.png


def _colour(place: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](place) if count <= 10 else colormaps["turbo"](place / max(count - 1, 1))
