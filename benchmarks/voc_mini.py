"""Mean IoU of official segmentation checkpoints on a folder in PASCAL VOC's layout.

python benchmarks/voc_mini.py results/voc_mini.csv --weights ../shared/weights --data ../shared/data/voc2012_mini
"""

import argparse
import tempfile
from pathlib import Path

from dicenet.engine.machine import machine, write_csv
from dicenet.tasks.segment.evaluate import evaluate
from dicenet.weights.catalogue import find_file


def main() -> None:
    """Evaluate every checkpoint for VOC that lies in the folder of weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for path in sorted(arguments.weights.glob("*_pascal_384x384.pth")):
        with tempfile.TemporaryDirectory() as folder:
            found = evaluate(str(path), str(arguments.data), out=folder, draw=0)
        entry = find_file(path.name)
        assert entry is not None
        scores = {key: round(found[key], 6) for key in ("mean_iou", "mean_iou_all", "pixel_accuracy")}
        rows.append({"checkpoint": entry.name, "split": found["split"], "pictures": found["pictures"], **scores})
    write_csv(arguments.out, [row | machine() for row in rows])


if __name__ == "__main__":
    main()
