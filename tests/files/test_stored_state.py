"""States in fewer bits: exact resume in every way, files that other programs read, damage, conversion."""

import copy
import itertools
import json
import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import assert_same_bits
from stored import FEW, STEP_OPTIONS, Way, chosen, gradients, has, made, start, ways_of

import optimc
from optimc import checkpoint

SEED = 5
RESUMED = {name: STEP_OPTIONS[name] for name in ("decay", "accumulation, ema", "everything", "cautious")}


def everything(optimizer, weights):
    """The bytes of all that an optimizer and its weights hold."""
    state = optimizer.state_dict()
    tensors = {name: (array.dtype, array.shape, array.tobytes()) for name, array in state.pop("tensors").items()}
    return state, tensors, [w.tobytes(order="A") for w in weights]


def other_of(optimizer, kind, case, way, weights, path, **options):
    """An optimizer that goes on where another stands, for weights that are alike."""
    if kind == "file":
        optimizer.save(path)
        return optimc.load(path)
    if kind in ("state", "state of a built one"):
        other = case.make(**way.arguments(case), seed=SEED, **options)
        if kind != "state":
            other.build(weights)
        other.load_state_dict(optimizer.state_dict())
        return other
    if kind == "built again":
        other = copy.deepcopy(optimizer)
        other.build([w.copy(order="K") for w in weights])
        return other
    return {"pickle": lambda: pickle.loads(pickle.dumps(optimizer)), "copy": lambda: copy.copy(optimizer),
            "deep copy": lambda: copy.deepcopy(optimizer)}[kind]()


KINDS = ["file", "state", "state of a built one", "pickle", "copy", "deep copy", "built again"]


