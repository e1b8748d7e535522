"""Stock head against TSCODE on three YOLO families and several data sets, paired by seed, and all of it pooled.

    python examples/first_study.py data=DIR weights=DIR out=DIR [epochs=40 seeds=3 imgsz=320 ...]

``data=`` holds one folder a data set with a data.yaml; ``weights=`` holds FAMILY-restored.pt, from which backbone and
neck start. Each family is one ``tscode compare`` with a folder and report of its own; any of its arguments passes
through. Killed at any point, the same command goes on. ``families=`` and ``datasets=`` choose less than the default;
``images=300`` takes that many training images of a larger set, evenly spaced in the order of their names, the same for
every run, and all of its validation images.
The data folder should be a copy of your own: the host writes its label caches there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from pool_studies import pool, text

from tscode_yolo.cli import parse
from tscode_yolo.study import compare
from tscode_yolo.study.inventory import read_dataset
from tscode_yolo.verbs.arguments import require
from tscode_yolo.verbs.provenance import provenance
from tscode_yolo.verbs.storage import write_json

DEFAULTS: dict[str, Any] = {"epochs": 40, "seeds": 3, "imgsz": 320, "batch": 16, "last": 5}
FAMILIES = "yolov8n,yolo11n,yolo26n"
DATASETS = "bccd,deep_pcb"


def main(args: dict[str, Any]) -> int:
    """Run every family's study, then pool the differences of AP over families and data sets."""
    args = {**DEFAULTS, **args}
    require(args, ("data", "weights", "out"))
    out, folder, weights = (Path(args.pop(k)) for k in ("out", "data", "weights"))
    families = args.pop("families", FAMILIES).split(",")
    sets = [folder / d / "data.yaml" for d in args.pop("datasets", DATASETS).split(",")]
    if "images" in args:
        limit = args.pop("images")
        sets = [evenly_spaced(d, limit, out / "data") for d in sets]
    data = ",".join(map(str, sets))
    code = 0
    for family in families:
        own = {
            "model": f"{family}-tscode.yaml",
            "baseline": f"{family}.yaml",
            "init": weights / f"{family}-restored.pt",
        }
        code |= compare.main({**args, **own, "data": data, "out": str(out / family)})
    found = pool(out / f / "results.json" for f in families)
    write_json(out / "pooled.json", {**found, "provenance": provenance()})
    print(text(found))
    return code


def evenly_spaced(data: Path, limit: int, out: Path) -> Path:
    """Data YAML of at most `limit` training images, or the one given if there are no more than that.

    Args:
        data: the whole set's YAML.
        limit: images to keep, of those sorted by name.
        out: folder for ``NAME/data.yaml`` and the list it points to; the images stay where they are.

    Raises:
        ValueError: `limit` is no whole number of at least 1.
    """
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise ValueError(f"images={limit!r}: expected a whole number of at least 1")
    whole = read_dataset(data)
    train = whole.images["train"]
    if len(train) <= limit:
        return data
    chosen = [train[i * len(train) // limit] for i in range(limit)]
    folder = (out / whole.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    lists = {"train": chosen, "val": whole.images["val"]}
    for split, files in lists.items():
        (folder / f"{split}.txt").write_text("".join(f"{f}\n" for f in files), encoding="utf-8")
    content = {"path": str(folder), **{s: f"{s}.txt" for s in lists}, "names": dict(enumerate(whole.names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return folder / "data.yaml"


if __name__ == "__main__":
    try:
        sys.exit(main(parse(sys.argv[1:])))
    except ValueError as e:
        sys.exit(f"first_study.py: {e}")
