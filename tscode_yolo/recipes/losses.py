"""The losses of the recipes: what torchvision lacks, and the sum the hard recipes share.

Classification losses work on pairs (log s, log(1 - s)) of the joint score s, which stay finite where s itself rounds to
0 or 1. Sources: focal loss arXiv:1708.02002, quality focal and distribution focal loss arXiv:2006.04388 (Eq. 5 and 6),
GIoU arXiv:1902.09630. Focal loss on plain logits and GIoU are torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from tscode_yolo.recipes.contract import Assignment, Grid, Preds, Targets
from tscode_yolo.recipes.geometry import assigned, iou

BoxLoss = Callable[[Tensor, Tensor], Tensor]
ClassLoss = Callable[[Preds, Tensor], Tensor]


def rank_mean(value: Tensor, floor: float = 1.0) -> Tensor:
    """Average a normaliser over the ranks of a distributed training step and floor it."""
    if torch.is_grad_enabled() and dist.is_available() and dist.is_initialized():
        value = value.detach().clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value.detach().clamp(min=floor)


def rank_sum(count: Tensor) -> Tensor:
    """Add a count over the ranks of a distributed training."""
    if dist.is_available() and dist.is_initialized():
        count = count.detach().clone()
        dist.all_reduce(count)
    return count


def joint_log_scores(preds: Preds, score: str) -> tuple[Tensor, Tensor]:
    """Logarithms of the joint score s and of 1 - s.

    Args:
        preds: predictions; ``quality`` is read unless ``score`` is "p".
        score: "p", "pq" or "sqrt_pq" (its root), with p and q the sigmoids of the class and quality logits.

    Returns:
        Two (B, A, K) tensors, finite for any finite logits.

    Raises:
        ValueError: the rule needs a quality branch and there is none.
    """
    if score == "p":
        return F.logsigmoid(preds.logits), F.logsigmoid(-preds.logits)
    if preds.quality is None:
        raise ValueError(f"expected quality logits for the score rule {score!r}, got none: build the quality branch")
    quality = preds.quality.unsqueeze(-1)
    log_s = F.logsigmoid(preds.logits) + F.logsigmoid(quality)
    # 1 - p q = (1 - p) (1 + e^z (1 - q)) with z the class logit
    log_rest = F.softplus(preds.logits + F.logsigmoid(-quality)) - F.softplus(preds.logits)
    if score == "pq":
        return log_s, log_rest
    log_s = log_s / 2
    return log_s, log_rest - torch.log1p(log_s.exp())  # 1 - s = (1 - s^2) / (1 + s)


def object_scores(preds: Preds, labels: Tensor, score: str) -> Tensor:
    """(B, G, A) joint score of each object's class, (B, G) labels, at every point."""
    index = labels.unsqueeze(1).expand(-1, preds.logits.shape[1], -1)  # (B, A, G)
    logits = preds.logits.gather(2, index)
    return joint_log_scores(Preds(logits, preds.bboxes, preds.quality), score)[0].exp().transpose(1, 2)


def focal_loss(preds: Preds, target: Tensor) -> Tensor:
    """Sigmoid focal loss on the class logits, alpha 0.25 and gamma 2: (B, A, K) for a 0/1 target of that shape."""
    return sigmoid_focal_loss(preds.logits, target, alpha=0.25, gamma=2.0)


def score_focal_loss(preds: Preds, target: Tensor, score: str) -> Tensor:
    """Focal loss, alpha 0.25 and gamma 2, on the joint score: (B, A, K) for a 0/1 target of that shape."""
    log_s, log_rest = joint_log_scores(preds, score)
    hit = -0.25 * log_rest.exp().square() * log_s
    miss = -0.75 * log_s.exp().square() * log_rest
    return target * hit + (1 - target) * miss


def quality_focal_loss(preds: Preds, target: Tensor, score: str = "p", beta: float = 2.0) -> Tensor:
    """Quality focal loss |q - s|^beta * BCE(s, q) (GFL, Eq. 5): (B, A, K) for a target in [0, 1] of that shape."""
    log_s, log_rest = joint_log_scores(preds, score)
    return (target - log_s.exp()).abs().pow(beta) * -(target * log_s + (1 - target) * log_rest)


def distribution_focal_loss(bins: Tensor, distance: Tensor) -> Tensor:
    """Distribution focal loss (GFL, Eq. 6), mean over the four sides.

    Args:
        bins: (N, 4, R) logits over the distances 0, 1, ..., R - 1.
        distance: (N, 4) true distances in the same unit (strides); clipped to [0, R - 1.1] as in GFL.

    Returns:
        (N,) losses.
    """
    distance = distance.clamp(0, bins.shape[-1] - 1.1)
    left = distance.long()
    share = distance - left
    log_p = bins.log_softmax(-1)
    below = log_p.gather(-1, left.unsqueeze(-1)).squeeze(-1)
    above = log_p.gather(-1, left.unsqueeze(-1) + 1).squeeze(-1)
    return -((1 - share) * below + share * above).mean(-1)


