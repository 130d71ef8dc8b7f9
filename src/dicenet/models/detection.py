"""Object detection: SSD heads on any feature pyramid of timm (paper, section 7.1)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from dicenet.classes import VOC_OBJECTS
from dicenet.errors import ConfigError
from dicenet.models.detection_heads import HEADS, SSDHead
from dicenet.models.network import ImgSize, pair
from dicenet.models.priors import PriorSettings, decode, prior_boxes
from dicenet.models.pyramid import (
    PyramidNetwork,
    backbone_arguments,
    build_backbone,
    check_backbone,
    check_maps,
    pyramid_levels,
)
from dicenet.models.registry import ROWS
from dicenet.models.vgg import VGGPyramid, vgg_pyramid

DEFAULT_HEAD = "espnet"
#: Most candidates of a class that non-maximum suppression sees, as in torchvision.
CANDIDATES = 400
#: Channels of the layer behind the last block, which SSDLite begins from, by the start of a timm model's name.
_TOPS = {"mobilenetv2": 1280, "mnasnet": 1280, "semnasnet": 1280, "mixnet": 1536}


class Expanded(nn.Module):
    """A pyramid of MobileNet blocks, whose first map is what the block behind it expands it to.

    So SSDLite takes it (MobileNetV2, Sandler et al. 2018, section 6.2): the map that the next depth-wise convolution
    halves, which is computed anyway.

    Args:
        pyramid: of timm's EfficientNet family.
    """

    def __init__(self, pyramid: Any) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.pretrained_cfg = pyramid.pretrained_cfg
        halving = next_block(pyramid).conv_dw
        self.widths = [
            sum(conv.in_channels for conv in halving.modules() if isinstance(conv, nn.Conv2d)),
            *pyramid.feature_info.channels()[1:],
        ]
        self._kept: list[Tensor] = []
        halving.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._kept.append(inputs[0])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Maps, the largest first."""
        self._kept.clear()  # whoever asked the pyramid itself left one
        maps = list(self.pyramid(x))
        maps[0] = self._kept.pop()
        return maps


def next_block(pyramid: Any) -> Any:
    """The block behind the first map of a pyramid of timm's EfficientNet family; None for others."""
    parts = pyramid.feature_info.module_name()[0].split(".")
    if not hasattr(pyramid, "blocks") or parts[0] != "blocks":
        return None
    return pyramid.blocks[int(parts[1]) + 1][0]


