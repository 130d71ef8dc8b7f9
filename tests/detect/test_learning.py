"""A detector learns a few real pictures by heart: matching, coding, loss, suppression and classes work together."""

import pytest
import torch

import dicenet
from dicenet.data.box_transforms import evaluation_box_transform
from dicenet.data.boxes import BoxedPictures
from dicenet.data.detection import open_detection_data
from dicenet.data.samples import LoaderSettings
from dicenet.data.transforms import Preprocessing
from dicenet.ops import flush_denormals
from dicenet.tasks.detect.priors import proposed_settings, relative_boxes
from dicenet.tasks.detect.task import DetectTask

STEPS = 500


def scaled(batch, size):
    """A batch as training sees it: boxes in pixels of the input, no crowds."""
    targets = []
    for target in batch["target"]:
        height, width = target["size"].tolist()
        factor = torch.tensor([size[1] / width, size[0] / height]).repeat(2)
        kept = ~target["crowd"]
        targets.append({"boxes": target["boxes"][kept] * factor, "labels": target["labels"][kept]})
    return {**batch, "target": targets}


@pytest.mark.slow
def test_overfits_eight_pictures(shared):
    data = open_detection_data(str(shared("data/tiny_coco")))
    _, part = data.training_part()
    eight = BoxedPictures([s for s in part.samples if len(part.training_boxes(s.boxes))][:8], data.class_names)
    torch.manual_seed(0)
    net = dicenet.create_detection_model("dicenet_050", len(data.class_names), img_size=300)
    net.set_priors(proposed_settings(net, *relative_boxes(eight)))
    loader = eight.loader(evaluation_box_transform(Preprocessing.of(net.pretrained_cfg)), False, LoaderSettings(8))
    (batch,) = loader
    task = DetectTask(net, data.class_names)
    optimizer = torch.optim.AdamW(task.parameters(), lr=0.003, weight_decay=0)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with flush_denormals():
        for _ in range(STEPS):
            loss = task.batch_loss(scaled(batch, (300, 300)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            plan.step()
    task.eval()
    with torch.no_grad():
        task.test_step(batch, 0)
    assert task.all_scores()["map50"] > 0.9
