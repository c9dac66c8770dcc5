"""Adversarial images: each pixel is moved, by at most epsilon, the way that makes a network err.

An attack knows of a network only a function, from images to the gradient at those images of what the attacker wants to
raise: of the loss, or, to have images taken for a target class, of the loss for that class times -1. Pixels are numbers
from 0 to 1, and stay there.
"""

from collections.abc import Callable

from keras import ops

from caps_tf.tensors import Tensor

Gradient = Callable[[Tensor], Tensor]
"""Images [b, h, w, c] to the gradient of what is to be raised, of the same shape."""

PATH = 1.25
"""How far the steps of the basic iterative method reach together, in epsilons."""


def fgsm(images: Tensor, gradient: Gradient, epsilon: Tensor | float) -> Tensor:
    """The fast gradient sign method (Goodfellow, Shlens, Szegedy 2015, section 4).

    x' = clip(x + epsilon sign(g(x)), 0, 1)

    Where the gradient is zero, a pixel stays as it is.

    Args:
        images: x, float [b, h, w, c], from 0 to 1.
        gradient: g.
        epsilon: how far a pixel is moved, at least 0: one for all images, or [b, 1, 1, 1].

    Returns:
        x', like `images`.

    Example:
        >>> images = np.array([[[[0.5], [0.9], [0.5]]]], "float32")
        >>> slope = np.array([[[[-2.0], [3.0], [0.0]]]], "float32")
        >>> np.asarray(fgsm(images, lambda _: slope, 0.2)).ravel().round(2)
        array([0.3, 1. , 0.5], dtype=float32)
    """
    images = ops.convert_to_tensor(images)
    return ops.clip(images + ops.cast(epsilon, images.dtype) * ops.sign(gradient(images)), 0.0, 1.0)


def basic_iterative(images: Tensor, gradient: Gradient, epsilon: Tensor | float, steps: int = 10) -> Tensor:
    """The basic iterative method: many small steps of `fgsm` (Kurakin, Goodfellow, Bengio 2017).

    x_0 = x;  x_(n+1) = clip(x_n + alpha sign(g(x_n)), max(0, x - epsilon), min(1, x + epsilon))

    The paper takes steps of alpha = 1 grey level of 255 and, for a small epsilon, as many as cover 1.25 epsilon. Here
    their number is given, and alpha = 1.25 epsilon / steps, so that an attack takes as long whatever epsilon is; a
    single step is `fgsm`.

    Args:
        images: x, float [b, h, w, c], from 0 to 1.
        gradient: g.
        epsilon: how far a pixel may be from where it was, at least 0: one for all images, or [b, 1, 1, 1].
        steps: how many, at least 1.

    Returns:
        The last x_n, like `images`.

    Example:
        >>> images = np.array([[[[0.5], [0.9]]]], "float32")
        >>> np.asarray(basic_iterative(images, lambda x: -x, 0.2, steps=25)).ravel().round(2)
        array([0.3, 0.7], dtype=float32)
    """
    images = ops.convert_to_tensor(images)
    epsilon = ops.cast(epsilon, images.dtype)
    low, high = ops.maximum(images - epsilon, 0.0), ops.minimum(images + epsilon, 1.0)
    alpha = PATH * epsilon / steps

    def step(_, attacked: Tensor) -> Tensor:
        return ops.minimum(ops.maximum(attacked + alpha * ops.sign(gradient(attacked)), low), high)

    return ops.fori_loop(0, steps, step, images)
