"""Names that people try: misspellings, and the words of other libraries, with the names that optimc has for them.

The tables are used wherever a name is wrong: for arguments, for attributes that are read or set, for entries of
groups, for `optimc.get` and for names of the package.  Nothing here runs while names are right.

- `ELSEWHERE` holds the words of other libraries for arguments and methods, `CLASSES` those for whole optimizers.
- `Elsewhere` gives a class the former as attributes that raise an error with the right name.
- `Strict` gives objects only the attributes that their class declares.

This module imports nothing of optimc.
"""

import functools
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn


class UnknownArgument(TypeError, ValueError):
    """An argument that a constructor does not have: a TypeError, as in Python, and a ValueError, as in Keras."""


class Other(NamedTuple):
    """A word of another library.

    Args:
        library: the library.
        here: names of optimc for it; the first one that a class has is suggested.
        advice: the advice to a class that has none of them.
    """

    library: str
    here: tuple[str, ...] = ()
    advice: str = ""


_APPLY = "call apply(grads, weights)"
_SLOTS = "see slots for the arrays by name, and state_dict() for a copy of all state"
_SCHEDULE = "give a schedule as learning_rate, see optimc.schedules"
_EIGHT_BITS = 'give state_dtype="int8", which stores slots in 8 bits with a scale for each 256'
_AT_RANDOM = "give master_weights=False, which rounds bfloat16 weights at random"
_MASTER = "give bfloat16 weights, which keep an exact master unless master_weights=False"

ELSEWHERE = {
    "lr": Other("torch", ("learning_rate", "initial_learning_rate")),
    "eta": Other("the literature", ("learning_rate",)),
    "alpha": Other("torch", ("rho", "learning_rate")),
    "step_size": Other("jax", ("learning_rate",)),
    "learning_rate_init": Other("scikit-learn", ("learning_rate",)),
    "betas": Other("torch", ("beta_1 and beta_2", "adam_beta_1 and adam_beta_2")),
    "b1": Other("optax", ("beta_1", "adam_beta_1")),
    "b2": Other("optax", ("beta_2", "adam_beta_2")),
    "eps": Other("torch", ("epsilon",)),
    "decay_rate": Other("optax", ("rho",), _SCHEDULE),
    "decay": Other("Keras 2", (), _SCHEDULE),
    "lr_decay": Other("torch", ("learning_rate_decay",), _SCHEDULE),
    "wd": Other("timm", ("weight_decay",)),
    "max_norm": Other("torch", ("global_clipnorm",)),
    "max_grad_norm": Other("transformers", ("global_clipnorm",)),
    "accumulation_steps": Other("transformers", ("gradient_accumulation_steps",)),
    "ema_decay": Other("timm", ("ema_momentum",)),
    "loss_scale": Other("apex", ("loss_scale_factor", "dynamic_scale")),
    "optim_bits": Other("bitsandbytes", (), _EIGHT_BITS),
    "block_size": Other("torchao", (), _EIGHT_BITS),
    "block_wise": Other("bitsandbytes", (), _EIGHT_BITS),
    "min_8bit_size": Other("bitsandbytes", (), 'state_dtype="int8" leaves out weights below 4096 elements'),
    "stochastic_round": Other("optimc.torch", (), _AT_RANDOM),
    "bf16_stochastic_round": Other("torchao", (), _AT_RANDOM),
    "stochastic_rounding": Other("", (), _AT_RANDOM),
    "kahan_sum": Other("optimi", (), _MASTER),
    "use_kahan_summation": Other("torchdistx", (), _MASTER),
    "mu_dtype": Other("optax", (), 'give state_dtype={"m": "bfloat16"}, with a type for each slot'),
    "momentum_dtype": Other("torchdistx", (), 'give state_dtype={"m": "bfloat16"}, with a type for each slot'),
    "variance_dtype": Other("torchdistx", (), 'give state_dtype={"v": "bfloat16"}, with a type for each slot'),
    "cautious": Other("", (), "only rules with momentum have it, such as those of Adam, SGD and Lion"),
    "step": Other("torch", (), _APPLY),
    "minimize": Other("Keras 2", (), f"compute the gradients, then {_APPLY}"),
    "update": Other("optax", (), f"{_APPLY}, which changes the weights in place"),
    "init": Other("optax", (), "the first apply(grads, weights) makes the state; build(weights) makes it before"),
    "zero_grad": Other("torch", (), "leave it out, for optimc keeps no gradients between calls"),
    "param_groups": Other("torch", ("groups",)),
    "add_param_group": Other("torch", (), "give groups to the constructor, and call build(weights) for more weights"),
    "params": Other("torch", (), "give the weights to apply(grads, weights)"),
    "weights": Other("Keras 2", (), f"the program keeps the weights; {_SLOTS}"),
    "state": Other("torch", (), _SLOTS),
    "get_weights": Other("Keras 2", (), "call state_dict()"),
    "set_weights": Other("Keras 2", (), "call load_state_dict(state)"),
    "get_slot": Other("Keras 2", (), "see slots"),
    "defaults": Other("torch", (), "call get_config()"),
    "steps": Other("optax", ("iterations",)),
    "load": Other("", (), "optimc.load(path) gives the optimizer that was saved"),
    "global_step": Other("TensorFlow 1", ("iterations",)),
}

