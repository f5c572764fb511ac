"""Network dissection (Bau et al., CVPR 2017): which units of a network see which of COCO's categories."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pycocotools.coco import COCO
from torch import Tensor

from mmhcg.analysis.quantiles import StreamingQuantiles
from mmhcg.analysis.tables import spread_over
from mmhcg.runs.errors import UserError

QUANTILE = 0.995  # of a unit's activations; what is above it is the unit's region
FEW = 200  # photographs: in fewer, the regions of a unit are less than the area of one
DETECTS = 0.04  # IoU with its best category that makes a unit a detector
TOP = 4  # photographs kept for each unit
AT_ONCE = 2**23  # numbers of enlarged maps in memory, 32 MB


@dataclass(frozen=True)
class Unit:
    """A channel of a stage and the category that its region fits best.

    Attributes:
        network: Its network's name.
        stage: From 1; 0 if unknown.
        unit: The channel, from 0.
        category: The best one.
        iou: Of the unit's regions and the category's masks, over the whole set.
        threshold: Activation above which a region is.
        detector: Whether `iou` is above 0.04.
        photos: Image ids of the highest activations, the highest first.
    """

    network: str
    stage: int
    unit: int
    category: str
    iou: float
    threshold: float
    detector: bool
    photos: tuple[int | str, ...]


class Photos:
    """Photographs and, of each, one mask a category: the union of its instances, crowds included.

    Args:
        ann: Annotation file in COCO's format.
        images: Folder of the photographs.
        limit: Most photographs, spread evenly over the file.

    Raises:
        UserError: a file is missing or unreadable, or annotations have no masks.
    """

    def __init__(self, ann: str | Path, images: str | Path, limit: int | None = None) -> None:
        self.ann, self.folder = Path(ann), Path(images)
        try:
            with redirect_stdout(StringIO()):  # pycocotools tells of its steps
                self.coco = COCO(str(ann))
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(f'--ann {ann} is no readable annotation file of COCO: {error}') from error
        self.categories = [self.coco.cats[key]['name'] for key in sorted(self.coco.cats)]
        self.ids = sorted(self.coco.imgs)
        if limit is not None:
            self.ids = [self.ids[number] for number in spread_over(len(self.ids), limit)]
        if not self.ids or not self.categories:
            raise UserError(f'--ann {ann}: no images or no categories to look at')
        missing = [name for key in self.ids if not (self.folder / (name := self._name(key))).is_file()]
        if missing:
            raise UserError(
                f'--images {self.folder}: no file {missing[0]}, nor {len(missing) - 1} more of the '
                f'{len(self.ids)} that {ann} lists'
            )
        for key, annotation in self.coco.anns.items():
            if not annotation.get('segmentation'):
                raise UserError(f'--ann {ann}: annotation {key} has no segmentation to compare with')

    def __len__(self) -> int:
        return len(self.ids)

    def _name(self, key: int) -> str:
        return self.coco.imgs[key]['file_name']

    def image(self, number: int) -> np.ndarray:
        """A photograph (H, W, 3), BGR."""
        record = self.coco.imgs[self.ids[number]]
        path = self.folder / self._name(self.ids[number])
        image = cv2.imread(str(path))
        if image is None:
            raise UserError(f'{path} is no image or a damaged one: put a whole one there')
        if image.shape[:2] != (record.get('height'), record.get('width')):
            raise UserError(f'{path} has another size than {self.ann} says, so its masks do not fit')
        return image

    def masks(self, number: int) -> dict[int, np.ndarray]:
        """Category, as an index into `categories` -> bool mask (H, W)."""
        found: dict[int, np.ndarray] = {}
        keys = sorted(self.coco.cats)
        for annotation in self.coco.loadAnns(self.coco.getAnnIds(imgIds=[self.ids[number]], catIds=keys)):
            mask, category = self.coco.annToMask(annotation) > 0, keys.index(annotation['category_id'])
            found[category] = found[category] | mask if category in found else mask
        return found


def dissect(
    network: Callable[[np.ndarray], Tensor],
    photos: Photos,
    progress: Callable[[str, Iterable[int]], Iterable[int]] = lambda title, numbers: numbers,
) -> list[Unit]:
    """Look at every photograph twice: once for each unit's threshold, once for its regions.

    A region is where the unit's map, enlarged to the photograph by bilinear interpolation, is above the 0.995
    quantile of the unit's activations (`StreamingQuantiles`). IoU is that of all regions and all masks of
    a category: sums of intersections over sums of unions, photographs without the category included. What is
    kept does not grow with the number of photographs: histograms (C x 4096 x 8 bytes, 67 MB for 2048 units),
    C x categories sums, and the maps of one photograph, of which 32 MB are enlarged at a time.

    Args:
        network: From a photograph (H, W, 3), BGR, to maps (C, h, w); `StageMaps` has `name` and `stage`.
        photos: The set.
        progress: Wraps the numbers of a pass.

    Raises:
        UserError: activations are not finite.
    """
    thresholds, tops = _look_for_thresholds(network, photos, progress)
    iou = _look_for_regions(network, photos, thresholds, progress)
    best, category = iou.max(1)
    return [
        Unit(
            getattr(network, 'name', ''),
            getattr(network, 'stage', 0),
            unit,
            photos.categories[category[unit]],
            round(float(best[unit]), 6),
            float(thresholds[unit]),
            bool(best[unit] > DETECTS),
            tuple(photos.ids[number] for number in tops[unit].tolist()),
        )
        for unit in range(len(iou))
    ]


def _look_for_thresholds(network: Callable, photos: Photos, progress: Callable) -> tuple[Tensor, Tensor]:
    """Each unit's quantile (C,), and the numbers of the photographs where it peaks (C, up to 4)."""
    for number in progress('thresholds', range(len(photos))):
        feat = network(photos.image(number)).flatten(1)
        if not feat.isfinite().all():
            raise UserError(f'image {photos.ids[number]}: activations are NaN or infinite')
        if number == 0:
            quantiles = StreamingQuantiles(len(feat), device=feat.device)
            peaks, tops = feat[:, :0], torch.zeros_like(feat[:, :0], dtype=torch.long)
        quantiles.add(feat)
        peaks = torch.cat([peaks, feat.amax(1, keepdim=True)], 1)
        tops = torch.cat([tops, tops.new_full((len(feat), 1), number)], 1)
        peaks, order = peaks.topk(min(TOP, peaks.shape[1]), 1)
        tops = tops.gather(1, order)
    return quantiles.quantile(QUANTILE), tops


