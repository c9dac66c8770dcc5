"""Everything that decides a run, as data: typed and validated."""

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from caps_tf.data.preprocessing import AUGMENTATIONS, CANVASES, NORMALIZATIONS, PAD_MODES, VIEWS
from caps_tf.data.viewpoints import parse_viewpoints
from caps_tf.errors import UserError
from caps_tf.networks import BACKBONES, NETWORKS, ROUTINGS, readers
from caps_tf.training.options import NOT_NEGATIVE, POSITIVE, SHARE, flag

LOSSES = ("auto", "spread", "margin", "cross_entropy")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
OPTIMIZERS = ("adam", "radam", "sgd")
SCHEDULES = ("exponential", "steps", "one_cycle", "constant")
SWITCH = ("on", "off")
CLUSTERS = ("tf_config", "slurm")


@dataclass(frozen=True)
class RunConfig:
    """The parameters of a training run. Each field is a flag of train_val.py; its help text says what it means.

    Raises:
        UserError: if a value is out of its range.

    Example:
        >>> RunConfig(batch_size=32).batch_size
        32
    """

    dataset: str = flag(
        "smallNORB",
        "data",
        "smallNORB, renderedNORB, a name of TensorFlow Datasets' catalogue (cifar10), a directory that TensorFlow "
        "Datasets or our converters wrote, or an image folder (train/<class>/*.png, test/<class>/*.png)",
    )
    storage: str = flag(".", "data", "directory that holds data/ and logs/")
    data_dir: str = flag("", "data", "where the data set is, instead of <storage>/data/<dataset>")
    views: str = flag(
        "both", "data", "NORB cameras: both (each view is an example), left, right, or stereo (two channels)", VIEWS
    )
    resize: str = flag(
        "",
        "data",
        "pixels to resize images to, N or ROWSxCOLUMNS, 0 for none; default 48 for NORB, none if image_size is larger",
    )
    image_size: str = flag(
        "", "data", "pixels of the crop that the network sees, N or ROWSxCOLUMNS, 0 for none; default 32 for NORB"
    )
    pad: int = flag(
        0, "data", "pixels added on each side of training images before the random crop", bound=NOT_NEGATIVE
    )
    pad_mode: str = flag("edge", "data", "edge repeats the outermost pixels, zero adds black ones", PAD_MODES)
    augment: str = flag(
        "auto",
        "data",
        "of training images: norb (random crop, brightness and contrast), crop (random crop only), crop_flip (and "
        "mirrored left to right), or none; auto: norb for NORB data, else crop",
        ("auto", *AUGMENTATIONS),
    )
    normalize: str = flag(
        "image",
        "data",
        "image (each by its own mean and deviation), channel (by channel_mean and channel_std), or none (0 to 1)",
        NORMALIZATIONS,
    )
    channel_mean: str = flag(
        "0.4914,0.4822,0.4465", "data", "of values from 0 to 1, one per channel or one for all; default CIFAR-10's"
    )
    channel_std: str = flag("0.2023,0.1994,0.2010", "data", "standard deviations that go with channel_mean")
    mixup: float = flag(
        0.0,
        "data",
        "alpha of mixup: examples are blended in pairs by weights from Beta(alpha, alpha); 0 for none",
        bound=NOT_NEGATIVE,
    )
    val_prop: float = flag(
        0.1, "data", "share of the training records held out for validation, 0 for none", bound=SHARE
    )
    val_instances: str = flag(
        "", "data", "validate on these training instances instead, such as 9 or 8,9 (a harder, more honest test)"
    )
    viewpoints: str = flag(
        "",
        "data",
        "novel-viewpoint protocol: train on these viewpoints only and test on the others too; azimuth or elevation (of "
        "Hinton et al. 2018), or degrees such as azimuth:-67..67 or azimuth:300..40,elevation:45..90 (both must hold)",
    )
    protocol: str = flag(
        "",
        "data",
        "of Sabour et al. 2017: affine (trains on images anywhere on 40x40 black pixels; tests on them, and affNIST-style: "
        "rotated by -20 to 20 degrees, sheared by -0.2 to 0.2, scaled by 0.8 to 1.2), or overlap (pairs of two classes on "
        "36x36, each shifted by up to 4 pixels if of 28x28; right is who names both)",
        ("", *CANVASES),
    )

    network: str = flag("matrix_capsules", "network", "architecture", tuple(NETWORKS))
    A: int = flag(64, "network", "channels of ReLU Conv1", bound=POSITIVE)
    B: int = flag(8, "network", "types of primary capsules", bound=POSITIVE)
    C: int = flag(16, "network", "types of the first convolutional capsules", bound=POSITIVE)
    D: int = flag(16, "network", "types of the second convolutional capsules", bound=POSITIVE)
    channels: int = flag(
        256,
        "network",
        "of capsnet: of its two convolutions, and an eighth as many types of primary capsules",
        bound=POSITIVE,
    )
    iter_routing: int = flag(
        0,
        "network",
        "routing iterations (also --num_routing); 0 for the published number: 2, and 3 for Heinsen's and dynamic routing",
        bound=NOT_NEGATIVE,
    )
    final_lambda: float = flag(
        0.01, "network", "inverse temperature that the routing iterations approach", bound=POSITIVE
    )
    epsilon: float = flag(1e-9, "network", "keeps the routing's divisions and logarithms finite", bound=POSITIVE)
    weight_reg: float = flag(2e-7, "network", "L2 penalty on kernels and capsule weights", bound=NOT_NEGATIVE)
    dropout: float = flag(0.5, "network", "share of units dropped in the dense layer", bound=SHARE)
    sequential_routing: bool = flag(
        False, "network", "each layer finishes its iterations before the next; otherwise all route at once"
    )
    backbone: str = flag("resnet", "network", "what stands below capsules, residual or plain convolutions", BACKBONES)
    config_path: str = flag(
        "cifar10", "network", "attention's capsule layers: cifar10 or cifar100 (both published), or a JSON file"
    )
    capsule_dropout: float = flag(0.0, "network", "share of the elements of capsules' poses dropped", bound=SHARE)
    part_noise: float = flag(
        0.0,
        "network",
        "deviation of the part capsules' biases at the start; 0 as published, 0.5 learns sooner",
        bound=NOT_NEGATIVE,
    )
    routing: str = flag(
        "em",
        "network",
        "what routes the class capsules; none: the same convolutions, averaged, without capsules",
        ROUTINGS,
    )
    convolutions: str = flag(
        "16k5s2,32,48s2,64s2", "network", "of each convolution channels, k and kernel side [3], s and stride [1]"
    )
    capsules: int = flag(8, "network", "types of part capsules at each position", bound=POSITIVE)
    capsule_layers: int = flag(
        1, "network", "of self_routing: layers that route, the class capsules among them", bound=POSITIVE
    )
    coordinates: bool = flag(False, "network", "with --routing=em or vb: votes carry the position of their part")
    votes_mib: int = flag(
        0,
        "network",
        "MiB of votes that a layer holds at a time; 0: what suits a CPU's cache, on an accelerator all that fit",
        bound=NOT_NEGATIVE,
    )

    batch_size: int = flag(
        64, "optimisation", "examples in a step, over all devices and hosts together", bound=POSITIVE
    )
    epoch: int = flag(100, "optimisation", "epochs to train", bound=POSITIVE)
    loss: str = flag(
        "auto",
        "optimisation",
        "spread, margin or cross_entropy; auto: what the network was published with",
        LOSSES,
    )
    optimizer: str = flag(
        "adam", "optimisation", "adam, radam (rectified Adam, Liu et al. 2020), or sgd (with momentum)", OPTIMIZERS
    )
    momentum: float = flag(
        0.9, "optimisation", "of sgd; beta_1 of adam and radam; one_cycle lowers it while the rate is high", bound=SHARE
    )
    weight_decay: float = flag(
        0.0,
        "optimisation",
        "shrinks all weights: with sgd as an L2 term of the gradient, with adam and radam decoupled from it",
        bound=NOT_NEGATIVE,
    )
    schedule: str = flag(
        "exponential",
        "optimisation",
        "of the learning rate: exponential (lrn_decay), steps (a tenth from each of lrn_drop_epochs on), one_cycle "
        "(a tenth of the run up from 1e-5, then down to it along a cosine), or constant",
        SCHEDULES,
    )
    lrn_rate: float = flag(
        3e-3, "optimisation", "learning rate at the start; with one_cycle, the highest", bound=POSITIVE
    )
    lrn_decay: float = flag(0.96, "optimisation", "factor of the learning rate every lrn_decay_steps", bound=POSITIVE)
    lrn_decay_steps: int = flag(
        20_000, "optimisation", "steps in which the learning rate falls by lrn_decay", bound=POSITIVE
    )
    lrn_drop_epochs: str = flag("150,250", "optimisation", "epochs after which schedule=steps divides by 10")
    margin_steps: float = flag(
        50_000.0,
        "optimisation",
        "steps in a unit of the spread loss's margin schedule, whose middle is at 4 units; a run shorter than "
        "200,000 steps needs fewer",
        bound=POSITIVE,
    )
    reconstruction: float = flag(
        0.0,
        "optimisation",
        "weight in the loss of the squared error of the image that a decoder draws from the true class's pose, summed "
        "over the image (Sabour et al. 2017: 0.0005); 0 for no decoder. It is compared with the image from 0 to 1: as it "
        "is with normalize=none, else stretched from its darkest value to its brightest",
        bound=NOT_NEGATIVE,
    )
    init_from: str = flag(
        "",
        "optimisation",
        "start a new run from the weights of a trained network, a name or a directory that caps_tf.export wrote, where "
        "name and shape of a weight fit; a class layer for other classes is new",
    )
    seed: int = flag(0, "optimisation", "of initial weights, data order and augmentation", bound=NOT_NEGATIVE)

    num_gpus: int = flag(1, "devices", "GPUs to train on; without GPUs, logical CPU devices", bound=POSITIVE)
    cluster: str = flag(
        "tf_config",
        "devices",
        "what names the hosts of a run on several: the variable TF_CONFIG (not set: one host alone), or slurm's job step",
        CLUSTERS,
    )
    precision: str = flag("float32", "devices", "dtype policy; routing stays in float32", PRECISIONS)
    jit_compile: str = flag("on", "devices", "compile the capsules with XLA", SWITCH)

    check_memory: bool = flag(
        True, "devices", "refuse a run whose training step needs more memory than is free (--nocheck_memory tries it)"
    )

    preset: str = flag("", "run", "named flags for a new run, which other flags overrule; --preset=list names them")
    name: str = flag("", "run", "name of the run: logs/<dataset>/<date>_<name>")
    log_every: int = flag(50, "run", "steps between two lines of the log", bound=POSITIVE)
    checkpoint_every: int = flag(0, "run", "steps between two checkpoints, 0 for one an epoch", bound=NOT_NEGATIVE)
    keep_checkpoints: int = flag(
        5, "run", "how many of the newest checkpoints to keep; the best is kept beside them", bound=POSITIVE
    )
    routing_gauges: bool = flag(
        False, "run", "log gauges of each routing layer and the relative size of updates too: see docs/GAUGES.md"
    )
    profile: bool = flag(False, "run", "trace steps 10 to 20 for TensorBoard's profiler")

    def __post_init__(self):
        for option in dataclasses.fields(self):
            _check_value(option, getattr(self, option.name))
        if "/" in self.name:
            raise UserError(f"name becomes part of a directory's name and cannot hold a slash: {self.name!r}")
        parse_size(self.resize, "resize")
        parse_size(self.image_size, "image_size")
        self.validation_instances()
        parse_viewpoints(self.viewpoints)
        self.drop_epochs()
        self.channel_statistics()
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.protocol and self.viewpoints:
            raise UserError("viewpoints and protocol are two protocols: choose one")
        if self.protocol == "overlap" and self.mixup:
            raise UserError("protocol=overlap lays two examples over each other already: leave out --mixup")
        if self.protocol == "overlap" and self.reconstruction:
            raise UserError("protocol=overlap shows two classes, and a decoder draws one: leave out --reconstruction")
        if self.mixup and self.uses_spread_loss:
            raise UserError(
                "mixup blends classes by shares, which the spread loss does not know: add --loss=cross_entropy"
            )
        if self.pad and self.augment == "none":
            raise UserError("pad widens images for the random crop, which augment=none leaves out: use --augment=crop")
        if self.augment == "norb" and self.normalize == "none":
            raise UserError(
                "augment=norb changes brightness by up to 2 standard deviations, but normalize=none leaves values from "
                "0 to 1: use --normalize=image, or --augment=crop"
            )

    @property
    def routing_iterations(self) -> int:
        """Iterations of the network's routing; 0 for a network that has none, or whose builder decides."""
        return self.iter_routing or NETWORKS[self.network].iterations

    @property
    def loss_name(self) -> str:
        """The loss, by name or as the network's own."""
        return NETWORKS[self.network].loss if self.loss == "auto" else self.loss

    @property
    def uses_spread_loss(self) -> bool:
        """Whether that is the spread loss, which has a schedule."""
        return self.loss_name == "spread"

    @property
    def uses_xla(self) -> bool:
        """Whether XLA compiles what a network computes from its first routing on."""
        return self.jit_compile == "on"

    def check_given(self, names: Iterable[str]) -> None:
        """Refuses options that were given by name, although the network does not read them.

        Raises:
            UserError: naming the networks that do.

        Example:
            >>> RunConfig(network="cnn_baseline", epsilon=1e-6).check_given(["epsilon"])
            Traceback (most recent call last):
            caps_tf.errors.UserError: cnn_baseline does not read --epsilon: leave it out, or train matrix_capsules
        """
        groups = {option.name: option.metadata["group"] for option in dataclasses.fields(self)}
        for name in names:
            if groups[name] == "network" and name != "network" and self.network not in readers(name):
                raise UserError(
                    f"{self.network} does not read --{name}: leave it out, or train {' or '.join(readers(name))}"
                )

    def drop_epochs(self) -> tuple[int, ...]:
        """The epochs after which schedule=steps lowers the learning rate, increasing."""
        epochs = _parse_numbers(self.lrn_drop_epochs, "lrn_drop_epochs", int)
        if any(later <= earlier for earlier, later in zip((0, *epochs), epochs)):
            raise UserError(f"lrn_drop_epochs must be positive and increase, not {self.lrn_drop_epochs!r}")
        return epochs

    def channel_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Means and standard deviations of normalize=channel."""
        means = _parse_numbers(self.channel_mean, "channel_mean", float)
        deviations = _parse_numbers(self.channel_std, "channel_std", float)
        if not all(deviation > 0 for deviation in deviations):
            raise UserError(f"channel_std must be positive, not {self.channel_std!r}")
        return means, deviations

    def validation_instances(self) -> tuple[int, ...]:
        """The training instances held out for validation, empty if a share of all records is."""
        return _parse_numbers(self.val_instances, "val_instances", int)


def _check_value(option: dataclasses.Field, value: Any) -> None:
    name, choices, bound = option.name, option.metadata["choices"], option.metadata["bound"]
    kind = cast(type[Any], option.type)  # no field of `RunConfig` has its annotation as text
    if type(value) is not kind:
        raise UserError(f"{name} must be of type {kind.__name__}, not {value!r}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {value}")
    if kind is int and not -(2**31) <= value < 2**31:
        raise UserError(f"{name} must be below 2,147,483,648, not {value}")
    if kind is str and not value.isprintable():
        raise UserError(f"{name} must be printable text, not {value!r}")
    if choices and value not in choices:
        raise UserError(f"{name} must be one of {', '.join(filter(None, choices))}, not {value!r}")
    if bound and not bound.holds(value):
        raise UserError(f"{name} must {bound.text}, not {value}")


def _parse_numbers(text: str, name: str, kind: type) -> tuple:
    try:
        return tuple(kind(number) for number in text.split(",") if number)
    except ValueError:
        example = "8,9" if kind is int else "0.5,0.25"
        raise UserError(f"{name} must be numbers such as {example}, not {text!r}") from None


def parse_size(text: str, flag: str) -> tuple[int, int] | None:
    """Reads a size flag: "32" or "24x32" (rows x columns); None for "" and "0".

    Raises:
        UserError: for anything else.

    Example:
        >>> parse_size("24x32", "image_size")
        (24, 32)
    """
    if text in ("", "0"):
        return None
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match or "0" in match.groups():
        raise UserError(f"--{flag} must be pixels, such as 32 or 24x32 (rows x columns), not {text!r}")
    rows, columns = match.groups()
    return int(rows), int(columns or rows)