#: names of whole optimizers -> how to make them; `plain` names
CLASSES = {
    "momentum": "SGD(momentum=0.9)", "nesterov": "SGD(momentum=0.9, nesterov=True)",
    "sgdmomentum": "SGD(momentum=0.9)", "nag": "SGD(momentum=0.9, nesterov=True)", "gradientdescent": "SGD()",
    "gd": "SGD()", "amsgrad": "Adam(amsgrad=True)", "schedulefree": "ScheduleFreeAdamW()",
}

#: words for schedules -> schedules of `optimc.schedules`
SCHEDULE_WORDS = {"linear": "PolynomialDecay", "step": "PiecewiseConstantDecay",
                  "multistep": "PiecewiseConstantDecay", "warmup": "CosineDecay"}

#: schedules of other libraries -> those of `optimc.schedules`; `plain` names
SCHEDULES = {
    "steplr": "PiecewiseConstantDecay", "multisteplr": "PiecewiseConstantDecay", "exponentiallr": "ExponentialDecay",
    "cosineannealinglr": "CosineDecay", "cosineannealingwarmrestarts": "CosineDecayRestarts",
    "polynomiallr": "PolynomialDecay", "linearlr": "PolynomialDecay", "onecyclelr": "OneCycle",
    "sequentiallr": "join", "exponentialdecayschedule": "ExponentialDecay", "cosinedecayschedule": "CosineDecay",
    "warmupcosinedecayschedule": "CosineDecay", "joinschedules": "join", "cosineonecycleschedule": "OneCycle",
}


def is_ours(cls: type) -> bool:
    """True for a class of optimc, False for a program's."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def plain(name: str) -> str:
    """A name without case, underscores, hyphens and spaces."""
    return name.lower().translate({ord(mark): None for mark in "_- "})


def closest(name: str, known: Iterable[str], cutoff: float = 0.65) -> str | None:
    """The known name that a wrong one is most like, or None."""
    import difflib  # only on the way to an error
    by_plain = {plain(one): one for one in known}
    swapped = [one for one in by_plain if sorted(one) == sorted(plain(name))]       # letters in another order
    if swapped:
        return by_plain[swapped[0]]
    found = difflib.get_close_matches(plain(name), by_plain, 1, cutoff)
    return by_plain[found[0]] if found else None


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known name that a wrong one stands for: the word of optimc for it, or else the name it is most like."""
    known = set(known)
    here = next((here for here in ELSEWHERE[name].here if known.issuperset(here.split(" and "))),
                None) if name in ELSEWHERE else None
    return here or closest(name, known)


def hint(name: str, known: Iterable[str]) -> str:
    """The end of an error about a name that is not one of the known ones; nothing if nothing is like it."""
    other = ELSEWHERE.get(name, Other(""))
    if other.advice and not any(set(here.split(" and ")) <= set(known) for here in other.here):
        return f"{f' ({other.library} has it)' if other.library else ''}: {other.advice}"
    found = meant(name, known)
    return f": did you mean {found}?" if found else ""


def optimizer_hint(name: str, known: Iterable[str], prefix: str = "optimc.") -> str:
    """The end of an error about a name of an optimizer; nothing if nothing is like it."""
    expression = CLASSES.get(plain(name))
    if expression:
        return f": did you mean {prefix}{expression}?"
    found = closest(name, known)
    return f": did you mean {found.lower()!r}?" if found else ""


def schedule_meant(name: str, known: Iterable[str]) -> str | None:
    """The schedule that a word stands for: one with this word in its name, or else the one it is most like."""
    word, known = plain(name), list(known)
    return SCHEDULE_WORDS.get(word) or schedule_named(name, known) \
        or (next((one for one in known if word in plain(one)), None) if len(word) > 3 else None)


def schedule_named(name: str, known: Iterable[str]) -> str | None:
    """The schedule that has this name in another library, or whose name is most like it."""
    return SCHEDULES.get(plain(name)) or closest(name, known, 0.7)


def refuse_name(module: str, name: str, advice: str) -> NoReturn:
    """Raises the error of a module that does not have this name."""
    # `obj` without `name` keeps Python from adding a suggestion of its own
    raise AttributeError(f"module {module!r} has no attribute {name!r}{advice}", obj=sys.modules[module])


# ------------------------------------------------------------------------------------------------ arguments


