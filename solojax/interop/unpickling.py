"""Reads pickles as data: nothing in them runs.

A pickle is a program for a stack machine. This machine knows the instructions that build numbers,
text, lists and dicts. It imports nothing, and looks up no attribute: a global is a pair of names,
and calling one is an entry in a table of ours or the end of reading. So what a hostile pickle can
reach is what stands in that table (`solojax.interop.pickled_tensors`), and that makes data alone.

Text of Python 2 pickles is read as latin-1, as detectron2's files want it.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from solojax.interop.lazy_arrays import BrokenFile

_SIMPLE_KEYS = (str, bytes, int, float, bool, type(None))


class Refused(Exception):
    """A pickle asks for what is not in the table; the message says what for."""


class Global(NamedTuple):
    """A name that a pickle would have imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def name_of(value: Any) -> str:
    """How messages call a value: a global by its names, any other by its type.

    Never by its text: that of a value nested in itself a few dozen times would fill the memory.
    """
    return str(value) if isinstance(value, Global) else f"a value of type {type(value).__name__}"


class Inert:
    """Stands where an object would that carries nothing for us."""

    def set_state(self, state: Any) -> None:
        """Forgets the state."""


def load_pickle(
    data: bytes,
    calls: Mapping[Global, Callable[..., Any] | None],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that a pickle describes.

    Args:
      data: the pickle; what follows its end is left alone.
      calls: the permitted globals, each with what stands in for calling it (None: never called).
        Objects that a pickle sets the state of have a method `set_state`.
      persistent: what stands in for an object that the pickle keeps outside itself.

    Returns:
      Numbers, text, bytes, lists (sets too), tuples, dicts, globals and what `calls` return.

    Raises:
      Refused: another global, call or instruction.
      BrokenFile: the pickle is cut short or makes no sense.
    """
    return _Machine(calls, persistent).run(data)


class _Mark:
    """The place on the stack where a list of arguments begins."""


class _Machine:
    """The stack, the memo and an action per instruction."""

    def __init__(self, calls, persistent):
        self.calls, self.persistent = calls, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """Carries out the instructions up to the end."""
        try:
            for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
                if opcode.name == "STOP":
                    return self.pop()
                self.step(opcode.name, argument)
        except (ValueError, OverflowError) as error:  # pickletools' word for what it cannot parse
            raise BrokenFile(f"its pickle is damaged: {error}") from error
        raise BrokenFile("its pickle has no end")

    def step(self, name: str, argument: Any) -> None:
        """Carries out one instruction."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise Refused(f"the pickle instruction {name}")

    def pop(self) -> Any:
        """Takes the topmost value."""
        if not self.stack:
            raise BrokenFile("its pickle is damaged: it takes more than it has")
        value = self.stack.pop()
        if value is _Mark:
            raise BrokenFile("its pickle is damaged: a value is missing")
        return value

    def top(self, kind: type) -> Any:
        """The topmost value, which stays, and must be of a kind."""
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise BrokenFile(f"its pickle is damaged: no {kind.__name__} where one is needed")
        return self.stack[-1]

    def pop_to_mark(self) -> list:
        """Takes all values above the last mark, and the mark."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _Mark:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise BrokenFile("its pickle is damaged: a mark is missing")

    def find(self, module: Any, name: Any) -> Global:
        """A permitted global."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise BrokenFile("its pickle is damaged: a global without a name")
        found = Global(module, name)
        if found not in self.calls:
            raise Refused(str(found))
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        """What stands in for calling a permitted global."""
        action = self.calls.get(function) if isinstance(function, Global) else None
        if action is None:
            raise Refused(f"a call of {name_of(function)}")
        if not isinstance(arguments, tuple):
            raise BrokenFile("its pickle is damaged: a call without a tuple of arguments")
        try:
            return action(*arguments)
        except TypeError as error:
            raise BrokenFile(f"its pickle calls {function} with odd arguments") from error

    def set_items(self, target: dict, values: list) -> None:
        """Fills a dict; keys that nobody could ask for are kept apart, not hashed."""
        if len(values) % 2:
            raise BrokenFile("its pickle is damaged: a key without a value")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[key if type(key) in _SIMPLE_KEYS else object()] = value


def _append_tuple(length: int):
    def action(machine: _Machine, _):
        values = [machine.pop() for _ in range(length)]
        machine.stack.append(tuple(reversed(values)))

    return action


def _build(machine: _Machine, _) -> None:
    state = machine.pop()
    target = machine.stack[-1] if machine.stack else None
    if isinstance(target, dict):  # attributes of an OrderedDict, such as a state dict's versions
        return
    if not hasattr(type(target), "set_state"):
        raise Refused("setting the state of a value")
    target.set_state(state)


def _dict(machine: _Machine, _) -> None:
    values, made = machine.pop_to_mark(), {}
    machine.set_items(made, values)
    machine.stack.append(made)


def _set_item(machine: _Machine, _) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items(machine.top(dict), [key, value])


def _set_items(machine: _Machine, _) -> None:
    values = machine.pop_to_mark()
    machine.set_items(machine.top(dict), values)


def _append(machine: _Machine, _) -> None:
    value = machine.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine, _) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(values)


def _get(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        raise BrokenFile("its pickle is damaged: it recalls what it never said")
    machine.stack.append(machine.memo[index])


def _put(machine: _Machine, index: int) -> None:
    value = machine.pop()
    machine.memo[index] = value
    machine.stack.append(value)


def _reduce(machine: _Machine, _) -> None:
    arguments, function = machine.pop(), machine.pop()
    machine.stack.append(machine.call(function, arguments))


def _reduce_with_keywords(machine: _Machine, _) -> None:
    if machine.pop() != {}:
        raise Refused("a call with keywords")
    _reduce(machine, None)


def _stack_global(machine: _Machine, _) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(machine.find(module, name))


def _persistent(machine: _Machine, _) -> None:
    if machine.persistent is None:
        raise Refused("an object outside the file")
    machine.stack.append(machine.persistent(machine.pop()))


def _duplicate(machine: _Machine, _) -> None:
    value = machine.pop()
    machine.stack += [value, value]


def _nothing(machine: _Machine, _) -> None:
    pass


_CONSTANTS = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _Mark,
}
_LITERALS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
).split()
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _nothing,
    "FRAME": _nothing,
    "POP": lambda machine, _: machine.stack and machine.stack.pop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": _duplicate,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": _append_tuple(1),
    "TUPLE2": _append_tuple(2),
    "TUPLE3": _append_tuple(3),
    "LIST": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.pop_to_mark()),
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "GET": _get,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": lambda machine, _: _put(machine, len(machine.memo)),
    "GLOBAL": lambda machine, names: machine.stack.append(machine.find(*names.split(" ", 1))),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _reduce_with_keywords,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
