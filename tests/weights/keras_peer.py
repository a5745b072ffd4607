"""Networks of classification_models under Keras, with what they give for two images: run as `keras_peer.py FOLDER`.

A program, because Keras takes its backend from the environment once and for all, and counts its layers by process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import torch
from classification_models.models import senet

# Blocks a stage. Of SENet-154 so many that the names of its layers are more than one attribute of a file holds.
NETWORKS = {"seresnet50": (3, 4, 6, 3), "seresnext50": (3, 4, 6, 3), "senet154": (1, 7, 12, 1)}


def make(name: str, blocks: tuple[int, ...]) -> Any:
    """The package's network; it asks its backend for the shape of a tensor, which Keras 3 has no function for."""
    backend = SimpleNamespace(
        int_shape=lambda tensor: tuple(tensor.shape), image_data_format=keras.config.image_data_format
    )
    parts = {"backend": backend, "layers": keras.layers, "models": keras.models, "utils": keras.utils}
    params = senet.MODELS_PARAMS[name]._replace(repetitions=blocks)
    return senet.SENet(params, input_shape=(64, 64, 3), classes=10, weights=None, **parts)


def train(model: Any, images: Any, rng: np.random.Generator) -> None:
    """Norms, biases and gates as training leaves them, the statistics near those of the maps that the norms get."""
    for layer in model.layers:
        for weight in layer.weights:
            if len(weight.shape) == 1:
                scale = weight.name == "gamma"
                weight.assign(rng.uniform(0.4, 1.2, weight.shape) if scale else rng.normal(0, 0.3, weight.shape))
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.call = fitting(layer, rng)
        if isinstance(layer, keras.layers.Dense):  # a softmax of larger numbers says no more than which is the largest
            layer.kernel.assign(0.12 * layer.kernel)
    model(images)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            del layer.call


def fitting(norm: Any, rng: np.random.Generator) -> Any:
    """The norm's call, which first takes statistics from its input."""
    call = norm.call

    def fit(inputs: Any, **kwargs: Any) -> Any:
        var, mean = torch.var_mean(inputs, (0, 1, 2))
        mean, var = mean.numpy(), var.numpy()
        norm.moving_mean.assign(mean + 0.3 * rng.normal(size=mean.shape) * np.sqrt(var))
        norm.moving_variance.assign((0.5 + 1.5 * rng.random(var.shape)) * var + 1e-3)
        return call(inputs, **kwargs)

    return fit


def main(folder: Path) -> None:
    """Write each network as Keras saves it, and its images and outputs beside it."""
    for name, blocks in NETWORKS.items():
        rng = np.random.default_rng(0)
        keras.utils.set_random_seed(0)
        model = make(name, blocks)
        images = rng.normal(size=(2, 64, 64, 3)).astype("float32")
        with torch.no_grad():
            train(model, images, rng)
            outputs = keras.ops.convert_to_numpy(model(images))
        model.save(folder / f"{name}.h5")
        if name == "seresnet50":
            model.save_weights(folder / f"{name}.weights.h5")
        np.savez(folder / f"{name}.npz", images=images, outputs=outputs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
