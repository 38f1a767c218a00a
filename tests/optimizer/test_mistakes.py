"""Natural mistakes of new users: none is silently accepted, and each error says what to do instead.

A row is a line of a program, the class of its error or warning, and an expression that matches the whole message.
Lines that look like mistakes and are none have None, and an expression that must be true afterwards.
"""

import re
import warnings

import numpy as np
import pytest

import optimc

W = r"weights\[0\]"
NUMBER = "learning_rate must be a number, a schedule or a callable, got "
APPLY = r"call apply\(grads, weights\)"
IN_PLACE = rf"{W} is not in the memory .*update weights in place \(w -= d .*, or call build\(weights\).*"
NOT_BUILT = r"the optimizer is not built: pass the weights too, apply\(grads, weights\), or call build.*"
PACKAGE = "module 'optimc' has no attribute "
GET = "Could not interpret optimizer identifier: "

ARGUMENTS = [
    ("optimc.Adam(lr=0.1)", TypeError, r"Adam has no argument 'lr': did you mean learning_rate\?"),
    ("optimc.Adam(lr=0.1)", ValueError, "Adam has no argument 'lr'.*"),
    ("optimc.Adam(betas=(0.9, 0.99))", TypeError, r"Adam has no argument 'betas': did you mean beta_1 and beta_2\?"),
    ("optimc.Adam(beta1=0.9)", TypeError, r"Adam has no argument 'beta1': did you mean beta_1\?"),
    ("optimc.Adam(eps=1e-8)", TypeError, r"Adam has no argument 'eps': did you mean epsilon\?"),
    ("optimc.SGD(weights, lr=0.1)", TypeError, f"{NUMBER}list: weights are given to .*"),
    ("optimc.Adam(weights)", TypeError, rf"{NUMBER}list: weights are given to apply\(grads, weights\).*optimc.*"),
    ("optimc.Adam('0.1')", TypeError, f"{NUMBER}str: pass the number 0.1, not the text '0.1'"),
    ("optimc.Adam(-1)", ValueError, "learning_rate must be finite and >= 0, got -1"),
    ("optimc.Adam(float('nan'))", ValueError, "learning_rate must be finite and >= 0, got nan"),
    ("optimc.Adam(learning_rate='cosine')", TypeError,
     rf"{NUMBER}str 'cosine': did you mean optimc.schedules.CosineDecay\(...\)\?"),
    ("optimc.SGD(momentum=1.5)", ValueError, r"momentum must be in \[0, 1\], got 1.5"),
    ("optimc.SGD(nesterov=True)", UserWarning, r"SGD\(nesterov=True\) without momentum is plain SGD: .*"),
    ("optimc.Adam(beta_1=1.0)", ValueError, r"beta_1 must be in \[0, 1\), got 1.0"),
    ("optimc.Adam(weight_decay=-1)", ValueError, "weight_decay must be finite and >= 0, got -1"),
    ("optimc.Adam(clipnorm=1, clipvalue=1)", ValueError, "Only one of .* can be set, got clipnorm and clipvalue"),
    ("optimc.Adagrad(cautious=True)", TypeError, "Adagrad has no argument 'cautious': only rules with momentum.*"),
    ("optimc.Optimizer()", TypeError, "Optimizer is a base class: use one of its subclasses"),
    ("optimc.schedules.ExponentialDecay(0.1)", TypeError, "ExponentialDecay needs decay_steps and decay_rate: .*"),
    ("optimc.load('no such file')", FileNotFoundError, ".*'no such file'"),
    ("optimc.set_num_threads(0)", ValueError, "threads must be between 1 and 1024, got 0"),
    ("opt = optimc.Adam(0.1, 0.9, 0.99)", None, "(opt.learning_rate, opt.beta_1, opt.beta_2) == (0.1, 0.9, 0.99)"),
    ("s = optimc.schedules.CosineDecay(0.1, 100)", None, "s(100) == 0"),
    ("a, b = optimc.Adam(), optimc.Adam()", None, "a != b and len({a, b}) == 2"),
]

