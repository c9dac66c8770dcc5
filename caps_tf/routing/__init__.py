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
    r      rows x of the poses at all parent positions (n x merged)
    w      elements of the weights of all parent types (j z merged)
    m      moments of a pose row: its elements y and their products y y'
    e      elements of an output vector, where input vectors have d; columns of a matrix whose rows are d
    o      output capsules of the routing after this one, whose inputs are j
    ...    any number of leading axes, the batch among them
"""

from caps_tf.routing.credit import end_to_end_credit
from caps_tf.routing.dynamic import dynamic_routing, lengths, squash
from caps_tf.routing.em import em_routing
from caps_tf.routing.heinsen import heinsen_routing
from caps_tf.routing.heinsen_vectors import efficient_vector_routing, route_vectors
from caps_tf.routing.heinsen_votes import SharedVotes, StoredSharedVotes, StoredVotes, votes_form
from caps_tf.routing.inverted_attention import (
    first_parents,
    next_parents,
    route_concurrently,
    route_sequentially,
    routing_weights,
    shared_parents,
)
from caps_tf.routing.neighbourhood import Neighbourhood
from caps_tf.routing.self_routing import self_routing
from caps_tf.routing.variational_bayes import Prior, vb_routing

__all__ = [
    "Neighbourhood",
    "Prior",
    "SharedVotes",
    "StoredSharedVotes",
    "StoredVotes",
    "dynamic_routing",
    "efficient_vector_routing",
    "em_routing",
    "end_to_end_credit",
    "first_parents",
    "heinsen_routing",
    "lengths",
    "next_parents",
    "route_concurrently",
    "route_sequentially",
    "route_vectors",
    "routing_weights",
    "self_routing",
    "shared_parents",
    "squash",
    "vb_routing",
    "votes_form",
]
