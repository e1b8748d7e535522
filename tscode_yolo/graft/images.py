"""Images without labels, cut, flipped and recoloured at random: the teacher says what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2
from ultralytics.data.augment import LetterBox
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils.patches import imread

WHOLE = 0.5  # share of samples that show the whole image, letterboxed as at validation; the rest is a random cut


def find_images(folders: list[Path]) -> list[Path]:
    """All images below the folders, in order of their paths.

    Raises:
        FileNotFoundError: a folder that is not there.
        ValueError: no image in any of them.
    """
    for folder in folders:
        if not folder.is_dir():
            got = "a file" if folder.exists() else "none of that name"
            raise FileNotFoundError(f"images={folder}: expected a folder of images, got {got}")
    found = sorted({p for f in folders for p in f.rglob("*") if p.suffix[1:].lower() in IMG_FORMATS})
    if not found:
        raise ValueError(
            f"images={','.join(map(str, folders))}: expected images ({', '.join(sorted(IMG_FORMATS))}), got none"
        )
    return found


class Views(Dataset[Tensor | None]):
    """Random views of images: (3, imgsz, imgsz), RGB, 0 to 1; None for a file that is no image."""

    def __init__(self, files: list[Path], imgsz: int):
        self.files = files
        self.letterbox = LetterBox((imgsz, imgsz), auto=False, scaleup=True)
        self.cut = v2.RandomResizedCrop((imgsz, imgsz), scale=(0.2, 1.0), ratio=(0.75, 1.33), antialias=True)
        self.change = v2.Compose(
            [v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.5, 0.02), v2.ToDtype(torch.float32, scale=True)]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor | None:
        try:
            bgr = imread(str(self.files[index]))
        except cv2.error:  # older hosts hand an empty file to OpenCV
            bgr = None
        if bgr is None:
            return None
        whole = bool(torch.rand(()) < WHOLE)
        pixels: Any = self.letterbox(image=bgr) if whole else bgr
        rgb = np.ascontiguousarray(pixels[..., ::-1])
        image = torch.from_numpy(rgb).permute(2, 0, 1)
        return self.change(image if whole else self.cut(image))


def batches(files: list[Path], imgsz: int, batch: int, workers: int, seed: int) -> Iterator[tuple[Tensor, int]]:
    """Batches (B, 3, imgsz, imgsz) without end, each with the number of files in it that could not be read.

    Raises:
        ValueError: none of the files is an image.
    """
    generator = torch.Generator().manual_seed(seed)
    data = Views(files, imgsz)
    while True:
        seen = False
        sampler = RandomSampler(data, num_samples=max(len(files), batch), generator=generator, replacement=False)
        for images in DataLoader(
            data, batch, sampler=sampler, num_workers=workers, collate_fn=list, drop_last=True, generator=generator
        ):
            good = [i for i in images if i is not None]
            if good:
                seen = True
                yield torch.stack(good), len(images) - len(good)
        # A round leaves out what fills no batch: only if it had nothing good is each file looked at.
        if not seen and all(data[i] is None for i in range(len(files))):
            raise ValueError(f"images=: none of {len(files)} files could be read as an image")
