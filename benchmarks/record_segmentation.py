"""Write what a segmentation run and its evaluation gave: one row in a CSV, and the epochs in another.

python benchmarks/record_segmentation.py RUN_FOLDER EVALUATION_FOLDER OUT    # OUT.csv, OUT_epochs.csv
"""

import sys
from pathlib import Path

from record import record_pyramid

if __name__ == "__main__":
    run, evaluation, out = sys.argv[1:]
    record_pyramid(Path(run), Path(evaluation), out, "mean_iou", ("mean_iou", "pixel_accuracy"), "iou")