class DetectionNetwork(PyramidNetwork):
    """A backbone and an SSD head; made by :func:`create_detection_model`.

    Shape: (N, in_chans, H, W), H and W as in ``input_size``, to scores (N, priors, num_classes + 1), the first of the
    background, before softmax, and codes of boxes (N, priors, 4). :func:`detections` makes boxes of them.

    Attributes:
        head_type: one of :data:`dicenet.models.detection_heads.HEADS`.
        num_classes: without the background.
        prior_settings: sizes and shapes of the priors.
        priors: (priors, 4) centre and size as parts of the picture, for ``input_size``.
        map_sizes: (height, width) of the maps that they lie on.

    The others are those of :class:`dicenet.models.pyramid.PyramidNetwork`.
    """

    priors: Tensor

    def __init__(
        self,
        architecture: str,
        backbone: nn.Module,
        num_classes: int,
        img_size: ImgSize,
        head: str,
        prior_settings: PriorSettings,
        in_chans: int = 3,
        backbone_args: Mapping[str, Any] | None = None,
    ) -> None:
        if num_classes < 1:
            raise ConfigError(f"a detector needs at least 1 class, got {num_classes}")
        super().__init__(architecture, backbone, num_classes, in_chans, backbone_args)
        self.head_type = head
        self.prior_settings = prior_settings
        self.head = self._new_head()
        self.register_buffer("priors", torch.empty(0, 4), persistent=False)
        self.set_input_size(img_size)

    def _new_head(self) -> SSDHead:
        head: SSDHead = HEADS[self.head_type].build(
            self.map_channels(), self.prior_settings.per_position(), self.num_classes + 1, **self._head_options()
        )
        initialise_head(head)
        return head

    def _head_options(self) -> dict[str, Any]:
        if self.head_type != "ssdlite":
            return {}
        return {"top": next((top for name, top in _TOPS.items() if self.architecture.startswith(name)), None)}

    def map_channels(self) -> list[int]:
        """Channels of the backbone's maps."""
        if isinstance(self.backbone, Expanded | VGGPyramid):
            return list(self.backbone.widths)
        return super().map_channels()

    def set_input_size(self, img_size: ImgSize) -> None:
        """Change the size that pictures must be resized to, and with it the priors."""
        super().set_input_size(img_size)
        assert self.input_size is not None
        self.map_sizes = self._map_sizes(self.input_size)
        self.priors = self.priors_of(self.prior_settings).to(self.priors.device)

    def priors_of(self, settings: PriorSettings) -> Tensor:
        """The priors (priors, 4) that the network would have with other sizes of them."""
        assert self.input_size is not None
        return prior_boxes(settings, self.input_size, self.map_sizes, HEADS[self.head_type].first_level)

    @torch.no_grad()
    def _map_sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(height, width) of the head's maps: as they come out, whatever the backbone."""
        training = self.training
        like = next(self.parameters())
        try:
            maps = self.head.maps(self.eval().backbone(like.new_zeros(1, self.in_chans, *size)))
        except RuntimeError as error:
            raise ConfigError(
                f"pictures of {size[0]}x{size[1]} do not fit the head {self.head_type}: give another img_size, most "
                f"likely a larger one ({error})"
            ) from error
        finally:
            self.train(training)
        return [(x.shape[2], x.shape[3]) for x in maps]

    def set_priors(self, settings: PriorSettings) -> None:
        """Change the sizes of the priors; their number at each position stays. What was learned is for other ones."""
        if settings.per_position() != self.prior_settings.per_position():
            raise ConfigError("another number of priors at a position needs another network")
        self.prior_settings = settings
        self.priors = self.priors_of(settings).to(self.priors.device)

    def head_part(self) -> nn.Module:
        """The extra layers and the predictors."""
        return self.head

    def head_args(self) -> dict[str, Any]:
        """The arguments that build the head."""
        scales = self.prior_settings.scales
        return {
            "type": "detection",
            "head": self.head_type,
            "num_classes": self.num_classes,
            "scales": None if scales is None else list(scales),
            "ratios": [list(ratios) for ratios in self.prior_settings.ratios],
        }

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the convolutions that give scores by fresh ones for other classes; boxes stay."""
        self.reset_names(num_classes)
        self.head.predictors.scores = self._new_head().to(self.priors).predictors.scores
        self.head.predictors.num_scores = num_classes + 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and codes of all priors."""
        return self.head(self.backbone(x))


