"""The figures; each function returns a PNG file as bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scale_ray.console import shortened
from scale_ray.probes import ProbeTable, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
_MAX_METRICS = 3
_MAX_CLASSES = 30
_MAX_MAP_VIDEOS = 2000
_MAX_NAME = 40


class _Picture:
    png = b""


@contextmanager
def drawn(width_in: float, height_in: float) -> Iterator[tuple[Figure, _Picture]]:
    """A context with a figure to draw on, and the picture that holds its PNG file afterwards."""
    # Without pyplot, which would look for a screen.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A label that has dollar signs in it is no formula.
    with rc_context({"text.parse_math": False, "text.usetex": False}):
        figure, picture = Figure(figsize=(width_in, height_in), layout="constrained"), _Picture()
        FigureCanvasAgg(figure)
        yield figure, picture
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=110)
        picture.png = out.getvalue()


def results_figure(table: ProbeTable, history: Sequence[Mapping[str, float]] | None = None) -> bytes:
    """The first metrics of every representation with their intervals; with `history` also the losses by epoch."""
    names = [name for name in table.metric_names(main=True) if not name.endswith("_mse")][:_MAX_METRICS]
    names = names or table.metric_names(main=True)[:1]
    with drawn(11 if history else 7.5, 0.75 * len(table.rows) + 1.2) as (figure, picture):
        axes = figure.subplots(1, 2 if history else 1, squeeze=False, width_ratios=(3, 2) if history else (1,))[0]
        _bars(axes[0], table, names)
        if history:
            _losses(axes[1], history)
    return picture.png


def losses_figure(history: Sequence[Mapping[str, float]]) -> bytes:
    """The losses of a pretraining by epoch."""
    with drawn(5, 3.5) as (figure, picture):
        _losses(figure.subplots(), history)
    return picture.png


def _bars(axes: Any, table: ProbeTable, names: Sequence[str]) -> None:
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        rows = [index for index, row in enumerate(table.rows) if name in row.metrics]
        estimates = [table.rows[index].metrics[name] for index in rows]
        middles = [index + (number - (len(names) - 1) / 2) * height for index in rows]
        values = [estimate.value for estimate in estimates]
        spread = [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]]
        axes.barh(middles, values, height * 0.92, label=title_of(name))
        # A percentile interval need not contain the value itself.
        axes.errorbar(values, middles, xerr=np.maximum(spread, 0), fmt="none", ecolor="black", elinewidth=0.8)
        for middle, estimate in zip(middles, estimates, strict=True):
            end = max(estimate.high, estimate.value)
            axes.text(end + 0.01, middle, f"{estimate.value:.2f}", va="center", fontsize=8)
    if table.kind == "classes":
        axes.axvline(table.chance, color="grey", linestyle=":", label="most frequent class")
    axes.set_yticks(range(len(table.rows)), [row.representation for row in table.rows])
    axes.invert_yaxis()
    if not names[0].endswith("_mse"):
        axes.set_xlim(0, 1.08)
    drawn_from = "the test videos" + (" and the seeds" if table.num_seeds > 1 else " only")
    axes.set_xlabel(f"on {table.num_test_videos} test videos, with 95 % intervals over {drawn_from}")
    axes.set_title("Probe results by representation")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.4, -0.12), ncols=4)


def _losses(axes: Any, history: Sequence[Mapping[str, float]]) -> None:
    epochs = [row["epoch"] for row in history]
    for name, label in (("loss", "loss"), ("set_loss", "set loss"), ("clip_loss", "masked clip loss")):
        if name in history[0]:  # a loss of weight zero is not recorded
            axes.plot(epochs, [row[name] for row in history], label=label)
    axes.set_xlabel("epoch")
    axes.set_title("Pretraining")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)


def confusion_figure(names: Sequence[str], true: np.ndarray, predicted: np.ndarray, title: str) -> bytes:
    """The confusion matrix: which class was predicted, as fractions of the true class.

    `true` and `predicted` int (videos,) are indices of `names`.
    """
    from sklearn.metrics import confusion_matrix

    names = _short(names)
    counts = confusion_matrix(true, predicted, labels=range(len(names)))
    fractions = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    height_in = min(2.6 + 0.42 * len(names), 12)
    with drawn(height_in + 1.4, height_in) as (figure, picture):
        axes = figure.subplots()
        image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.8, label="fraction of the true class")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(title)
        if len(names) <= _MAX_CLASSES:
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            for (row, column), fraction in np.ndenumerate(fractions):
                if fraction >= 0.005:
                    colour = "white" if fraction > 0.5 else "black"
                    axes.text(column, row, f"{fraction:.2f}", ha="center", va="center", color=colour, fontsize=7)
    return picture.png


def classes_figure(
    names: Sequence[str], true: np.ndarray, predicted: Mapping[str, np.ndarray], ours: str, baseline: str
) -> bytes:
    """The fraction of each class that was predicted correctly, by ours and by the baseline.

    `predicted` holds the predictions by representation, of which `ours` and `baseline` are names. Of many classes only
    those with the largest gains and the largest losses are shown.
    """
    names = _short(names)
    correct = {name: _correct_by_class(true, predicted[name], len(names)) for name in (ours, baseline)}
    gain = correct[ours] - correct[baseline]
    order = [index for index in np.argsort(-np.nan_to_num(gain), kind="stable") if not np.isnan(gain[index])]
    if len(order) > _MAX_CLASSES:
        order = [*order[: _MAX_CLASSES // 2], *order[-(_MAX_CLASSES // 2) :]]
    with drawn(8, 0.36 * len(order) + 1.4) as (figure, picture):
        axes = figure.subplots()
        middles = np.arange(len(order))
        axes.barh(middles - 0.2, correct[ours][order], 0.38, label=ours)
        axes.barh(middles + 0.2, correct[baseline][order], 0.38, label=baseline)
        axes.set_yticks(middles, [f"{names[index]} ({(true == index).sum()})" for index in order], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("fraction of the class's test videos that the linear probe predicted correctly")
        axes.set_title("Results by class, largest gain first")
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12 - 1 / (len(order) + 4)), ncols=2)
    return picture.png


def _correct_by_class(true: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """The fraction of each class that was predicted correctly; NaN for a class without videos."""
    classes = range(num_classes)
    return np.array([(predicted[true == c] == c).mean() if (true == c).any() else np.nan for c in classes])


def map_figure(vectors: Mapping[str, np.ndarray], classes: np.ndarray, names: Sequence[str], seed: int = 0) -> bytes:
    """Video representations in two dimensions by t-SNE, one map per representation, coloured by class.

    `vectors` (videos, d) by title, `classes` int (videos,) are indices of `names`.
    """
    names = _short(names)
    rows = np.random.default_rng(seed).permutation(len(classes))[:_MAX_MAP_VIDEOS]
    with drawn(5.2 * len(vectors) + 1.8, 5) as (figure, picture):
        all_axes = figure.subplots(1, len(vectors), squeeze=False)[0]
        for axes, (title, videos) in zip(all_axes, vectors.items(), strict=True):
            points = _in_two_dimensions(videos[rows], seed)
            for index, name in enumerate(names):
                of_class = points[classes[rows] == index]
                if len(of_class):
                    axes.scatter(*of_class.T, s=14, color=_colour(index, len(names)), label=name)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{title}\n{len(rows)} test videos, t-SNE", fontsize=10)
        if len(names) <= _MAX_CLASSES:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return picture.png


def _in_two_dimensions(vectors: np.ndarray, seed: int) -> np.ndarray:
    """The vectors (videos, d) by t-SNE, float (videos, 2); all at one point if they are equal."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if not np.ptp(vectors, axis=0).any():
        return np.zeros((len(vectors), 2))  # scikit-learn would divide by their spread, and crash
    components = min(50, len(vectors) - 1, vectors.shape[1])
    reduced = PCA(components, random_state=seed).fit_transform(vectors)
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


def _short(names: Sequence[str]) -> list[str]:
    return [shortened(name, _MAX_NAME) for name in names]


def _colour(index: int, count: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab10"](index) if count <= 10 else colormaps["turbo"](index / max(count - 1, 1))
