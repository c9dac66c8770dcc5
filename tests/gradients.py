"""Gradients on whichever backend Keras runs, for tests that compare or check them."""

import keras
import numpy as np


def gradients(function, *inputs):
    """Gradients of a scalar function of tensors, as NumPy arrays, on TensorFlow, JAX or PyTorch."""
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        variables = [tf.Variable(value) for value in inputs]
        with tf.GradientTape() as tape:
            result = function(*(variable.value() for variable in variables))
        found = tape.gradient(result, variables, unconnected_gradients="zero")
        return [gradient.numpy() for gradient in found]
    if backend == "jax":
        import jax

        found = jax.grad(function, argnums=tuple(range(len(inputs))))(*(jax.numpy.asarray(value) for value in inputs))
        return [np.asarray(gradient) for gradient in found]
    import torch

    tensors = [torch.tensor(value, requires_grad=True) for value in inputs]
    function(*tensors).backward()
    return [np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in tensors]
