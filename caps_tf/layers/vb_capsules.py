"""Matrix capsules that are routed by variational Bayes: convolutional and class capsules."""

import math

import keras
from keras import ops

from caps_tf.layers.capsule_layer import LayerCost
from caps_tf.layers.matrix_capsules import AllChildren, KernelOfChildren, MatrixCapsules
from caps_tf.routing.em import Parents
from caps_tf.routing.grouping import CACHED_VOTES
from caps_tf.routing.variational_bayes import COVARIANCES, Prior, vb_routing


class VBCapsules(MatrixCapsules):
    """What convolutional and class capsules share: the weights, and routing in at least single precision.

    Args:
        capsules: number of parent types.
        iterations: number of routing iterations, at least 1.
        covariance: "diagonal", or "full" for the covariances of pose elements as well.
        alpha0: prior of the share of a parent type.
        kappa0: how many votes the prior mean, zero, counts for.
        nu0: prior degrees of freedom of a parent's precision, more than D - 1 + 1e-3 for poses of D elements;
            None for D + 1.
        scatter0: prior sum of squares of its votes about their mean, in each element; `scatter0` / `nu0` is about the
            variance that votes are expected to have.
        return_logits: whether to return what the activations are the sigmoid of, for `CapsuleNormalization` or a loss
            on logits; in at least float32.
        votes_at_a_time: bytes of votes that may exist at the same time, whatever the processor; by default what suits
            it, see `choose_groups`. A batch is divided evenly, and one image's votes may be more.
        kernel_initializer: of the weights W; None for the published one, uniform with the variance
            2 / (16 K (I + J)) for 16 pose elements, K kernel positions, I child and J parent types.
        beta_a_initializer: of beta_a, what an inactive parent costs.
        beta_u_initializer: of beta_u, which is subtracted from beta_a: nothing else depends on either, and batch
            normalisation of the logits cancels the difference. There are two because the published layers have two.
        kernel_regularizer: regularizer of the weights W.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if `capsules`, `iterations` or `votes_at_a_time` is less than 1, a prior is not positive, `nu0` is
            too small for the poses, or the covariance unknown.
    """

    cached_votes = CACHED_VOTES["vb"]

    def __init__(
        self,
        capsules: int,
        iterations: int = 3,
        covariance: str = "diagonal",
        alpha0: float = 1.0,
        kappa0: float = 1.0,
        nu0: float | None = None,
        scatter0: float = 1.0,
        return_logits: bool = False,
        votes_at_a_time: int | None = None,
        kernel_initializer: keras.initializers.Initializer | str | None = None,
        beta_a_initializer: keras.initializers.Initializer | str = "zeros",
        beta_u_initializer: keras.initializers.Initializer | str = "zeros",
        kernel_regularizer: keras.regularizers.Regularizer | str | None = None,
        **kwargs,
    ):
        super().__init__(capsules, iterations, votes_at_a_time, kernel_initializer, kernel_regularizer, **kwargs)
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, not {covariance!r}")
        if not min(alpha0, kappa0, scatter0) > 0:
            raise ValueError(f"alpha0, kappa0 and scatter0 must be positive, not {alpha0}, {kappa0} and {scatter0}")
        self.covariance = covariance
        self.prior = Prior(alpha0, kappa0, nu0, scatter0)
        self.return_logits = return_logits
        self.beta_a_initializer = keras.initializers.get(beta_a_initializer)
        self.beta_u_initializer = keras.initializers.get(beta_u_initializer)

    def _add_weights(self, kernel_shape: tuple[int, ...]) -> None:
        self.prior.degrees_of_freedom(math.prod(kernel_shape[-2:]))  # refuses too small a nu0 before there are weights
        super()._add_weights(kernel_shape)
        self.beta_a = self.add_weight(shape=(self.capsules,), initializer=self.beta_a_initializer, name="beta_a")
        self.beta_u = self.add_weight(shape=(self.capsules,), initializer=self.beta_u_initializer, name="beta_u")

    def _published_initializer(self, kernel_shape):
        *positions, child_types, parent_types, rows, columns = kernel_shape
        fans = rows * columns * math.prod(positions) * (child_types + parent_types)
        bound = math.sqrt(6.0 / fans)
        return keras.initializers.RandomUniform(-bound, bound)

    def _learned(self, pose_elements, dtype):
        return [ops.cast(self.beta_u, dtype), ops.cast(self.beta_a, dtype)]

    def _route_votes(self, votes, activations, neighbourhood, iterations, learned) -> Parents:
        beta_u, beta_a = learned
        return vb_routing(votes, activations, beta_u, beta_a, neighbourhood, iterations, self.prior, self.covariance)

    def layer_cost(self, inputs, outputs) -> LayerCost:
        cost = super().layer_cost(inputs, outputs)
        if self.covariance != "full":
            return cost
        *_, rows, columns = outputs[0]
        size, parents = rows * columns, math.prod(outputs[0][:-2])
        pairs = sum(cost.votes) // size
        # An update: of each vote its share twice and the outer product; of each parent that of its mean, and Cholesky.
        update = pairs * (2 * size + size**2) + parents * (size**2 + size * (size - 1) * (size + 4) // 6)
        # Between two updates: of each vote a triangular solve and the square of what comes out.
        between = pairs * (size * (size + 1) // 2 + size)
        return cost._replace(within=self.iterations * update + (self.iterations - 1) * between)

    def get_config(self):
        return {
            **super().get_config(),
            "covariance": self.covariance,
            "alpha0": self.prior.alpha,
            "kappa0": self.prior.kappa,
            "nu0": self.prior.nu,
            "scatter0": self.prior.scatter,
            "return_logits": self.return_logits,
            "beta_a_initializer": keras.initializers.serialize(self.beta_a_initializer),
            "beta_u_initializer": keras.initializers.serialize(self.beta_u_initializer),
        }


@keras.saving.register_keras_serializable(package="caps_tf")
class VBConvCapsules(KernelOfChildren, VBCapsules):
    """Convolutional matrix capsules with variational-Bayes routing.

    Each parent position sees a kernel of child positions; a weight for each kernel position, child type and parent
    type turns child poses into votes. Parents at different positions compete for a child that both see.

    Args:
        capsules: number of parent types.
        kernel_size: side of the receptive field in child positions, or (rows, columns).
        strides: child positions between neighbouring receptive fields, or (rows, columns).
        **kwargs: arguments of `VBCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses [b, h, w, i, x, y] and activations [b, h, w, i].

    Returns:
        poses [b, p, q, j, x, y] and activations (or logits) [b, p, q, j] in the compute dtype; j = `capsules`,
        p = (h - kernel) // stride + 1 and q alike.

    Raises:
        ValueError: if the kernel is larger than the grid of children, or poses are not square matrices.

    Example:
        >>> children = np.ones((2, 14, 14, 8, 4, 4), "float32"), np.ones((2, 14, 14, 8), "float32")
        >>> poses, activations = VBConvCapsules(16, kernel_size=3, strides=2)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 6, 6, 16, 4, 4), (2, 6, 6, 16))

    References:
        Ribeiro, Leontidis, Kollias, "Capsule Routing via Variational Bayes", AAAI 2020.
    """


@keras.saving.register_keras_serializable(package="caps_tf")
class VBClassCapsules(AllChildren, VBCapsules):
    """One matrix capsule for each class, routed by variational Bayes from all children of the image.

    All positions share their weights; with coordinate addition the scaled position of a child is added to its
    vote, so that where a part stands is not lost.

    Args:
        capsules: number of classes.
        coordinate_addition: whether votes carry the position of their child.
        coordinate_scale: s, coordinates run from 0 to this. A child in row r and column c, counted from 0, of h x w
            adds s (c + 0.5) / w to element 3 of a 4x4 vote, read row by row from element 0, and s (r + 0.5) / h to
            element 7. The published code is close: (r + 1) / (10 F) to element 3 and (c + 1) / (10 F) to element 7
            where there are F x F children.
        **kwargs: arguments of `VBCapsules` and `keras.layers.Layer`.

    Call arguments:
        children: poses [b, h, w, i, x, y] and activations [b, h, w, i].

    Returns:
        poses [b, j, x, y] and activations (or logits) [b, j] in the compute dtype, j = `capsules`.

    Raises:
        ValueError: if poses are not square matrices, or have one row and coordinates are to be added.

    Example:
        >>> children = np.ones((2, 4, 4, 16, 4, 4), "float32"), np.ones((2, 4, 4, 16), "float32")
        >>> poses, activations = VBClassCapsules(5)(children)
        >>> tuple(poses.shape), tuple(activations.shape)
        ((2, 5, 4, 4), (2, 5))

    References:
        Ribeiro, Leontidis, Kollias, "Capsule Routing via Variational Bayes", AAAI 2020.
    """

    def __init__(self, capsules: int, coordinate_addition: bool = True, coordinate_scale: float = 0.1, **kwargs):
        super().__init__(capsules, coordinate_addition, **kwargs)
        self.coordinate_scale = coordinate_scale

    def get_config(self):
        return {**super().get_config(), "coordinate_scale": self.coordinate_scale}
