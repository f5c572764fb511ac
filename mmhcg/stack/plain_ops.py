"""The operators of mmcv that torchvision lacks, or defines otherwise, in plain PyTorch on any device.

Letters in shapes: N images, K boxes or RoIs, C channels or classes, (H, W) map, (P, Q) bins in a RoI.
"""

from collections.abc import Iterator
from itertools import product
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

# Non-maximum suppression. Boxes are x1, y1, x2, y2; a side measures x2 - x1 + offset.


def iou(box: Tensor, boxes: Tensor, offset: int = 0) -> Tensor:
    """IoU (K,) of `box` (4,) and each of `boxes` (K, 4); 0 between two empty ones."""
    sides = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2]) + offset  # (K, 2)
    shared = sides.clamp(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(1)
    return (shared / ((box[2:] - box[:2] + offset).prod() + areas - shared)).nan_to_num(0)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., 2017) of `boxes` (K, 4); `method` 0 naive, 1 linear, 2 Gaussian decay.

    Writes boxes and decayed scores, best first, to the first rows of `dets` (K, 5); returns their indices.
    What falls below `min_score` is dropped, but as in mmcv never the best. mmcv calls this on the CPU.
    """
    left, scores = torch.arange(len(boxes), device=boxes.device), scores.clone()
    kept: list[Tensor] = []
    while len(left):
        top = int(scores[left].argmax())
        best, left = left[top], torch.cat((left[:top], left[top + 1 :]))
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], scores[best]
        kept.append(best)
        overlap = iou(boxes[best], boxes[left], offset)
        if method == 2:
            decayed = scores[left] * torch.exp(-overlap.square() / sigma)
        else:
            decayed = scores[left] * torch.where(overlap >= iou_threshold, (1 - overlap) * method, 1.0)
        scores[left] = decayed
        left = left[~(decayed < min_score)]
    return torch.stack(kept) if kept else left


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of `dets` (K, 5: box and score): one kept, then all that it suppresses, by IoU >= threshold."""
    left, groups = dets[:, 4].argsort(descending=True), []
    while len(left):
        best, left = left[0], left[1:]
        near = iou(dets[best, :4], dets[left, :4]) >= iou_threshold
        groups.append([int(best), *left[near].tolist()])
        left = left[~near]
    return groups


# Maxima over RoIs. `feat` (N, C, H, W); `rois` (K, 5) are the index of an image in the batch, then x1, y1,
# x2, y2 in that image; `scale` takes them to the map; `bins` are (P, Q).


def sample_grids(
    rois: Tensor, scale: float, bins: tuple[int, int], sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, int, int]]:
    """The RoIs in groups whose bins have equally many samples: indices, and rows and columns of samples."""
    start, end = (rois[:, columns] * scale - 0.5 * aligned for columns in ([2, 1], [4, 3]))  # (K, 2): y, x
    side = end - start if aligned else (end - start).clamp(min=1)
    step = side / rois.new_tensor(bins)
    grid = step.ceil() if sampling_ratio <= 0 else torch.full_like(step, sampling_ratio)
    for rows, columns in grid.unique(dim=0).int().tolist():
        if rows > 0 and columns > 0:  # an empty RoI has no samples
            yield (grid == grid.new_tensor([rows, columns])).all(1).nonzero()[:, 0], rows, columns


