"""The paper's backbone and feature pyramid, from torchvision, as one layer of a model YAML.

    image -- ResNet --+-- C2 ------------------------------------------------> C2, raw: what DPE reads below P3
                      +-- C3, C4, C5 -- FPN (-- PAFPN) --+-- P3, P4, P5 ------> P3, P4, P5
                                                         +-- 3x3/2, 3x3/2 ----> P6, P7

"Feature Pyramid Networks" (arXiv:1612.03144) with RetinaNet's P6 and P7 (arXiv:1708.02002), here on P5 as FCOS does;
the bottom-up path of "Path Aggregation Network" (arXiv:1803.01534), Section 3.1. The row of a YAML is

    [-1, 1, TorchvisionFPN, [resnet50, {weights: IMAGENET1K_V1}]]

and the head's row after it, `[-1, 1, TSCODEDetect, [nc]]`, takes all its maps.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7
from ultralytics.utils import LOGGER, ONLINE

from tscode_yolo.config import unknown_name
from tscode_yolo.deform import DeformableConv

WIDTH = 256  # channels of P3 to P7
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in [0, 1], what torchvision's weights were trained on

# torchvision's classes that a checkpoint with this module names.
PICKLED = (ResNet, Bottleneck, BasicBlock, FeaturePyramidNetwork, LastLevelP6P7, Conv2dNormActivation)

# What Table 5 uses and torchvision has not; it has no weights for them either.
OWN: dict[str, Callable[..., ResNet]] = {
    "resnext101_32x4d": lambda **kw: ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4, **kw)
}


class BackboneNorm(nn.BatchNorm2d):
    """BatchNorm with torchvision's eps: the host rewrites that of every plain BatchNorm2d, pretrained or not."""


class TorchvisionFPN(nn.Module):
    """ResNet or ResNeXt with a feature pyramid; gives [C2, P3, P4, P5, P6, P7].

    Attributes:
        out_channels: channels of the six maps.
        pretrained: whether the backbone started from ImageNet weights; kept in checkpoints.
    """

    mean: Tensor
    std: Tensor
    pretrained: Tensor

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        weights: str | None = None,
        norm_eval: bool = True,
        stride_in_1x1: bool = False,
        pafpn: bool = False,
        dcn: bool = False,
    ):
        """Build the backbone and its pyramid.

        Args:
            backbone: a ResNet or ResNeXt of torchvision by its name there, or resnext101_32x4d.
            weights: name of torchvision's weights, e.g. "IMAGENET1K_V1" or "DEFAULT"; path of a state dict (.pth) with
                torchvision's names; or None. Where they cannot be downloaded, a warning says so and random values
                stay, since a checkpoint may be about to be loaded over them.
            norm_eval: hold the BatchNorm statistics that came with the weights, as the paper's base detectors do with 2
                images a GPU. Without weights they always learn.
            stride_in_1x1: caffe-style placement of the strides, in the first 1x1 conv of a stage; else in its 3x3.
            pafpn: add the bottom-up path of PANet to P3, P4 and P5, Table 6.
            dcn: deformable 3x3 convs in the last three stages, Table 5.

        Raises:
            ValueError: an unknown backbone or weights name.
        """
        super().__init__()
        body = _resnet(backbone)
        c5 = body.fc.in_features
        del body.fc, body.avgpool
        if stride_in_1x1:
            _stride_in_1x1(body)
        if dcn:
            _deform(body)
        self.body = body
        self.fpn = FeaturePyramidNetwork([c5 // 4, c5 // 2, c5], WIDTH)
        self.bottom_up = BottomUp() if pafpn else None
        self.coarser = LastLevelP6P7(WIDTH, WIDTH)
        self.norm_eval = norm_eval
        switches = {"stride_in_1x1": stride_in_1x1, "pafpn": pafpn, "dcn": dcn}
        self.description = ", ".join([backbone, f"weights={weights}", *(name for name, on in switches.items() if on)])
        self.out_channels = [c5 // 8] + [WIDTH] * 5
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        given = _state_dict(backbone, weights) if weights else None
        if given is not None:
            _load(body, given, backbone, str(weights))
        self.register_buffer("pretrained", torch.tensor(given is not None))

    def forward(self, x: Tensor) -> list[Tensor]:
        """RGB images (B, 3, H, W) in [0, 1] to C2, P3, ..., P7, of strides 4, 8, ..., 128, sizes rounded up."""
        body = self.body
        x = body.relu(body.bn1(body.conv1((x - self.mean) / self.std)))
        c2 = body.layer1(body.maxpool(x))
        c3 = body.layer2(c2)
        c4 = body.layer3(c3)
        pyramid = list(self.fpn({"p3": c3, "p4": c4, "p5": body.layer4(c4)}).values())
        if self.bottom_up is not None:
            pyramid = self.bottom_up(pyramid)
        return [c2, *self.coarser(pyramid, [c2], [])[0]]

    def train(self, mode: bool = True) -> TorchvisionFPN:
        """As `torch.nn.Module.train`, but statistics that came with the weights are held (`norm_eval`)."""
        super().train(mode)
        if mode and self.norm_eval and self.pretrained:
            for module in self.body.modules():
                if isinstance(module, BackboneNorm):
                    module.eval()
        return self

    def extra_repr(self) -> str:
        """The backbone and what it was asked for."""
        return self.description

    @classmethod
    def from_row(cls, args: list[Any], ch: int) -> TorchvisionFPN:
        """Build from the arguments of a YAML row: [backbone] or [backbone, {option: value, ...}].

        Raises:
            ValueError: another form, an unknown option (the closest valid one is named), or images that are not RGB.
        """
        name, options = args[0] if args else None, args[1] if len(args) > 1 else {}
        if not isinstance(name, str) or not isinstance(options, dict) or len(args) > 2:
            raise ValueError(
                f"the arguments of {cls.__name__} are [backbone] or [backbone, {{option: value, ...}}], got {args}"
            )
        known = list(inspect.signature(cls).parameters)[1:]
        for option, value in options.items():
            if option not in known:
                raise ValueError(unknown_name(f"{cls.__name__} option", str(option), known))
            if not (isinstance(value, bool) if option != "weights" else value is None or isinstance(value, str)):
                expected = "true or false" if option != "weights" else "a name, a path or null"
                raise ValueError(f"{cls.__name__} option {option}={value!r}: expected {expected}")
        if ch != 3:
            raise ValueError(f"{cls.__name__} reads RGB images: expected 3 channels, got {ch}; set `channels: 3`")
        return cls(name, **options)


class BottomUp(nn.Module):
    """PANet's second path: N_3 = P_3, N_l = conv(P_l + down(N_{l-1} before its conv)); 3x3 convs with bias."""

    def __init__(self, levels: int = 3):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1) for _ in range(levels - 1))
        self.out = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1) for _ in range(levels - 1))

    def forward(self, pyramid: list[Tensor]) -> list[Tensor]:
        """L maps (B, 256, H_l, W_l), finest first, to L maps of the same sizes."""
        x, result = pyramid[0], [pyramid[0]]
        for p, down, out in zip(pyramid[1:], self.down, self.out):
            x = p + down(x)
            result.append(out(x))
        return result