@pytest.mark.parametrize("kind", KINDS)
def test_resume_is_bit_exact(case, kind, tmp_path):
    for k, options in enumerate(RESUMED.values()):
        if not has(case, options):
            continue
        way, rng = chosen(case, KINDS.index(kind) + 3 * k), np.random.default_rng(k)
        straight, weights = made(case, way, "baseline", start(case, FEW, way.dtype), seed=SEED, **options)
        for step in range(5):
            straight.apply(gradients(rng, weights, step), weights)
        moved = [w.copy(order="K") for w in weights]
        again = other_of(straight, kind, case, way, moved, tmp_path / "x", **options)
        if kind == "built again":
            again.build(moved)
        for step in range(5, 8):
            grads = gradients(rng, weights, step)
            straight.apply(grads, weights)
            again.apply(grads, moved)
        assert everything(again, moved) == everything(straight, weights), (way, options)
        assert again.get_config() == straight.get_config()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_seed_and_what_is_stored_are_in_the_configuration(seed, tmp_path):
    optimizer = optimc.Adam(state_dtype={"m": "int8"}, master_weights=False, seed=seed,
                            groups=[{"weights": "a", "state_dtype": "bfloat16"}])
    optimizer.build({"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)})
    optimizer.save(tmp_path / "x")
    for again in (optimc.load(tmp_path / "x"), pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer),
                  optimc.Adam.from_config(json.loads(json.dumps(optimizer.get_config())))):
        assert (again.state_dtype, again.master_weights, again.seed) == ({"m": "int8"}, False, seed)
        assert again.groups[0]["state_dtype"] == "bfloat16"
        assert repr(again).partition(": ")[0] == repr(optimizer).partition(": ")[0]
        assert again.get_config() == optimizer.get_config()


# ------------------------------------------------------------------------------------------- the file

def mixed(path=None, **options):
    """An optimizer of weights of every type with slots of every storage, saved; and the weights."""
    rng = np.random.default_rng(0)
    weights = {"whole": np.ones((40, 25), np.float32), "halves": np.ones((20, 3), ml_dtypes.bfloat16),
               "float16": np.ones(5, np.float16), "high": np.ones((40, 3), np.float32, order="F")}
    optimizer = optimc.Adam(state_dtype={"m": "int8", "v": "bfloat16"}, seed=3, **options)
    for _ in range(3):
        optimizer.apply({name: rng.standard_normal(w.shape).astype(np.float32) for name, w in weights.items()},
                        weights)
    if path:
        optimizer.save(path)
    return optimizer, weights


def test_any_safetensors_reader_opens_it(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    optimizer, weights = mixed(tmp_path / "x")
    with safetensors.safe_open(tmp_path / "x", "numpy") as file:
        assert file.metadata()["format_version"] == "3"
        assert {name: file.get_slice(name).get_dtype() for name in file.keys()} == {    # noqa: SIM118
            **{f"m/{i}": "U8" for i in range(4)}, **{f"m.scale/{i}": "F32" for i in range(4)},
            **{f"v/{i}": "BF16" for i in range(4)}, "master_weight/1": "I16", "master_weight/2": "F32"}
        for i, (name, w) in enumerate(weights.items()):
            codes, scales = file.get_tensor(f"m/{i}"), file.get_tensor(f"m.scale/{i}")
            assert codes.shape == w.shape and scales.shape == (-(-w.size // 256),)
            order = "C" if w.flags.c_contiguous else "F"
            magnitude = ((codes & 0x7f).astype(np.uint32) << 20) + 0x3f800000
            numbers = (magnitude.view(np.float32) - 1) * np.where(codes >> 7, np.float32(-1), np.float32(1))
            every = scales.repeat(256)[:w.size].reshape(w.shape, order=order)
            assert_same_bits(numbers * every, optimizer.slots["m"][name])
        rest = file.get_tensor("master_weight/1")
        assert rest.dtype == np.int16 and rest.shape == (20, 3) and rest.any()


def test_torch_reads_bfloat16_of_the_file(tmp_path):
    torch = pytest.importorskip("safetensors.torch", exc_type=ImportError)
    optimizer, weights = mixed(tmp_path / "x")
    tensors = torch.load_file(tmp_path / "x")
    for i, name in enumerate(weights):
        assert_same_bits(tensors[f"v/{i}"].float().numpy(), optimizer.slots["v"][name])


def test_files_of_plain_numbers_are_of_the_version_before(tmp_path):
    optimizer, w = optimc.Adam(state_dtype="int8"), np.ones(100, np.float32)
    optimizer.apply([w], [w.copy()])
    optimizer.save(tmp_path / "x")                  # small weights keep float32 slots
    assert b'"format_version":"2"' in (tmp_path / "x").read_bytes()
    assert optimc.load(tmp_path / "x").state_dtype == "int8"


CHANGES = {
    "codes without scales": (lambda tensors: tensors.pop("m.scale/0"), "'m/0': expected codes of shape"),
    "scales without codes": (lambda tensors: tensors.pop("m/0"), "unexpected tensor 'm.scale/0'|no slot 'm'"),
    "too few scales": (lambda tensors: tensors.update({"m.scale/0": tensors["m.scale/0"][:3]}), "'m.scale/0'"),
    "scales of float64": (lambda tensors: tensors.update({"m.scale/0": np.ones(4)}), "'m.scale/0'"),
    "codes of another shape": (lambda tensors: tensors.update({"m/0": tensors["m/0"].T.copy()}), "'m/0'"),
    "scales of plain numbers": (lambda tensors: tensors.update({"v.scale/0": np.ones(4, np.float32)}),
                                "unexpected tensor 'v.scale/0'"),
    "bfloat16 of another shape": (lambda tensors: tensors.update({"v/0": tensors["v/0"].T.copy()}), "'v/0'"),
    "a slot of int16": (lambda tensors: tensors.update({"v/0": tensors["v/0"].view(np.int16)}), "'v/0'"),
    "a master of float32": (lambda tensors: tensors.update({"master_weight/1": np.ones((20, 3), np.float32)}),
                            "'master_weight/1': expected a master of shape"),
    "a master of another shape": (lambda tensors: tensors.update({"master_weight/2": np.ones(4, np.float32)}),
                                  "'master_weight/2'"),
    "a master of float32 weights": (lambda tensors: tensors.update({"master_weight/0": np.ones((40, 25), np.int16)}),
                                    "'master_weight/0'.* has none"),
    "one master too many": (lambda tensors: tensors.update({"master_weight/4": np.ones(3, np.int16)}),
                            "unexpected tensor 'master_weight/4'"),
    "an average of 16 bits": (lambda tensors: tensors.update({"ema_average/0": tensors["v/0"]}), "'ema_average/0'"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_parts_that_do_not_fit_each_other_are_refused(change, tmp_path):
    optimizer, weights = mixed()
    before, (alter, message) = everything(optimizer, weights.values()), CHANGES[change]
    state = optimizer.state_dict()
    alter(state["tensors"])
    other = optimc.Adam(state_dtype={"m": "int8", "v": "bfloat16"}, seed=3)
    description, tensors = optimizer._export()
    alter(tensors := {name: array.copy() for name, array in tensors.items()})
    checkpoint.format.write(tmp_path / "x", tensors, {"optimizer": json.dumps(description)})

    def load():
        optimc.load(tmp_path / "x").build(weights)

    for call in (lambda: optimizer.load_state_dict(state),
                 lambda: (other.load_state_dict(state), other.build(weights)), load):
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert everything(optimizer, weights.values()) == before and not other.built


def test_flipped_bits_are_noticed(tmp_path):
    mixed(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for at in np.random.default_rng(0).integers(len(data), size=200):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        (tmp_path / "y").write_bytes(flipped)
        with pytest.raises(optimc.CheckpointError):
            optimc.load(tmp_path / "y")


# ------------------------------------------------------------------------------------------- conversion

def convert(case, from_way, to_way, path):
    """Takes the state of one storage over in another: before an optimizer is built and after, and never unasked."""
    first, weights = made(case, from_way, "baseline", start(case, FEW, np.float32), seed=SEED)
    rng = np.random.default_rng(0)
    for step in range(2):
        first.apply(gradients(rng, weights, step), weights)
    first.save(path)
    state, held = optimc.load(path).state_dict(), everything(first, weights)
    built, _ = made(case, to_way, "baseline", weights, seed=SEED)
    with pytest.raises(ValueError, match=r"^weights\[0\]: the slot '\w+' is stored as \w+, and state_dtype asks for "
                                         r"\w+: pass convert=True to round it$"):
        built.load_state_dict(state)
    assert built.iterations == 0
    built.load_state_dict(state, convert=True)
    late = case.make(**to_way.arguments(case), seed=SEED)
    late.load_state_dict(state, convert=True)
    late.build([w.copy(order="K") for w in weights])
    assert everything(built, [])[1] == everything(late, [])[1]
    assert built.iterations == late.iterations == 2 and everything(first, weights) == held
    for slot, arrays in built.slots.items():
        for array, old in zip(arrays.values(), first.slots[slot].values(), strict=True):
            error = np.abs(array - old) / np.abs(old).max(initial=1e-30)
            assert error.max(initial=0) < 0.07 and (to_way.slots != "as numbers" or not error.any())


def test_a_state_is_rounded_to_another_storage_only_if_asked(case, tmp_path):
    ways = [Way("float32", slots) for slots in ("as numbers", "bfloat16", "int8")]
    for from_way, to_way in itertools.permutations(ways, 2):
        if from_way.arguments(case) != to_way.arguments(case):
            convert(case, from_way, to_way, tmp_path / "x")


def test_a_state_is_rounded_by_the_definition():
    wide, w = optimc.Adam(), np.linspace(-3, 3, 1000, dtype=np.float32)
    wide.apply([w * 2], [w.copy()])
    for choice in ("bfloat16", "int8"):
        narrow = optimc.Adam(state_dtype={"m": choice, "v": choice}, seed=SEED)
        narrow.load_state_dict(wide.state_dict(), convert=True)
        narrow.build([w])
        again = optimc.Adam(state_dtype={"m": choice, "v": choice}, seed=SEED)
        again.load_state_dict(narrow.state_dict())
        again.build([w.copy()])
        assert everything(again, [])[1] == everything(narrow, [])[1]
        other = optimc.Adam(state_dtype={"m": choice, "v": choice}, seed=SEED + 1)
        other.load_state_dict(wide.state_dict(), convert=True)
        other.build([w.copy()])
        assert other._slots["m"][0].tobytes() == narrow._slots["m"][0].tobytes()      # to the nearest
        assert other._slots["v"][0].tobytes() != narrow._slots["v"][0].tobytes()      # at random


def test_masters_are_dropped_only_if_asked():
    first, w = optimc.Adam(), np.ones(300, ml_dtypes.bfloat16)
    first.apply([np.linspace(-1, 1, 300, dtype=np.float32)], [w])
    for built in (True, False):
        other = optimc.Adam(master_weights=False)
        if built:
            other.build([w.copy()])
        with pytest.raises(ValueError, match=r"^weights\[0\]: .*master.*master_weights=False.*convert=True"):
            other.load_state_dict(first.state_dict())
            other.build([w.copy()])
        other = optimc.Adam(master_weights=False)
        other.load_state_dict(first.state_dict(), convert=True)
        other.build([w.copy()])
        assert other._masters is None and other.iterations == 1
        again = optimc.Adam()
        again.load_state_dict(other.state_dict())
        again.build([w.copy()])
        assert not again._masters[0].any()              # there is nothing to be lost


def test_fortran_order_keeps_its_codes(tmp_path):
    """Codes of 8 bits follow the order of memory; a file is in C order, and says which it was."""
    w = np.asfortranarray(np.random.default_rng(0).standard_normal((70, 50)).astype(np.float32))
    optimizer = optimc.Adam(state_dtype={"m": "int8", "v": "int8"})
    for _ in range(2):
        optimizer.apply([w * 2], [w])
    optimizer.save(tmp_path / "x")
    for order in ("F", "C"):
        again, moved = optimc.load(tmp_path / "x"), np.array(w, order=order)
        again.build([moved])
        same = [again._slots[slot][0].tobytes() == optimizer._slots[slot][0].tobytes() for slot in ("m", "v")]
        assert same == [order == "F"] * 2
        for slot in ("m", "v"):
            error = np.abs(again.slots[slot][0] - optimizer.slots[slot][0])
            assert error.max() <= (0.07 * np.abs(optimizer.slots[slot][0]).max() if order == "C" else 0)


def test_ways_of_each_case_are_resumed():
    """The choices of `chosen` reach every kind of weights and slots."""
    from cases import CASES
    reached = {chosen(case, k + 3 * option) for case in CASES for k in range(len(KINDS)) for option in range(4)}
    assert reached == {way for case in CASES for way in ways_of(case)}
