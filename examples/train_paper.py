"""Train one of the paper's detectors with its schedule: SGD, lr 0.01, a tenth of it after two thirds and 11/12.

    python examples/train_paper.py model=fcos-r50-fpn-tscode.yaml data=coco.yaml device=0

is the 1x schedule (12 epochs, drops after 8 and 11); epochs=24 multi_scale=0.2 is the 2x one of Table 5 (16 and 22).
Any argument of the host's train() may be added and wins. The host has linear and cosine schedules only, hence this
file.
"""

import inspect
import sys

from torch.optim.lr_scheduler import LambdaLR
from ultralytics import YOLO
from ultralytics.utils.dist import generate_ddp_file

from tscode_yolo.cli import parse

PAPER = {
    "epochs": 12,
    "imgsz": 1280,
    "batch": 16,
    "nbs": 16,  # one optimizer step a batch
    "optimizer": "SGD",
    "lr0": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.0001,
    "warmup_epochs": 0.07,  # 500 of COCO's 7330 iterations
    "warmup_bias_lr": 0.0,
    "fliplr": 0.5,  # the only augmentation
    **dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "close_mosaic"), 0),
}


def drop_in_steps(trainer):
    """Replace the host's schedule, at the end of its set-up, by factors of 0.1 at 2/3 and 11/12 of the epochs."""
    drops = (round(trainer.epochs * 2 / 3), round(trainer.epochs * 11 / 12))
    trainer.lf = lambda epoch: 0.1 ** sum(epoch >= drop for drop in drops)
    trainer.scheduler = LambdaLR(trainer.optimizer, trainer.lf)
    trainer.scheduler.last_epoch = trainer.start_epoch - 1


def main():
    """Train with the paper's settings; the command line wins."""
    args = {**PAPER, **parse(sys.argv[1:])}
    if "," in str(args.get("device", "")) and "callbacks" not in inspect.getsource(generate_ddp_file):
        raise SystemExit(
            "this Ultralytics does not hand callbacks to the processes of several GPUs, so the schedule would be "
            "another one; take one device, or pip install -U ultralytics"
        )
    model = YOLO(args.pop("model", "fcos-r50-fpn-tscode.yaml"))
    model.add_callback("on_pretrain_routine_end", drop_in_steps)
    model.train(**args)


if __name__ == "__main__":
    main()
