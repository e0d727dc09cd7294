"""A small causal transformer in Keras, on any backend, trained on the standard library's source."""

import keras
from keras_text import LENGTH, SIZE, train


def block(x, width, heads):
    attention = keras.layers.MultiHeadAttention(heads, width // heads, dropout=0.1)
    y = keras.layers.LayerNormalization()(x)
    x = x + attention(y, y, use_causal_mask=True)
    y = keras.layers.LayerNormalization()(x)
    y = keras.layers.Dense(4 * width, activation="gelu")(y)
    return x + keras.layers.Dense(width)(y)


def make_model(width=96, heads=4, depth=2):
    codes = keras.Input((LENGTH,), dtype="int32")
    # from the input: called on a constant, a layer runs once, here, and is no part of the model
    places = keras.ops.cumsum(keras.ops.ones_like(codes), axis=1) - 1
    x = keras.layers.Embedding(SIZE, width)(codes) + keras.layers.Embedding(LENGTH, width)(places)
    for _ in range(depth):
        x = block(x, width, heads)
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(codes, keras.layers.Dense(SIZE)(x))


if __name__ == "__main__":
    train(make_model, __doc__)