def _resnet(name: str) -> ResNet:
    """A backbone without weights."""
    if name in OWN:
        return OWN[name](norm_layer=BackboneNorm)
    known = torchvision.models.list_models(torchvision.models, include=["resnet*", "resnext*"])
    if name not in known:
        raise ValueError(unknown_name("backbone", name, [*known, *OWN]))
    return torchvision.models.get_model(name, weights=None, norm_layer=BackboneNorm)


def _stride_in_1x1(body: ResNet) -> None:
    """Move the stride of each stage's first bottleneck from its 3x3 to its first 1x1 conv."""
    for stage in (body.layer2, body.layer3, body.layer4):
        block = stage[0]
        if not isinstance(block, Bottleneck):
            raise ValueError("stride_in_1x1 needs a backbone of bottlenecks: resnet50 or a deeper one")
        block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def _deform(body: ResNet) -> None:
    """Make the 3x3 conv of each block (the second, in basic blocks) of the last three stages deformable."""
    for stage in (body.layer2, body.layer3, body.layer4):
        for block in stage:
            old = block.conv2
            block.conv2 = DeformableConv(
                old.in_channels, old.out_channels, 3, old.stride[0], 1, groups=old.groups, bias=False
            )


def _state_dict(backbone: str, weights: str) -> dict[str, Tensor] | None:
    """The weights, or None with a warning where they cannot be had now."""
    if weights.endswith((".pth", ".pt")):
        if not Path(weights).is_file():
            raise ValueError(f"TorchvisionFPN option weights: no file {weights}; give a path or a torchvision name")
        return torch.load(weights, map_location="cpu", weights_only=True)
    if backbone in OWN:
        raise ValueError(
            f"torchvision has no weights for {backbone}: set `weights: null`, or the path of a state dict (.pth)"
        )
    enum = torchvision.models.get_model_weights(backbone)
    if weights not in enum.__members__:
        raise ValueError(unknown_name(f"weights of {backbone}", weights, list(enum.__members__)))
    entry = enum[weights]
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(entry.url).path).name)
    try:
        if cached.is_file() or ONLINE:
            return entry.get_state_dict(progress=True, check_hash=True)
        reason = "offline, and not in the cache"
    except (URLError, OSError) as e:
        reason = str(e)
    _say_random(
        f"{backbone} starts from RANDOM values: {entry.url} could not be had ({reason}). Nothing is lost if a "
        f"checkpoint is loaded next; otherwise put the file at {cached}, or set `weights: null` in the YAML"
    )
    return None


@functools.cache
def _say_random(message: str) -> None:
    """Warn once a process: the host builds a model several times on the way to a training."""
    LOGGER.warning(message)


def _load(body: ResNet, given: dict[str, Tensor], backbone: str, source: str) -> None:
    """Fill the backbone; only the classifier may be left over, only offsets of deformable convs may be missing."""
    missing, unexpected = body.load_state_dict({k: v for k, v in given.items() if not k.startswith("fc.")}, False)
    missing = [k for k in missing if ".offset." not in k]
    if missing or unexpected:
        raise ValueError(
            f"{source} does not fit {backbone}: missing {missing[:3]}, unexpected {unexpected[:3]}; expected a state "
            "dict with torchvision's names"
        )
