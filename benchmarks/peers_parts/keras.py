"""The tasks of `peers.py` in Keras on TensorFlow.

A training step is made in two ways, `train_on_batch` and a `tf.function` of the same step without Keras's bookkeeping,
and so is inference; the faster counts. XLA is off (`jit_compile=False`). TensorFlow's "same" padding of a stride-2
convolution puts its surplus at the bottom and right, where the other systems pad both sides: the work is the same.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from peers_parts import tasks as net
from peers_parts.tasks import Built, Network, Task


def build(task: Task, batches: list[tuple[Any, Any]], threads: int, system: str) -> Built:
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    inputs = keras.Input(task.in_shape)
    model = keras.Model(inputs, translate(task.network, inputs))
    variants = make_train(model, batches) if task.training else make_infer(model, batches)
    return Built(variants, parameters=sum(int(tf.size(w)) for w in model.trainable_weights))


def make_train(model: keras.Model, batches: list[tuple[Any, Any]]) -> dict[str, Any]:
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras.optimizers.Adam(net.LEARNING_RATE, epsilon=1e-8)
    model.compile(optimizer, criterion, jit_compile=False)
    optimizer.build(model.trainable_variables)
    data = [(tf.constant(x), tf.constant(t, tf.int32)) for x, t in batches]

    @tf.function(jit_compile=False)
    def train_step(x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(t, model(x, training=True))
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return {
        "tf.function": lambda i: train_step(*data[i]),
        "train_on_batch": lambda i: model.train_on_batch(*batches[i]),
    }


def make_infer(model: keras.Model, batches: list[tuple[Any, Any]]) -> dict[str, Any]:
    data = [tf.constant(x) for x, _ in batches]
    infer = tf.function(lambda x: model(x, training=False), jit_compile=False)
    return {
        "tf.function": lambda i: infer(data[i]),
        "predict_on_batch": lambda i: model.predict_on_batch(batches[i][0]),
    }


def translate(network: Network, a: Any) -> Any:
    for layer in network:
        a = apply(layer, a)
    return a


def apply(layer: net.Layer, a: Any) -> Any:
    match layer:
        case net.Conv():
            padding, rate = "same" if layer.padding else "valid", layer.dilation
            return layers.Conv2D(layer.filters, layer.kernel, layer.stride, padding, None, rate, use_bias=layer.bias)(a)
        case net.DepthwiseConv():
            return layers.DepthwiseConv2D(3, layer.stride, "same", use_bias=False)(a)
        case net.Dense():
            return layers.Dense(layer.units)(a)
        case net.BatchNorm():
            return layers.BatchNormalization(momentum=net.BATCH_NORM_MOMENTUM, epsilon=net.BATCH_NORM_EPS)(a)
        case net.LayerNorm():
            return layers.LayerNormalization(epsilon=net.LAYER_NORM_EPS)(a)
        case net.ReLU():
            return layers.ReLU()(a)
        case net.GELU():
            return layers.Activation("gelu")(a)
        case net.MaxPool():
            return layers.MaxPooling2D(2)(a)
        case net.GlobalAvgPool():
            return layers.GlobalAveragePooling2D()(a)
        case net.Flatten():
            return layers.Flatten()(a)
        case net.Residual():
            return layers.add([translate(layer.main, a), translate(layer.shortcut, a)])