def giou_loss(pred: Tensor, target: Tensor) -> Tensor:
    """(N,) 1 - GIoU of paired (N, 4) xyxy boxes."""
    return generalized_box_iou_loss(pred, target, reduction="none")


def iou_square_loss(pred: Tensor, target: Tensor) -> Tensor:
    """(N,) 1 - IoU^2 of paired (N, 4) xyxy boxes, as in YOLOX (arXiv:2107.08430)."""
    low, high = torch.maximum(pred[:, :2], target[:, :2]), torch.minimum(pred[:, 2:], target[:, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    areas = (pred[:, 2:] - pred[:, :2]).clamp(min=0).prod(-1) + (target[:, 2:] - target[:, :2]).prod(-1)
    return 1 - (inter / (areas - inter).clamp(min=1e-9)).square()


def class_targets(preds: Preds, targets: Targets, assignment: Assignment) -> Tensor:
    """Write the class targets of the positives into a (B, A, K) tensor of zeros."""
    target = torch.zeros_like(preds.logits)
    image, point = assignment.fg.nonzero(as_tuple=True)
    label = targets.labels[image, assignment.gt[image, point]]
    target[image, point, label] = 1.0 if assignment.cls_target is None else assignment.cls_target[image, point]
    return target


def class_loss(preds: Preds, targets: Targets, assignment: Assignment, loss: ClassLoss = focal_loss) -> Tensor:
    """Sum of the elementwise class loss over all points and classes, over its normaliser."""
    losses = loss(preds, class_targets(preds, targets, assignment))
    if assignment.point_weight is not None:
        losses = losses * assignment.point_weight[:, None]
    count = assignment.fg.sum().float() if assignment.cls_norm is None else assignment.cls_norm
    return losses.sum() / rank_mean(count)


def hard_losses(
    preds: Preds,
    targets: Targets,
    grid: Grid,
    assignment: Assignment,
    *,
    cls_loss: ClassLoss = focal_loss,
    box_loss: BoxLoss = giou_loss,
    with_bins: bool = False,
) -> dict[str, Tensor]:
    """Unweighted losses of a hard assignment: classification everywhere, box, bins and quality on positives.

    Args:
        preds: predictions with gradient.
        targets: padded ground truth.
        grid: anchor points.
        assignment: who learns what, with which weights and normalisers.
        cls_loss: elementwise loss of (preds, (B, A, K) target).
        box_loss: loss of paired (N, 4) xyxy boxes in pixels.
        with_bins: add the distribution focal loss, if the head predicts bins.

    Returns:
        Scalars "cls" and "box", "dfl" if asked for, "quality" if the assignment has such a target. With
        no positive they are 0 with a gradient of 0, so that every branch stays in the graph.
    """
    point_weight = torch.ones_like(grid.strides) if assignment.point_weight is None else assignment.point_weight
    box_count = assignment.box_fg.sum().float()
    # weights stand above and below the line: their sum needs no floor but against division by zero
    box_norm = rank_mean(box_count) if assignment.box_norm is None else rank_mean(assignment.box_norm, 1e-6)
    losses = {"cls": class_loss(preds, targets, assignment, cls_loss)}

    image, point = assignment.box_fg.nonzero(as_tuple=True)
    truth = targets.bboxes[image, assignment.box_gt[image, point]] if len(image) else preds.bboxes.new_zeros(0, 4)
    weight = point_weight[point]
    if assignment.box_weight is not None:
        weight = weight * assignment.box_weight[image, point]
    losses["box"] = (box_loss(preds.bboxes[image, point], truth) * weight).sum() / box_norm
    if with_bins and preds.bins is not None:
        center, stride = grid.points[point], grid.strides[point, None]
        distance = torch.cat((center - truth[:, :2], truth[:, 2:] - center), -1) / stride  # ltrb in strides
        losses["dfl"] = (distribution_focal_loss(preds.bins[image, point], distance) * weight).sum() / box_norm
    if assignment.quality_target is not None and preds.quality is not None:
        mask = assignment.box_fg if assignment.quality_mask is None else assignment.quality_mask
        image, point = mask.nonzero(as_tuple=True)
        quality = F.binary_cross_entropy_with_logits(
            preds.quality[image, point], assignment.quality_target[image, point], reduction="none"
        )
        norm = rank_mean(box_count if assignment.quality_norm is None else assignment.quality_norm)
        losses["quality"] = (quality * point_weight[point]).sum() / norm
    return losses


def simple_assignment(fg: Tensor, gt: Tensor, **extra: Tensor | None) -> Assignment:
    """An assignment in which both tasks share their positives."""
    return Assignment(fg, gt, fg, gt, **extra)


def matched_iou(preds: Preds, targets: Targets, fg: Tensor, gt: Tensor) -> Tensor:
    """(B, A) IoU of each positive's predicted box with its object, 0 in the background; no gradient."""
    return iou(preds.bboxes, assigned(targets.bboxes, gt)) * fg
