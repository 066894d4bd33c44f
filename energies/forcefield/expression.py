"""OpenMM's energy expressions, parsed and evaluated on tensors.

Grammar (that of OpenMM's Lepton library), loosest to tightest:

    program = sum *( ";" name "=" sum )
    sum     = product *( ("+" | "-") product )
    product = unary *( ("*" | "/") unary )
    unary   = "-" unary | power
    power   = atom [ "^" unary ]                       (right associative)
    atom    = number | name | name "(" sum *( "," sum ) ")" | "(" sum ")"

The tree is flattened once into a straight-line program without common subexpressions, so that a
call is a plain loop which `torch.compile` unrolls into its graph.
"""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from energies.errors import EnergyInputError

Value = Tensor | float
Function = Callable[..., Value]
Node = tuple[str, tuple["Node", ...] | str | float]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<symbol>[-+*/^(),;=]))"
)


def _elementwise(
    on_tensor: Callable[[Tensor], Tensor], on_float: Callable[[float], float]
) -> Function:
    return lambda x: on_tensor(x) if isinstance(x, Tensor) else on_float(x)


def _power(x: Value, y: Value) -> Value:
    """x^y; whole and half powers by multiplication, whose gradient is right for x <= 0 too."""
    if isinstance(y, Tensor) or not (2 * y).is_integer() or abs(y) > 64:
        return x**y
    if not y.is_integer():
        root: Value = x.sqrt() if isinstance(x, Tensor) else x**0.5
        return root if y == 0.5 else _power(x, y - 0.5) * root
    result: Value | None = None
    square, n = x, int(abs(y))
    while n:
        if n & 1:
            result = square if result is None else result * square
        n >>= 1
        if n:
            square = square * square
    if result is None:
        return 1.0
    return result if y > 0 else 1.0 / result


def _step(x: Value) -> Value:
    return (x >= 0).to(x.dtype) if isinstance(x, Tensor) else float(x >= 0)


def _delta(x: Value) -> Value:
    return (x == 0).to(x.dtype) if isinstance(x, Tensor) else float(x == 0)


def _select(condition: Value, yes: Value, no: Value) -> Value:
    if isinstance(condition, Tensor):
        return torch.where(condition != 0, yes, no)
    return yes if condition != 0 else no


# Between equals OpenMM's slope of min is that of the second, its slope of max that of the first.
def _extremum(wins: Callable[[Value, Value], Any]) -> Function:
    def extremum(x: Value, y: Value) -> Value:
        if isinstance(x, Tensor) or isinstance(y, Tensor):
            # NaN where either is.
            return torch.where(wins(x, y) | (x != x), x, y)
        return x if wins(x, y) else y

    return extremum


def _atan2(y: Value, x: Value) -> Value:
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        like = x if isinstance(x, Tensor) else y
        assert isinstance(like, Tensor)
        return torch.atan2(torch.as_tensor(y).to(like), torch.as_tensor(x).to(like))
    return math.atan2(y, x)


_UNARY: dict[str, Function] = {
    "sqrt": _elementwise(torch.sqrt, math.sqrt),
    "exp": _elementwise(torch.exp, math.exp),
    "log": _elementwise(torch.log, math.log),
    "sin": _elementwise(torch.sin, math.sin),
    "cos": _elementwise(torch.cos, math.cos),
    "tan": _elementwise(torch.tan, math.tan),
    "sec": lambda x: 1.0 / _UNARY["cos"](x),
    "csc": lambda x: 1.0 / _UNARY["sin"](x),
    "cot": lambda x: 1.0 / _UNARY["tan"](x),
    "asin": _elementwise(torch.asin, math.asin),
    "acos": _elementwise(torch.acos, math.acos),
    "atan": _elementwise(torch.atan, math.atan),
    "sinh": _elementwise(torch.sinh, math.sinh),
    "cosh": _elementwise(torch.cosh, math.cosh),
    "tanh": _elementwise(torch.tanh, math.tanh),
    "erf": _elementwise(torch.erf, math.erf),
    "erfc": _elementwise(torch.erfc, math.erfc),
    "abs": _elementwise(torch.abs, abs),
    "floor": _elementwise(torch.floor, lambda x: float(math.floor(x))),
    "ceil": _elementwise(torch.ceil, lambda x: float(math.ceil(x))),
    "step": _step,
    "delta": _delta,
    "square": lambda x: x * x,
    "cube": lambda x: x * x * x,
    "recip": lambda x: 1.0 / x,
}

_FUNCTIONS: dict[str, tuple[int, Function]] = {
    **{name: (1, function) for name, function in _UNARY.items()},
    "atan2": (2, _atan2),
    "min": (2, _extremum(operator.lt)),
    "max": (2, _extremum(operator.ge)),
    "select": (3, _select),
}

_OPERATORS: dict[str, Function] = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "^": _power,
    "reciprocal": lambda x: 1.0 / x,
    "negate": lambda x: -x,
}