def refuse_unknown(owner: type, given: Iterable[str], known: Iterable[str],
                   having: Mapping[str, Iterable[str]] = {}) -> None:
    """Refuses arguments that a class does not have.

    Args:
        owner: the class.
        given: the names that were given.
        known: the names that the class has.
        having: the names that other classes have, by class.

    Raises:
        UnknownArgument: names each of them, and the name that may be meant.
    """
    known, wrong = list(known), []
    for name in given:
        if name not in known:
            others = [other for other, names in having.items() if name in names and name not in ELSEWHERE]
            wrong.append(f"argument {name!r}" + (f": only {_and(others)} ha{'s' if len(others) == 1 else 've'} it"
                                                 if others else hint(name, known)))
    if wrong:
        raise UnknownArgument(f"{owner.__name__} has no {'; no '.join(wrong)}")


def says_what_it_takes(init: Any) -> Any:
    """A constructor that names arguments which are missing or unknown, in place of Python's words for it."""
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except TypeError:
            _refuse_call(type(self), init, args, kwargs)
            raise

    return wrapped


def _refuse_call(owner: type, init: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises the error of a call that lacks an argument, or has one too many; nothing if it has what it needs."""
    import inspect  # only on the way to an error
    _, *parameters = inspect.signature(init).parameters.values()
    refuse_unknown(owner, kwargs, [parameter.name for parameter in parameters])
    missing = [parameter.name for parameter in parameters[len(args):]
               if parameter.default is parameter.empty and parameter.name not in kwargs]
    if missing:
        call = ", ".join(parameter.name for parameter in parameters if parameter.default is parameter.empty)
        raise TypeError(f"{owner.__name__} needs {_and(missing)}: {owner.__name__}({call})") from None


def counted(count: int, noun: str) -> str:
    """A number of things in words: "1 step", "2 steps"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _and(words: list[str]) -> str:
    """Words as a list within a sentence; the first three, if there are more than four."""
    if len(words) > 4:
        words = [*words[:3], f"{len(words) - 3} others"]
    return " and ".join([", ".join(words[:-1])] * (len(words) > 1) + words[-1:])


# ----------------------------------------------------------------------------------------------- attributes


class Hint:
    """An attribute that is a word of another library: reading it raises an AttributeError with the name here."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, owner: Any, cls: type | None = None) -> Any:
        kind = cls or type(owner)
        for base in kind.__mro__:                       # a mixin that comes after optimc's class may have it
            found = vars(base).get(self.name, self)
            if not isinstance(found, Hint):
                return found.__get__(owner, kind) if hasattr(type(found), "__get__") else found
        if owner is None:
            return self
        _refuse_attribute(owner, self.name)

    def __repr__(self) -> str:
        other = ELSEWHERE[self.name]
        return f"<{other.library or 'optimc'}: {other.advice or other.here[0]}>"


def _names_of(owner: Any) -> list[str]:
    """The public attributes of an object."""
    return [name for name in {*dir(type(owner)), *_settable(type(owner)), *owner.__dict__}
            if name[:1] != "_" and not isinstance(getattr(type(owner), name, None), Hint)]


def _refuse_attribute(owner: Any, name: str) -> NoReturn:
    # `obj` without `name` keeps Python from adding a suggestion of its own
    raise AttributeError(f"{type(owner).__name__} has no attribute {name!r}{hint(name, _names_of(owner))}", obj=owner)


class Elsewhere:
    """The words of other libraries, each of which is an error that gives the name in optimc."""

    __slots__ = ()

    def __dir__(self) -> list[str]:
        """The names for people: no private ones, and none of other libraries."""
        return [name for name in super().__dir__() if (name[:1] != "_" or name[:2] == "__") and (
            name in vars(self) or not isinstance(getattr(type(self), name, None), Hint))]

    if not TYPE_CHECKING:               # a checker would take every optimizer for a function
        def __call__(self, *args, **kwargs):
            """Refuses: the step is `apply(grads, weights)`."""
            raise TypeError(f"{type(self).__name__} is not a function: {_APPLY}")


for _name in ELSEWHERE:
    setattr(Elsewhere, _name, Hint(_name))


#: what `_settable` has found, by class
_settables: weakref.WeakKeyDictionary[type, frozenset[str]] = weakref.WeakKeyDictionary()


def _settable(cls: type) -> frozenset[str]:
    """The arguments of a class's constructor, which may become attributes."""
    if cls not in _settables:
        import inspect
        _settables[cls] = frozenset(inspect.signature(cls).parameters)
    return _settables[cls]


def check_attribute(owner: Any, name: str) -> None:
    """Refuses to set an attribute that an object of optimc does not have.

    Any name is allowed on objects of a class that is not optimc's, so that subclasses of a program can have
    attributes of their own.  A name that begins with an underscore is always allowed.
    """
    cls = type(owner)
    declared = hasattr(cls, name) and not isinstance(getattr(cls, name), Hint)
    if name[:1] == "_" or declared or name in owner.__dict__ or not is_ours(cls) or name in _settable(cls):
        return
    _refuse_attribute(owner, name)


class Strict:
    """Objects that have only the attributes that their class declares: see `check_attribute`."""

    __slots__ = ()

    if not TYPE_CHECKING:               # a checker would allow every name
        def __setattr__(self, name, value):
            check_attribute(self, name)
            super().__setattr__(name, value)
