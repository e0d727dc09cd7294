"""A character-level LSTM in Keras, on any backend, trained on the standard library's source."""

import keras
from keras_text import SIZE, train


def make_model(width=128):
    return keras.Sequential(
        [
            keras.layers.Embedding(SIZE, width),
            keras.layers.LSTM(width, return_sequences=True, dropout=0.1),
            keras.layers.LSTM(width, return_sequences=True),
            keras.layers.Dense(SIZE),
        ]
    )


if __name__ == "__main__":
    train(make_model, __doc__)