ATTRIBUTES = [
    ("opt.step()", AttributeError, rf"Adam has no attribute 'step' \(torch has it\): {APPLY}"),
    ("opt.step(grads, weights)", AttributeError, rf"Adam has no attribute 'step' .*: {APPLY}"),
    ("opt.zero_grad()", AttributeError, r"Adam has no attribute 'zero_grad' \(torch has it\): leave it out, .*"),
    ("opt.minimize(lambda: 0, weights)", AttributeError, rf"Adam has no attribute 'minimize' \(Keras.*{APPLY}"),
    ("opt.update(grads, weights)", AttributeError, rf"Adam has no attribute 'update' \(optax has it\): {APPLY}.*"),
    ("opt.init(weights)", AttributeError, r"Adam has no attribute 'init' \(optax.*build\(weights\).*"),
    ("opt(grads, weights)", TypeError, f"Adam is not a function: {APPLY}"),
    ("opt.lr = 0.1", AttributeError, r"Adam has no attribute 'lr': did you mean learning_rate\?"),
    ("opt.lr", AttributeError, r"Adam has no attribute 'lr': did you mean learning_rate\?"),
    ("opt.learning_rte = 0.1", AttributeError, r"Adam has no attribute 'learning_rte': did you mean learning_rate\?"),
    ("opt.weights", AttributeError, "Adam has no attribute 'weights' .*see slots.*"),
    ("opt.learning_rate = '0.1'", TypeError, f"{NUMBER}str: pass the number 0.1, not the text '0.1'"),
]

NAMES = [
    ("optimc.get('momentum')", ValueError, rf"{GET}'momentum': did you mean optimc.SGD\(momentum=0.9\)\?"),
    ("optimc.get('adm')", ValueError, rf"{GET}'adm': did you mean 'adam'\?"),
    ("optimc.adam", AttributeError, rf"{PACKAGE}'adam': did you mean optimc.Adam\?"),
    ("optimc.Momentum", AttributeError, rf"{PACKAGE}'Momentum': did you mean optimc.SGD\(momentum=0.9\)\?"),
    ("optimc.RMSProp", AttributeError, rf"{PACKAGE}'RMSProp': did you mean optimc.RMSprop\?"),
    ("optimc.AdaGrad", AttributeError, rf"{PACKAGE}'AdaGrad': did you mean optimc.Adagrad\?"),
    ("optimc.NAdam", AttributeError, rf"{PACKAGE}'NAdam': did you mean optimc.Nadam\?"),
    ("import optimc.jax", ModuleNotFoundError, "No module named 'optimc.jax'"),
    *((f"one = optimc.get({name})", None, f"type(one) is optimc.{cls}") for name, cls in (
        ("'Adam'", "Adam"), ("'adamax'", "Adamax"), ("'ADAM'", "Adam"), ("'rms_prop'", "RMSprop"),
        ("optimc.Adam", "Adam"))),
    ("one = optimc.get('adam', learning_rate=0.1)", None, "one.learning_rate == 0.1"),
    # adapters: tests/repo/test_package.py
]

