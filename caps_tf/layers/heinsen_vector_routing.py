"""Routing of vectors in sequences: the efficient form, and the general form with four networks supplied by the user."""

import math
from collections.abc import Callable

import keras
from keras import ops

from caps_tf.layers.capsule_layer import LayerCost, RoutingLayer
from caps_tf.layers.precision import routing_dtype
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.heinsen_vectors import (
    RoutedVectors,
    VectorRoutingWeights,
    efficient_vector_routing,
    route_vectors,
)


class VectorRouting(RoutingLayer):
    """What the efficient and the definable form share: the betas, the mask, and what a call returns.

    Args:
        n_inp: number of input vectors; None (or -1) for any number, then the betas are computed from each input.
        n_out: number of output vectors, at least 2.
        iterations: number of iterations, at least 1; the published name `n_iters` is understood too.
        return_dict: whether a call returns a dictionary with the internals.
        **kwargs: `keras.layers.Layer` arguments.

    Raises:
        ValueError: if a size is too small.
    """

    def __init__(self, n_inp: int | None, n_out: int, iterations: int = 2, return_dict: bool = False, **kwargs):
        iterations = kwargs.pop("n_iters", iterations)
        super().__init__(**kwargs)
        n_inp = None if n_inp == -1 else n_inp
        if n_inp is not None and n_inp < 1:
            raise ValueError(f"n_inp must be at least 1, or None for any number of input vectors, not {n_inp}")
        if n_out < 2:
            raise ValueError(f"n_out must be at least 2, for outputs to compete for inputs, not {n_out}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {iterations}")
        self.n_inp = n_inp
        self.n_out = n_out
        self.iterations = iterations
        self.return_dict = return_dict

    def __call__(self, x, mask=None, **kwargs):
        x = x if hasattr(x, "shape") else ops.convert_to_tensor(x)
        self._check_input(x.shape)
        # Keras fills a mask of None with the padding mask [..., n_inp] (true = valid) that x carries. A routing mask
        # with as many axes as x cannot be mistaken for it.
        if mask is not None:
            mask = self._check_mask(mask, x)
        return super().__call__(x, mask=mask, **kwargs)

    def compute_mask(self, inputs, previous_mask=None):
        """None: output vectors are all valid, whichever inputs were padding."""

    def compute_output_spec(self, *args, **kwargs):
        # Traced from `call`, since return_credit changes what it returns.
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def routing_trace(self, x, mask=None) -> RoutingTrace:
        """How each routing iteration shares the inputs among the outputs, for gauges of routing health.

        Args:
            x: as in a call.
            mask: as in a call, or a padding mask.

        Returns:
            `RoutingTrace` of routing weights and activations alone: there are no Gaussians, and no votes are made. n
            counts what the leading axes hold.

        Example:
            >>> layer, x = HeinsenVectorRouting(n_inp=7, n_out=5, d_inp=6, d_out=4, iterations=3), np.ones((2, 7, 6))
            >>> _ = layer(x)
            >>> [tuple(step.routing_weights.shape) for step in layer.routing_trace(x).steps]
            [(2, 5, 7), (2, 5, 7), (2, 5, 7)]
        """
        x = ops.convert_to_tensor(x)
        mask = self._routing_mask(x, mask)
        found = [self._routed(x, mask, iterations) for iterations in range(1, self.iterations + 1)]
        pairs = (-1, *ops.shape(found[0].routing_weights)[-2:])
        steps = (RoutingStep(ops.swapaxes(ops.reshape(each.routing_weights, pairs), 1, 2)) for each in found)
        return RoutingTrace(tuple(steps), ops.reshape(ops.sigmoid(found[0].scores), pairs[:2]))

    def call(self, x, mask=None, return_credit=False):
        return self._outputs(self._routed(x, self._routing_mask(x, mask), self.iterations), return_credit)

    def capsules_of(self, outputs) -> None:
        """Nothing: output vectors are poses whose activations stay inside."""

    def _add_parameter(self, name: str, shape: tuple[int, ...], deviation: float = 0.0):
        # Without automatic casting: the routing wants its parameters in single precision also under mixed policies.
        initializer = keras.initializers.RandomNormal(stddev=deviation) if deviation else "zeros"
        return self.add_weight(name=name, shape=shape, initializer=initializer, autocast=False)

    def _add_betas(self, d_inp: int) -> None:
        if self.n_inp is None:
            self.beta_use_kernel = self._add_parameter("beta_use_kernel", (d_inp, self.n_out), d_inp**-0.5)
            self.beta_use_bias = self._add_parameter("beta_use_bias", (self.n_out,))
            self.beta_ign_kernel = self._add_parameter("beta_ign_kernel", (d_inp, self.n_out), d_inp**-0.5)
            self.beta_ign_bias = self._add_parameter("beta_ign_bias", (self.n_out,))
        else:
            self.beta_use = self._add_parameter("beta_use", (self.n_inp, self.n_out), 1.0)
            self.beta_ign = self._add_parameter("beta_ign", (self.n_inp, self.n_out), 1.0)

    def _betas(self, x) -> tuple:
        if self.n_inp is not None:
            return self.beta_use, self.beta_ign
        beta_use = ops.einsum("...id,dj->...ij", x, self.beta_use_kernel) + self.beta_use_bias
        beta_ign = ops.einsum("...id,dj->...ij", x, self.beta_ign_kernel) + self.beta_ign_bias
        return beta_use, beta_ign

    def _check_input(self, shape) -> None:
        sizes = f"[..., {self.n_inp or 'n_inp'}, d_inp]"
        if len(shape) < 2 or shape[-2] == 0:
            raise ValueError(f"expected at least one input vector, {sizes}, not an input of shape {tuple(shape)}")
        if None not in (self.n_inp, shape[-2]) and shape[-2] != self.n_inp:
            raise ValueError(
                f"expected n_inp = {self.n_inp} input vectors, {sizes}, not an input of shape {tuple(shape)}; with "
                "n_inp None their number may vary"
            )

    def _check_mask(self, mask, x):
        mask = mask if hasattr(mask, "shape") else ops.convert_to_tensor(mask)
        shape, expected = tuple(mask.shape), (x.shape[-2], self.n_out)
        if not 2 <= len(shape) <= len(x.shape) or not _may_be_equal(shape[-2:], expected):
            raise ValueError(
                f"expected a mask [n_inp, n_out] = {list(expected)}, true where an output ignores an input, not {shape}"
            )
        for _ in range(len(x.shape) - len(shape)):
            mask = ops.expand_dims(mask, 0)
        return mask

    def _routing_mask(self, x, mask):
        if mask is None:
            return None
        mask = ops.cast(mask, "bool")
        if len(mask.shape) == len(x.shape) - 1 and _may_be_equal(mask.shape, x.shape[:-1]):  # Keras's padding mask
            mask = ops.repeat(ops.logical_not(mask)[..., None], self.n_out, axis=-1)
        return mask

    def _outputs(self, routed: RoutedVectors, return_credit: bool):
        vectors, credit, routing_weights, scores = (ops.cast(value, self.compute_dtype) for value in routed)
        if self.return_dict:
            return {"a_inp": scores, "R": routing_weights, "phi": credit, "x_out": vectors}
        return (vectors, credit) if return_credit else vectors

    def get_config(self):
        names = ("n_inp", "n_out", "iterations", "return_dict")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="caps_tf")
