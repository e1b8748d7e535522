"""The host's detection trainer, made fair between heads and able to go on after a kill.

Fair: everything below the head starts from the same weights, every epoch starts from the same random state, and what
was fed to the model is fingerprinted, so that a report can prove that two heads saw the same batches. The host's own
switch for a seed is not enough: a larger head draws more random numbers while it is built.

Resumable: after each epoch the whole state goes, in full precision, into ``weights/resume.pt``, written in one step.
The host's own resume continues from half-precision averaged weights and from a file that a kill can cut in two.
"""

from __future__ import annotations

import hashlib
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from tscode_yolo.study.evaluation import HOST_KEYS, StudyValidator
from tscode_yolo.study.start import (
    body_fingerprint,
    epoch_seed,
    is_checkpoint,
    seed_everything,
    transfer_body,
    weights_of,
)
from tscode_yolo.verbs.loading import checkpoint
from tscode_yolo.verbs.storage import write_json, write_whole

STATE_VERSION = 1
RECORD = ("history", "body", "resumed", "repeated", "exact_resume")


class StudyTrainer(DetectionTrainer):
    """Trains one run of a study.

    Args:
        overrides: the host's train arguments.
        init: checkpoint that gives everything below the head its weights, or None for a start from scratch.
        last: number of final epochs whose COCO AP is computed.
        every: validate each this many epochs, and in each of the last ones.
        threads: of torch on the CPU; the host would take its own number.
        keep_best: keep ``best.pt`` too, chosen by the host on the validation set.

    Attributes:
        history: one dict an epoch: losses, the host's mAP, COCO's AP in the last epochs, batch fingerprint, seconds.
        body: fingerprint of the weights below the head at the start.
        resumed: epochs (counted from 0) at which training went on after an interruption.
        repeated: epochs the host began a second time (its recovery from NaN).
        exact_resume: a resumed run equals an uninterrupted one to the bit. Not so with gradients summed over batches
            (they are lost with the process) or with loader processes (their random state is).
    """

    validator: Any  # the host sets these late, and tells a type checker that they are None
    metrics: Any
    ema: Any
    optimizer: Any
    scheduler: Any
    model: Any

    def __init__(
        self,
        *,
        overrides: dict[str, Any],
        init: str | None = None,
        last: int = 5,
        every: int = 1,
        threads: int | None = None,
        keep_best: bool = False,
    ) -> None:
        self.study_init, self.study_last, self.study_every, self.keep_best = init, last, every, keep_best
        self.history: list[dict[str, Any]] = []
        self.body, self.exact_resume = "", True
        self.resumed: list[int] = []
        self.repeated: list[int] = []
        super().__init__(overrides=overrides)
        if threads:
            torch.set_num_threads(threads)
        self.state_file = self.wdir / "resume.pt"
        for left in self.wdir.glob(".*.tmp"):  # of a process killed while it wrote
            left.unlink()
        self._fingerprint = hashlib.blake2b(digest_size=16)
        self._began: set[int] = set()
        self._clock = time.monotonic()
        self.add_callback("on_train_epoch_start", StudyTrainer.start_epoch_fairly)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> DetectionModel:
        """Build under a fixed seed; the head from the run's model if that is a checkpoint, all else from `init`.

        Raises:
            ValueError: `init` does not cover everything below the head.
        """
        seed_everything(self.args.seed, -1)
        head = checkpoint(self.args.model) if is_checkpoint(str(self.args.model)) else None
        model = super().get_model(cfg, head, verbose=False)
        if self.study_init:
            source = checkpoint(self.study_init, "init")
            moved, total = transfer_body(source, model)
            LOGGER.info(f"init: {moved} of {total} tensors below the head from {Path(self.study_init).name}")
        self.body = body_fingerprint(model)
        return model

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """The host's loader; if it has processes, their order and random state come from the run's seed.

        Some hosts (8.4.0) seed loaders with a constant: every seed of a study would see the same batches. Without
        processes `start_epoch_fairly` sees to it.
        """
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode == "train" and loader.num_workers:
            loader.generator.manual_seed(epoch_seed(self.args.seed, -1))
            loader.reset()
        return loader

    def get_validator(self) -> StudyValidator:
        """The host's validator, which also gives COCO's AP."""
        host = super().get_validator()
        return StudyValidator(self.test_loader, save_dir=self.save_dir, args=vars(host.args), _callbacks=self.callbacks)

    def start_epoch_fairly(self) -> None:
        """Same random state for every head at the start of an epoch, and the same order of images.

        Raises:
            RuntimeError: the host has cut the batch size (out of memory): the runs would no longer be alike.
        """
        if self.batch_size != (planned := getattr(self, "planned_batch", self.batch_size)):
            raise RuntimeError(
                f"batch: expected {planned} throughout, got {self.batch_size} after the host ran out of memory; "
                "a study cannot mix batch sizes, choose a smaller batch="
            )
        self.planned_batch = self.batch_size
        if self.epoch in self._began:
            self.repeated.append(self.epoch)
        self._began.add(self.epoch)
        seed_everything(self.args.seed, self.epoch)
        if self.train_loader.num_workers == 0:  # worker processes keep a random state of their own over all epochs
            self.train_loader.generator.manual_seed(epoch_seed(self.args.seed, self.epoch))
            self.train_loader.reset()
        self._fingerprint = hashlib.blake2b(digest_size=16)
        self._clock = time.monotonic()

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Fingerprint the batch (file names, boxes, classes, every fourth pixel), then let the host prepare it."""
        self._fingerprint.update("\n".join(Path(f).name for f in batch["im_file"]).encode())
        for tensor in (batch["bboxes"], batch["cls"], batch["img"][..., ::4, ::4]):
            self._fingerprint.update(tensor.contiguous().numpy().tobytes())
        return super().preprocess_batch(batch)

    def validate(self) -> tuple[Any, Any]:
        """Validate as the host does; in the last epochs add COCO's AP, from the same detections."""
        row: dict[str, Any] = {"epoch": self.epoch + 1}
        row |= {k: float(v) for k, v in self.label_loss_items(self.tloss).items()}
        self.validator.wanted = self.epochs - self.epoch <= self.study_last
        if self.validator.wanted or (self.epoch + 1) % self.study_every == 0:
            metrics, fitness = super().validate()
            row |= {name: 100 * float(metrics[key]) for key, name in HOST_KEYS.items()}
            row |= {k: v for k, v in metrics.items() if k.startswith("val/")}
        else:
            metrics, fitness = dict(self.metrics), None  # with the last one's the host would keep this epoch as best
        if self.validator.wanted:
            row["coco"] = self.validator.coco()
        row |= {"batches": self._fingerprint.hexdigest(), "seconds": time.monotonic() - self._clock}
        self.history = [h for h in self.history if h["epoch"] != row["epoch"]] + [row]
        return metrics, fitness

    def save_model(self) -> bool:
        """Write the host's checkpoints and our exact state, each in one step, then tell the watcher."""
        last, best = self.last, self.best
        self.last, self.best = self.wdir / ".last.part", self.wdir / ".best.part"
        try:
            super().save_model()
            self.last.replace(last)
            if self.best.exists():
                (self.best.replace(best) if self.keep_best else self.best.unlink())
        finally:
            self.last, self.best = last, best
        self.exact_resume = round(self.args.nbs / self.batch_size) <= 1 and self.train_loader.num_workers == 0
        write_whole(self.state_file, lambda p: torch.save(self._state(), p))
        recent = {k: self.history[-1].get(k) for k in ("epoch", "mAP", "seconds")}
        write_json(self.save_dir / "progress.json", {**recent, "epochs": self.epochs})
        return True

    def resume_training(self, ckpt: Any) -> None:
        """Go on from ``resume.pt`` if there is one."""
        if not self.state_file.exists():
            return
        state = self._saved_state()
        model = unwrap_model(self.model)
        model.load_state_dict(state["model"])
        restore_criterion(model, state["criterion"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.best_fitness = state["best_fitness"]
        self.stopper.__dict__.update(state["stopper"])
        self.start_epoch = state["epoch"] + 1
        for field in RECORD:
            setattr(self, field, state[field])
        self.resumed = [*self.resumed, self.start_epoch]
        dataset = self.train_loader.dataset
        for index in state["mosaic_buffer"]:
            dataset.load_image(index)
        if self.start_epoch > self.epochs - self.args.close_mosaic:
            self._close_dataloader_mosaic()

    def final_eval(self) -> None:
        """Strip the checkpoints; the run is judged afterwards, by `evaluation.evaluate`, in one way for all."""
        for file in (self.last, self.best):
            if file.exists():
                write_whole(file, partial(_strip, file))

    def already_trained(self) -> bool:
        """Whether an earlier process was killed after the last epoch; what it recorded is taken over if so."""
        if not self.state_file.exists():
            return False
        state = self._saved_state()
        if state["epoch"] + 1 < self.epochs:
            return False
        for field in RECORD:
            setattr(self, field, state[field])
        self.final_eval()
        return True

    def _saved_state(self) -> dict[str, Any]:
        """What `_state` gave after the last finished epoch.

        Raises:
            RuntimeError: the file is damaged, or of another version.
        """
        remedy = f"delete the run's folder {'/'.join(self.save_dir.parent.parts[-3:])} to start it again"
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=False)
            version = state["version"]
        except Exception as e:  # unpickling a damaged file may raise anything
            raise RuntimeError(
                f"{self.state_file.name}: expected the state of a run, got a file that cannot be read "
                f"({type(e).__name__}); {remedy}"
            ) from e
        if version != STATE_VERSION:
            raise RuntimeError(
                f"{self.state_file.name}: expected state version {STATE_VERSION}, got {version}; {remedy}"
            )
        return state

    def _state(self) -> dict[str, Any]:
        """All that the next epoch depends on, on the CPU or wherever it lives, in full precision."""
        model = unwrap_model(self.model)
        return {
            "version": STATE_VERSION,
            "epoch": self.epoch,
            "model": weights_of(model),
            "ema": weights_of(self.ema.ema),
            "updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best_fitness": self.best_fitness,
            "stopper": {k: v for k, v in vars(self.stopper).items() if k in ("best_fitness", "best_epoch")},
            "criterion": criterion_state(model),
            "mosaic_buffer": list(getattr(self.train_loader.dataset, "buffer", [])),
            **{field: getattr(self, field) for field in RECORD},
        }


def _strip(checkpoint: Path, to: Path) -> None:
    strip_optimizer(checkpoint, s=str(to))


def criterion_state(model: nn.Module) -> dict[str, Any] | None:
    """What a loss object remembers between epochs: its numbers, and its tensors if it is a module."""
    criterion = getattr(model, "criterion", None)
    if criterion is None:
        return None
    numbers = {k: v for k, v in vars(criterion).items() if isinstance(v, (bool, int, float))}
    return {"numbers": numbers, "tensors": criterion.state_dict() if isinstance(criterion, nn.Module) else None}


def restore_criterion(model: Any, state: dict[str, Any] | None) -> None:
    """Build the model's loss object and give it back what `criterion_state` kept."""
    if state is None:
        return
    model.criterion = model.init_criterion()
    for name, value in state["numbers"].items():
        setattr(model.criterion, name, value)
    if state["tensors"] is not None:
        model.criterion.load_state_dict(state["tensors"])