def initialise_head(head: nn.Module) -> None:
    """Xavier uniform convolutions, as the official code's; biases stay torch's."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)


def detections(
    scores: Tensor,
    codes: Tensor,
    priors: Tensor,
    sizes: list[tuple[int, int]],
    score: float = 0.01,
    nms: float = 0.45,
    most_per_class: int = 200,
) -> list[dict[str, Tensor]]:
    """Boxes from what a network says of pictures (official code: softmax, threshold, suppression class by class).

    Args:
        scores: (N, priors, classes + 1) before softmax, the background first.
        codes: (N, priors, 4).
        priors: (priors, 4) centre and size.
        sizes: (height, width) of each picture.
        score: boxes must be surer than this.
        nms: boxes of a class that overlap more than this (IoU) with a surer one are left out.
        most_per_class: boxes kept of each class.

    Returns:
        For each picture as torchvision's detectors: boxes (n, 4), corners in pixels, within the picture; labels (n,)
        from 0, without the background; scores (n,) from the surest on.
    """
    chances = scores.float().softmax(-1)[..., 1:]
    return [
        _of_picture(chances[index], decode(codes[index].float(), priors), size, score, nms, most_per_class)
        for index, size in enumerate(sizes)
    ]


def _of_picture(
    chances: Tensor, boxes: Tensor, size: tuple[int, int], score: float, nms: float, most_per_class: int
) -> dict[str, Tensor]:
    height, width = size
    boxes = clip_boxes_to_image(boxes * boxes.new_tensor([width, height, width, height]), size)
    surest, priors = chances.topk(min(CANDIDATES, len(chances)), dim=0)  # of each class
    labels = torch.arange(chances.shape[1], device=chances.device).expand_as(surest)
    wanted = surest > score
    surest, priors, labels = surest[wanted], priors[wanted], labels[wanted]
    kept = batched_nms(boxes[priors], surest, labels, nms)
    kept = kept[_rank(labels[kept]) < most_per_class]
    return {"boxes": boxes[priors[kept]], "labels": labels[kept], "scores": surest[kept]}


def _rank(labels: Tensor) -> Tensor:
    """How many of the same label stand before each."""
    same = nn.functional.one_hot(labels) if len(labels) else labels.new_zeros(0, 1)
    return same.cumsum(0).gather(1, labels[:, None])[:, 0] - 1 if len(labels) else labels


def check_head(head: str) -> str:
    """The name of a head, unchanged. Raises ConfigError if there is none of that name."""
    if head not in HEADS:
        raise ConfigError(f"head {head!r} is unknown: choose one of {', '.join(HEADS)}")
    return head


def detection_backbone(name: str, head: str, **arguments: Any) -> nn.Module:
    """What gives the maps that a head takes.

    Raises:
        ConfigError: there is no such head, or the model lacks the maps.
        WeightsError: its weights cannot be had.
    """
    if HEADS[check_head(head)].of_vgg:
        return vgg_pyramid(check_backbone(name), **arguments)
    levels, wanted = pyramid_levels(name, **arguments), HEADS[head].reductions
    if missing := [reduction for reduction in wanted if reduction not in levels]:
        raise ConfigError(
            f"{name} has maps at 1/{', 1/'.join(map(str, levels))} of the picture: the head {head} needs one at "
            f"1/{missing[0]}"
        )
    if name.startswith("espnetv2"):
        arguments.setdefault("picture_to_last", True)
    backbone: Any = build_backbone(name, [levels[reduction] for reduction in wanted], **arguments)
    return Expanded(backbone) if head == "ssdlite" and hasattr(next_block(backbone), "conv_dw") else backbone


def create_detection_model(
    backbone: str = "dicenet_100",
    num_classes: int | None = None,
    *,
    img_size: ImgSize | None = None,
    head: str = DEFAULT_HEAD,
    scales: tuple[float, ...] | None = None,
    pretrained: bool | str = False,
    backbone_img_size: ImgSize | None = None,
    in_chans: int = 3,
    **backbone_args: Any,
) -> DetectionNetwork:
    """A detector: an SSD head on the feature pyramid of any timm model.

    Args:
        backbone: name of a timm model that gives feature maps: ours, MobileNets, ResNets, ...
        num_classes: classes of objects, without the background; PASCAL VOC's 20 if not given.
        img_size: size that pictures are resized to, one number or (height, width); the priors are made for it. 512 for
            the head ``ssd512``, else 300, or that of the tag.
        head: ``espnet``, ESPNetv2's detector, which the paper's Table 6 was counted with on ``dicenet_200``; ``lite``,
            with which ``dicenet_240`` costs as much; ``fpnlite``, which joins each map with those below it;
            ``ssdlite``, as for MobileNets; ``ssd300`` and ``ssd512``, the original one on VGG (``vgg16``).
        scales: sizes of the priors as parts of the picture's side, one more than there are maps; the official ones if
            not given.
        pretrained: True starts the backbone from its ImageNet weights (timm's; for ours the official ones); a tag such
            as ``"edgenets_voc_300"`` loads an official detector, for other classes all but what gives scores.
        backbone_img_size: trained size of a backbone of ours, 224 if not given as in all official networks; maps of
            other sizes are scaled as they pass.
        in_chans: channels of the picture.
        backbone_args: further arguments of the backbone, such as ``unit``.

    Raises:
        ConfigError: no such backbone or head, or a backbone without the maps that the head needs.
        WeightsError: the weights cannot be fetched or do not fit.
    """
    if isinstance(pretrained, str):
        # late: loading builds networks, also of this kind
        from dicenet.models.loading import load

        if refused := [*backbone_args, *(["backbone_img_size"] if backbone_img_size else [])]:
            raise ConfigError(f"{', '.join(refused)} cannot be chosen with pretrained={pretrained!r}: they are its own")
        options: dict[str, Any] = {"img_size": img_size, "scales": scales, "head": head, "num_classes": num_classes}
        net = load(f"{backbone}.{pretrained}", task="detect", in_chans=in_chans, **options)
        assert isinstance(net, DetectionNetwork)
        return net
    name = backbone.split(".")[0]
    img_size = HEADS[check_head(head)].img_size if img_size is None else img_size
    arguments = backbone_arguments(backbone, backbone_img_size, backbone_args)
    pyramid = detection_backbone(backbone, head, pretrained=pretrained, in_chans=in_chans, **arguments)
    if name not in ROWS and not isinstance(pyramid, VGGPyramid):
        plain = pyramid.pyramid if isinstance(pyramid, Expanded) else pyramid
        check_maps(plain, name, (in_chans, *pair(img_size)))
    settings = PriorSettings(HEADS[head].ratios, scales)
    classes = len(VOC_OBJECTS) if num_classes is None else num_classes
    return DetectionNetwork(name, pyramid, classes, img_size, head, settings, in_chans, backbone_args)