def _look_for_regions(network: Callable, photos: Photos, thresholds: Tensor, progress: Callable) -> Tensor:
    """IoU of each unit with each category (C, K)."""
    both = thresholds.new_zeros(len(thresholds), len(photos.categories))
    regions, areas = both[:, :1].clone(), both[:1].clone()
    for number in progress('regions', range(len(photos))):
        photo, masks = photos.image(number), photos.masks(number)
        feat, size = network(photo), photo.shape[:2]
        masks = {category: torch.from_numpy(mask).to(feat.device) for category, mask in masks.items()}
        for category, mask in masks.items():
            areas[:, category] += mask.sum()
        for units in torch.arange(len(feat)).split(max(1, AT_ONCE // (size[0] * size[1]))):
            region = regions_of(feat[units], thresholds[units], size).flatten(1)
            unit, place = region.nonzero(as_tuple=True)  # few: regions are half a percent of all
            regions[units, 0] += unit.bincount(minlength=len(units))
            for category, mask in masks.items():
                both[units, category] += unit[mask.flatten()[place]].bincount(minlength=len(units))
    return both / (regions + areas - both).clamp(min=1)


def regions_of(feat: Tensor, thresholds: Tensor, size: Sequence[int]) -> Tensor:
    """Where maps (C, h, w), enlarged to `size`, are above their thresholds: bool (C, *size).

    As in network dissection, a position is taken for the middle of the cell of pixels that the map's size
    gives it.
    """
    large = F.interpolate(feat[None], tuple(size), mode='bilinear', align_corners=False)[0]
    return large > thresholds[:, None, None]
