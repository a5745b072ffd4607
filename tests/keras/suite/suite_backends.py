"""What each backend does with a gated model beyond calling it: graphs of unknown size, compilers, export."""

import keras
import numpy as np
import pytest
from keras_cases import only, twins

import excite_keras
from excite_keras.gates import GATES
from tolerances import PEER


def gated(*sizes):
    x = keras.Input((*sizes, 16))
    y = x
    for gate in GATES.values():
        y = gate()(y)
    return keras.Model(x, y)


def maps(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@only("tensorflow")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_takes_any_batch_and_size(jit_compile):
    import tensorflow as tf

    model = gated(None, None)
    signature = [tf.TensorSpec((None, None, None, 16), tf.float32)]
    graph = tf.function(lambda u: model(u), input_signature=signature, jit_compile=jit_compile)
    for shape in ((2, 4, 4, 16), (3, 5, 7, 16)):
        u = maps(*shape)
        np.testing.assert_allclose(graph(u).numpy(), model(u).numpy(), **PEER)


@only("tensorflow")
def test_an_exported_saved_model_takes_any_batch_and_size(tmp_path):
    import tensorflow as tf

    model = gated(None, None)
    model.export(tmp_path / "saved", format="tf_saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "saved")
    for shape in ((1, 4, 4, 16), (3, 5, 7, 16)):
        u = maps(*shape)
        np.testing.assert_allclose(served.serve(u).numpy(), model(u).numpy(), **PEER)


@only("jax")
def test_a_compiled_function():
    import jax

    model = gated(None, None)

    @jax.jit
    def run(values, u):
        return model.stateless_call(values, [], u)[0]

    u = maps(2, 4, 4, 16)
    values = [w.value for w in model.trainable_variables]
    np.testing.assert_allclose(run(values, u), np.asarray(model(u)), **PEER)


@only("torch")
def test_an_exported_program_takes_any_batch():
    import torch

    layer = twins("se(reduction=4)", 16)[1]
    example = (torch.from_numpy(maps(2, 4, 4, 16)),)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, example, dynamic_shapes=(({0: batch},),), strict=False)
    u = torch.from_numpy(maps(3, 4, 4, 16))
    np.testing.assert_allclose(program.module()(u).detach().numpy(), layer(u).detach().numpy(), **PEER)


@only("torch")
def test_a_gate_is_a_module_whose_weights_optimizers_find():
    layer = excite_keras.SqueezeExcite(4)
    layer.build((None, 4, 4, 16))
    assert sum(p.numel() for p in layer.parameters()) == layer.count_params()