class _Parser:
    """Recursive descent over the tokens of one program."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise self.error(f"a number, name or operator, got {text[position:].strip()[0]!r}")
            assert match.lastgroup is not None
            self.tokens.append((match.lastgroup, match.group(match.lastgroup)))
            position = match.end()
        self.at = 0

    def error(self, expected: str) -> EnergyInputError:
        return EnergyInputError(f"Expected {expected} in expression {self.text!r}.")

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def take(self, symbol: str) -> None:
        if self.peek() != symbol:
            raise self.error(f"{symbol!r}, got {self.peek() or 'the end'!r}")
        self.at += 1

    def program(self) -> tuple[Node, dict[str, Node]]:
        value = self.sum()
        definitions: dict[str, Node] = {}
        while self.peek() == ";":
            self.at += 1
            if self.at == len(self.tokens):
                break
            kind, name = self.tokens[self.at]
            if kind != "name":
                raise self.error(f"a name after ';', got {name!r}")
            self.at += 1
            self.take("=")
            definitions[name] = self.sum()
        if self.at < len(self.tokens):
            raise self.error(f"the end or ';', got {self.peek()!r}")
        return value, definitions

    def sum(self) -> Node:
        node = self.product()
        while self.peek() in ("+", "-"):
            operator = self.peek()
            self.at += 1
            node = (operator, (node, self.product()))
        return node

    def product(self) -> Node:
        node = self.unary()
        while self.peek() in ("*", "/"):
            operator = self.peek()
            self.at += 1
            node = (operator, (node, self.unary()))
        return node

    def unary(self) -> Node:
        if self.peek() == "-":
            self.at += 1
            return ("negate", (self.unary(),))
        node = self.atom()
        if self.peek() == "^":
            self.at += 1
            node = ("^", (node, self.unary()))
        return node

    def atom(self) -> Node:
        if self.at == len(self.tokens):
            raise self.error("a value, got the end")
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return ("number", float(text))
        if kind == "name" and self.peek() == "(":
            self.take("(")
            arguments = [self.sum()]
            while self.peek() == ",":
                self.at += 1
                arguments.append(self.sum())
            self.take(")")
            return (f"{text}()", tuple(arguments))
        if kind == "name":
            return ("name", text)
        if text == "(":
            node = self.sum()
            self.take(")")
            return node
        raise self.error(f"a value, got {text!r}")


class Expression:
    """A parsed OpenMM expression, callable on tensors.

    Example:
        >>> Expression("k*(r-r0)^2; k=3")({"r": 2.0, "r0": 1.0})
        3.0

    Args:
        text: The expression, with its `;` definitions.
        functions: Further functions by name (tabulated functions, distance...), each with its
            number of arguments. An argument that is a bare name in `by_name` functions is passed
            as text.
        by_name: Functions whose arguments are names of particles, as in `distance(p1, p2)`.
    """

    def __init__(
        self,
        text: str,
        *,
        functions: Mapping[str, tuple[int, Function]] | None = None,
        by_name: Sequence[str] = (),
    ) -> None:
        self.text = text
        self.variables: set[str] = set()
        self._functions = {**_FUNCTIONS, **(functions or {})}
        self._by_name = frozenset(by_name)
        self._slots: dict[Node, int] = {}
        self._program: list[tuple[Function | None, tuple[int, ...], str | float]] = []
        parser = _Parser(text)
        root, definitions = parser.program()
        self._result = self._emit(root, definitions, ())

    def _emit(self, node: Node, definitions: dict[str, Node], inside: tuple[str, ...]) -> int:
        """Append the program of `node` unless it is there already; return its slot."""
        kind, content = node
        if kind == "name":
            assert isinstance(content, str)
            if content in inside:
                raise EnergyInputError(
                    f"Expected definitions without a cycle, got {content!r} defined through "
                    f"itself in expression {self.text!r}."
                )
            if content in definitions:
                return self._emit(definitions[content], definitions, (*inside, content))
        if node in self._slots:
            return self._slots[node]
        instruction: tuple[Function | None, tuple[int, ...], str | float]
        if kind == "number":
            assert isinstance(content, float)
            instruction = (None, (), content)
        elif kind == "name":
            assert isinstance(content, str)
            self.variables.add(content)
            instruction = (None, (), content)
        else:
            assert isinstance(content, tuple)
            instruction = self._call(kind, content, definitions, inside)
        self._program.append(instruction)
        self._slots[node] = len(self._program) - 1
        return self._slots[node]

    def _call(
        self,
        kind: str,
        content: tuple[Node, ...],
        definitions: dict[str, Node],
        inside: tuple[str, ...],
    ) -> tuple[Function | None, tuple[int, ...], str | float]:
        if kind == "/":
            # All quotients by one thing share one division: a Born radius integral has seven of
            # them and needs three. The inverse of a power is taken first: 1/r^12 and its
            # derivative then stay within the range of float32 for as long as they can.
            below, power = content[1], content[1][1]
            inverse: Node = ("reciprocal", (below,))
            if below[0] == "^" and isinstance(power, tuple):
                inverse = ("^", (("reciprocal", power[:1]), power[1]))
            return self._call("*", (content[0], inverse), definitions, inside)
        if not kind.endswith("()"):
            slots = tuple(self._emit(child, definitions, inside) for child in content)
            return (_OPERATORS[kind], slots, "")
        name = kind[:-2]
        if name not in self._functions:
            raise EnergyInputError(
                f"Expected a function among {sorted(self._functions)}, got {name!r} in "
                f"expression {self.text!r}."
            )
        count, function = self._functions[name]
        if len(content) != count:
            raise EnergyInputError(
                f"Expected {count} arguments of {name}, got {len(content)} in expression "
                f"{self.text!r}."
            )
        if name in self._by_name:
            # The geometry is a variable of its own, computed by the caller under this name.
            key = f"{name}({','.join(str(child[1]) for child in content)})"
            self.variables.add(key)
            return (None, (), key)
        slots = tuple(self._emit(child, definitions, inside) for child in content)
        return (function, slots, "")

    def __call__(self, variables: Mapping[str, Value]) -> Value:
        """Evaluate at `variables`, tensors that broadcast with one another, or numbers."""
        values: list[Value] = []
        for function, arguments, content in self._program:
            if function is not None:
                values.append(function(*[values[slot] for slot in arguments]))
            elif isinstance(content, str):
                values.append(variables[content])
            else:
                values.append(content)
        return values[self._result]
