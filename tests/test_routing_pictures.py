"""What examples/routing_pictures.py draws is true: every routing gives parts to the whole on which their votes agree."""

import numpy as np
import pytest

from caps_tf.evaluation.style import save_figure
from examples import routing_pictures


@pytest.fixture(scope="module")
def parts():
    return routing_pictures.make_parts()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "em" else pytest.mark.campaign) for name in routing_pictures.TRACES],
)
def test_a_routing_gives_parts_to_the_whole_that_they_agree_on(name, parts, tmp_path):
    steps = routing_pictures.TRACES[name](parts).steps
    owners = np.arange(routing_pictures.PARTS) * routing_pictures.WHOLES // routing_pictures.PARTS
    own = [np.asarray(step.routing_weights)[0, owners, np.arange(routing_pictures.PARTS)] for step in steps]
    np.testing.assert_allclose(own[0], 0.5, atol=1e-6)  # nothing is known at first
    assert (own[-1] > 0.5).mean() > 0.8 and own[-1].mean() > own[0].mean() + 0.15
    votes, poses = (np.asarray(each)[0, :, :2] for each in (steps[-1].votes, steps[-1].parents))
    for whole, (its_votes, pose) in enumerate(zip(votes, poses, strict=True)):  # rings lie among the dots
        np.testing.assert_allclose(pose, its_votes[:, owners == whole].mean(axis=1), atol=0.25)
    figure = routing_pictures.draw(steps)
    assert len(figure.axes) == routing_pictures.WHOLES * len(steps)
    assert save_figure(figure, tmp_path / "picture.png").stat().st_size > 10_000