class HeinsenVectorRouting(VectorRouting):
    """Routes a sequence of vectors to a sequence of other vectors, which predict the first best.

    The efficient form of Heinsen (2022): no tensor of n_inp x n_out x d_out elements is ever made, and memory grows
    linearly with each of n_inp, n_out, d_inp and d_out.

    With a fixed `n_inp` each input vector has a feature space of its own; with n_inp None all share one, and their
    order does not matter.

    Args:
        n_inp: number of input vectors; None (or -1) for any number.
        n_out: number of output vectors, at least 2.
        d_inp: elements of an input vector.
        d_out: elements of an output vector. With d_out 1 the outputs are the n_out elements of one vector, and are
            never normalised.
        iterations: number of iterations, at least 1; the published name `n_iters` is understood too.
        normalize: whether output vectors leave with mean 0 and variance 1.
        memory_efficient: false makes every input's proposal for every output, n_inp x n_out x d_out elements, to the
            same result; for comparison only.
        **kwargs: `keras.layers.Layer` arguments.

    Call arguments:
        x: input vectors, [..., n_inp, d_inp], with any number of leading axes.
        mask: bool, true where an output vector ignores an input vector, [n_inp, n_out] or with leading axes. An input
            that all outputs ignore takes no part. Without it, inputs that Keras marks as padding (by
            `keras.layers.Masking` or `Embedding(mask_zero=True)`) take no part; a mask that is given replaces that.
        return_credit: whether to return phi as well.

    Returns:
        output vectors [..., n_out, d_out] in the compute dtype; with return_credit a pair of them and the credit phi
        [..., n_inp, n_out], which each output vector assigns to each input vector (see
        `caps_tf.routing.end_to_end_credit`). With return_dict, a dictionary of "x_out", "phi", the routing weights "R"
        [..., n_inp, n_out] of the last iteration and the activation scores "a_inp" [..., n_inp].

    Raises:
        ValueError: if a size is too small, x has another shape than agreed, or the mask does not fit it.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 100, 64)).astype("float32")
        >>> vectors, credit = HeinsenVectorRouting(n_inp=100, n_out=10, d_inp=64, d_out=32)(x, return_credit=True)
        >>> tuple(vectors.shape), tuple(credit.shape)
        ((4, 10, 32), (4, 100, 10))

    References:
        Heinsen, "An Algorithm for Routing Vectors in Sequences", 2022, arXiv 2211.11754.
    """

    def __init__(
        self,
        n_inp: int | None,
        n_out: int,
        d_inp: int,
        d_out: int,
        iterations: int = 2,
        normalize: bool = True,
        memory_efficient: bool = True,
        return_dict: bool = False,
        **kwargs,
    ):
        super().__init__(n_inp, n_out, iterations, return_dict, **kwargs)
        if d_inp < 1 or d_out < 1:
            raise ValueError(f"d_inp and d_out must be at least 1, not {d_inp} and {d_out}")
        self.d_inp = d_inp
        self.d_out = d_out
        self.normalize = normalize
        self.memory_efficient = memory_efficient

    def build(self, input_shape):
        self._check_input(input_shape)
        inputs = 1 if self.n_inp is None else self.n_inp
        n_out, d_inp, d_out = self.n_out, self.d_inp, self.d_out
        self.W_A = self._add_parameter("W_A", (inputs, d_inp), 2 * d_inp**-0.5)
        self.B_A = self._add_parameter("B_A", (inputs,))
        self.W_F1 = self._add_parameter("W_F1", (n_out, d_inp), 1.0)
        self.W_F2 = self._add_parameter("W_F2", (d_inp, d_out), 2 * d_inp**-0.5)
        self.B_F2 = self._add_parameter("B_F2", (n_out, d_out))
        self.W_G1 = self._add_parameter("W_G1", (d_out, d_inp), d_out**-0.5)
        self.W_G2 = self._add_parameter("W_G2", (n_out, d_inp), 1.0)
        self.B_G2 = self._add_parameter("B_G2", (n_out, d_inp))
        self.W_S = self._add_parameter("W_S", (inputs, n_out), d_inp**-0.5)
        self.B_S = self._add_parameter("B_S", (inputs, n_out))
        self._add_betas(d_inp)

    def layer_cost(self, inputs, outputs) -> LayerCost:
        """Of the efficient form, which has no votes: products with sums over the inputs come first."""
        [[*batch, i, d]] = inputs
        examples, j, e, combined, judged = (
            math.prod(batch),
            self.n_out,
            self.d_out,
            self.iterations,
            self.iterations - 1,
        )
        with_input = examples * (i * d + (combined + judged) * i * j * d)
        within = examples * (combined * (j * d + j * d * e) + judged * (j * e * d + j * d))
        return LayerCost(with_input, within)

    def _routed(self, x, mask, iterations: int) -> RoutedVectors:
        x = ops.cast(x, routing_dtype(self))
        weights = VectorRoutingWeights(*(getattr(self, name) for name in VectorRoutingWeights._fields))
        beta_use, beta_ign = self._betas(x)
        return efficient_vector_routing(
            x, weights, beta_use, beta_ign, iterations, self.normalize, self.memory_efficient, mask
        )

    def compute_output_shape(self, input_shape):
        self._check_input(input_shape)
        return (*input_shape[:-2], self.n_out, self.d_out)

    def _check_input(self, shape) -> None:
        super()._check_input(shape)
        if shape[-1] != self.d_inp:
            raise ValueError(f"expected input vectors of d_inp = {self.d_inp} elements, not {shape[-1]}")

    def get_config(self):
        names = ("d_inp", "d_out", "normalize", "memory_efficient")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="caps_tf")
