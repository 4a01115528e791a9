"""
The image encoder of the alignment: the regions of an image in the space of the words.

    pixel_values (B, 3, H, W) -> CNN -> cells (B, R, C) or boxes (B, R, C) -> projection -> regions (B, R, E)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .configuration_alignment_cnnrnn import CnnRnnAlignmentConfig
from .encoder_cnnrnn import CnnRnnImageEncoder
from .receptive_field_cnnrnn import nominal_stride
from .regions_cnnrnn import Grid, grid_boxes, pad_boxes, pool_boxes


@dataclass
class CnnRnnRegionOutput(BaseModelOutputWithPooling):
    """
    Regions of images.

    Args:
        last_hidden_state: the regions, `(batch_size, num_regions, embedding_size)`, the whole image last.
        pooler_output: their mean, `(batch_size, embedding_size)`, of length 1 where the regions are.
        region_mask: where there is a region, `(batch_size, num_regions)`; `None` if all images have as many.
        boxes: `(batch_size, num_regions, 4)`, x_min, y_min, x_max, y_max in parts of the picture that the CNN sees.
        centers: where the regions look, `(batch_size, num_regions, 2)`, x and y in the same unit: the middles of the boxes,
            but of a cell at the edge, of whose box a part is outside the picture.
    """

    last_hidden_state: torch.Tensor = None  # type: ignore[assignment]
    pooler_output: torch.Tensor = None  # type: ignore[assignment]
    region_mask: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    centers: torch.Tensor | None = None


class CnnRnnRegionEncoder(CnnRnnImageEncoder):
    """A CNN, and the projection of its cells, or of boxes, into the space of the words (equation 1)."""

    config: CnnRnnAlignmentConfig

    def __init__(self, config: CnnRnnAlignmentConfig):
        super().__init__(config)
        num_channels = self._num_feature_channels()
        self.reduction = None
        if config.reduced_feature_size is not None:
            if config.reduced_feature_size >= num_channels:
                raise ValueError(
                    f"`reduced_feature_size` is {config.reduced_feature_size} and the CNN has {num_channels} channels: pass a "
                    "smaller number, or None."
                )
            self.reduction = nn.Linear(num_channels, config.reduced_feature_size).requires_grad_(False)
        self.projection = nn.Linear(config.reduced_feature_size or num_channels, config.embedding_size)
        self.dropout = nn.Dropout1d(config.feature_dropout)
        self.post_init()

    def train(self, mode: bool = True):
        """Switch the mode as in torch. In training, where the cells look may move with the weights of the CNN."""
        if mode:
            self._centers = {}
        return super().train(mode)

    @torch.no_grad()
    def fit_reduction(self, image_features: torch.Tensor):
        """
        Set the reduction to the principal components of image features, less their mean and of mean variance 1.

        Args:
            image_features: a sample, `(num_regions, num_feature_channels)`; a thousand images' suffice.

        Raises:
            ValueError: `reduced_feature_size` is not set, or larger than the sample or its channels.
        """
        size = self.config.reduced_feature_size
        features = image_features.flatten(0, -2).double()
        if self.reduction is None or size is None or size > min(features.shape):
            raise ValueError(
                f"`reduced_feature_size` is {size} with {features.shape[0]} regions of {features.shape[1]} channels: pass a "
                "smaller number, and enough regions."
            )
        mean = features.mean(dim=0)
        variances, components = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
        weight = components[:, -size:].T / variances[-size:].mean().clamp(min=1e-12).sqrt()
        init.copy_(self.reduction.weight, weight.to(self.reduction.weight))
        init.copy_(self.reduction.bias, -(weight @ mean).to(self.reduction.bias))

    def reduce_features(self, image_features: torch.Tensor) -> torch.Tensor:
        """
        Reduce the channels of image features `(..., num_feature_channels)`, if the configuration says so.

        Features that are reduced already, `(..., reduced_feature_size)`, are returned as they are: stores may hold them.

        Raises:
            ValueError: the number of channels is neither.
        """
        channels = image_features.shape[-1]
        if self.reduction is not None and channels == self.reduction.in_features:
            return self.reduction(image_features)
        if channels != self.projection.in_features:
            raise ValueError(
                f"`image_features` has {channels} channels and the model reads {self.projection.in_features}: compute them "
                "with `get_encoder().get_image_features` of this model."
            )
        return image_features

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        boxes: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_size: tuple[int, int] | None = None,
        output_boxes: bool = False,
        **kwargs,
    ) -> CnnRnnRegionOutput:
        """
        Embed the regions of images, see [`CnnRnnAlignmentModel.get_image_features`].

        Raises:
            ValueError: neither or both of `pixel_values` and `image_features` are given, a box is outside the picture or has
                no area, or the features do not fit the model or a grid.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either `pixel_values` or `image_features`, and not both.")
        if pixel_values is not None:
            feature_map, _ = self.compute_feature_map(pixel_values)
            image_size = (pixel_values.shape[2], pixel_values.shape[3])
            image_features = feature_map.flatten(2).transpose(1, 2)
        cells = self._reduced(image_features)  # type: ignore[arg-type]
        if boxes is not None:
            return self._embed_boxes(cells, boxes, image_size)
        size = self.config.region_grid_size
        if size is not None and cells.shape[1] > size * size:
            grid = self._grid_of(cells.shape[1], image_size)
            feature_map = cells.transpose(1, 2).unflatten(2, grid)
            cells = (
                adaptive_avg_pool2d(feature_map, (min(size, grid[0]), min(size, grid[1]))).flatten(2).transpose(1, 2)
            )
        regions = self._project(cells)
        if self.config.add_whole_image:  # the projection of the mean is the mean of the projections
            regions = torch.cat([regions, regions.mean(dim=1, keepdim=True)], dim=1)
        output = self._pool(regions, None)
        if output_boxes:
            middles = (edges.to(regions.device) for edges in grid_boxes(*self._axes(cells.shape[1], image_size)))
            expanded = [middle.expand(len(regions), -1, -1) for middle in middles]
            output.boxes, output.centers = self._with_whole_image(*expanded)
        return output

    def _reduced(self, image_features: torch.Tensor) -> torch.Tensor:
        if image_features.ndim != 3 or 0 in image_features.shape:
            raise ValueError(
                f"`image_features` has shape {tuple(image_features.shape)}: pass (batch_size, num_regions, "
                "num_feature_channels)."
            )
        return self.reduce_features(image_features.to(self.dtype))

    def _project(self, cells: torch.Tensor) -> torch.Tensor:
        # whole channels are dropped: if another region kept them, nothing would be lost
        return self.projection(self.dropout(cells.transpose(1, 2)).transpose(1, 2))

    def _embed_boxes(
        self,
        cells: torch.Tensor,
        boxes: torch.Tensor | Sequence[torch.Tensor],
        image_size: tuple[int, int] | None,
    ) -> CnnRnnRegionOutput:
        padded, mask = pad_boxes(boxes)
        if len(padded) != len(cells):
            raise ValueError(
                f"`boxes` holds those of {len(padded)} images for {len(cells)} images: pass one list for each."
            )
        padded, mask = padded.to(cells.device, torch.float32), mask.to(cells.device)
        rows, columns = self._axes(cells.shape[1], image_size)
        feature_map = cells.transpose(1, 2).unflatten(2, (len(rows.centers), len(columns.centers)))
        features = pool_boxes(feature_map, padded, (rows.centers, columns.centers))
        if self.config.add_whole_image:
            features = torch.cat([features, cells.mean(dim=1, keepdim=True)], dim=1)
            mask = nn.functional.pad(mask, (0, 1), value=True)
        output = self._pool(self._project(features), None if mask.all() else mask)
        output.boxes, output.centers = self._with_whole_image(padded, (padded[..., :2] + padded[..., 2:]) / 2)
        return output

    def _with_whole_image(self, boxes: torch.Tensor, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.config.add_whole_image:
            return boxes, centers
        whole = boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(boxes), 1, 4)
        return torch.cat([boxes, whole], dim=1), torch.cat([centers, whole[..., 2:] / 2], dim=1)

    def _pool(self, regions: torch.Tensor, mask: torch.Tensor | None) -> CnnRnnRegionOutput:
        """Normalize regions if the configuration says so, and average them."""
        if self.config.normalize_embeddings:
            regions = nn.functional.normalize(regions, dim=-1)
        if mask is None:
            pooled = regions.mean(dim=1)
        else:
            regions = regions * mask[..., None]
            pooled = regions.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        if self.config.normalize_embeddings:
            pooled = nn.functional.normalize(pooled, dim=-1)
        return CnnRnnRegionOutput(last_hidden_state=regions, pooler_output=pooled, region_mask=mask)

    def _grid_of(self, num_cells: int, image_size: tuple[int, int] | None) -> tuple[int, int]:
        """Find the height and the width of a grid of which only the number of cells is known."""
        ratio = 1.0 if image_size is None else image_size[0] / image_size[1]
        for height in sorted(
            range(1, num_cells + 1), key=lambda height: abs(math.log(height * height / num_cells / ratio))
        ):
            if num_cells % height == 0 and (image_size is not None or height * height == num_cells):
                return height, num_cells // height
        raise ValueError(
            f"`image_features` holds {num_cells} cells, which are no square: pass `image_size=(height, width)` of the "
            "`pixel_values` that they were computed from."
        )

    def _axes(self, num_cells: int, image_size: tuple[int, int] | None) -> tuple[Grid, Grid]:
        """Find the rows and columns of cells, be they those of the CNN or averaged ones."""
        if image_size is None:
            raise ValueError(
                "Boxes need the size of the pictures that `image_features` were computed from: pass `image_size=(height, "
                "width)` of their `pixel_values`."
            )
        sizes = self._grid_of(num_cells, image_size)
        axes = []
        for centers, pixels, size in zip(self.cell_centers(*image_size), image_size, sizes, strict=True):
            axis = Grid.of_cells(centers, nominal_stride(pixels, len(centers)) / pixels)
            axes.append(axis if len(centers) == size else axis.pooled(size))
        return axes[0], axes[1]


__all__ = ["CnnRnnRegionEncoder", "CnnRnnRegionOutput"]
