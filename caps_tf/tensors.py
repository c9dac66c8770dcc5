"""The type of tensors in signatures, `Tensor`, and which of several tensors is the same: `is_among`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol


class Tensor(Protocol):
    """What the library asks of a tensor of any Keras backend, or of a NumPy array in its place.

    Keras's backends have no type of tensors in common, and `keras.ops` is untyped: what comes out of it is anything to a
    type checker. With `Tensor` in the signatures, a checker sees at least between the library's own functions that a
    tensor is not a number, a tuple of tensors or a value that may be None.

    Example:
        >>> def halved(values: Tensor) -> Tensor:
        ...     return values / 2
        >>> halved(np.array([2.0, 4.0]))
        array([1., 2.])
    """

    @property
    def shape(self) -> Sequence[int]:
        """Sizes of the axes. While a graph is traced an unknown one is None, which the code that can meet it asks for."""

    @property
    def dtype(self) -> Any:
        """The dtype in the backend's own terms."""

    def __float__(self) -> float: ...

    def __getitem__(self, index: Any, /) -> "Tensor": ...

    def __iter__(self) -> Iterator["Tensor"]: ...

    def __neg__(self) -> "Tensor": ...

    def __abs__(self) -> "Tensor": ...

    def __add__(self, other: Any, /) -> "Tensor": ...

    def __radd__(self, other: Any, /) -> "Tensor": ...

    def __sub__(self, other: Any, /) -> "Tensor": ...

    def __rsub__(self, other: Any, /) -> "Tensor": ...

    def __mul__(self, other: Any, /) -> "Tensor": ...

    def __rmul__(self, other: Any, /) -> "Tensor": ...

    def __truediv__(self, other: Any, /) -> "Tensor": ...

    def __rtruediv__(self, other: Any, /) -> "Tensor": ...

    def __floordiv__(self, other: Any, /) -> "Tensor": ...

    def __mod__(self, other: Any, /) -> "Tensor": ...

    def __pow__(self, other: Any, /) -> "Tensor": ...

    def __matmul__(self, other: Any, /) -> "Tensor": ...

    def __lt__(self, other: Any, /) -> "Tensor": ...

    def __le__(self, other: Any, /) -> "Tensor": ...

    def __gt__(self, other: Any, /) -> "Tensor": ...

    def __ge__(self, other: Any, /) -> "Tensor": ...

    def __invert__(self) -> "Tensor": ...

    def __and__(self, other: Any, /) -> "Tensor": ...

    def __or__(self, other: Any, /) -> "Tensor": ...


def is_among(tensor: object, others: Iterable[object]) -> bool:
    """Whether a tensor or variable is one of others: the same object, not one of equal value.

    `tensor in others` asks `==`, which compares tensors element by element.

    Args:
        tensor: of any Keras backend, symbolic or not.
        others: where to look for it.

    Example:
        >>> ones, same_value = np.ones(3), np.ones(3)
        >>> is_among(ones, [same_value, ones]), is_among(ones, [same_value])
        (True, False)
    """
    return any(tensor is other for other in others)
