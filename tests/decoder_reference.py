"""Reconstructions in float64 from a decoder's weights, capsule by capsule."""

import numpy as np


def drawn_by_hand(decoder, poses, kept):
    """Images [n, h, w, c] of poses [n, classes, ...] and kept [n, classes]; masked capsules are never multiplied."""
    layers = (decoder.first, decoder.second, decoder.pixels)
    first, second, pixels = ([np.asarray(weight, np.float64) for weight in layer.get_weights()] for layer in layers)
    images = []
    for example, shares in zip(poses.reshape(*poses.shape[:2], -1).astype(np.float64), kept, strict=True):
        x, size = first[1].copy(), example.shape[1]
        for number, (pose, share) in enumerate(zip(example, shares, strict=True)):
            if share:
                x += share * pose @ first[0][number * size : (number + 1) * size]
        x = np.maximum(np.maximum(x, 0) @ second[0] + second[1], 0)
        images.append(1 / (1 + np.exp(-(x @ pixels[0] + pixels[1]))))
    return np.reshape(images, (-1, *decoder.image_shape))
