"""Train a TSCODE detector from Python: python examples/train.py [MODEL] [DATA] [EPOCHS] [KEY=VALUE ...].

Without arguments it trains the recommended nano model on the drawn data set, which needs no download. The same as
``yolo train model=tscode.yaml data=shapes.yaml epochs=30 imgsz=320``.
"""

import ast
import sys

from ultralytics import YOLO


def main(argv: list[str]) -> None:
    plain = [a for a in argv if "=" not in a]
    options = dict(a.split("=", 1) for a in argv if "=" in a)
    model, data, epochs = (plain + ["tscoden.yaml", "shapes.yaml", "30"][len(plain) :])[:3]
    settings = {"imgsz": 320, **{k: literal(v) for k, v in options.items()}}

    yolo = YOLO(model)
    yolo.train(data=data, epochs=int(epochs), **settings)
    metrics = yolo.val(plots=False)
    print(f"AP {metrics.box.map:.3f}, AP50 {metrics.box.map50:.3f}; weights in {yolo.trainer.best}")


def literal(text: str) -> object:
    """Numbers and True/False as Python values, the rest as text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main(sys.argv[1:])
