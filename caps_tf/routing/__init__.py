"""Routing algorithms: pure functions of tensors, votes and activations in, parents out.

The letters of every einsum in this library:

    b      image of the batch
    h w    rows and columns of child capsules
    p q    rows and columns of parent capsules
    k      position in a parent's receptive field, row by row
    i j    child (input) and parent (output) capsule types
    x y z  rows and columns of pose matrices: a vote is pose [x y] times weight [y z]
    d      elements of a pose read as a vector, row by row
    n      parent positions of all images (b p q merged)
    c      children in a parent's receptive field (k i merged)
"""

from caps_tf.routing.em import em_routing
from caps_tf.routing.neighbourhood import Neighbourhood

__all__ = ["Neighbourhood", "em_routing"]
