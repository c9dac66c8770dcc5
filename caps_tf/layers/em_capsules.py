"""Matrix capsules that are routed by expectation maximisation: convolutional and class capsules."""

import math

import keras
from keras import ops

from caps_tf.layers.matrix_capsules import AllChildren, KernelOfChildren, MatrixCapsules
from caps_tf.routing.em import VARIANCE_FLOOR, Parents, em_routing
from caps_tf.routing.grouping import CACHED_VOTES


class EMCapsules(MatrixCapsules):
    """What convolutional and class capsules share: the weights, and EM routing in at least single precision.

    Args:
        capsules: number of parent types.
        iterations: number of routing iterations, at least 1.
        final_lambda: inverse temperature that the iterations approach.
        epsilon: keeps the divisions and logarithms of the routing finite.
        votes_at_a_time: bytes of votes that may exist at the same time, whatever the processor; by default what suits
            it, see `choose_groups`. A batch is divided evenly, and one image's votes may be more.
        kernel_initializer: of the weights W; truncated normal (0, 1) as in the published code.
        beta_a_initializer: of the cost of an inactive parent.
        beta_u_initializer: of the cost of a vote element.
        kernel_regularizer: regularizer of the weights W.
        initial_temperature: None for the published schedule of the inverse temperature. A number: each parent learns
            its own inverse temperature s from there, the same in all iterations, and costs are counted in its units:
            activation = sigmoid(s (beta_a - mean_d(beta_u + 1/2 ln variance) S J / K)). The function is that of the
            published betas and temperature, beta_a = `beta_a` / (100 d) and s = 100 d lambda for d pose elements, but
            an optimiser that moves each weight by its rate a step, as Adam does, can learn it: `beta_a` starts at zero
            instead of near -1000.
        variance_floor: added to each variance, in squared units of the votes.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if `capsules`, `iterations` or `votes_at_a_time` is less than 1, or `initial_temperature` or
            `variance_floor` is not positive.
    """

    cached_votes = CACHED_VOTES["em"]
    variance_floor: float

    def __init__(
        self,
        capsules: int,
        iterations: int = 2,
        final_lambda: float = 0.01,
        epsilon: float = 1e-9,
        votes_at_a_time: int | None = None,
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        beta_a_initializer: keras.initializers.Initializer | str | None = None,
        beta_u_initializer: keras.initializers.Initializer | str = "glorot_uniform",
        kernel_regularizer: keras.regularizers.Regularizer | str | None = None,
        initial_temperature: float | None = None,
        variance_floor: float = VARIANCE_FLOOR,
        **kwargs,
    ):
        kernel_initializer = kernel_initializer or keras.initializers.TruncatedNormal(0.0, 1.0)
        super().__init__(capsules, iterations, votes_at_a_time, kernel_initializer, kernel_regularizer, **kwargs)
        if not variance_floor > 0 or (initial_temperature is not None and not initial_temperature > 0):
            raise ValueError(
                f"variance_floor and initial_temperature must be positive, not {variance_floor} and {initial_temperature}"
            )
        self.final_lambda = final_lambda
        self.epsilon = epsilon
        self.initial_temperature = initial_temperature
        self.variance_floor = variance_floor
        published = keras.initializers.TruncatedNormal(-1000.0, 500.0)
        self.beta_a_initializer = keras.initializers.get(
            beta_a_initializer or (published if initial_temperature is None else "zeros")
        )
        self.beta_u_initializer = keras.initializers.get(beta_u_initializer)

    def _add_weights(self, kernel_shape: tuple[int, ...]) -> None:
        super()._add_weights(kernel_shape)
        # A trailing axis of 1 makes Glorot's fan-in and fan-out the published ones, parent types and 1.
        self.beta_a = self.add_weight(shape=(self.capsules, 1), initializer=self.beta_a_initializer, name="beta_a")
        self.beta_u = self.add_weight(shape=(self.capsules, 1), initializer=self.beta_u_initializer, name="beta_u")
        if self.initial_temperature is not None:
            self.log_temperature = self.add_weight(
                shape=(self.capsules, 1),
                initializer=keras.initializers.Constant(math.log(self.initial_temperature)),
                name="log_temperature",
            )

    def _learned(self, pose_elements, dtype):
        """beta_u and beta_a [j] in the units of `em_routing`, and the inverse temperature [j] if it is learned."""
        beta_u, beta_a = (ops.cast(beta, dtype)[:, 0] for beta in (self.beta_u, self.beta_a))
        if self.initial_temperature is None:
            return [beta_u, beta_a]
        unit = 100.0 * pose_elements
        return [beta_u, beta_a * unit, ops.exp(ops.cast(self.log_temperature, dtype)[:, 0]) / unit]

    def _route_votes(self, votes, activations, neighbourhood, iterations, learned) -> Parents:
        beta_u, beta_a, *temperature = learned
        return em_routing(
            votes,
            activations,
            beta_u=beta_u,
            beta_a=beta_a,
            neighbourhood=neighbourhood,
            iterations=iterations,
            final_lambda=self.final_lambda,
            epsilon=self.epsilon,
            fixed_temperature=temperature[0] if temperature else None,
            variance_floor=self.variance_floor,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "final_lambda": self.final_lambda,
            "epsilon": self.epsilon,
            "beta_a_initializer": keras.initializers.serialize(self.beta_a_initializer),
            "beta_u_initializer": keras.initializers.serialize(self.beta_u_initializer),
            "initial_temperature": self.initial_temperature,
            "variance_floor": self.variance_floor,
        }


