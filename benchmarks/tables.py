"""Everything of the paper's tables, figures and claims that docs/tables.md shows, counted and written anew.

python benchmarks/tables.py    # three minutes; writes results/tables/*.csv, docs/pictures/figure*.png, docs/tables.md
"""

from pathlib import Path

from dicenet.analysis.paper import figure7, figure8, figures, table6, table7
from dicenet.analysis.paper.claims import claim_rows
from dicenet.analysis.paper.entries import TABLES
from dicenet.analysis.paper.tables import readable, table_rows, write
from dicenet.engine.machine import write_csv
from dicenet.tasks.drawing import png
from dicenet.weights.files import write_bytes

REPOSITORY = Path(__file__).parents[1]
RESULTS, PICTURES = REPOSITORY / "results/tables", REPOSITORY / "docs/pictures"

MARK = "<!-- what follows is written by benchmarks/tables.py -->\n"


def main() -> None:
    page = REPOSITORY / "docs/tables.md"
    parts = [page.read_text().partition(MARK)[0] + MARK]
    for number, table in TABLES.items():
        rows = table_rows(number)
        write_csv(RESULTS / f"table_{number}.csv", rows)
        parts.append(write(rows, f"Table {number}. {table.title}", table.note, "markdown").replace("###", "##", 1))
        print(f"table {number}: {len(readable(rows, '').cells)} rows", flush=True)
    rows = table6.table_6_rows()
    write_csv(RESULTS / "table_6.csv", rows)
    parts.append(write(rows, table6.TITLE, table6.NOTE, "markdown").replace("###", "##", 1))
    rows = table7.table_7_rows()
    write_csv(RESULTS / "table_7.csv", rows)
    parts.append(write(rows, table7.TITLE, table7.NOTE, "markdown").replace("###", "##", 1))
    rows = claim_rows()
    write_csv(RESULTS / "claims.csv", rows)
    parts.append(write(rows, "Claims that can be recomputed", "", "markdown").replace("###", "##", 1))
    rows = table6.figure_1b_rows()
    write_csv(RESULTS / "figure_1b.csv", rows)
    write_bytes(PICTURES / "figure1b.png", png(table6.figure_1b(rows)))
    parts.append(write(rows, table6.FIGURE_TITLE, table6.FIGURE_NOTE, "markdown").replace("###", "##", 1))
    parts.append("![mAP on COCO against multiply-adds](pictures/figure1b.png)\n")
    rows = figures.figure_2_rows()
    write_csv(RESULTS / "figure_2.csv", rows)
    write_bytes(PICTURES / "figure2.png", png(figures.figure_2(rows)))
    write_bytes(PICTURES / "figure4.png", png(figures.figure_4()))
    parts.append("## Figure 2. Where the multiply-adds are\n\n![Pies of multiply-adds by kind](pictures/figure2.png)\n")
    parts.append("## Figure 4. The networks and their blocks, drawn from the code\n\n![Blocks](pictures/figure4.png)\n")
    rows = figure7.figure_7_rows()
    write_csv(RESULTS / "figure_7.csv", rows)
    write_bytes(PICTURES / "figure7.png", png(figure7.figure_7(rows)))
    parts.append(write(rows, figure7.TITLE, figure7.NOTE, "markdown").replace("###", "##", 1))
    parts.append("![Top-1 by part of the recipe](pictures/figure7.png)\n")
    rows = figure8.figure_8_rows()
    write_csv(RESULTS / "figure_8.csv", rows)
    write_bytes(PICTURES / "figure8.png", png(figure8.figure_8(rows)))
    parts.append(write(rows, figure8.TITLE, figure8.NOTE, "markdown").replace("###", "##", 1))
    parts.append("![Mean IoU against multiply-adds](pictures/figure8.png)\n")
    write_bytes(page, "\n".join(parts).encode())


if __name__ == "__main__":
    main()
