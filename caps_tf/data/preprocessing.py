"""What is done to an image between its record and the network, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from caps_tf.errors import UserError

VIEWS = ("both", "left", "right", "stereo")
NORMALIZATIONS = ("image", "channel", "none")
PAD_MODES = ("edge", "zero")

_SAME_LIGHT = {"max_brightness_delta": 0.0, "contrast": (1.0, 1.0)}
AUGMENTATIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "norb": {},
        "crop": _SAME_LIGHT,
        "crop_flip": {**_SAME_LIGHT, "flip": True},
        "none": {**_SAME_LIGHT, "random_crop": False},
    }
)
"""What differs from the defaults of `Preprocessing`, by the names that users know."""

CANVASES: Mapping[str, tuple[int, int]] = MappingProxyType({"affine": (40, 40), "overlap": (36, 36)})
"""The canvas, (height, width), on which a protocol (`caps_tf.data.protocols`) puts images."""


class HasImages(Protocol):
    """What preprocessing asks of a data set: its name, the shape (h, w, c) of one view, and whether there are two."""

    @property
    def name(self) -> str: ...

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]: ...

    @property
    def has_stereo(self) -> bool: ...


@dataclass(frozen=True)
class Preprocessing:
    """From a decoded image to the network's input, in this order; by default as in the literature on smallNORB.

    In evaluation nothing is random: the crop is the centre of the image, which is neither padded nor flipped.

    Attributes:
        resize: (height, width), or None. To shrink images of one size, each new pixel is the mean of the area that it
            covers (halving: of 2x2 pixels); otherwise resizing is bilinear, with antialiasing.
        protocol: "", or how other images are made of these, on a black canvas: "affine" or "overlap".
        pad: in training, rows and columns added on each side before the crop.
        pad_mode: "edge" repeats the outermost pixels, "zero" adds black ones.
        crop: (height, width) of the network's input, or None for all of the image as it is before padding.
        random_crop: in training, the crop is anywhere in the padded image; otherwise the centre.
        flip: in training, every other image on average is mirrored from left to right.
        normalize: "image" subtracts the mean of the uncropped image and divides by its standard deviation; "channel"
            does so with `channel_mean` and `channel_std`; "none" leaves values between 0 and 1.
        channel_mean: of values between 0 and 1, one per channel or one for all; by default CIFAR-10's.
        channel_std: their standard deviations.
        max_brightness_delta: in training, a number between -delta and delta is added; 0 for none.
        contrast: in training, the distance to each channel's mean is multiplied by a number in this range; (1, 1) for
            none.
        views: what an example is where records are stereo pairs: "both" (each camera's image is an example), "left",
            "right", or "stereo" (one example with two channels, augmented alike).

    Example:
        >>> Preprocessing(resize=None, crop=None, pad=4, pad_mode="zero", **AUGMENTATIONS["crop_flip"]).flip
        True
    """

    resize: tuple[int, int] | None = (48, 48)
    protocol: str = ""
    pad: int = 0
    pad_mode: str = "edge"
    crop: tuple[int, int] | None = (32, 32)
    random_crop: bool = True
    flip: bool = False
    normalize: str = "image"
    channel_mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    channel_std: tuple[float, ...] = (0.2023, 0.1994, 0.2010)
    max_brightness_delta: float = 2.0
    contrast: tuple[float, float] = (0.5, 1.5)
    views: str = "both"

    def __post_init__(self):
        for name, choices in (
            ("views", VIEWS),
            ("normalize", NORMALIZATIONS),
            ("pad_mode", PAD_MODES),
            ("protocol", ("", *CANVASES)),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name} must be one of {', '.join(filter(None, choices))}, not {getattr(self, name)!r}"
                )

    def input_shape(self, dataset: HasImages) -> tuple[int, int, int]:
        """The shape of the network's input, (h, w, c).

        Raises:
            UserError: the data set does not have these views or as many channels as there are means, its images
                differ in size and are not resized, are larger than the protocol's canvas or smaller than the crop.

        Example:
            >>> from caps_tf.data.datasets import open_dataset
            >>> Preprocessing(views="stereo").input_shape(open_dataset("smallNORB"))  # doctest: +SKIP
            (32, 32, 2)
        """
        if self.views in ("right", "stereo") and not dataset.has_stereo:
            raise UserError(f"{dataset.name}: has only one view of each object: use views=both, not {self.views}")
        height, width, channels = dataset.image_shape
        channels *= 2 if self.views == "stereo" else 1
        for name in ("channel_mean", "channel_std") if self.normalize == "channel" else ():
            if len(getattr(self, name)) not in (1, channels):
                raise UserError(
                    f"{dataset.name}: {name} has {len(getattr(self, name))} numbers for {channels} channels: "
                    "give one per channel, or one for all"
                )
        height, width = self.resize or (height, width)
        if height is None or width is None:
            raise UserError(f"{dataset.name}: its images differ in size: resize them to one (`resize`=ROWSxCOLUMNS)")
        if self.protocol:
            height, width = self._canvas(dataset, height, width)
        if self.crop:
            if self.crop[0] > height or self.crop[1] > width:
                raise UserError(
                    f"{dataset.name}: cannot crop {self.crop[0]}x{self.crop[1]} pixels out of {height}x{width}: "
                    "use a smaller crop"
                )
            height, width = self.crop
        return height, width, channels

    def _canvas(self, dataset: HasImages, height: int, width: int) -> tuple[int, int]:
        """The size of the protocol's canvas, if images of this size fit on it."""
        rows, columns = CANVASES[self.protocol]
        if dataset.has_stereo:
            raise UserError(
                f"{dataset.name}: holds stereo pairs, and protocol={self.protocol} is for images such as MNIST's"
            )
        if height > rows or width > columns:
            raise UserError(
                f"{dataset.name}: images of {height}x{width} pixels do not fit on the {rows}x{columns} of "
                f"protocol={self.protocol}: use a smaller `resize`"
            )
        if self.crop and self.crop != (rows, columns):
            raise UserError(
                f"protocol={self.protocol} shows the network all of {rows}x{columns} pixels, not a crop of "
                f"{self.crop[0]}x{self.crop[1]}: use image_size=0"
            )
        return rows, columns
