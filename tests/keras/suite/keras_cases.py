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


def trained(model, x=None, seed=0):
    """Norms and biases as training leaves them: a fresh network's zeros and ones hide what a layer does.

    With images, the norms' statistics are near those of their maps: far from them no network tells images apart. The
    last norm of a bottleneck is scaled as training scales it: with branches as large as their shortcuts a network of
    fifty layers loses two digits of float32 in either framework.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        for weight in layer.weights:
            if len(weight.shape) == 1 and "int" not in str(weight.dtype):
                positive = weight.name in ("gamma", "moving_variance")
                values = rng.uniform(0.5, 1.5, weight.shape) if positive else rng.normal(0, 0.2, weight.shape)
                last_norm = weight.name == "gamma" and layer.name.endswith(("3_bn", "bn3"))
                weight.assign(0.4 * values if last_norm else values)
    if x is not None:
        norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
        momentum = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        model(x, training=True)
        for norm, kept in zip(norms, momentum, strict=True):
            norm.momentum = kept
            mean, variance = numpy(norm.moving_mean.value), numpy(norm.moving_variance.value)
            norm.moving_mean.assign(mean + 0.2 * np.sqrt(variance) * rng.normal(size=mean.shape))
            # A channel that a few images leave constant would multiply every rounding.
            steady = np.maximum(variance, 0.1 * variance.mean())
            norm.moving_variance.assign(steady * rng.uniform(0.7, 1.5, variance.shape))
    return model


def moved(network, x):
    """A network of PyTorch in eval mode, its norms and biases as training on maps like these leaves them."""
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.dim() == 1:
                p.uniform_(0.5, 1.5) if name.endswith("weight") else p.normal_(0, 0.2)
        for norm in norms:
            norm.momentum = 1.0
        network.train()(torch.from_numpy(first(x)))
        for norm in norms:
            norm.momentum = 0.1
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= 0.7 + 0.8 * torch.rand_like(norm.running_var)
    return network.eval()
