"""probabilities + labels + history -> pictures: training curves, confusion, reliability, worst mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ferflow.emotions import EMOTIONS
from ferflow.storage import part_file
from training.dataset import DataSplits, LabelledImages
from training.metrics import Metrics, accuracy_interval, expected_calibration_error, measure, reliability_bins

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart; they differ in lightness too.
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"
_DPI = 120
_MISTAKES_ACROSS, _MISTAKES_DOWN = 8, 4


def draw_figures(
    history: Sequence[Mapping[str, Any]], probabilities: np.ndarray, splits: DataSplits, out_dir: Path
) -> list[Path]:
    """Draw everything that one looks at after a training.

    Args:
        history: what each epoch left, as model.json has it; without any there are no curves.
        probabilities: float (n, 7) of the test images.
        splits: the data.
        out_dir: where to write; made if missing. The sheet of mistakes shows images of the data set, so this should
            not be a folder that is published.

    Returns:
        The pictures: curves.png, confusion.png, reliability.png, mistakes.png.
    """
    test = splits.test
    paths = [draw_curves(history, out_dir / "curves.png")] if history else []
    paths.append(draw_confusion(measure(probabilities, test.labels), out_dir / "confusion.png"))
    paths.append(draw_reliability(probabilities, test.labels, out_dir / "reliability.png"))
    paths.append(draw_mistakes(probabilities, test, out_dir / "mistakes.png"))
    return paths


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw loss and accuracy over the epochs, of the training images as varied and of the validation images.

    Args:
        history: at least one epoch, as model.json has it.
        path: the PNG.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(9, 3.8)
    epochs = [epoch["number"] for epoch in history]
    for place, (what, title) in enumerate((("loss", "Loss"), ("accuracy", "Accuracy, %"))):
        axes = figure.add_subplot(1, 2, place + 1)
        scale = 100 if what == "accuracy" else 1
        for part, color, style, name in (
            ("train", _ORANGE, "--", "training, varied images"),
            ("validation", _BLUE, "-", "validation, averaged weights"),
        ):
            values = [scale * epoch[f"{part}_{what}"] for epoch in history]
            axes.plot(epochs, values, style, color=color, label=name, marker="o", markersize=3, linewidth=1.8)
        _dress(axes, title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0.5)
        axes.grid(axis="y", color="0.9")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return _save(figure, path)


def draw_confusion(metrics: Metrics, path: Path) -> Path:
    """Draw the confusion matrix: a row a label, coloured and written as its shares, the counts below them.

    Args:
        metrics: of the images.
        path: the PNG.
    """
    counts = np.array(metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = _figure(7.4, 6.6)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        ink = "white" if share > 0.55 else "black"
        weight = "bold" if row == column else "normal"
        axes.text(column, row - 0.1, f"{share:.0%}", ha="center", va="center", color=ink, weight=weight)
        axes.text(column, row + 0.24, f"{counts[row, column]:,}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xticks(range(len(EMOTIONS)), EMOTIONS)
    names = [f"{emotion}\n({total:,})" for emotion, total in zip(EMOTIONS, counts.sum(axis=1), strict=True)]
    axes.set_yticks(range(len(EMOTIONS)), names)
    axes.tick_params(length=0)
    axes.set_xlabel("answer")
    axes.set_ylabel("label (images)")
    axes.spines[:].set_visible(False)
    _dress(axes, f"{metrics.accuracy:.1%} of {metrics.image_count:,} images right")
    return _save(figure, path)


def draw_reliability(probabilities: np.ndarray, labels: np.ndarray, path: Path) -> Path:
    """Draw how often answers were right by how sure they were, and how many answers were how sure.

    Args:
        probabilities: float (n, 7).
        labels: int (n,).
        path: the PNG.
    """
    confidences, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = [bin_ for bin_ in reliability_bins(confidences, right) if bin_.image_count]
    width = 0.9 * (bins[0].high - bins[0].low)
    middles = [(bin_.low + bin_.high) / 2 for bin_ in bins]
    shares = np.array([bin_.accuracy or 0 for bin_ in bins])
    ranges = [
        accuracy_interval(share * bin_.image_count, bin_.image_count) for share, bin_ in zip(shares, bins, strict=True)
    ]
    reach = np.abs(np.array(ranges).T - shares)
    figure = _figure(6.2, 6.4)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))

    upper.bar(middles, shares, width, color=_BLUE, label="share that was right, with its 95% interval")
    upper.errorbar(middles, shares, reach, fmt="none", ecolor="black", elinewidth=1, capsize=2.5)
    stated = [bin_.mean_confidence or 0 for bin_ in bins]
    upper.plot(stated, stated, "o", color=_ORANGE, markersize=6, label="mean stated probability", zorder=3)
    upper.plot([0, 1], [0, 1], ":", color=_GREY, linewidth=1.2, zorder=2)
    upper.set_ylim(0, 1.02)
    upper.set_ylabel("share of the answers")
    error = expected_calibration_error(confidences, right)
    _dress(upper, f"Expected calibration error {error:.1%}")
    figure.legend(loc="outside lower left", frameon=False, ncols=2)

    bars = lower.bar(middles, [bin_.image_count for bin_ in bins], width, color=_GREY)
    lower.bar_label(bars, labels=[f"{bin_.image_count:,}" for bin_ in bins], fontsize=7.5, padding=2)
    lower.margins(y=0.22)
    _dress(lower, "")
    lower.set_xlim(0, 1)
    lower.set_xlabel("stated probability of the answer")
    lower.set_ylabel("answers")
    return _save(figure, path)


def draw_mistakes(probabilities: np.ndarray, images: LabelledImages, path: Path) -> Path:
    """Draw the images that were answered most surely and wrongly; many turn out to be wrongly labelled.

    Args:
        probabilities: float (n, 7).
        images: what was scored.
        path: the PNG.
    """
    answers, stated = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(answers != images.labels)
    worst = wrong[np.argsort(-stated[wrong], kind="stable")][: _MISTAKES_ACROSS * _MISTAKES_DOWN]
    down = max(-(-len(worst) // _MISTAKES_ACROSS), 1)
    figure = _figure(1.45 * _MISTAKES_ACROSS, 1.95 * down + 0.5, h_pad=0.1)
    figure.suptitle(
        f"The {len(worst)} surest of {len(wrong):,} mistakes" if len(worst) else "No mistakes",
        x=0.01,
        ha="left",
        weight="bold",
    )
    grid: np.ndarray = figure.subplots(down, _MISTAKES_ACROSS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, row in zip(grid, worst, strict=False):
        _draw_mistake(axes, images.images_gray[row], int(images.labels[row]), int(answers[row]), float(stated[row]))
    return _save(figure, path)


def _draw_mistake(axes: Axes, image_gray: np.ndarray, label: int, answer: int, stated: float) -> None:
    axes.imshow(image_gray, cmap="gray", vmin=0, vmax=255)
    axes.text(0.5, -0.04, f"labelled {EMOTIONS[label]}", transform=axes.transAxes, ha="center", va="top", fontsize=8.5)
    axes.text(
        0.5,
        -0.19,
        f"{EMOTIONS[answer]} {stated:.0%}",
        transform=axes.transAxes,
        ha="center",
        va="top",
        fontsize=8.5,
        color=_ORANGE,
        weight="bold",
    )


def _figure(width_inches: float, height_inches: float, *, h_pad: float = 0.04) -> Figure:
    """A figure of its own: pyplot keeps every figure it makes, and is not safe in threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure((width_inches, height_inches), layout=ConstrainedLayoutEngine(h_pad=h_pad), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, weight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> Path:
    with part_file(path) as part:
        # Without the version of matplotlib in it, so that the same picture is the same file.
        figure.savefig(part, format="png", dpi=_DPI, metadata={"Software": None})
    return path
