"""No pickle runs anything: what is not data is refused by name, and what is broken is called so."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest
from helpers import pickles as p

from solojax.interop.lazy_arrays import BrokenFile
from solojax.interop.pickled_tensors import NUMPY_CALLS, TORCH_CALLS, NumpyArray
from solojax.interop.unpickling import Refused, load_pickle


def load(body: bytes, calls=TORCH_CALLS):
    return load_pickle(p.pickle_of(body), calls)


class Touch:
    """Unpickled by Python, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').write('ran')",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data(protocol):
    value = {
        "text": "naïve", "number": -(2**70), "float": 1.5, "small": 7, "none": None, "yes": True,
        "list": [1, [2, 3]], "tuple": (1, (2,), ()), "nested": {"a": {}, 3: "three"},
    }  # fmt: skip
    assert load_pickle(pickle.dumps(value, protocol), {}) == value


def test_sets_are_lists():
    data = pickle.dumps([{3}, frozenset([4])], 4)
    assert load_pickle(data, {}) == [[3], [4]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_python_way_would_have_run_it(tmp_path, protocol):
    """The control: Python's unpickler makes the file, ours names the function and does not."""
    path = tmp_path / "touched"
    data = pickle.dumps({"state_dict": [Touch(path)]}, protocol)
    with pytest.raises(Refused, match="builtin.*exec"):
        load_pickle(data, TORCH_CALLS)
    assert not path.exists()
    pickle.loads(data)
    assert path.exists()


SYSTEM = p.name("os", "system")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (p.call(SYSTEM, p.text("true")), "os.system"),
        (SYSTEM, "os.system"),  # named, not even called
        (p.call(p.name("builtins", "eval"), p.text("1")), "builtins.eval"),
        (p.call(p.name("subprocess", "Popen"), p.text("true")), "subprocess.Popen"),
        (p.name("subprocess", "Popen") + p.group(p.text("true")) + b"\x81", "subprocess.Popen"),
        (b"(S'true'\nios\nsystem\n", "INST"),
        (b"(" + p.name("collections", "OrderedDict") + b"o", "OBJ"),
        (b"\x82\x01", "EXT1"),
        (p.text("os") + p.text("system") + b"\x93", "os.system"),
        (p.call(p.name("builtins", "getattr"), p.name("torch", "device"), p.text("x")), "getattr"),
        (p.name("this", "s"), "this.s"),
        (p.name("torch.nn.modules.conv", "Conv2d"), "torch.nn.modules.conv.Conv2d"),
        (p.call(p.name("torch.storage", "_load_from_bytes"), p.text("x")), "_load_from_bytes"),
    ],
)
def test_what_is_not_data_is_refused_by_name(body, named):
    with pytest.raises(Refused, match=named):
        load(body)
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    "body",
    [
        # Permitted as a mark in arguments, never called: NumPy's own would take any memory.
        p.call(p.name("numpy", "ndarray"), p.numbers(2**40)),
        p.call(p.name("torch", "FloatStorage"), p.number(2**40)),
        p.call(p.name("torch.nn.parameter", "Parameter"), p.number(1)),
        # Calling what is no function.
        p.call(p.text("os.system"), p.text("true")),
        p.call(p.call(p.name("collections", "OrderedDict")), p.text("true")),
        # Setting the state of a global, of a number, of a text, of a list.
        p.name("collections", "OrderedDict") + p.mapping(__class__=p.text("x")) + b"b",
        p.name("torch._utils", "_rebuild_tensor_v2") + p.mapping(__code__=p.text("x")) + b"b",
        p.number(1) + p.mapping(x=p.number(2)) + b"b",
        p.text("x") + p.mapping(x=p.number(2)) + b"b",
        b"]" + p.mapping(x=p.number(2)) + b"b",
        # A call with keywords.
        p.name("collections", "OrderedDict") + b")" + p.mapping(x=p.number(1)) + b"\x92",
        # A permitted function that makes no tensor, asked to make one.
        p.call(
            p.name("torch._tensor", "_rebuild_from_type_v2"),
            p.name("collections", "OrderedDict"), p.name("torch", "Tensor"), b")", b"N",
        ),
        # Something outside the file, where there is none.
        p.text("0") + b"Q",
        b"P0\n",
        # NumPy arrays of another class, of objects, of fields.
        p.numpy_array((1,), bytes(4), subtype=p.name("collections", "OrderedDict")),
        p.numpy_array((1,), bytes(8), dtype=p.numpy_dtype("O8")),
        p.call(p.name("numpy", "dtype"), p.text("V8"), p.number(0), p.number(1)),
        p.call(p.name("numpy", "dtype"), p.text("f4"))
        + p.group(p.number(3), p.text("|"), b"N", p.group(p.text("x")), b"}", p.number(-1))
        + b"b",
        p.call(p.name("_codecs", "encode"), p.text("x"), p.text("rot13")),
        # Attributes of anything but mmengine's log.
        p.call(p.name("builtins", "getattr"), p.name("collections", "OrderedDict"), p.text("x")),
        p.call(p.name("collections", "OrderedDict"), b"](" + p.numbers(1, 2) + b"e"),
    ],
)  # fmt: skip
def test_permitted_names_do_nothing_else(body):
    with pytest.raises(Refused):
        load(body)


