"""Pictures, their true classes and the predicted ones, on one sheet: PASCAL VOC, a street, CamVid.

python benchmarks/contact_sheet.py runs/contact_sheet.png --shared ../shared --camvid runs/camvid_voc/best.safetensors

The pictures' licences do not allow all of them to be published: keep the sheet under runs/.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from dicenet.data.samples import evenly_spread
from dicenet.data.segmentation import open_segmentation_data
from dicenet.tasks.drawing import picture_bytes
from dicenet.tasks.segment.drawing import segmentation_sheet
from dicenet.tasks.segment.trained import Segmenter, class_names_of, load_segmenter
from dicenet.weights.files import write_bytes

VOC = "dicenet_s_1.75_pascal_384x384.pth"
CITY = "dicenet_s_0.5_city_512x256.pth"
STREET = "reference/official/seg_input_crossing_512x256.png"


def sheet(weights: str, data: str | None, count: int, pictures: Sequence[Path] = ()) -> Image.Image:
    """Pictures of a data set, evenly spread, or those given."""
    net, preprocessing = load_segmenter(weights, None)
    segmenter = Segmenter(net, preprocessing, torch.device("cpu"))
    rows = []
    if data is not None:
        part = open_segmentation_data(data).evaluation_part()[1]
        for index in evenly_spread(len(part), count):
            sample = part.samples[index]
            picture = sample.read()
            rows.append((Path(sample.name).stem, picture, sample.read_mask(), segmenter(picture).numpy()))
    for path in pictures:
        with Image.open(path) as file:
            picture = file.convert("RGB")
        rows.append((f"{path.stem} (no truth)", picture, None, segmenter(picture).numpy()))
    return segmentation_sheet(rows, class_names_of(net))


def main() -> None:
    """Draw three sheets below each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--camvid", required=True, help="network for CamVid's classes")
    arguments = parser.parse_args()
    shared, weights = arguments.shared, arguments.shared / "weights"
    sheets = [
        sheet(str(weights / VOC), str(shared / "data/voc2012_mini"), 10),
        sheet(str(weights / CITY), None, 0, [shared / STREET]),
        sheet(arguments.camvid, str(shared / "data/camvid"), 1),
    ]
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for part in sheets:
        whole.paste(part, (0, top))
        top += part.height
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(arguments.out, picture_bytes(whole, "PNG"))


if __name__ == "__main__":
    main()
