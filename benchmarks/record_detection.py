"""Write what a detection run and its evaluation gave: one row in a CSV, and the epochs in another.

python benchmarks/record_detection.py RUN_FOLDER EVALUATION_FOLDER OUT    # OUT.csv, OUT_epochs.csv
"""

import sys
from pathlib import Path

from record import record_pyramid

SCORES = ("map50", "map", "map75", "map50_voc07", "map50_voc10", "mar_100")

if __name__ == "__main__":
    run, evaluation, out = sys.argv[1:]
    record_pyramid(Path(run), Path(evaluation), out, "map50", SCORES, "map50")
