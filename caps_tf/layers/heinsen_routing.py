"""Heinsen routing (2019) as a Keras layer."""

import math

import keras
from keras import ops

from caps_tf.layers.capsule_layer import LayerCost, RoutingLayer, multiplications_of_votes
from caps_tf.layers.precision import routing_dtype
from caps_tf.routing.grouping import CACHED_VOTES, map_groups
from caps_tf.routing.health import RoutingStep, RoutingTrace
from caps_tf.routing.heinsen import P_MODELS, HeinsenParents, heinsen_routing
from caps_tf.routing.heinsen_votes import StoredSharedVotes, StoredVotes, votes_form
from caps_tf.tensors import Tensor

_NO_COMPETITOR = "a single parent would have nobody to compete with for the children"


@keras.saving.register_keras_serializable(package="caps_tf")
class HeinsenRouting(RoutingLayer):
    """Routes scored matrix capsules to scored matrix capsules by Heinsen's algorithm of 2019.

    Arguments carry the names of the published PyTorch module. A number of capsules that is left open (None; -1 is
    read as None) may differ from call to call, and then all capsules on that side share their weights.

    Args:
        d_cov: rows of a pose (covector dimensions), the same for children and parents.
        d_inp: columns of a child's pose.
        d_out: columns of a parent's pose.
        n_inp: number of children, or None for any number.
        n_out: number of parents, or None: as many as `call` is given, by default as many as there are children.
        iterations: routing iterations; the published module's name for it, `n_iters`, is understood too.
        single_beta: whether ignoring a child's data costs what using them would yield (beta_ign = beta_use).
        p_model: "gaussian", or "skm" for soft k-means.
        eps: keeps divisions and variances above zero.
        symmetry_breaking: with `n_out` None all parents would come out equal; True adds to B a term
            B_brk linspace(-1, 1, n_out), as the published code has done since December 2019.
        return_dict: whether `call` returns a dictionary with the internals.
        votes_at_a_time: bytes of votes that may exist at the same time, whatever the processor; by default what suits
            it, see `choose_groups`. A batch is divided evenly, and one example's votes may be more.
        bias_initializer: of B; zeros as published. Parents that share all children start as copies of the same
            average, apart from W; noise makes them differ, so that learning begins at once.
        **kwargs: arguments of `keras.layers.Layer`.

    Call arguments:
        children: scores a_inp [..., n_inp] and poses mu_inp [..., n_inp, d_cov, d_inp], with any number of leading
            dimensions, none included. A score of minus infinity hides a child.
        n_out: number of parents, only where the layer leaves it open.
        return_R: whether to return the routing weights as well.

    Returns:
        scores a_out [..., n_out], poses mu_out and variances sig2_out [..., n_out, d_cov, d_out], and with `return_R`
        the routing weights R [..., n_inp, n_out]. With `return_dict`, a dictionary of "a_out", "mu_out", "sig2_out",
        "R", "log_p", "D_use", "D_ign" (the last four [..., n_inp, n_out]) and the votes
        "V" [..., n_inp, n_out, d_cov, d_out]; "log_p" is zero after a single iteration.

    Raises:
        ValueError: if a number is not positive, `n_out` is given twice or shapes do not fit.

    Example:
        >>> import numpy as np
        >>> layer = HeinsenRouting(n_inp=None, n_out=5, d_cov=4, d_inp=4, d_out=4)
        >>> scores, poses, variances = layer((np.zeros((2, 30)), np.ones((2, 30, 4, 4))))
        >>> tuple(scores.shape), tuple(poses.shape)
        ((2, 5), (2, 5, 4, 4))

    References:
        Heinsen, "An Algorithm for Routing Capsules in All Domains", 2019, arXiv 1911.00792.
    """

    cached_votes = CACHED_VOTES["heinsen"]

    def __init__(
        self,
        d_cov: int,
        d_inp: int,
        d_out: int,
        n_inp: int | None = None,
        n_out: int | None = None,
        iterations: int = 3,
        single_beta: bool = False,
        p_model: str = "gaussian",
        eps: float = 1e-5,
        symmetry_breaking: bool = False,
        return_dict: bool = False,
        votes_at_a_time: int | None = None,
        bias_initializer: keras.initializers.Initializer | str = "zeros",
        **kwargs,
    ):
        iterations = kwargs.pop("n_iters", iterations)
        super().__init__(**kwargs)
        self.n_inp = None if n_inp == -1 else n_inp
        self.n_out = None if n_out == -1 else n_out
        sizes = {"n_inp": self.n_inp, "n_out": self.n_out, "d_cov": d_cov, "d_inp": d_inp, "d_out": d_out}
        for name, size in {**sizes, "iterations": iterations, "votes_at_a_time": votes_at_a_time}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        if self.n_out == 1:
            raise ValueError(f"n_out must be at least 2, not 1: {_NO_COMPETITOR}")
        if p_model not in P_MODELS:
            raise ValueError(f"p_model must be one of {', '.join(P_MODELS)}, not {p_model!r}")
        if symmetry_breaking and self.n_out is not None:
            raise ValueError("symmetry_breaking tells parents with shared weights apart: leave n_out open for it")
        self.d_cov, self.d_inp, self.d_out = d_cov, d_inp, d_out
        self.iterations = iterations
        self.single_beta = single_beta
        self.p_model = p_model
        self.eps = eps
        self.symmetry_breaking = symmetry_breaking
        self.return_dict = return_dict
        self.votes_at_a_time = votes_at_a_time
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape):
        self._check_children(input_shape)
        weights = (self.n_inp or 1, self.n_out or 1)
        # Not cast under a mixed policy: routing is never in less than float32.
        exact = {"autocast": False}
        self.W = self.add_weight(
            shape=(*weights, self.d_inp, self.d_out),
            initializer=keras.initializers.RandomNormal(stddev=1.0 / self.d_inp),
            name="W",
            **exact,
        )
        self.B = self.add_weight(
            shape=(*weights, self.d_cov, self.d_out), initializer=self.bias_initializer, name="B", **exact
        )
        if self.symmetry_breaking:
            self.B_brk = self.add_weight(
                shape=(1, self.d_cov, self.d_out),
                initializer=keras.initializers.RandomNormal(stddev=1.0 / self.d_inp),
                name="B_brk",
                **exact,
            )
        self.beta_use = self.add_weight(shape=weights, initializer="zeros", name="beta_use", **exact)
        self.beta_ign = (
            self.beta_use
            if self.single_beta
            else self.add_weight(shape=weights, initializer="zeros", name="beta_ign", **exact)
        )

    def call(self, children, n_out: int | None = None, return_R: bool = False):
        leading = ops.shape(children[0])[:-1]
        scores, poses, (kernel, bias, *betas) = self._exact(children, n_out)
        kept = len(HeinsenParents._fields) if self.return_dict else 4 if return_R else 3
        parents = self._route(scores, poses, (kernel, bias, *betas), kept)

        def as_given(value: Tensor) -> Tensor:
            """Leading dimensions as they came, [b, ...] to [..., ...], in the compute dtype."""
            return ops.cast(ops.reshape(value, (*leading, *ops.shape(value)[1:])), self.compute_dtype)

        def children_first(value: Tensor) -> Tensor:
            return as_given(ops.transpose(value, (0, 2, 1)))

        outputs = tuple(map(as_given, parents[:3]))
        if self.return_dict:
            votes = ops.transpose(_stored_votes(poses, kernel, bias).values, (0, 3, 1, 2))
            return {
                **dict(zip(("a_out", "mu_out", "sig2_out"), outputs, strict=True)),
                **dict(zip(("R", "log_p", "D_use", "D_ign"), map(children_first, parents[3:]), strict=True)),
                "V": as_given(ops.reshape(votes, (*ops.shape(votes)[:3], self.d_cov, self.d_out))),
            }
        return (*outputs, children_first(parents[3])) if return_R else outputs

    def routing_trace(self, children, n_out: int | None = None) -> RoutingTrace:
        """What each routing iteration does with children, for gauges of routing health.

        Args:
            children: as in a call, but of a few examples only, since all their votes are computed.
            n_out: number of parents, only where the layer leaves it open.

        Returns:
            `RoutingTrace` in single precision; n counts examples, and a parent's activation is sigmoid(score).

        Example:
            >>> import numpy as np
            >>> layer = HeinsenRouting(n_inp=None, n_out=5, d_cov=4, d_inp=4, d_out=4, iterations=3)
            >>> children = np.zeros((2, 30), "float32"), np.ones((2, 30, 4, 4), "float32")
            >>> _ = layer(children)
            >>> trace = layer.routing_trace(children)
            >>> len(trace.steps), tuple(trace.steps[0].votes.shape)
            (3, (2, 5, 16, 30))
        """
        scores, poses, (kernel, bias, *betas) = self._exact(children, n_out)
        votes, (beta_use, beta_ign) = _stored_votes(poses, kernel, bias), map(ops.transpose, betas)
        steps = []
        for iterations in range(1, self.iterations + 1):
            parents = heinsen_routing(scores, votes, beta_use, beta_ign, iterations, self.p_model, self.eps)
            n, j, *_ = ops.shape(parents.poses)
            means, variances = (ops.reshape(value, (n, j, -1)) for value in (parents.poses, parents.variances))
            active = ops.sigmoid(parents.scores)
            steps.append(RoutingStep(parents.routing_weights, votes.values, means, variances, active))
        return RoutingTrace(tuple(steps), ops.sigmoid(scores), self.eps)

    def layer_cost(self, inputs, outputs) -> LayerCost:
        _, (*batch, children, rows, columns) = inputs
        parents, columns_out = outputs[1][-3], outputs[1][-1]
        pairs = math.prod(batch) * children * parents
        votes = pairs * rows * columns_out
        least = votes * columns, votes * multiplications_of_votes(self.iterations)
        if self.n_inp is None:  # the same sums from the moments of pose rows, without votes
            moments = columns + columns * (columns + 1) // 2
            least = min(least, (pairs * rows * moments * (2 * self.iterations - 1), 0), key=sum)
        return LayerCost(*least, (votes,))

    def capsules_of(self, outputs) -> tuple:
        if isinstance(outputs, dict):
            return outputs["mu_out"], outputs["a_out"]
        scores, poses, *_ = outputs
        return poses, scores

    def _exact(self, children, n_out: int | None) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Scores [b, i], poses [b, i, x, y], and kernel, bias and betas, all in the precision of routing."""
        scores, poses = children
        precision = routing_dtype(self)
        scores = ops.reshape(ops.cast(scores, precision), (-1, ops.shape(scores)[-1]))
        poses = ops.reshape(ops.cast(poses, precision), (-1, *ops.shape(poses)[-3:]))
        kernel, bias = self._kernel_and_bias(self._parents(n_out, ops.shape(scores)[-1]))
        weights = (kernel, bias, self.beta_use, self.beta_ign)
        return scores, poses, tuple(ops.cast(tensor, precision) for tensor in weights)

    def _route(self, scores: Tensor, poses: Tensor, weights: tuple[Tensor, ...], kept: int) -> tuple[Tensor, ...]:
        """The first `kept` of `HeinsenParents`, for a few examples at a time where all their votes are too many.

        Nothing needs the votes of two examples at once: in groups they are made again for the gradient.
        """
        kernel, bias, *betas = weights
        votes = votes_form(kernel, bias).of(poses, kernel, bias)

        def route(scores, poses, weights, betas):
            (beta_use, beta_ign), some = betas, votes.of_examples(poses, weights)
            return heinsen_routing(scores, some, beta_use, beta_ign, self.iterations, self.p_model, self.eps)[:kept]

        grouped, shared = (scores, votes.poses), (votes.shared, tuple(map(ops.transpose, betas)))
        batch, n_inp, parents = *scores.shape, kernel.shape[1]
        if None in (n_inp, parents):
            return route(*grouped, *shared)
        elements = n_inp * parents * self.d_cov * self.d_out
        return map_groups(route, grouped, shared, *self.groups(batch, elements, scores))

    def _parents(self, n_out: int | None, children: int | Tensor) -> int | Tensor:
        """Number of parents of this call."""
        if self.n_out is not None:
            if n_out not in (None, self.n_out):
                raise ValueError(
                    f"the layer was made for n_out={self.n_out}, not {n_out}: leave n_out open when making it"
                )
            return self.n_out
        parents = children if n_out is None else n_out
        if isinstance(parents, int) and parents < 2:
            raise ValueError(f"n_out must be at least 2, not {parents}: {_NO_COMPETITOR}")
        return parents

    def _kernel_and_bias(self, parents: int | Tensor) -> tuple[Tensor, Tensor]:
        """W [i or 1, j, y, z] and B [i or 1, j, x, z], with a copy for each parent where they share one."""
        if self.n_out is not None:
            return self.W, self.B
        bias = self.B
        if self.symmetry_breaking:
            bias = bias + ops.linspace(-1.0, 1.0, parents, dtype=bias.dtype)[:, None, None] * self.B_brk
        return tuple(
            ops.broadcast_to(weight, (weight.shape[0], parents, *weight.shape[2:])) for weight in (self.W, bias)
        )

    def compute_output_shape(self, input_shape):
        return self._output_shapes(input_shape)

    def compute_output_spec(self, children, n_out: int | None = None, return_R: bool = False):
        shapes = self._output_shapes([child.shape for child in children], n_out, return_R)

        def spec(shape):
            return keras.KerasTensor(shape, dtype=self.compute_dtype)

        if isinstance(shapes, dict):
            return {name: spec(shape) for name, shape in shapes.items()}
        return tuple(map(spec, shapes))

    def _output_shapes(self, input_shape, n_out: int | None = None, return_R: bool = False):
        (*leading, n_inp), _ = self._check_children(input_shape)
        parents = self._parents(n_out, n_inp)
        a_out = (*leading, parents)
        mu_out = (*a_out, self.d_cov, self.d_out)
        pairs = (*leading, n_inp, parents)
        if self.return_dict:
            shapes = dict.fromkeys(("R", "log_p", "D_use", "D_ign"), pairs)
            votes = (*pairs, self.d_cov, self.d_out)
            return {"a_out": a_out, "mu_out": mu_out, "sig2_out": mu_out, **shapes, "V": votes}
        return (a_out, mu_out, mu_out, pairs) if return_R else (a_out, mu_out, mu_out)

    def _check_children(self, input_shape) -> tuple[tuple, tuple]:
        """Returns the shapes of scores and poses, checked."""
        try:
            scores, poses = (tuple(shape) for shape in input_shape)
        except (TypeError, ValueError):
            raise ValueError(f"expected scores and poses as a pair, not an input of shape {input_shape}") from None

        def differ(size: int | None, other: int | None) -> bool:
            return None not in (size, other) and size != other

        if (
            poses[-2:] != (self.d_cov, self.d_inp)
            or len(poses) != len(scores) + 2
            or any(differ(*sizes) for sizes in zip(scores, poses, strict=False))
            or differ(scores[-1], self.n_inp)
            or scores[-1] == 0
        ):
            children = self.n_inp or "n_inp"
            raise ValueError(
                f"expected scores [..., {children}] and poses [..., {children}, {self.d_cov}, {self.d_inp}], "
                f"not {scores} and {poses}"
            )
        return scores, poses

    def get_config(self):
        names: tuple[str, ...] = ("d_cov", "d_inp", "d_out", "n_inp", "n_out", "iterations", "single_beta", "p_model")
        names = (*names, "eps", "symmetry_breaking", "return_dict", "votes_at_a_time")
        bias = keras.initializers.serialize(self.bias_initializer)
        return {**super().get_config(), **{name: getattr(self, name) for name in names}, "bias_initializer": bias}


def _stored_votes(poses: Tensor, kernel: Tensor, bias: Tensor) -> StoredVotes:
    """The votes as a tensor, whether or not children share their weights."""
    form = StoredSharedVotes if kernel.shape[0] == 1 else StoredVotes
    return form.of(poses, kernel, bias)
