"""Training on any Keras backend, without TensorFlow: images in device memory, augmented there, and Keras's own `fit`."""