def roi_align_max(
    feat: Tensor, rois: Tensor, scale: float, bins: tuple[int, int], sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """RoIAlign with the maximum of a bin's samples, and its row and column among these: (K, C, P, Q) each.

    A RoI without samples yields mmcv's -10000.
    """
    best = feat.new_full((len(rois), feat.shape[1], *bins), -10000)
    row, column = torch.zeros_like(best), torch.zeros_like(best)
    for index, rows, columns in sample_grids(rois, scale, bins, sampling_ratio, aligned):
        fine = (bins[0] * rows, bins[1] * columns)  # a bin for each sample, which lies in its middle
        samples = torch.ops.torchvision.roi_align(feat, rois[index], scale, *fine, 1, aligned)
        best[index], where = F.max_pool2d(samples, (rows, columns), return_indices=True)
        row[index] = (where // fine[1] % rows).to(row)
        column[index] = (where % columns).to(column)
    return best, row, column


def roi_align_max_backward(
    grad: Tensor,
    rois: Tensor,
    row: Tensor,
    column: Tensor,
    shape: tuple[int, int, int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of `roi_align_max` with respect to a map of `shape`, from that of its result (K, C, P, Q)."""
    bins, grad_feat = grad.shape[2:], grad.new_zeros(shape)
    first_row = torch.arange(bins[0], device=grad.device)[:, None]
    first_column = torch.arange(bins[1], device=grad.device)
    for index, rows, columns in sample_grids(rois, scale, bins, sampling_ratio, aligned):
        fine = (bins[0] * rows, bins[1] * columns)
        y, x = first_row * rows + row[index].long(), first_column * columns + column[index].long()
        samples = grad.new_zeros(len(index), grad.shape[1], fine[0] * fine[1])
        samples.scatter_(2, (y * fine[1] + x).flatten(2), grad[index].flatten(2))
        args = (rois[index], scale, *fine, *shape, 1, aligned)
        grad_feat += torch.ops.torchvision._roi_align_backward(samples.unflatten(2, fine), *args)
    return grad_feat


def roi_pool(feat: Tensor, rois: Tensor, scale: float, bins: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """RoIPool by mmcv's definition: each bin's maximum and its y * W + x, (K, C, P, Q) each; empty: 0, -1.

    A bin takes all the cells that it touches. Unlike torchvision's, a RoI's corners are not rounded.
    """
    start, end = rois[:, [2, 1]] * scale, (rois[:, [4, 3]] + 1) * scale  # (K, 2): y, x
    low, high = [], []  # y and x of the bins' first cells, and of those after the last: (K, P, 1), (K, 1, Q)
    for axis, (count, size) in enumerate(zip(bins, feat.shape[2:])):
        step = (end - start)[:, axis, None] / count
        edges = start[:, axis, None] + torch.arange(count + 1, device=rois.device) * step  # (K, count + 1)
        shape = (-1, count, 1) if axis == 0 else (-1, 1, count)
        low.append(edges[:, :-1].floor().long().clamp(0, size).view(shape))
        high.append(edges[:, 1:].ceil().long().clamp(0, size).view(shape))

    rows = feat.permute(0, 2, 3, 1).contiguous()  # (N, H, W, C): a cell is one piece of memory
    best = rows.new_full((len(rois), *bins, feat.shape[1]), -torch.inf)  # (K, P, Q, C)
    found = torch.full_like(best, -1, dtype=torch.long)
    proper = (end > start).all(1).view(-1, 1, 1)
    cells = ((a - b).max().item() if len(rois) else 0 for a, b in zip(high, low))
    for dy, dx in product(*map(range, cells)):
        bin = (proper & (low[0] + dy < high[0]) & (low[1] + dx < high[1])).nonzero(as_tuple=True)
        y, x = low[0][bin[0], bin[1], 0] + dy, low[1][bin[0], 0, bin[2]] + dx
        value = rows[rois[bin[0], 0].long(), y, x]  # (bins that have this cell, C)
        better = value > best[bin]
        found[bin] = torch.where(better, (y * feat.shape[3] + x)[:, None], found[bin])
        best[bin] = torch.where(better, value, best[bin])
    best = torch.where(found < 0, 0.0, best)
    return best.permute(0, 3, 1, 2), found.permute(0, 3, 1, 2)


# Focal loss (Lin et al., 2017): `input` (K, C), class of each row `target` (K,), class weights (C,) or empty.


def sigmoid_focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Loss (K, C); a target outside 0..C-1 is background, negative for all classes and of weight 1."""
    positive = target[:, None] == torch.arange(input.shape[1], device=input.device)
    logit = torch.where(positive, input, -input)  # of the right answer: p_t = sigmoid(logit)
    # (1 - p_t)^gamma by its logarithm: its gradient stays finite at p_t = 1 for gamma < 1
    loss = -torch.exp(gamma * F.logsigmoid(-logit)) * F.logsigmoid(logit)
    loss = torch.where(positive, alpha * loss, (1 - alpha) * loss)
    return loss * _class_weights(target, weight)[:, None] if weight.numel() else loss


def softmax_focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Loss (K,) of logits; 0 for rows with a negative target."""
    log_p = F.log_softmax(input, 1).gather(1, target.clamp(min=0)[:, None])[:, 0]
    miss = -torch.expm1(log_p)  # 1 - p
    loss = -alpha * miss.clamp(min=torch.finfo(miss.dtype).tiny) ** gamma * log_p * (target >= 0)
    return loss * _class_weights(target, weight) if weight.numel() else loss


def _class_weights(target: Tensor, weight: Tensor) -> Tensor:
    """`weight` of each target, 1 for background: mmcv reads past the end of `weight` there."""
    background = (target < 0) | (target >= len(weight))
    return weight[target.masked_fill(background, 0)].masked_fill(background, 1)


# Batch normalization over several processes, which mmcv lets exchange mean and variance between these calls.
# `input` and `norm`, which is `input` less mean over `std`, are (N, C, L); means, weights and the like (C,).


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write this process' mean of each channel to `mean`."""
    mean.copy_(input.float().mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write this process' variance about the `mean` of all processes to `var`."""
    var.copy_((input.float() - mean[:, None]).square().mean((0, 2)))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: Tensor,
    group_size: int,
) -> None:
    """Write `norm`, `std` and `output`, and update the running statistics, if there are any.

    As in mmcv, all `group_size` processes count as many values as this one.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input.float() - mean[:, None]) / std[:, None])
    output.copy_(norm * weight[:, None] + bias[:, None])
    if running_mean is not None and running_var is not None:
        count = input.shape[0] * input.shape[2] * group_size
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * count / (count - 1) if count > 1 else var, momentum)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write this process' gradients of weight and bias."""
    grad_weight.copy_((grad_output * norm).sum((0, 2)))
    grad_bias.copy_(grad_output.float().sum((0, 2)))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input, from those of weight and bias, averaged over the processes."""
    count = norm.shape[0] * norm.shape[2]
    shared = (norm * grad_weight[:, None] + grad_bias[:, None]) / count  # through variance and mean
    grad_input.copy_((grad_output - shared) * (weight / std)[:, None])