@keras.saving.register_keras_serializable(package="caps_tf")
class EMConvCapsules(KernelOfChildren, EMCapsules):
    """Convolutional matrix capsules with EM routing.

    Each parent position sees a kernel of child positions; a weight for each kernel position, child type and parent
    type turns child poses into votes. Parents at different positions compete for a child that both see.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        **kwargs: arguments of `EMCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses [b, h, w, i, x, y] and activations [b, h, w, i].

    Returns:
        poses [b, p, q, j, x, y] and activations [b, p, q, j] in the compute dtype; j = `capsules`,
        p = (h - kernel) // stride + 1 and q alike.

    Raises:
        ValueError: if the kernel is larger than the grid of children, or poses are not square matrices.

    Example:
        >>> children = np.ones((2, 14, 14, 8, 4, 4), "float32"), np.ones((2, 14, 14, 8), "float32")
        >>> poses, activations = EMConvCapsules(16, kernel_size=3, strides=2)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 6, 6, 16, 4, 4), (2, 6, 6, 16))

    References:
        Hinton, Sabour, Frosst, "Matrix capsules with EM routing", ICLR 2018.
        Gritzman, "Avoiding Implementation Pitfalls of Matrix Capsules with EM Routing by Hinton et al.", 2019.
    """


@keras.saving.register_keras_serializable(package="caps_tf")
class EMClassCapsules(AllChildren, EMCapsules):
    """One matrix capsule for each class, routed by EM from all children of the image.

    All positions share their weights; with coordinate addition the scaled position of a child is added to its
    vote, so that where a part stands is not lost.

    Args:
        capsules: number of classes.
        coordinate_addition: whether votes carry the position of their child.
        return_logits: whether to return what the activations are the sigmoid of, for a loss on logits; in at least
            float32.
        **kwargs: arguments of `EMCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses [b, h, w, i, x, y] and activations [b, h, w, i].

    Returns:
        poses [b, j, x, y] and activations [b, j] in the compute dtype, j = `capsules`.

    Raises:
        ValueError: if poses are not square matrices, or have one row and coordinates are to be added.

    Example:
        >>> children = np.ones((2, 4, 4, 16, 4, 4), "float32"), np.ones((2, 4, 4, 16), "float32")
        >>> poses, activations = EMClassCapsules(5)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 5, 4, 4), (2, 5))

    References:
        Hinton, Sabour, Frosst, "Matrix capsules with EM routing", ICLR 2018, section 4.
    """

    def __init__(self, capsules: int, coordinate_addition: bool = True, return_logits: bool = False, **kwargs):
        super().__init__(capsules, coordinate_addition, **kwargs)
        self.return_logits = return_logits

    def get_config(self):
        return {**super().get_config(), "return_logits": self.return_logits}