STEPS = [
    ("opt.apply_gradients(grads, weights)", TypeError, ".*zip.*"),
    ("opt.apply(zip(grads, weights))", TypeError, ".*apply_gradients.*"),
    ("opt.apply(grads, weights); opt.apply(weights, grads)", ValueError, ".*swapped.*"),
    ("opt.apply(grads, weights); opt.apply([gW], [np.ones((4, 2), 'f')])", ValueError, r".*\(4, 2\).*"),
    ("opt.apply(gW, W)", TypeError, "weights must be .* got .*numpy.ndarray.*"),
    ("opt.apply(gb, b)", TypeError, "weights must be .* got .*numpy.ndarray.*"),
    ("opt.apply(gW, [W])", TypeError, "grads must be .* got .*numpy.ndarray.*"),
    ("opt.apply([np.ones(3)], [np.zeros(3, int)])", TypeError, rf"{W}: expected an array of float32, .*int64.*"),
    ("opt.apply([np.ones(3, int)], [np.zeros(3)])", TypeError, r"grads\[0\]: expected .*float.*got int64.*"),
    ("opt.apply([[1., 2.]], [[1., 2.]])", TypeError, rf"{W}.*"),
    ("opt.apply([[1., 2.]], [np.zeros(2)])", TypeError, r"grads\[0\].*"),
    ("opt.apply([1.0], [2.0])", TypeError, rf"{W}: expected .*, got .*float.*"),
    ("opt.apply([np.float32(1)], [np.float32(2)])", TypeError, rf"{W}: expected .*, got .*float32.*"),
    ("opt.apply([gW], weights)", ValueError, ".*got 1 and 2.*"),
    ("opt.apply([gW, gb[:, None]], weights)", ValueError, r"grads\[1\]: expected shape \(2,\), .* got \(2, 1\).*"),
    ("opt.apply([gW.T, gb], weights)", ValueError, r"grads\[0\]: expected shape \(3, 2\), .* got \(2, 3\).*"),
    ("opt.apply([np.ones(2)], [np.ones(2, 'H')])", TypeError, rf"{W}: .* got uint16: .*x\.view\(.*"),
    ("optimc.SGD(master_weights=False).apply([np.ones(2)], [np.ones(2, 'e')])", ValueError,
     rf"{W}: float16 weights need a master, .*: pass master_weights=True"),
    ("opt.apply([np.ones(2, complex)], [np.ones(2)])", TypeError, r"grads\[0\]: expected .* got complex128.*"),
    ("opt.apply([gW[:, 0]], [W[:, 0]])", ValueError, rf"{W}: expected an array contiguous .* strides \(8,\).*"),
    ("W.flags.writeable = False; opt.apply([gW], [W])", ValueError, rf"{W}.*read-only.*"),
    ("opt.apply([gW, gW], [W, W])", ValueError, rf"{W} and weights\[1\] overlap in memory.*"),
    ("opt.apply(grads, weights); opt.apply(grads, [W - 0.1 * gW, b])", ValueError, IN_PLACE),
    ("opt.apply(grads, weights); weights[0] = W - gW; opt.apply(grads, weights)", ValueError, IN_PLACE),
    ("opt.apply(None, weights)", TypeError, "grads must be .* got NoneType.*"),
    ("opt.apply([None, None], weights)", ValueError, "No gradients provided for any variable.*"),
    ("opt.apply([None, gb], weights)", UserWarning, rf"Gradients do not exist for {W}: .*"),
    ("opt.apply((g for g in grads), weights)", TypeError, "grads must be .* got generator.*"),
    ("opt.apply(grads)", ValueError, NOT_BUILT),
    ("opt.apply([np.array([gW, gb], object)], [np.array([W, b], object)])", TypeError, rf"{W}: .* got object.*"),
    ("opt.apply({'w': gW, 'bias': gb}, {'w': W, 'b': b})", ValueError, r"grads has no entry for weights\['b'\].*"),
    ("opt.apply({'w': gW}, [W])", TypeError, "grads and weights .* got dict and list.*"),
    ("opt.apply([np.ones(3)], [np.ma.ones(3)])", TypeError, rf"{W}: a masked array .*: pass x.filled.*"),
    ("opt.apply([np.array(['a'])], [np.ones(1)])", TypeError, r"grads\[0\]: expected .*float.*<U1.*"),
    ("opt.apply([gb], [np.ones(2, '>f4')])", TypeError, rf"{W}: .*native byte order.*"),
    ("n = opt.apply_gradients(zip(grads, weights))", None, "n == 1"),
    ("opt.apply(params=weights, grads=grads)", None, "W[0, 0] < 1"),
    ("opt.apply(grads=grads, weights=weights)", None, "W[0, 0] < 1"),
    ("w = np.array(1.0); opt.apply([np.array(0.5)], [w])", None, "w < 1"),
    ("w = np.ones(2, 'e'); optimc.SGD(0.5).apply([np.ones(2, 'e')], [w])", None, "w[0] == 0.5"),
    ("opt.apply([gW * np.nan, gb], weights)", None, "np.isnan(W).all()          # check_finite refuses them"),
    ("optimc.Adam(check_finite='raise').apply([gW * np.nan, gb], weights)", FloatingPointError, ".*"),
]


@pytest.mark.parametrize(("line", "kind", "expected"), [*ARGUMENTS, *ATTRIBUTES, *NAMES, *STEPS])
def test_a_mistake_gets_an_answer(line, kind, expected):
    W, b = np.ones((3, 2), np.float32), np.zeros(2, np.float32)
    gW, gb = np.full((3, 2), 0.5, np.float32), np.ones(2, np.float32)
    names = {"np": np, "optimc": optimc, "W": W, "b": b, "gW": gW, "gb": gb, "weights": [W, b], "grads": [gW, gb],
             "opt": optimc.Adam()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind is None:
            exec(line, names)
            assert eval(expected, names)
            return
        with pytest.raises(kind) as caught:
            exec(line, names)
    assert "\n" not in str(caught.value) and re.fullmatch(expected, str(caught.value)), caught.value
