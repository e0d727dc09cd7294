import keras

model = keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(1)])
model.compile(keras.optimizers.Adam(1e-3, global_clipnorm=1.0), loss="mse")
