"""Turns published PyTorch weights into a Keras file.

    python -m caps_tf.import_weights --network=heinsen_norb --source=smallNORB_pretrained_model_state_dict.pt \\
      --output=heinsen_norb.keras

The sizes of the network are those of the weights. Nothing that the file may hold is run; see `caps_tf.state_dict`.
"""

import numpy as np
from absl import flags

from caps_tf.errors import UserError
from caps_tf.scripts import run_script
from caps_tf.startup import start_keras
from caps_tf.state_dict import read_state_dict


def _define_flags() -> None:
    flags.DEFINE_enum("network", None, ["heinsen_norb", "heinsen_sst"], "which network's weights", required=True)
    flags.DEFINE_string("source", None, "state dict of PyTorch (.pt), as torch.save writes it", required=True)
    flags.DEFINE_string(
        "output", None, "file to write: .keras for the whole model, .weights.h5 for its weights alone", required=True
    )
    flags.DEFINE_integer("image_size", 96, "rows and columns of the images, for networks of images", lower_bound=1)


def _main(argv: list[str]) -> None:
    del argv
    options = flags.FLAGS
    state = read_state_dict(options.source)

    start_keras()
    from caps_tf.pretrained import import_weights, save_model

    try:
        model = import_weights(options.network, state, options.image_size)
    except UserError as error:
        raise UserError(f"{options.source}: {error}") from None
    path = save_model(model, options.output)
    parameters = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    print(f"{path}: {options.network} with {parameters:,} trainable parameters")


if __name__ == "__main__":
    _define_flags()
    run_script(_main)
