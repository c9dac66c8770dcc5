"""Everything that decides a run, as data: typed and validated."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from caps_tf.data.preprocessing import AUGMENTATIONS, NORMALIZATIONS, PAD_MODES, VIEWS
from caps_tf.data.viewpoints import parse_viewpoints
from caps_tf.errors import UserError
from caps_tf.networks import BACKBONES, NETWORKS, ROUTINGS, readers

LOSSES = ("auto", "spread", "cross_entropy")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
OPTIMIZERS = ("adam", "radam", "sgd")
SCHEDULES = ("exponential", "steps", "one_cycle", "constant")
SWITCH = ("on", "off")
CLUSTERS = ("tf_config", "slurm")


class Bound(NamedTuple):
    """A condition on a number.

    Attributes:
        holds: whether a number meets it.
        text: the condition in words, after "must".
    """

    holds: Callable[[float], bool]
    text: str


POSITIVE = Bound(lambda number: number > 0, "be positive")
NOT_NEGATIVE = Bound(lambda number: number >= 0, "not be negative")
SHARE = Bound(lambda number: 0 <= number < 1, "be at least 0 and less than 1")


def _option(
    default: Any, group: str, help: str, choices: tuple[str, ...] | None = None, bound: Bound | None = None
) -> Any:
    return field(default=default, metadata={"group": group, "help": help, "choices": choices, "bound": bound})


@dataclass(frozen=True)
class RunConfig:
    """The parameters of a training run. Each field is a flag of train_val.py; its help text says what it means.

    Raises:
        UserError: if a value is out of its range.

    Example:
        >>> RunConfig(batch_size=32).batch_size
        32
    """

    dataset: str = _option(
        "smallNORB",
        "data",
        "smallNORB, renderedNORB, a name of TensorFlow Datasets' catalogue (cifar10), a directory that TensorFlow "
        "Datasets or our converters wrote, or an image folder (train/<class>/*.png, test/<class>/*.png)",
    )
    storage: str = _option(".", "data", "directory that holds data/ and logs/")
    data_dir: str = _option("", "data", "where the data set is, instead of <storage>/data/<dataset>")
    views: str = _option(
        "both", "data", "NORB cameras: both (each view is an example), left, right, or stereo (two channels)", VIEWS
    )
    resize: str = _option(
        "",
        "data",
        "pixels to resize images to, N or ROWSxCOLUMNS, 0 for none; default 48 for NORB, none if image_size is larger",
    )
    image_size: str = _option(
        "", "data", "pixels of the crop that the network sees, N or ROWSxCOLUMNS, 0 for none; default 32 for NORB"
    )
    pad: int = _option(
        0, "data", "pixels added on each side of training images before the random crop", bound=NOT_NEGATIVE
    )
    pad_mode: str = _option("edge", "data", "edge repeats the outermost pixels, zero adds black ones", PAD_MODES)
    augment: str = _option(
        "auto",
        "data",
        "of training images: norb (random crop, brightness and contrast), crop (random crop only), crop_flip (and "
        "mirrored left to right), or none; auto: norb for NORB data, else crop",
        ("auto", *AUGMENTATIONS),
    )
    normalize: str = _option(
        "image",
        "data",
        "image (each by its own mean and deviation), channel (by channel_mean and channel_std), or none (0 to 1)",
        NORMALIZATIONS,
    )
    channel_mean: str = _option(
        "0.4914,0.4822,0.4465", "data", "of values from 0 to 1, one per channel or one for all; default CIFAR-10's"
    )
    channel_std: str = _option("0.2023,0.1994,0.2010", "data", "standard deviations that go with channel_mean")
    mixup: float = _option(
        0.0,
        "data",
        "alpha of mixup: examples are blended in pairs by weights from Beta(alpha, alpha); 0 for none",
        bound=NOT_NEGATIVE,
    )
    val_prop: float = _option(
        0.1, "data", "share of the training records held out for validation, 0 for none", bound=SHARE
    )
    val_instances: str = _option(
        "", "data", "validate on these training instances instead, such as 9 or 8,9 (a harder, more honest test)"
    )
    viewpoints: str = _option(
        "",
        "data",
        "novel-viewpoint protocol: train on these viewpoints only and test on the others too; azimuth or elevation (of "
        "Hinton et al. 2018), or degrees such as azimuth:-67..67 or azimuth:300..40,elevation:45..90 (both must hold)",
    )

    network: str = _option("matrix_capsules", "network", "architecture", tuple(NETWORKS))
    A: int = _option(64, "network", "channels of ReLU Conv1", bound=POSITIVE)
    B: int = _option(8, "network", "types of primary capsules", bound=POSITIVE)
    C: int = _option(16, "network", "types of the first convolutional capsules", bound=POSITIVE)
    D: int = _option(16, "network", "types of the second convolutional capsules", bound=POSITIVE)
    iter_routing: int = _option(
        0,
        "network",
        "routing iterations (also --num_routing); 0 for the published number: 2, and 3 for Heinsen's routing",
        bound=NOT_NEGATIVE,
    )
    final_lambda: float = _option(
        0.01, "network", "inverse temperature that the routing iterations approach", bound=POSITIVE
    )
    epsilon: float = _option(1e-9, "network", "keeps the routing's divisions and logarithms finite", bound=POSITIVE)
    weight_reg: float = _option(2e-7, "network", "L2 penalty on kernels and capsule weights", bound=NOT_NEGATIVE)
    dropout: float = _option(0.5, "network", "share of units dropped in the dense layer", bound=SHARE)
    sequential_routing: bool = _option(
        False, "network", "each layer finishes its iterations before the next; otherwise all route at once"
    )
    backbone: str = _option("resnet", "network", "what stands below attention's capsules", BACKBONES)
    config_path: str = _option(
        "cifar10", "network", "attention's capsule layers: cifar10 or cifar100 (both published), or a JSON file"
    )
    capsule_dropout: float = _option(0.0, "network", "share of the elements of capsules' poses dropped", bound=SHARE)
    part_noise: float = _option(
        0.0,
        "network",
        "deviation of the part capsules' biases at the start; 0 as published, 0.5 learns sooner",
        bound=NOT_NEGATIVE,
    )
    routing: str = _option(
        "em",
        "network",
        "what routes the class capsules; none: the same convolutions, averaged, without capsules",
        ROUTINGS,
    )
    convolutions: str = _option(
        "16k5s2,32,48s2,64s2", "network", "of each convolution channels, k and kernel side [3], s and stride [1]"
    )
    capsules: int = _option(8, "network", "types of part capsules at each position", bound=POSITIVE)
    coordinates: bool = _option(False, "network", "with --routing=em: votes carry the position of their part")
    votes_mib: int = _option(
        0,
        "network",
        "MiB of votes that a layer holds at a time; 0: what suits a CPU's cache, on an accelerator all that fit",
        bound=NOT_NEGATIVE,
    )

    batch_size: int = _option(
        64, "optimisation", "examples in a step, over all devices and hosts together", bound=POSITIVE
    )
    epoch: int = _option(100, "optimisation", "epochs to train", bound=POSITIVE)
    loss: str = _option(
        "auto",
        "optimisation",
        "spread or cross_entropy; auto: what the network was published with",
        LOSSES,
    )
    optimizer: str = _option(
        "adam", "optimisation", "adam, radam (rectified Adam, Liu et al. 2020), or sgd (with momentum)", OPTIMIZERS
    )
    momentum: float = _option(
        0.9, "optimisation", "of sgd; beta_1 of adam and radam; one_cycle lowers it while the rate is high", bound=SHARE
    )
    weight_decay: float = _option(
        0.0,
        "optimisation",
        "shrinks all weights: with sgd as an L2 term of the gradient, with adam and radam decoupled from it",
        bound=NOT_NEGATIVE,
    )
    schedule: str = _option(
        "exponential",
        "optimisation",
        "of the learning rate: exponential (lrn_decay), steps (a tenth from each of lrn_drop_epochs on), one_cycle "
        "(a tenth of the run up from 1e-5, then down to it along a cosine), or constant",
        SCHEDULES,
    )
    lrn_rate: float = _option(
        3e-3, "optimisation", "learning rate at the start; with one_cycle, the highest", bound=POSITIVE
    )
    lrn_decay: float = _option(
        0.96, "optimisation", "factor of the learning rate every lrn_decay_steps", bound=POSITIVE
    )
    lrn_decay_steps: int = _option(
        20_000, "optimisation", "steps in which the learning rate falls by lrn_decay", bound=POSITIVE
    )
    lrn_drop_epochs: str = _option("150,250", "optimisation", "epochs after which schedule=steps divides by 10")
    margin_steps: float = _option(
        50_000.0,
        "optimisation",
        "steps in a unit of the spread loss's margin schedule, whose middle is at 4 units; a run shorter than "
        "200,000 steps needs fewer",
        bound=POSITIVE,
    )
    init_from: str = _option(
        "",
        "optimisation",
        "start a new run from the weights of a trained network, a name or a directory that caps_tf.export wrote, where "
        "name and shape of a weight fit; a class layer for other classes is new",
    )
    seed: int = _option(0, "optimisation", "of initial weights, data order and augmentation", bound=NOT_NEGATIVE)

    num_gpus: int = _option(1, "devices", "GPUs to train on; without GPUs, logical CPU devices", bound=POSITIVE)
    cluster: str = _option(
        "tf_config",
        "devices",
        "what names the hosts of a run on several: the variable TF_CONFIG (not set: one host alone), or slurm's job step",
        CLUSTERS,
    )
    precision: str = _option("float32", "devices", "dtype policy; routing stays in float32", PRECISIONS)
    jit_compile: str = _option("on", "devices", "compile the capsules with XLA", SWITCH)

    check_memory: bool = _option(
        True, "devices", "refuse a run whose training step needs more memory than is free (--nocheck_memory tries it)"
    )

    preset: str = _option("", "run", "named flags for a new run, which other flags overrule; --preset=list names them")
    name: str = _option("", "run", "name of the run: logs/<dataset>/<date>_<name>")
    log_every: int = _option(50, "run", "steps between two lines of the log", bound=POSITIVE)
    checkpoint_every: int = _option(0, "run", "steps between two checkpoints, 0 for one an epoch", bound=NOT_NEGATIVE)
    keep_checkpoints: int = _option(
        5, "run", "how many of the newest checkpoints to keep; the best is kept beside them", bound=POSITIVE
    )
    routing_gauges: bool = _option(
        False, "run", "log gauges of each routing layer and the relative size of updates too: see docs/GAUGES.md"
    )
    profile: bool = _option(False, "run", "trace steps 10 to 20 for TensorBoard's profiler")

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
        if self.mixup and self.uses_spread_loss:
            raise UserError("mixup blends classes, and the spread loss knows only one: add --loss=cross_entropy")
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
    def uses_spread_loss(self) -> bool:
        """Whether the loss is the spread loss, by name or as the network's own."""
        return self.loss == "spread" or (self.loss == "auto" and NETWORKS[self.network].loss == "spread")

    @property
    def uses_xla(self) -> bool:
        """Whether XLA compiles what a network computes from its first routing on."""
        return self.jit_compile == "on"

    def check_given(self, names: Iterable[str]) -> None:
        """Refuses options that were given by name, although the network does not read them.

        Raises:
            UserError: naming the networks that do.

        Example:
            >>> RunConfig(network="cnn_baseline", B=4).check_given(["B"])
            Traceback (most recent call last):
            caps_tf.errors.UserError: cnn_baseline does not read --B: leave it out, or train matrix_capsules
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
