"""Detect objects in images: python examples/predict.py WEIGHTS IMAGE_OR_FOLDER [CONFIDENCE].

Prints one line an object and writes the annotated images. WEIGHTS is a best.pt of a TSCODE training (nothing of ours
has to be imported to load it) or its export.
"""

import sys

from ultralytics import YOLO


def main(argv: list[str]) -> int:
    if len(argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    weights, source = argv[:2]
    conf = float(argv[2]) if len(argv) == 3 else 0.25
    for result in YOLO(weights).predict(source, stream=True, conf=conf, save=True, verbose=False):
        print(f"{result.path}: {len(result.boxes)} objects")
        for box in result.boxes:
            x1, y1, x2, y2 = box.xyxy[0].tolist()
            name = result.names[int(box.cls)]
            print(f"  {name:<16} {float(box.conf):.2f}  x {x1:.0f}..{x2:.0f}  y {y1:.0f}..{y2:.0f}")
        print(f"  saved to {result.save_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
