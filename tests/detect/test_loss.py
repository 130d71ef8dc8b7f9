"""The loss of SSD against the official code's and by hand; priors that fit the data."""

import math

import pytest
import torch
from safetensors.torch import load_file

import dicenet
from dicenet.data.detection import open_detection_data
from dicenet.models.priors import PriorSettings, corners
from dicenet.tasks.detect.loss import hard_negatives, match, ssd_loss
from dicenet.tasks.detect.priors import coverage, lowest, proposed_settings, relative_boxes


@pytest.fixture
def official(shared):
    return load_file(shared("reference/official/ssd_priors_match_loss.safetensors"))


def test_official_matching(official):
    classes, codes = match(official["gt_boxes"], official["gt_labels"] - 1, official["priors_300"])
    found = classes.nonzero()[:, 0]
    assert found.tolist() == official["matched_prior_index"].tolist()
    assert classes[found].tolist() == official["matched_label"].tolist()
    torch.testing.assert_close(codes[found], official["matched_location"], rtol=0, atol=1e-5)


def test_official_loss(official):
    """Three pictures; in the original those without boxes give no negatives."""
    scores, classes = official["loss_confidence"], official["loss_labels"]
    background = -scores.log_softmax(-1)[..., 0]
    chosen = hard_negatives(background, classes, of_empty=False)
    torch.testing.assert_close(chosen, official["mining_mask"].bool(), rtol=0, atol=0)
    found = ssd_loss(scores, official["loss_locations"], classes, official["loss_gt_locations"], of_empty=False)
    expected = official["loss_classification"][0], official["loss_regression"][0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_matching_by_hand():
    """Each box gets its best prior, however little it overlaps; the other priors those they overlap enough."""
    priors = torch.tensor(
        [[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.4, 0.4], [0.75, 0.75, 0.5, 0.5], [0.9, 0.1, 0.1, 0.1]]
    )
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.7, 0.1, 0.9, 0.3]])
    classes, codes = match(boxes, torch.tensor([4, 2]), priors)
    # the second prior overlaps the first box by 0.16 / 0.25, the fourth touches the second box in a corner only
    assert classes.tolist() == [5, 5, 0, 3]
    torch.testing.assert_close(codes[0], torch.zeros(4))
    expected = [-0.1 / 0.1 * 10, 0.1 / 0.1 * 10, 5 * math.log(2), 5 * math.log(2)]
    torch.testing.assert_close(codes[3], torch.tensor(expected))


def test_negatives_by_hand():
    """One positive of five priors: the three worst others; a picture without any: as many as usual, or none."""
    loss = torch.tensor([[9.0, 1.0, 3.0, 2.0, 4.0], [5.0, 1.0, 2.0, 3.0, 4.0]])
    classes = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    original = hard_negatives(loss, classes, of_empty=False)
    assert original.tolist() == [[True, False, True, True, True], [False] * 5]
    ours = hard_negatives(loss, classes)
    assert ours[0].tolist() == original[0].tolist()
    assert ours[1].tolist() == [True, False, False, True, True]


def test_empty_pictures_give_as_many_negatives_as_the_others_do():
    """Two positives in one of three pictures: six negatives in it, and in each of the others."""
    classes = torch.zeros(3, 12, dtype=torch.long)
    classes[0, :2] = 1
    assert hard_negatives(torch.rand(3, 12), classes).sum(1).tolist() == [8, 6, 6]


@pytest.mark.parametrize("of_empty", [True, False])
def test_a_batch_without_boxes(of_empty):
    priors = torch.rand(20, 4)
    classes, codes = match(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), priors)
    scores = torch.randn(2, 20, 4, requires_grad=True)
    found = ssd_loss(scores, torch.randn(2, 20, 4), classes.expand(2, -1), codes.expand(2, -1, -1), of_empty)
    assert all(part.isfinite() for part in found)
    assert found[1] == 0
    assert (found[0] > 0) == of_empty
    sum(found).backward()
    assert scores.grad.isfinite().all()


def test_a_batch_without_boxes_weighs_as_much_as_others():
    """Networks that say the same of each prior lose a logarithm for each that is asked for: 3 negatives for 1."""
    scores, codes = torch.zeros(4, 40, 3), torch.zeros(4, 40, 4)
    some = torch.zeros(4, 40, dtype=torch.long)
    some[:, :5] = 1
    none = torch.zeros_like(some)
    half = some * torch.tensor([1, 1, 0, 0])[:, None]
    with_boxes, without, mixed = (float(ssd_loss(scores, codes, c, codes)[0]) for c in (some, none, half))
    assert with_boxes == pytest.approx(4 * math.log(3)), "5 positives and 15 negatives, by 5"
    assert without == pytest.approx(3 * math.log(3))
    assert mixed == pytest.approx((2 * 20 + 2 * 15) / 20 * math.log(3))


# -- priors


def test_coverage_by_hand():
    priors = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    boxes = torch.tensor([[0.4, 0.4, 0.6, 0.6], [0.4, 0.4, 0.6, 0.501], [0.4, 0.4, 0.6, 0.49], [0.0, 0.0, 0.1, 0.1]])
    found = coverage(boxes, torch.tensor([0, 1, 1, 3]), priors, 4)
    assert found == [1.0, 0.5, None, 0.0]
    assert lowest(found) == 0
    assert lowest([None]) == 1


def test_priors_for_blood_cells(shared):
    """The official priors miss half of the platelets, which are small; proposed ones neither them nor others."""
    data = open_detection_data(str(shared("data/bccd")))
    boxes, labels = relative_boxes(data.training_part()[1])
    net = dicenet.create_detection_model("dicenet_010", 3, head="espnet")
    official = dict(zip(data.class_names, coverage(boxes, labels, net.priors, 3), strict=True))
    assert 0.4 < official["Platelets"] < 0.5
    before = net.prior_settings, net.priors
    settings = proposed_settings(net, boxes, labels)
    assert (net.prior_settings, net.priors.sum()) == (before[0], before[1].sum())
    net.set_priors(settings)
    assert lowest(coverage(boxes, labels, net.priors, 3)) > 0.95


def test_proposed_priors_do_not_spoil_other_classes(shared):
    """On coarse maps no scales suit platelets: the cells keep theirs."""
    data = open_detection_data(str(shared("data/bccd")))
    boxes, labels = relative_boxes(data.training_part()[1])
    net = dicenet.create_detection_model("mobilenetv2_050", 3, head="ssdlite")
    before = coverage(boxes, labels, net.priors, 3)
    net.set_priors(proposed_settings(net, boxes, labels))
    after = dict(zip(data.class_names, coverage(boxes, labels, net.priors, 3), strict=True))
    assert sum(after.values()) > sum(before)
    assert min(after["RBC"], after["WBC"]) > 0.95 > 0.6 > after["Platelets"]


def test_proposed_priors_reach_large_boxes():
    boxes = corners(torch.tensor([[0.5, 0.5, 0.9, 0.9], [0.5, 0.5, 0.05, 0.05], [0.3, 0.3, 0.2, 0.2]]))
    net = dicenet.create_detection_model("dicenet_010", 1, head="lite")
    settings = proposed_settings(net, boxes, torch.zeros(3, dtype=torch.long))
    assert isinstance(settings, PriorSettings)
    net.set_priors(settings)
    assert coverage(boxes, torch.zeros(3, dtype=torch.long), net.priors, 1) == [1.0]