def test_functions_recalled_from_the_memo_stay_names():
    stored = p.name("collections", "OrderedDict") + b"q\x000" + p.text("x") + b"q\x010"
    assert load(stored + b"h\x00)R") == {}
    with pytest.raises(Refused, match="a call of a value of type str"):
        load(stored + b"h\x01)R")


@pytest.mark.parametrize(
    "body",
    [
        b"",  # nothing on the stack
        b"h\x07",  # recalled, never said
        b"t",  # no mark
        b"(",  # the mark is all there is
        b"(}u0u",  # no dict below
        b"}(X\x01\x00\x00\x00au",  # a key without a value
        b"}N" + b"a",  # append to a dict
        b"\x93",
        b"NN\x93",  # a global without a name
        p.name("collections", "OrderedDict") + b"NR",  # arguments that are no tuple
        p.call(p.name("torch._utils", "_rebuild_tensor_v2"), p.number(1)),
        b"\x8d" + (2**62).to_bytes(8, "little") + b"x",  # a text longer than any memory
        b"\x8a\xff\x01",  # a number cut short
        b"\xfe",  # no instruction
        p.numpy_array((2**40,), bytes(4)),
        p.numpy_array((2**60, 2**60), bytes(4)),
        p.numpy_array((-1,), bytes(4)),
        p.numpy_array((3,), bytes(4)),
    ],
)
def test_broken_pickles(body):
    with pytest.raises(BrokenFile):
        load(body)


def test_no_end():
    with pytest.raises(BrokenFile):
        load_pickle(b"\x80\x02}", {})


def test_values_nested_in_themselves_cost_nothing():
    """Sixty tuples of two of the former would, written out or hashed, outlast the sun."""
    doubled = b")" + b"2\x86" * 60
    with pytest.raises(Refused, match="a value of type tuple"):
        load(p.call(p.name("numpy.core.multiarray", "_reconstruct"), doubled))
    with pytest.raises(Refused):
        load(doubled + b")R")
    assert len(load(b"}" + doubled + b"Ns")) == 1  # as a key
    with pytest.raises(BrokenFile):
        load(p.call(p.name("torch._utils", "_rebuild_tensor_v2"), doubled, b"N", b"N", b"N"))


def test_numpy_arrays_of_python_2():
    values = np.arange(6, dtype=">f4").reshape(2, 3)
    body = p.numpy_array((2, 3), values.tobytes(), p.numpy_dtype("f4", ">"))
    found = load(body, NUMPY_CALLS)
    assert isinstance(found, NumpyArray)
    read = found.array.read({})
    np.testing.assert_array_equal(read, values)
    assert read.dtype == np.float32
