"""Put a finished run into the record, small enough for it.

    python -m benchmarks.segmentation.keep_run RUN ...      into benchmarks/records/training, under the folder's name

Kept are recipe, scores and quality control with all their numbers, a line per case; pictures; of the log the first, the
last and every 50th row and those with validation figures; and the name of the split, which runs share. The column
`total_seconds`, added to the log, is the time of all steps up to a row's. Weights are not kept.
"""

import argparse
import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

from benchmarks.harness.record import ROOT, write_file
from ncaseg.data.split import load_split, save_split

RECORDS = ROOT / "benchmarks" / "records"
EVERY = 50  # rows of a log
TOTAL = "total_seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder that `ncaseg train` made, scored")
    for run in parser.parse_args().runs:
        print(keep(run.resolve(), RECORDS))


def keep(run: Path, records: Path) -> Path:
    """Write what is kept of a run into `records/training/NAME`, and its split into `records/splits` if it is new there.

    Raises:
        FileNotFoundError: the run lacks its recipe, split, scores or log.
    """
    out = records / "training" / run.name
    scores = json.loads((run / "scores.json").read_text(encoding="utf-8"))
    write_file(out / "log.csv", thin((run / "log.csv").read_text(encoding="utf-8")))
    write_file(out / "split.json", name_split(run / "split.json", out, records / "splits", run.name))
    write_file(out / "scores.json", lines(scores))
    if (run / "qc.json").exists():
        write_file(out / "qc.json", lines(json.loads((run / "qc.json").read_text(encoding="utf-8"))))
    for path in (run / "recipe.toml", *sorted(run.glob("*.png"))):
        if run != out:
            shutil.copyfile(path, out / path.name)
    return out


def thin(log: str) -> str:
    """The rows of a log that are kept, with the time up to each; a log that has been thinned stays as it is."""
    rows = list(csv.DictReader(io.StringIO(log)))
    if not rows or TOTAL in rows[0]:
        return log
    text, total = io.StringIO(), 0.0
    writer = csv.DictWriter(text, [*rows[0], TOTAL], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        total += float(row["seconds"])
        is_end = row is rows[0] or row is rows[-1]
        if is_end or int(row["step"]) % EVERY == 0 or row["val_dice"]:
            writer.writerow(row | {TOTAL: f"{total:.1f}"})
    return text.getvalue()


def name_split(path: Path, out: Path, shared: Path, name: str) -> str:
    """The text of a split file in the folder `out` that names the file in the folder `shared` with the same split."""
    split = load_split(path)
    found = next((other for other in sorted(shared.glob("*.json")) if load_split(other) == split), None)
    if found is None:
        found = shared / f"{name}.json"
        shared.mkdir(parents=True, exist_ok=True)
        save_split(found, split)
    return json.dumps({"same_as": os.path.relpath(found, out), "sha256": split.sha256}) + "\n"


def lines(content: dict[str, Any]) -> str:
    """JSON with a line per entry, and per element of an entry that is a list: a case changes one line."""
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_entry(value)}" for key, value in content.items()) + "\n}\n"


def _entry(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(f"  {json.dumps(element)}" for element in value) + "\n ]"


if __name__ == "__main__":
    main()
