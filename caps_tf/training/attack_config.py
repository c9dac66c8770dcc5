"""Which attack a network is tested with, as data: typed and validated."""

from dataclasses import dataclass

from caps_tf.errors import UserError

ATTACKS = ("fgsm", "bim")
ALL, LEAST_LIKELY = "all", "least_likely"
"""Targets that are no class: each class in turn, and the one that the network finds least likely."""


@dataclass(frozen=True)
class AttackConfig:
    """The parameters of an attack, which test.py has as flags attack, attack_epsilon and so on.

    Attributes:
        kind: fgsm, or bim (the basic iterative method).
        epsilons: how far a pixel may be moved: numbers from 0 to 1, as pixels are before they are normalised.
        steps: of bim.
        target: the class that images shall be taken for, "all", "least_likely", or "" for any wrong class.
        examples: about how many of the test, evenly spread over it; 0 for all.
        source: directory of the run whose gradient is used, for a black box; "" for the tested network itself.

    Raises:
        UserError: if a value is out of its range.

    Example:
        >>> AttackConfig("fgsm", parse_epsilons("0.1,0")).epsilons
        (0.0, 0.1)
    """

    kind: str
    epsilons: tuple[float, ...]
    steps: int = 10
    target: str = ""
    examples: int = 0
    source: str = ""

    def __post_init__(self):
        if self.kind not in ATTACKS:
            raise UserError(f"attack must be one of {', '.join(ATTACKS)}, not {self.kind!r}")
        if not self.epsilons or not all(0 <= epsilon <= 1 for epsilon in self.epsilons):
            raise _bad_epsilons(",".join(map(str, self.epsilons)))
        if self.steps < 1:
            raise UserError(f"`attack_steps` must be positive, not {self.steps}")
        if self.examples < 0:
            raise UserError(f"`attack_examples` must not be negative, not {self.examples}")

    @property
    def title(self) -> str:
        """The attack in words.

        Example:
            >>> AttackConfig("bim", (0.1,), target="all").title
            'Basic iterative method of 10 steps, target: all, white box'
        """
        name = "Fast gradient sign method" if self.kind == "fgsm" else f"Basic iterative method of {self.steps} steps"
        target = f", target: {self.target}" if self.target else ""
        return f"{name}{target}, {'black' if self.source else 'white'} box"

    def targets(self, class_names: tuple[str, ...]) -> list[int]:
        """The label that images shall get in each round of the attack; -1 where it is not the same for all of them.

        Raises:
            UserError: if there is no such class.

        Example:
            >>> AttackConfig("fgsm", (0.1,), target="all").targets(("cat", "dog"))
            [0, 1]
        """
        if self.target == ALL:
            return list(range(len(class_names)))
        if self.target in ("", LEAST_LIKELY):
            return [-1]
        if self.target not in class_names:
            raise UserError(
                f"`attack_target` must be {ALL}, {LEAST_LIKELY}, or a class ({', '.join(class_names)}), "
                f"not {self.target!r}"
            )
        return [class_names.index(self.target)]


def parse_epsilons(text: str) -> tuple[float, ...]:
    """Reads numbers between commas, and puts them in order.

    Raises:
        UserError: for anything else.

    Example:
        >>> parse_epsilons("0.1,0,0.1")
        (0.0, 0.1)
    """
    try:
        return tuple(sorted({float(number) for number in text.split(",")}))
    except ValueError:
        raise _bad_epsilons(text) from None


def _bad_epsilons(text: str) -> UserError:
    return UserError(f"`attack_epsilon` must be numbers from 0 to 1, such as 0,0.05,0.1, not {text!r}")
