"""Draws what each routing does: 24 parts that belong to two wholes, iteration by iteration.

    python examples/routing_pictures.py --output=docs/routings

Each part votes for the poses of two wholes, by random turns of its own. The poses are chosen so that the first twelve parts
agree on the first whole and the others on the second, all but for some noise; of the other whole their votes say nothing.
A routing knows none of that. A picture has a row for each whole and a column for each iteration: a dot is a part's vote, its
first two pose elements, as dark as the share of the part that the whole gets (shares below 6 % as if they were 6 %, to be
seen), and the ring is the whole's pose; of dynamic routing, which squashes it, the mean of votes that it points to. The layers
are untrained: what is drawn is the routing alone.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from caps_tf.errors import UserError
from caps_tf.evaluation.style import COLORS, FAINT, new_figure, save_figure, style_axes
from caps_tf.routing.health import RoutingStep
from caps_tf.scripts import run_script

OUTPUT = flags.DEFINE_string("output", None, "directory for <routing>.png", required=True)
ROUTINGS = flags.DEFINE_list("routings", [], "which, instead of all")

PARTS, WHOLES, SIDE = 24, 2, 4
NOISE = 0.15


class Parts(NamedTuple):
    """Parts with poses [1, 1, 1, parts, 4, 4], activations [1, 1, 1, parts], and weights [parts, wholes, 4, 4]."""

    poses: np.ndarray
    activations: np.ndarray
    weights: np.ndarray


def make_parts(seed: int = 0) -> Parts:
    """Parts whose votes, pose times weights, agree on the whole that they belong to."""
    rng = np.random.default_rng(seed)
    weights = np.linalg.qr(rng.normal(size=(PARTS, WHOLES, SIDE, SIDE)))[0]  # turns, so that all votes are of one size
    wholes = rng.normal(size=(WHOLES, SIDE, SIDE))
    owners = np.arange(PARTS) * WHOLES // PARTS
    votes = wholes[owners] + NOISE * rng.normal(size=(PARTS, SIDE, SIDE))
    poses = votes @ np.swapaxes(weights[np.arange(PARTS), owners], 1, 2)
    return Parts(poses[None, None, None].astype("float32"), np.full((1, 1, 1, PARTS), 0.9, "float32"), weights)


def trace_em(parts: Parts):
    from caps_tf.layers import EMClassCapsules

    layer = EMClassCapsules(WHOLES, coordinate_addition=False, iterations=3, beta_a_initializer="zeros")
    layer((parts.poses, parts.activations))
    layer.kernel.assign(parts.weights)
    return layer.routing_trace((parts.poses, parts.activations))


def trace_heinsen(parts: Parts):
    from caps_tf.layers import HeinsenRouting

    layer = HeinsenRouting(n_inp=PARTS, n_out=WHOLES, d_cov=SIDE, d_inp=SIDE, d_out=SIDE, iterations=3)
    children = parts.activations[0, 0], parts.poses[0, 0]
    layer(children)
    layer.W.assign(np.reshape(parts.weights, layer.W.shape))
    return layer.routing_trace(children)


def trace_attention(parts: Parts):
    from caps_tf.layers import AttentionClassCapsules, CapsuleStack

    stack = CapsuleStack([AttentionClassCapsules(WHOLES, normalize=False, name="wholes")], iterations=3)
    stack(parts.poses)
    kernel = stack.layers[0].kernel
    kernel.assign(np.reshape(parts.weights, kernel.shape))
    return stack.routing_trace(parts.poses)["wholes"]


def trace_vb(parts: Parts):
    from caps_tf.layers import VBClassCapsules

    layer = VBClassCapsules(WHOLES, coordinate_addition=False)
    layer((parts.poses, parts.activations))
    layer.kernel.assign(parts.weights)
    return layer.routing_trace((parts.poses, parts.activations))


def trace_dynamic(parts: Parts):
    from caps_tf.layers import DynamicClassCapsules

    layer = DynamicClassCapsules(WHOLES, pose_elements=SIDE * SIDE, iterations=3)
    vectors = parts.poses.reshape(1, PARTS, -1)
    layer(vectors)
    # Of a pose that is read row by row, the same weights for each row.
    layer.kernel.assign(np.kron(np.eye(SIDE), parts.weights)[None])
    trace = layer.routing_trace(vectors)
    return trace._replace(steps=tuple(step._replace(parents=mean_votes(step)) for step in trace.steps))


def mean_votes(step: RoutingStep) -> np.ndarray:
    """Means of votes, weighed by routing weights, [n, wholes, 16]: where a squashed pose points, among the votes."""
    weights, votes = np.asarray(step.routing_weights), np.asarray(step.votes)
    return np.einsum("njc,njdc->njd", weights, votes) / weights.sum(axis=-1, keepdims=True)


TRACES: dict[str, Callable] = {
    "em": trace_em,
    "heinsen": trace_heinsen,
    "attention": trace_attention,
    "vb": trace_vb,
    "dynamic": trace_dynamic,
}


def draw(steps) -> Figure:
    """A row for each whole and a column for each iteration, from `RoutingTrace.steps`."""
    figure = new_figure(3.0 * len(steps), 2.6 * WHOLES)
    panels = figure.subplots(WHOLES, len(steps), sharex="row", sharey="row", squeeze=False)
    for column, step in enumerate(steps):
        weights, votes, poses = (np.asarray(each)[0] for each in (step.routing_weights, step.votes, step.parents))
        for whole, axes in enumerate(panels[:, column]):
            for group, marker in enumerate("os"):
                mine = np.arange(PARTS) * WHOLES // PARTS == group
                shares = np.clip(weights[whole, mine], 0.06, 1.0)
                axes.scatter(
                    *votes[whole, :2, mine].T, s=28, marker=marker, color=COLORS[group], alpha=shares, linewidths=0
                )
            axes.scatter(*poses[whole, :2], s=150, facecolors="none", edgecolors=FAINT, linewidths=1.5)
            style_axes(axes, "", f"votes for whole {whole + 1}" if not column else "", grid=False)
            if not whole:
                axes.set_title(f"iteration {column + 1}", fontsize=10)
    return figure


def main(argv: list[str]) -> None:
    del argv
    if unknown := sorted(set(ROUTINGS.value) - set(TRACES)):
        raise UserError(f"there is no picture of {unknown[0]!r}: choose of {', '.join(TRACES)}")
    parts, output = make_parts(), Path(OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for name in ROUTINGS.value or TRACES:
        print(save_figure(draw(TRACES[name](parts).steps), output / f"{name}.png"))


if __name__ == "__main__":
    run_script(main)
