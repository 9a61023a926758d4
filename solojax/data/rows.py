"""From a data set and a row of the plan to an example: what the loader calls for every row."""

from __future__ import annotations

import dataclasses

from solojax.data.image_io import check_image_size
from solojax.data.instances import InstanceDataset
from solojax.data.transforms import Example, empty_example, make_example, make_image_example


@dataclasses.dataclass(frozen=True)
class TrainRows:
    """Reads training rows: the image with its objects. Picklable, for worker processes.

    Attributes:
      dataset: where the images and objects come from.
      long_side: see `resized_shape`.
      max_instances: N.
      min_mask_area: see `make_example`.
      coarse_factors: likewise.
      pad_before_shrinking: likewise.
      embedding_size: likewise.
    """

    dataset: InstanceDataset
    long_side: int
    max_instances: int
    min_mask_area: int = 1
    coarse_factors: tuple[int, ...] = ()
    pad_before_shrinking: bool = False
    embedding_size: int | None = None

    def __call__(
        self, image_index: int, short_side: int, flip: bool, canvas: tuple[int, int], seed: int
    ) -> Example:
        """One row; raises BrokenImage for a file that cannot be read."""
        image, record = self.dataset.read(image_index)
        return make_example(
            image,
            record,
            short_side=short_side,
            long_side=self.long_side,
            flip=flip,
            canvas=canvas,
            max_instances=self.max_instances,
            min_mask_area=self.min_mask_area,
            seed=seed,
            image_index=image_index,
            coarse_factors=self.coarse_factors,
            pad_before_shrinking=self.pad_before_shrinking,
            embedding_size=self.embedding_size,
        )

    def empty(self, canvas: tuple[int, int]) -> Example:
        """The row that stands for an unreadable image."""
        return empty_example(canvas, self.max_instances, self.coarse_factors, self.embedding_size)


@dataclasses.dataclass(frozen=True)
class ImageRows:
    """Reads rows for inference: the image alone.

    Attributes:
      dataset: where the images come from.
      long_side: see `resized_shape`.
    """

    dataset: InstanceDataset
    long_side: int

    def __call__(
        self, image_index: int, short_side: int, flip: bool, canvas: tuple[int, int], seed: int
    ) -> Example:
        """One row; raises BrokenImage for a file that cannot be read."""
        del flip, seed
        image = self.dataset.read_image(image_index)
        record = self.dataset.images[image_index]
        check_image_size(image, record.height, record.width, self.dataset.image_path(record))
        return make_image_example(
            image,
            short_side=short_side,
            long_side=self.long_side,
            canvas=canvas,
            max_instances=0,
            image_index=image_index,
        )

    def empty(self, canvas: tuple[int, int]) -> Example:
        """The row that fills up a batch or stands for an unreadable image."""
        return empty_example(canvas, 0)
