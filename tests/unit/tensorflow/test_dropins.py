"""TensorFlow's clipping functions against float64 NumPy: eager, in a graph, under XLA."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import steadygrad.tensorflow as sg
from steadygrad.errors import NoGradientsWarning, UsageError
from steadygrad.tensorflow.rounding import narrow

MODES = {"eager": None, "graph": False, "xla": True}


def through(mode, function):
    if MODES[mode] is None:
        return function
    return tf.function(function, jit_compile=MODES[mode], autograph=False)


def grads():
    rng = np.random.default_rng(0)
    big = rng.standard_normal((70, 100)).astype(np.float32) * 1e20
    half = np.full(5000, 300.0, np.float16)
    brain = np.ones(1000, ml_dtypes.bfloat16)
    return [big, half, brain, np.zeros(6000, np.float32), rng.standard_normal(3).astype(np.float32)]


def oracle(arrays):
    return np.sqrt(sum(np.sum(np.square(np.asarray(a, np.float64))) for a in arrays))


@pytest.mark.parametrize("mode", MODES)
def test_global_norm_and_clip_are_exact(mode):
    arrays = grads()
    for subset in (
        arrays,
        arrays[1:2],
        arrays[2:3],
        arrays[3:],
        [a * 0 + 1e-22 for a in arrays[:1]],
    ):
        clip = through(mode, lambda *ts: sg.clip_by_global_norm(list(ts), 1.0))
        clipped, norm = clip(*[tf.constant(a) for a in subset])
        true = oracle(subset)
        assert float(norm) == pytest.approx(true, rel=1e-6)
        coef = min(1.0, 1.0 / true)
        for got, was in zip(clipped, subset, strict=True):
            assert got.dtype == was.dtype
            want = (np.asarray(was, np.float64) * coef).astype(was.dtype)
            np.testing.assert_allclose(
                np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=2e-7
            )


@pytest.mark.parametrize("mode", MODES)
def test_indexed_slices_none_and_use_norm(mode):
    def run():
        slices = tf.IndexedSlices(
            tf.constant([[3.0], [4.0]]), tf.constant([1, 1]), tf.constant([4, 1])
        )
        clipped, norm = sg.clip_by_global_norm([slices, None], 3.5)
        same, _ = sg.clip_by_global_norm([slices], 3.5, use_norm=tf.constant(1.0))
        lone = sg.clip_by_norm(slices, 3.5)
        return clipped[0].values, norm, same[0].values, lone.values, clipped[1] is None

    values, norm, same, lone, none_kept = through(mode, run)()
    assert float(norm) == 7.0
    np.testing.assert_array_equal(values, [[1.5], [2.0]])
    np.testing.assert_array_equal(same, [[3.0], [4.0]])
    np.testing.assert_array_equal(lone, [[1.5], [2.0]])
    assert none_kept


def test_below_the_threshold_and_nonfinite_are_left_alone():
    for values in ([0.1, -0.2], [1.0, np.nan], [np.inf, -2.0], [0.0, 0.0]):
        was = tf.constant(values)
        clipped, _ = sg.clip_by_global_norm([was], 1.0)
        np.testing.assert_array_equal(clipped[0], was)


def test_clip_by_norm_over_axes_and_by_value():
    t = tf.constant([[3.0, 4.0], [0.3, 0.4], [3e20, 4e20]])
    want = [[0.6, 0.8], [0.3, 0.4], [0.6, 0.8]]
    np.testing.assert_allclose(sg.clip_by_norm(t, 1.0, axes=[1]), want, rtol=1e-6)
    per_row = sg.clip_by_norm(t[:2], tf.constant([[1.0], [0.25]]), axes=[1])
    np.testing.assert_allclose(per_row, [[0.6, 0.8], [0.15, 0.2]], rtol=1e-6)
    np.testing.assert_array_equal(
        sg.clip_by_value(tf.constant([-2.0, 0.5]), -1.0, 1.0), [-1.0, 0.5]
    )
    slices = tf.IndexedSlices(tf.constant([[5.0]]), tf.constant([2]), tf.constant([4, 1]))
    assert sg.clip_by_value(slices, -1.0, 1.0).values.numpy().tolist() == [[1.0]]
    twice = tf.IndexedSlices(
        tf.constant([[3.0, 4.0], [0.3, 0.4], [3.0, 4.0]]),
        tf.constant([2, 0, 2]),
        tf.constant([4, 2]),
    )
    for axes in ([1], [0]):  # sparse gradients stay sparse, and rows that are there twice are one
        dense = tf.convert_to_tensor(sg.clip_by_norm(twice, 1.0, axes=axes))
        want = sg.clip_by_norm(tf.convert_to_tensor(twice), 1.0, axes=axes)
        assert isinstance(sg.clip_by_norm(twice, 1.0, axes=axes), tf.IndexedSlices)
        np.testing.assert_allclose(dense, want, rtol=1e-6)


def test_wrong_use():
    with pytest.raises(UsageError, match="over 0"):
        sg.clip_by_global_norm([tf.constant([1.0])], 0.0)
    with pytest.raises(UsageError, match="over 0"):
        sg.clip_by_norm(tf.constant([1.0]), float("nan"))
    with pytest.raises(UsageError, match="swap"):
        sg.clip_by_value(tf.constant([1.0]), 1.0, -1.0)
    with pytest.raises(TypeError, match="sequence"):
        sg.global_norm(tf.constant([1.0]))
    with pytest.warns(UserWarning, match=r"tape\.gradient"):
        sg.measure([None])


@pytest.mark.parametrize("mode", MODES)
def test_measure_and_every_p(mode):
    arrays = [np.array([3.0, 4.0, 0.0], np.float32), np.array([np.nan, np.inf], np.float32)]

    def run(p):
        stats = sg.measure([tf.constant(a) for a in arrays], names=["a", "b"], norm_type=p)
        return stats.norms, stats.max_abs, stats.nonfinite, stats.zeros

    for p, want in ((2.0, 5.0), (1.0, 7.0), (0.5, (3**0.5 + 2) ** 2), (np.inf, 4.0)):
        norms, max_abs, nonfinite, zeros = through(mode, lambda p=p: run(p))()
        assert float(norms[0]) == pytest.approx(want, rel=1e-12)
        assert np.isnan(norms[1])
        assert max_abs.numpy().tolist() == [4.0, 0.0]
        assert nonfinite.numpy().tolist() == [0, 2]
        assert zeros.numpy().tolist() == [1, 0]


def test_sixteen_bit_rounding_happens_once():
    tie = 1 + 2.0**-8
    x = tf.constant([tie * (1 + 2.0**-40), tie * (1 - 2.0**-40), -tie * (1 + 2.0**-40)], tf.float64)
    got = tf.cast(narrow(x, tf.bfloat16), tf.float64)
    np.testing.assert_array_equal(got, [1 + 2.0**-7, 1.0, -1 - 2.0**-7])


@pytest.mark.parametrize("mode", MODES)
def test_numbers_round_to_float16_as_numpy_rounds_them(mode):
    rng = np.random.default_rng(0)
    kept = rng.standard_normal(2000).astype(np.float16)
    ties = (kept.astype(np.float64) + np.nextafter(kept, np.float16(9))) / 2
    spread = rng.standard_normal(5000) * 10.0 ** rng.uniform(-4, 4, 5000)
    x = np.concatenate([ties, ties * (1 + 2.0**-50), ties * (1 - 2.0**-50), spread, [np.inf, -0.0]])
    got = through(mode, lambda x: narrow(x, tf.float16))(tf.constant(x))
    np.testing.assert_array_equal(got, x.astype(np.float16))
    assert np.isnan(narrow(tf.constant([np.nan], tf.float64), tf.float16))


def test_a_large_sum_under_xla_is_exact():
    x = tf.fill((3_000_001,), 0.1)
    norm = tf.function(lambda t: sg.global_norm([t]), jit_compile=True)(x)
    assert float(norm) == pytest.approx(float(np.float32(0.1)) * np.sqrt(3_000_001), rel=2e-7)


def test_graphs_sum_as_exactly_as_compiled_code():
    rng = np.random.default_rng(0)
    cases = [rng.standard_normal(shape).astype(np.float32) for shape in ((1 << 20,), (997, 11))]
    cases += [np.full(1 << 20, by, np.float32) for by in (1.1, 1.7, 3e18, 1e20, 1e-30)]
    for values in map(tf.constant, cases):
        graph = tf.function(lambda x: sg.measure([x]).total_norm, autograph=False)
        traced = graph.get_concrete_function(values)
        later = tf.function(traced, jit_compile=True, autograph=False)  # not traced for XLA
        compiled = tf.function(graph.python_function, jit_compile=True, autograph=False)
        want = np.linalg.norm(values.numpy().astype(np.float64).ravel())
        for how in (traced, later, compiled):
            assert float(how(values)) == pytest.approx(want, rel=4e-7)


def test_xla_compiles_sums_of_tensors_of_unknown_size():
    x = np.random.default_rng(0).standard_normal((7, 1031)).astype(np.float32)
    shape = [tf.TensorSpec((None, 1031), tf.float32)]
    clip = tf.function(
        lambda x: sg.clip_by_global_norm([x], 1.0)[1], jit_compile=True, input_signature=shape
    )
    assert float(clip(x)) == pytest.approx(np.linalg.norm(x.astype(np.float64)), rel=2e-7)


def test_a_large_norm_can_be_differentiated():
    x = tf.Variable(tf.concat([tf.zeros((8, 1024)), tf.ones((8, 1024)) * 3], 0))
    for wanted in (3 / np.sqrt(9 * 8192), 0.0):
        with tf.GradientTape() as tape:
            norm = sg.global_norm([x])
        found = tape.gradient(norm, x).numpy()
        assert (found[:8] == 0).all()
        np.testing.assert_allclose(found[8:], wanted, rtol=1e-6)
        x.assign(tf.zeros_like(x))


@pytest.mark.parametrize("mode", MODES)
def test_large_broken_tensors_are_counted_and_leave_the_others_exact(mode):
    rng = np.random.default_rng(4)
    broken = rng.standard_normal(9000).astype(np.float32)
    broken[[5, 700]], broken[[6, 4500, 8999]] = np.nan, (np.inf, -np.inf, np.inf)
    infinite = np.ones(5000, np.float16)
    infinite[77] = np.inf
    tiny = np.full(7000, 1e-38, np.float32)
    arrays = [broken, infinite, tiny, np.zeros(6000, np.float32)]

    def run():
        stats = sg.measure([tf.constant(a) for a in arrays])
        clipped, norm = sg.clip_by_global_norm([tf.constant(a) for a in arrays], 1.0)
        return stats.norms, stats.nonfinite, norm, clipped[0]

    norms, nonfinite, norm, left = through(mode, run)()
    assert nonfinite.numpy().tolist() == [5, 1, 0, 0]
    assert np.isnan(norms[0])
    assert norms[1] == np.inf
    assert norms[3] == 0
    assert float(norms[2]) == pytest.approx(oracle([tiny]), rel=1e-6)
    assert np.isnan(norm)
    np.testing.assert_array_equal(left, broken)


@pytest.mark.parametrize("nothing", [[], [None, None]])
def test_no_gradients_are_told(nothing):
    with pytest.warns(NoGradientsWarning, match="clip_by_global_norm was given no gradients"):
        assert sg.clip_by_global_norm(nothing, 1.0)[0] == nothing
    for read in (sg.measure, sg.global_norm):
        measured = rf"{read.__name__} .* nothing was measured"
        with pytest.warns(NoGradientsWarning, match=measured) as warned:
            read(nothing)
        assert warned[0].filename == __file__


G = tf.constant([3.0, 4.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sg.clip_by_global_norm([(G, tf.Variable(G))], 1.0), "for gradient, _ in pairs"),
        (lambda: sg.global_norm([[G]]), "given a list where a gradient"),
        (lambda: sg.global_norm(["w"]), "given 'w' where a gradient"),
        (lambda: sg.clip_by_global_norm([tf.constant([3, 4])], 1.0), "given int32 values"),
        (lambda: sg.measure([tf.ragged.constant([[1.0], []])]), r"type its \.flat_values"),
        (lambda: sg.measure([G], ["a", "b"]), "1 gradients and 2 names"),
        (lambda: sg.measure([G], norm_type=-1.0), "norm_type must be"),
        (lambda: sg.clip_by_norm([G, G], 1.0), r"type \[clip_by_norm\(g, clip_norm\) for g in"),
        (lambda: sg.clip_by_norm(None, 1.0), "was given None"),
        (lambda: sg.clip_by_value([G, None], -1.0, 1.0), "takes one tensor, got a list"),
        (lambda: sg.clip_by_value(G, None, 1.0), "clip_value_min must be a number, got None"),
        (lambda: sg.clip_by_global_norm([G], None), "clip_norm must be a number, got None"),
        (lambda: sg.clip_by_global_norm([G], tf.Variable(-1.0)), "over 0, got -1.0"),
        (lambda: sg.clip_by_global_norm([G], [1.0, 2.0]), "must be one number"),
        (lambda: sg.clip_by_global_norm([G], 1.0, use_norm=-5.0), "use_norm must be 0 or more"),
        (lambda: sg.clip_by_global_norm([G], 1.0, use_norm=G), "use_norm must be one number"),
    ],
)
def test_what_is_no_gradient_or_no_number_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_a_dict_of_gradients_says_what_to_type():
    with pytest.raises(TypeError, match=r"list\(t_list\.values\(\)\)"):
        sg.global_norm({"w": G})


@pytest.mark.parametrize("norm", [np.nan, np.inf])
def test_a_norm_that_nothing_can_be_scaled_by_is_told(norm):
    with pytest.warns(NoGradientsWarning, match="left as they are"):
        clipped, _ = sg.clip_by_global_norm([G], 1.0, use_norm=tf.constant(norm))
    np.testing.assert_array_equal(clipped[0], G)


def test_a_threshold_under_0_that_is_known_later_reverses_nothing():
    limit = tf.Variable(-1.0)
    for clip in (
        lambda: sg.clip_by_global_norm([G], limit)[0][0],
        lambda: sg.clip_by_norm(G, limit),
    ):
        np.testing.assert_array_equal(tf.function(clip)(), [0.0, 0.0])


@pytest.mark.parametrize("bounds", [(np.nan, 1.0), (-1.0, tf.constant(np.nan))])
def test_a_bound_that_is_nan_is_refused(bounds):
    with pytest.raises(UsageError, match="a bound is NaN"):
        sg.clip_by_value(tf.ones(2), *bounds)