class DefinableVectorRouting(VectorRouting):
    """Routes vectors with four networks supplied by the user: the general form of Heinsen (2022), algorithm 1.

    `HeinsenVectorRouting` is a special case, which needs less memory than F and S here can.

    Args:
        n_inp: number of input vectors; None (or -1) for any number.
        n_out: number of output vectors, at least 2.
        A: gives the activation score of each input, x [..., n_inp, d_inp] to [..., n_inp, 1].
        F: gives what each input proposes for each output, x to [..., n_inp, n_out, d_out], or without the leading axes.
        G: gives what each output predicts for the inputs, [..., n_out, d_out] to [..., n_out, d_inp] (or whatever S
            takes).
        S: scores the predictions, (x, predictions) to [..., n_inp, n_out].
        iterations: number of iterations, at least 1; the published name `n_iters` is understood too.
        return_dict: whether a call returns a dictionary with the internals.
        **kwargs: `keras.layers.Layer` arguments.

    A, F, G and S are Keras layers or functions of tensors; the layer can be saved where they can: layers, and
    functions registered with `keras.saving.register_keras_serializable`.

    Call arguments, returns and errors: as for `HeinsenVectorRouting`.

    Example:
        >>> def agreement(x, predictions):
        ...     return ops.einsum("...id,...jd->...ij", x, predictions)
        >>> routing = DefinableVectorRouting(
        ...     n_inp=None, n_out=5, A=keras.layers.Dense(1), G=keras.layers.Dense(6), S=agreement,
        ...     F=keras.Sequential([keras.layers.Dense(5 * 4), keras.layers.Reshape((-1, 5, 4))]))
        >>> tuple(routing(np.ones((2, 7, 6), "float32")).shape)
        (2, 5, 4)

    References:
        Heinsen, "An Algorithm for Routing Vectors in Sequences", 2022, arXiv 2211.11754.
    """

    def __init__(
        self,
        n_inp: int | None,
        n_out: int,
        A: Callable,
        F: Callable,
        G: Callable,
        S: Callable,
        iterations: int = 2,
        return_dict: bool = False,
        **kwargs,
    ):
        super().__init__(n_inp, n_out, iterations, return_dict, **kwargs)
        self.A = A
        self.F = F
        self.G = G
        self.S = S

    def build(self, input_shape):
        self._check_input(input_shape)
        self._add_betas(input_shape[-1])
        # Builds the four networks.
        spec = self.compute_output_spec(keras.KerasTensor(input_shape, self.compute_dtype))
        self.d_out = (spec["x_out"] if self.return_dict else spec).shape[-1]

    def layer_cost(self, inputs, outputs) -> LayerCost:
        """Counts the sums over the inputs' proposals only, not what the four networks compute."""
        [[*batch, i, _]] = inputs
        proposals = math.prod(batch) * i * self.n_out * self.d_out
        return LayerCost(0, self.iterations * proposals, (proposals,))

    def _routed(self, x, mask, iterations: int) -> RoutedVectors:
        scores = ops.cast(self.A(x)[..., 0], routing_dtype(self))
        proposals = ops.cast(self.F(x), routing_dtype(self))

        def combine(credit):
            return ops.einsum("...ij,...ije->...je", credit, proposals)

        def judge(vectors):
            return ops.cast(self.S(x, self.G(vectors)), routing_dtype(self))

        beta_use, beta_ign = self._betas(ops.cast(x, routing_dtype(self)))
        return route_vectors(scores, combine, judge, beta_use, beta_ign, iterations, mask)

    def compute_output_shape(self, input_shape):
        if not self.built:
            self.build(input_shape)
        return (*input_shape[:-2], self.n_out, self.d_out)

    def get_config(self):
        networks = {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in "AFGS"}
        return {**super().get_config(), **networks}

    @classmethod
    def from_config(cls, config):
        networks = {name: keras.saving.deserialize_keras_object(config[name]) for name in "AFGS"}
        return cls(**{**config, **networks})


def _may_be_equal(shape, other) -> bool:
    return all(None in sizes or sizes[0] == sizes[1] for sizes in zip(shape, other, strict=True))
