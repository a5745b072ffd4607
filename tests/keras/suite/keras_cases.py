"""What the files of the suite share: their backend, gates beside PyTorch's, networks as training leaves them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch
from keras import ops

import excite
import excite_keras
from excite_keras.axes import GATE_WEIGHTS, to_torch_axes

BACKEND = keras.backend.backend()


def only(*backends):
    """For what does not hang on the backend, or is of one alone."""
    return pytest.mark.skipif(BACKEND not in backends, reason=f"on {' and '.join(backends)}")


def numpy(x):
    return ops.convert_to_numpy(x)


def twins(text, channels, **arguments):
    """A gate of PyTorch with weights that take every function out of its linear part, and Keras' with the same."""
    gate = excite.parse_gate(text).build(channels)
    with torch.no_grad():
        for p in gate.parameters():
            p.copy_(torch.randn(p.shape) * (1.0 if p.dim() == 1 else 2 / p[0].numel() ** 0.5))
    layer = excite_keras.parse_gate(text).fresh(**arguments)
    excite_keras.load_gate(layer, gate)
    return gate, layer


def first(x):
    """Channels behind the batch."""
    return np.moveaxis(x, -1, 1)


def last(x):
    """Channels at the end."""
    return np.moveaxis(x, 1, -1)


def apart(y, expected):
    """The largest difference, as a share of the largest number expected."""
    assert y.shape == expected.shape
    return float(abs(y - expected).max() / abs(expected).max())


def gradients(layer, x, direction):
    """Of sum(direction * layer(x)) by x and by the layer's weights, the weights' under PyTorch's names and axes."""
    weights = layer.trainable_weights
    if BACKEND == "tensorflow":
        import tensorflow as tf

        u = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(u)
            loss = ops.sum(layer(u) * direction)
        found = tape.gradient(loss, [u, *[w.value for w in weights]])
    elif BACKEND == "jax":
        import jax

        def loss_of(u, values):
            return ops.sum(layer.stateless_call(values, [], u)[0] * direction)

        by_x, by_weights = jax.grad(loss_of, argnums=(0, 1))(ops.convert_to_tensor(x), [w.value for w in weights])
        found = [by_x, *by_weights]
    else:
        u = torch.tensor(x, requires_grad=True)
        loss = ops.sum(layer(u) * torch.from_numpy(direction))
        found = torch.autograd.grad(loss, [u, *[w.value for w in weights]])
    named = dict(zip([w.name for w in weights], [numpy(g) for g in found[1:]], strict=True))
    rules = GATE_WEIGHTS[layer.GATE].items()
    return numpy(found[0]), {k: to_torch_axes(named[w.theirs], w.kind) for k, w in rules if w.theirs in named}


def trained(model, seed=0):
    """Norms and biases as training leaves them: a fresh network's zeros and ones hide what a layer does."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for weight in layer.weights:
            if len(weight.shape) == 1 and "int" not in str(weight.dtype):
                positive = weight.name in ("gamma", "moving_variance")
                values = rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.2, weight.shape)
                weight.assign(values)
    return model


def moved(network):
    """A network of PyTorch in eval mode, its norms as training leaves them."""
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
        for name, p in network.named_parameters():
            if p.dim() == 1:
                p.uniform_(0.4, 1.2) if name.endswith("weight") else p.normal_(0, 0.2)
    return network.eval()
