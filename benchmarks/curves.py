"""Draw the losses of every stage in a work folder: `python benchmarks/curves.py WORK OUT.png`."""

import csv
import sys
from pathlib import Path


def curves(work, out):
    """One plot a stage, one line a loss, over the samples seen; False where nothing is logged yet."""
    from matplotlib.figure import Figure

    logs = [(path.stem, list(csv.DictReader(path.open()))) for path in sorted(Path(work).glob("*.csv"))]
    logs = [(name, rows) for name, rows in logs if rows]
    if not logs:
        return False
    figure = Figure(figsize=(4 * len(logs), 3), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(logs), squeeze=False)[0], logs):
        samples = [int(row["samples"]) for row in rows]
        for loss in list(rows[0])[3:]:  # after step, samples, seconds
            axes.plot(samples, [float(row[loss]) for row in rows], label=loss)
        axes.set(title=name, xlabel="samples", ylabel="loss", yscale="log")
        axes.legend()
    figure.savefig(out, dpi=100)
    return True


if __name__ == "__main__":
    curves(*sys.argv[1:])
