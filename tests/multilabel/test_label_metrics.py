"""Scores of labels: a case by hand, the official figures, two other libraries, and the cases with nothing in them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_precision,
    multilabel_recall,
)

from dicenet.data.labels import target_of
from dicenet.errors import ConfigError
from dicenet.tasks.multilabel.metrics import MultilabelMetrics, logit_threshold


def target(shown):
    """(N, 4, C) of what pictures show, without sizes."""
    shown = torch.as_tensor(shown, dtype=torch.uint8)
    return torch.cat([shown[:, None], torch.zeros(len(shown), 3, shown.shape[1], dtype=torch.uint8)], dim=1)


def scores(logits, targets, threshold=0.5, batch=None):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    metrics = MultilabelMetrics(logits.shape[1], threshold)
    for chosen in torch.arange(len(logits)).split(batch or len(logits)):
        metrics.update(logits[chosen], targets[chosen])
    return metrics.compute()


def random_case(seed, pictures=60, classes=7):
    generator = torch.Generator().manual_seed(seed)
    shown = torch.rand(pictures, classes, generator=generator) < 0.3
    # rounded, so that some scores are equal
    logits = (2 * torch.randn(pictures, classes, generator=generator) + shown).mul(4).round() / 4
    return logits, shown


def test_by_hand():
    """Three pictures, three classes: a cat, a dog and a cat, nothing; the third class is nowhere."""
    shown = [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    logits = [[2.0, -1.0, -1.0], [-1.0, 1.0, -2.0], [1.0, 0.5, 3.0]]
    found = scores(logits, target(shown))
    # cat: found in 1 and 3, is in 1 and 2; dog: found in 2 and 3, is in 2; the third: found in 3
    assert found["f1_per_class"] == pytest.approx([1 / 2, 2 / 3, 0])
    assert found["precision_per_class"] == pytest.approx([1 / 2, 1 / 2, 0])
    assert found["recall_per_class"] == pytest.approx([1 / 2, 1, 0])
    assert found["f1_class"] == pytest.approx((1 / 2 + 2 / 3) / 3)
    # 2 of 5 that are found are right, of 3 that there are
    assert [found[f"{name}_overall"] for name in ("precision", "recall", "f1")] == pytest.approx([2 / 5, 2 / 3, 1 / 2])
    # cat in order 2.0 (right), 1.0 (wrong), -1.0 (right): (1 + 2/3) / 2; dog 1.0 first and right
    assert found["ap_per_class"] == [pytest.approx(5 / 6), pytest.approx(1), None]
    assert found["map"] == pytest.approx((5 / 6 + 1) / 2)
    assert (found["shown_per_class"], found["found_per_class"]) == ([2, 1, 0], [2, 2, 1])


def test_official_figures(shared):
    """Loss and scores of random logits as the official code gives them."""
    tensors = load_file(shared("reference/official/metric_multilabel_f1.safetensors"))
    by_size = tensors["target_by_size"]
    targets = torch.cat([by_size.amax(1, keepdim=True), by_size], dim=1)
    found = scores(tensors["logits"], targets, batch=50)
    names = [f"{name}_{kind}" for kind in ("class", "overall") for name in ("precision", "recall", "f1")]
    assert [100 * found[name] for name in names] == pytest.approx(tensors["results"].tolist(), abs=1e-6)
    loss = F.binary_cross_entropy_with_logits(tensors["logits"], targets[:, 0].float())
    assert float(loss) == pytest.approx(float(tensors["loss"]), abs=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_torchmetrics_and_scikit_learn(seed, threshold):
    logits, shown = random_case(seed)
    found = scores(logits, target(shown), threshold, batch=16)
    probabilities = logits.double().sigmoid()
    truth, predicted = shown.numpy(), (probabilities > threshold).numpy()
    for kind, average in (("overall", "micro"), ("class", "macro")):
        values = precision_recall_fscore_support(truth, predicted, average=average, zero_division=0)
        others = [
            float(score(probabilities, shown.long(), shown.shape[1], threshold, average))
            for score in (multilabel_precision, multilabel_recall, multilabel_f1_score)
        ]
        mine = [found[f"{name}_{kind}"] for name in ("precision", "recall", "f1")]
        assert mine == pytest.approx(values[:3], abs=1e-6)
        assert mine == pytest.approx(others, abs=1e-6)
    assert found["map"] == pytest.approx(
        average_precision_score(truth, probabilities.numpy(), average="macro"), abs=1e-6
    )
    other = multilabel_average_precision(probabilities, shown.long(), shown.shape[1], average="macro")
    assert found["map"] == pytest.approx(float(other), abs=1e-6)


def test_surest_logits_keep_their_order():
    """Probabilities of 20 and 30 are equal in float32, and the order of the two decides."""
    found = scores([[20.0], [30.0], [-1.0]], target([[0], [1], [0]]))
    assert found["map"] == 1
    assert scores([[30.0], [20.0], [-1.0]], target([[0], [1], [0]]))["map"] == 0.5


def test_exactly_at_the_threshold_is_not_found():
    found = scores([[0.0], [1e-6]], target([[1], [1]]))
    assert found["recall_overall"] == 0.5
    assert logit_threshold(0.5) == 0
    assert logit_threshold(0.9) == pytest.approx(math.log(9))


@pytest.mark.parametrize("threshold", [0, 1, -0.1, 1.5, float("nan")])
def test_wrong_thresholds(threshold):
    with pytest.raises(ConfigError, match="threshold is a probability between 0 and 1, got"):
        logit_threshold(threshold)


def test_recall_by_size():
    """A picture with a small and a large cat counts for both sizes, crowds or not."""
    first = target_of(np.array([0, 0, 1]), 2, np.array([100.0, 96.0**2, 32.0**2]))
    assert first.tolist() == [[1, 1], [1, 0], [0, 1], [1, 0]]
    second = target_of(np.array([1]), 2, np.array([32.0**2 - 0.5]))
    assert second.tolist() == [[0, 1], [0, 1], [0, 0], [0, 0]]
    targets = torch.from_numpy(np.stack([first, second]))
    found = scores([[1.0, -1.0], [1.0, 1.0]], targets)
    # small: cat of the first (found), dog of the second (found); medium: dog of the first (missed); large: found
    assert [found[f"recall_{size}"] for size in ("small", "medium", "large")] == [1, 0, 1]
    assert found["recall_overall"] == pytest.approx(2 / 3)


def test_nothing_shown():
    """All negative: what is found is wrong; there is no average precision and no recall by size."""
    found = scores([[1.0, -1.0], [-1.0, -1.0]], target([[0, 0], [0, 0]]))
    assert [found[f"{n}_{k}"] for n in ("f1", "precision", "recall") for k in ("overall", "class")] == [0] * 6
    assert found["map"] is None
    assert found["ap_per_class"] == [None, None]
    assert [found[f"recall_{size}"] for size in ("small", "medium", "large")] == [None] * 3


def test_all_shown():
    """All positive: precision of what is found and average precision are 1."""
    found = scores([[1.0, -1.0], [1.0, 1.0]], target([[1, 1], [1, 1]]))
    assert (found["precision_overall"], found["recall_overall"]) == (1, 0.75)
    assert found["f1_class"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["map"] == 1


def test_nothing_found_and_nothing_judged():
    found = scores([[-1.0, -1.0]], target([[1, 0]]))
    assert (found["f1_overall"], found["precision_overall"], found["recall_overall"]) == (0, 0, 0)
    empty = MultilabelMetrics(2)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert empty.compute()["map"] is None
