"""The loss of SSD: priors matched with boxes, the hardest background, classes and codes (SSD, section 2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.ops import box_iou

from dicenet.models.priors import corners, encode

#: Overlap from which on a prior belongs to a box.
MATCHED_IOU = 0.45
#: Priors of the background for each one with a box.
NEGATIVES = 3
BACKGROUND = 0


def match(boxes: Tensor, labels: Tensor, priors: Tensor, iou: float = MATCHED_IOU) -> tuple[Tensor, Tensor]:
    """What a network should say of each prior of a picture.

    A prior belongs to the box that it overlaps most, if enough; the best prior of each box belongs to it in any case.

    Args:
        boxes: (n, 4) corners as parts of the picture.
        labels: (n,) classes from 0, without the background.
        priors: (priors, 4) centre and size.
        iou: overlap that is enough.

    Returns:
        Classes (priors,), 0 for the background, else label + 1; codes (priors, 4), which mean nothing there.
    """
    if not len(boxes):
        return labels.new_zeros(len(priors)), priors.new_zeros(priors.shape)
    owner = SSDMatcher(iou)(box_iou(boxes, corners(priors)))
    classes = torch.where(owner < 0, BACKGROUND, labels[owner] + 1)
    return classes, encode(boxes[owner], priors)


def hard_negatives(background_loss: Tensor, classes: Tensor, of_empty: bool = True) -> Tensor:
    """Which priors the loss of classes looks at: those with a box, and of the others the ones that are most wrong.

    Args:
        background_loss: (N, priors) loss of each prior if it is background.
        classes: (N, priors) as they should be.
        of_empty: whether pictures without boxes give negatives: as many as the others do on average, 3 at least. The
            original leaves them out.

    Returns:
        (N, priors) bool.
    """
    positive = classes != BACKGROUND
    counts = NEGATIVES * positive.sum(1, keepdim=True)
    if of_empty:
        others = (counts > 0).sum().clamp(min=1)
        usual = (counts.sum() / others).round().long().clamp(min=NEGATIVES)
        counts = torch.where(counts == 0, usual, counts)
    ranked = background_loss.masked_fill(positive, -torch.inf).argsort(1, descending=True).argsort(1)
    return positive | (ranked < counts)


def ssd_loss(
    scores: Tensor, codes: Tensor, classes: Tensor, true_codes: Tensor, of_empty: bool = True
) -> tuple[Tensor, Tensor]:
    """Loss of the classes and of the codes: sums, divided by the number of priors with a box in the batch (1 at least).

    Pictures without boxes count as if they had as many priors as their negatives go with: a batch of them alone would
    otherwise weigh many times what others do.

    Args:
        scores: (N, priors, classes with the background) before softmax.
        codes: (N, priors, 4).
        classes, true_codes: what they should be, as from :func:`match`.
        of_empty: see :func:`hard_negatives`.
    """
    scores, codes = scores.float(), codes.float()  # also where the network computes with fewer bits
    positive = classes != BACKGROUND
    with torch.no_grad():
        background_loss = -scores.log_softmax(-1)[..., BACKGROUND]
        chosen = hard_negatives(background_loss, classes, of_empty)
    count = torch.maximum(positive.sum(), (chosen & ~positive).sum() / NEGATIVES).clamp(min=1)
    class_loss = F.cross_entropy(scores[chosen], classes[chosen], reduction="sum")
    code_loss = F.smooth_l1_loss(codes[positive], true_codes[positive].float(), reduction="sum")
    return class_loss / count, code_loss / count
