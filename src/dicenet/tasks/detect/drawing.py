"""Plots of detections."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dicenet.tasks.detect.metrics import Curve

_NAMED = 20


def precision_recall_plot(curves: Sequence[Curve | None], class_names: Sequence[str]) -> Figure:
    """Interpolated precision over recall: a line per class that has truth, and their mean.

    Up to 20 classes are named, best first, with the areas under their lines; more are drawn in grey.

    Args:
        curves: of each class, see :func:`dicenet.tasks.detect.metrics.precision_recall_curves`.
        class_names: as many.
    """
    known = [(curve, name) for curve, name in zip(curves, class_names, strict=True) if curve is not None]
    known.sort(key=lambda pair: -pair[0].ap_voc10())
    few = len(known) <= _NAMED
    figure = Figure(figsize=(7.4 if few else 5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    recalls = np.linspace(0, 1, 501)
    colours = [f"C{index % 10}" for index in range(len(known))] if few else ["#d4d4d8"] * len(known)
    for index, ((curve, name), colour) in enumerate(zip(known, colours, strict=True)):
        line, label = "--" if few and index >= 10 else "-", f"{name}  {100 * curve.ap_voc10():.1f}" if few else None
        axes.plot(recalls, curve.at(recalls), line, color=colour, linewidth=1, label=label)
    if len(known) > 1:
        mean = np.mean([curve.at(recalls) for curve, _ in known], axis=0)
        area = 100 * np.mean([curve.ap_voc10() for curve, _ in known])
        axes.plot(recalls, mean, color="black", linewidth=2.5, label=f"mean  {area:.1f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if known:
        legend = axes.legend(frameon=False, title="AP (%)", fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure
