"""The statements of a C function that computes an ONNX graph for one observation.

The graph is the one that `convert.to_onnx` makes, so a conversion in `primitives`, `products` or `control`
is one to C too. Its batch is one here, so every shape is known. What depends on no input becomes a
`static const` array, what only moves axes becomes strides, neighbouring elementwise nodes share one loop, and
buffers that are not needed at the same time share their memory.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from qscape.errors import Unexportable

TYPES = {"f": "float", "i": "int", "b": "unsigned char"}
BYTES = {"f": 4, "i": 4, "b": 1}
UNROLLED = 4  # rows of a matrix that one pass over the outputs adds

# Of elementwise nodes, in C: a NaN has to come out wherever jax lets one through.
FORMULAS = {
    "Add": "{0} + {1}", "Sub": "{0} - {1}", "Mul": "{0} * {1}", "Div": "{0} / {1}", "Neg": "-{0}",
    "Abs": "fabsf({0})", "Floor": "floorf({0})", "Ceil": "ceilf({0})", "Round": "rintf({0})",
    "Exp": "expf({0})", "Log": "logf({0})", "Sqrt": "sqrtf({0})", "Tanh": "tanhf({0})", "Erf": "erff({0})",
    "Sin": "sinf({0})", "Cos": "cosf({0})", "Pow": "powf({0}, {1})", "Reciprocal": "1.0f / {0}",
    "Sigmoid": "1.0f / (1.0f + expf(-{0}))",
    "Sign": "{0} != {0} ? {0} : (float)(({0} > 0.0f) - ({0} < 0.0f))",
    "Equal": "{0} == {1}", "Less": "{0} < {1}", "LessOrEqual": "{0} <= {1}", "Greater": "{0} > {1}",
    "GreaterOrEqual": "{0} >= {1}", "And": "{0} && {1}", "Or": "{0} || {1}", "Not": "!{0}",
    "Where": "{0} ? {1} : {2}", "Identity": "{0}",
}  # fmt: skip
OF_INTEGERS = {"Abs": "{0} < 0 ? -{0} : {0}", "Sign": "({0} > 0) - ({0} < 0)"}
ELEMENTWISE = {*FORMULAS, "Max", "Min", "Cast"}
VIEWS = ("Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Expand", "Gather")


class Operand(NamedTuple):
    """An array of C, or a number, as a node reads it.

    Attributes:
        kind: "f" float, "i" int, "b" truth.
        name: of the array; `$3` is the third buffer. Of a number: its literal.
        shape: of the array as it is read.
        strides: entries from one index to the next, 0 where an axis is repeated; () of a number.
        offset: of the first entry.
        is_number: is it a number?
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    offset: int = 0
    is_number: bool = False

    @property
    def is_flat(self) -> bool:
        """Whether the entries stand one after the other."""
        return not self.is_number and self.strides == rows_of(self.shape)

    def at(self, *indices: str | int) -> str:
        """Return the entry at these indices in C."""
        if self.is_number:
            return self.name
        terms = [str(self.offset)] if self.offset else []
        for index, stride in zip(indices, self.strides, strict=True):
            if stride and index != 0:
                factor = f"({index})" if " " in f"{index}" else f"{index}"
                terms.append(f"{index}" if stride == 1 else f"{factor} * {stride}")
        return f"{self.name}[{' + '.join(terms) or '0'}]"

    def repeated(self, shape: Sequence[int]) -> "Operand":
        """Return the operand broadcast to a shape."""
        if self.is_number:
            return self._replace(shape=tuple(shape))
        new = len(shape) - len(self.shape)
        pairs = zip(self.shape, self.strides, shape[new:], strict=True)
        strides = (0,) * new + tuple(0 if d == 1 != wanted else s for d, s, wanted in pairs)
        return self._replace(shape=tuple(shape), strides=strides)


class Statement(NamedTuple):
    """Lines of C that fill buffers.

    Attributes:
        lines: the code, in which `$3` is the third buffer.
        written: the buffers; none of the action.
    """

    lines: list[str]
    written: tuple[int, ...]


class Code(NamedTuple):
    """A function in C.

    Attributes:
        constants: the declarations of constant arrays.
        lines: the body.
        constant_bytes, stack_bytes: memory of the arrays.
        kind: of the action, "f" or "i".
        size: entries of the action.
        memory_size: entries of the memory from call to call; 0: there is none.
    """

    constants: list[str]
    lines: list[str]
    constant_bytes: int
    stack_bytes: int
    kind: str
    size: int
    memory_size: int


def write_code(model: onnx.ModelProto, prefix: str) -> Code:
    """Return the code of a model, which writes its output "action" to the array `action`.

    With a memory, the model has inputs "memory" and "start" and an output "next_memory", and the code reads
    and writes `state->memory` and `state->started`.

    Args:
        model: as `convert.to_onnx` makes it.
        prefix: which names of constants and functions begin with.

    Raises:
        UsageError: the model has a node without a counterpart here.
    """
    return _Writer(model, prefix).write()


def rows_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of an array whose entries stand one after the other; 0 for axes of size one."""
    return tuple(0 if d == 1 else prod(shape[k + 1 :]) for k, d in enumerate(shape))


IN_C = {"memory": "state->memory", "start": "start"}  # inputs that have another name in C


class _Writer:
    """Walks the nodes of a graph, and collects constants, buffers and statements."""

    def __init__(self, model: onnx.ModelProto, prefix: str) -> None:
        graph = model.graph
        self.prefix = prefix
        self.inputs = [given.name for given in graph.input]
        self.outputs = [made.name for made in graph.output]
        self.values = _evaluate(model)
        self.fixed = {x.name for x in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            is_fixed = node.op_type == "Shape" or self.fixed.issuperset(node.input)
            if is_fixed and node.output[0] not in self.outputs:
                self.fixed.update(node.output)
            else:
                self.nodes.append(node)
        self.users: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.users[name].append(node)
        self.roots = self._find_roots()
        self.groups: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            if node.output[0] in self.roots:
                self.groups[self.roots[node.output[0]]].append(node)
        self.operands: dict[str, Operand] = {}
        self.constants: dict[tuple[str, bytes], str] = {}
        self.declared: list[str] = []
        self.constant_bytes = 0
        self.buffers: list[tuple[str, int]] = []  # kind and size
        self.statements: list[Statement] = []

    def write(self) -> Code:
        for name in self.inputs:
            shape = self.values[name].shape
            self.operands[name] = Operand(self._kind(name), IN_C.get(name, name), shape, rows_of(shape))
        for node in self.nodes:
            self._add(node)
        memory_size = 0
        if "next_memory" in self.outputs:  # when nothing reads the last one any more
            kept = self.operands["next_memory"]
            memory_size, held = prod(kept.shape), kept._replace(name="state->memory")
            self.state(nest([held, kept], lambda to, given: [f"{to} = {given};"]))
        lines, stack = self._place_buffers()
        if memory_size:
            lines = ["const unsigned char start[1] = {!state->started};", *lines, "state->started = 1;"]
        kind, size = "f" if self._kind("action") == "f" else "i", self.values["action"].size
        return Code(self.declared, lines, self.constant_bytes, stack, kind, size, memory_size)

    def _add(self, node: onnx.NodeProto) -> None:
        op = node.op_type
        if op in VIEWS:
            self.operands[node.output[0]] = self._view(node)
        elif op in ELEMENTWISE:
            if self.roots[node.output[0]] == node.output[0]:
                self._write_loop(node)
        elif op in STATEMENTS:
            STATEMENTS[op](self, node)
        else:
            raise Unexportable(f"this policy computes '{op}', which qscape cannot write as C.")

    # --- values -----------------------------------------------------------------------------------

    def _kind(self, name: str) -> str:
        kind = {"f": "f", "i": "i", "b": "b"}.get(self.values[name].dtype.kind)
        if kind is None or self.values[name].dtype == np.float64:
            raise Unexportable(
                f"this policy computes with {self.values[name].dtype}, which qscape cannot write as C."
            )
        return kind

    def operand(self, name: str) -> Operand:
        """Return a value as an operand; constants are declared when they are asked for."""
        if name in self.operands:
            return self.operands[name]
        array, kind = self.values[name], self._kind(name)
        if array.size == 0 or (array == array.flat[0]).all():
            found = Operand(kind, literal(array.flat[0] if array.size else 0), array.shape, is_number=True)
        else:
            found = Operand(kind, self._declare(array, kind), array.shape, rows_of(array.shape))
        self.operands[name] = found
        return found

    def _declare(self, array: np.ndarray, kind: str) -> str:
        """Return the name of a constant array; equal ones are declared once."""
        if kind == "i" and np.abs(array).max() > np.iinfo(np.int32).max:
            raise Unexportable("this policy computes with whole numbers of more than 32 bits.")
        key = kind, np.ascontiguousarray(array).tobytes()
        if key not in self.constants:
            name = f"{self.prefix}_c{len(self.constants)}"
            self.constants[key] = name
            numbers = [literal(x).strip("()") for x in array.flat]
            rows = [", ".join(numbers[k : k + 8]) for k in range(0, len(numbers), 8)]
            body = ",\n    ".join(rows)
            self.declared.append(f"static const {TYPES[kind]} {name}[{array.size}] = {{\n    {body}\n}};")
            self.constant_bytes += BYTES[kind] * array.size
        return self.constants[key]

    def buffer(self, kind: str, size: int) -> int:
        """Return a new buffer."""
        self.buffers.append((kind, size))
        return len(self.buffers) - 1

    def result(self, name: str) -> Operand:
        """Return a new buffer for a value, which is its operand from now on."""
        shape, kind = self.values[name].shape, self._kind(name)
        self.operands[name] = Operand(
            kind, f"${self.buffer(kind, self.values[name].size)}", shape, rows_of(shape)
        )
        return self.operands[name]

    def state(self, lines: list[str], *written: Operand) -> None:
        """Add a statement that fills the buffers `written`; it is a block if it declares something."""
        if any(re.match(r"(const|int|float|unsigned) ", line) for line in lines):
            lines = ["{", *(f"    {line}" for line in lines), "}"]
        self.statements.append(
            Statement(lines, tuple(int(x.name[1:]) for x in written if x.name != "action"))
        )

    # --- views ------------------------------------------------------------------------------------

    def _view(self, node: onnx.NodeProto) -> Operand:
        x, shape = self.operand(node.input[0]), self.values[node.output[0]].shape
        if x.is_number:
            return x._replace(shape=shape)
        if node.op_type == "Transpose":
            order = _attribute(node, "perm")
            return x._replace(shape=shape, strides=tuple(x.strides[k] for k in order))
        if node.op_type == "Expand":
            return x.repeated(shape)
        if node.op_type == "Slice":
            strides, offset = list(x.strides), x.offset
            starts, ends, axes, *steps = (self._constant(name) for name in node.input[1:])
            for start, end, axis, step in zip(starts, ends, axes, *(steps or [[1] * len(axes)]), strict=True):
                places = range(*slice(int(start), int(end), int(step)).indices(x.shape[axis]))
                offset += places.start * x.strides[axis]
                strides[axis] *= places.step
            return x._replace(shape=shape, strides=tuple(strides), offset=offset)
        if node.op_type == "Gather":
            axis = _attribute(node, "axis", 0)
            at = int(self._constant(node.input[1])) % x.shape[axis]
            left = tuple(s for k, s in enumerate(x.strides) if k != axis)
            return x._replace(shape=shape, strides=left, offset=x.offset + at * x.strides[axis])
        return self._reshaped(x, shape)

    def _constant(self, name: str) -> Any:
        if name not in self.fixed:
            raise Unexportable("this policy computes where it cuts, which qscape cannot write as C.")
        return self.values[name]

    def _reshaped(self, x: Operand, shape: tuple[int, ...]) -> Operand:
        if [d for d in x.shape if d != 1] == [d for d in shape if d != 1]:
            steps = iter([s for d, s in zip(x.shape, x.strides, strict=True) if d != 1])
            return x._replace(shape=shape, strides=tuple(0 if d == 1 else next(steps) for d in shape))
        if not x.is_flat:
            x = self._copied(x)
        return x._replace(shape=shape, strides=rows_of(shape))

    def _copied(self, x: Operand) -> Operand:
        target = Operand(x.kind, f"${self.buffer(x.kind, prod(x.shape))}", x.shape, rows_of(x.shape))
        self.state(nest([target, x], lambda to, given: [f"{to} = {given};"]), target)
        return target

    # --- elementwise nodes ------------------------------------------------------------------------

    def _find_roots(self) -> dict[str, str]:
        """Return, of each elementwise value, the value whose loop computes it."""
        roots: dict[str, str] = {}
        for node in reversed(self.nodes):
            if node.op_type not in ELEMENTWISE:
                continue
            (name,) = node.output
            found = {
                roots[user.output[0]] if user.op_type in ELEMENTWISE else None for user in self.users[name]
            }
            root = found.pop() if len(found) == 1 else None
            fits = root is not None and self.values[root].shape == self.values[name].shape
            roots[name] = root if root is not None and fits else name
        return roots

    def _write_loop(self, root: onnx.NodeProto) -> None:
        """Add the loop of an elementwise value, with the values that only it needs."""
        (name,) = root.output
        inside = self.groups[name]
        computed = {node.output[0] for node in inside}
        shape = self.values[name].shape
        read = list(dict.fromkeys(x for node in inside for x in node.input if x not in computed))
        operands = {x: self.operand(x).repeated(shape) for x in read}
        if name == "action":
            target = Operand(self._kind(name), "action", shape, rows_of(shape))
        else:
            target = self.result(name)

        def body(to: str, *entries: str) -> list[str]:
            words, lines = dict(zip(read, entries, strict=True)), []
            numbers = {x for x in read if operands[x].is_number}
            for k, node in enumerate(inside):
                formula = self._formula(node, words, numbers)
                if node is root:
                    return [*lines, f"{to} = {formula};"]
                own = node.output[0]
                words[own] = f"t{k}"
                kind = TYPES[self._kind(own)].replace("unsigned char", "int")
                lines.append(f"const {kind} t{k} = {formula};")
            raise AssertionError(name)

        self.state(nest([target, *operands.values()], body), target)

    def _formula(self, node: onnx.NodeProto, words: dict[str, str], numbers: set[str]) -> str:
        given, op = [words[x] for x in node.input], node.op_type
        kind = self._kind(node.input[0])
        if op == "Cast":
            wanted = self._kind(node.output[0])
            if (kind, wanted) == ("f", "i"):
                return f"{self.prefix}_whole({given[0]})"
            if wanted == "b" != kind:
                return f"{given[0]} != 0"
            return f"(float){given[0]}" if wanted == "f" != kind else given[0]
        if op in ("Max", "Min"):
            a, b = given[::-1] if node.input[0] in numbers else given
            sign = "<" if op == "Max" else ">"
            if kind == "f" and not numbers.intersection(node.input):
                return f"{b} != {b} || {a} {sign} {b} ? {b} : {a}"
            return f"{a} {sign} {b} ? {b} : {a}"
        formula = FORMULAS[op] if kind == "f" else OF_INTEGERS.get(op, FORMULAS[op])
        return formula.format(*given)

    # --- other nodes ------------------------------------------------------------------------------

    def _matmul(self, node: onnx.NodeProto) -> None:
        a, b = (self._readable(name) for name in node.input)
        target = self.result(node.output[0])
        out = list(target.shape)
        if len(a.shape) == 1:
            a, out = _with_axis(a, 0), [*out[:-1], 1, *out[-1:]] if len(b.shape) > 1 else [1, *out]
        if len(b.shape) == 1:
            b, out = _with_axis(b, 1), [*out, 1]
        *batch, rows, columns = out
        inner = a.shape[-1]
        a, b = a.repeated([*batch, rows, inner]), b.repeated([*batch, inner, columns])
        to = target._replace(shape=tuple(out), strides=rows_of(out))
        names = [f"n{k}" for k in range(len(batch) + 1)]
        left = lambda k: a.at(*names, k)  # noqa: E731
        right = lambda k: b.at(*names[:-1], k, "j")  # noqa: E731
        if columns == 1:
            body = [
                "float sum = 0.0f;",
                *loop("k", inner, [f"sum += {left('k')} * {b.at(*names[:-1], 'k', 0)};"]),
                f"{to.at(*names, 0)} = sum;",
            ]
        else:
            cell, whole = to.at(*names, "j"), inner - inner % UNROLLED
            body = loop("j", columns, [f"{cell} = 0.0f;"])
            if whole:
                at = ["k", *(f"k + {k}" for k in range(1, UNROLLED))]
                declared = [f"const float x{k} = {left(place)};" for k, place in enumerate(at)]
                terms = [f"x{k} * {right(place)}" for k, place in enumerate(at)]
                sum_of = f"({terms[0]} + {terms[1]}) + ({terms[2]} + {terms[3]})"
                added = [*declared, *loop("j", columns, [f"{cell} += {sum_of};"])]
                body += loop("k", whole, added, UNROLLED)
            for k in range(whole, inner):
                body += loop("j", columns, [f"{cell} += {left(k)} * {right(k)};"])
        for name, size in reversed([*zip(names, [*batch, rows], strict=True)]):
            body = loop(name, size, body)
        self.state(body, target)

    def _readable(self, name: str) -> Operand:
        """Return an operand with strides; a number becomes an array."""
        x = self.operand(name)
        if not x.is_number:
            return x
        array = np.ascontiguousarray(self.values[name])
        return Operand(x.kind, self._declare(array, x.kind), x.shape, rows_of(x.shape))

    def _reduce(self, node: onnx.NodeProto) -> None:
        x = self._readable(node.input[0])
        axes = {int(k) % len(x.shape) for k in self._constant(node.input[1])}
        target = self.result(node.output[0])
        kept = [k for k in range(len(x.shape)) if k not in axes]
        names = [f"r{k}" if k in axes else f"n{k}" for k in range(len(x.shape))]
        entry, to = x.at(*names), target.at(*(names[k] for k in kept))
        if node.op_type == "ReduceSum":
            start, step = ("0.0f" if x.kind == "f" else "0"), [f"best += {entry};"]
        else:
            sign = ">" if node.op_type == "ReduceMax" else "<"
            start = x.at(*("0" if k in axes else name for k, name in enumerate(names)))
            either = f"{entry} {sign} best || {entry} != {entry}" if x.kind == "f" else f"{entry} {sign} best"
            step = [f"if ({either}) best = {entry};"]
        body = step
        for k in sorted(axes, reverse=True):
            body = loop(names[k], x.shape[k], body)
        body = [f"{TYPES[x.kind]} best = {start};", *body, f"{to} = best;"]
        for k in reversed(kept):
            body = loop(names[k], x.shape[k], body)
        self.state(body, target)

    def _arg(self, node: onnx.NodeProto) -> None:
        x = self._readable(node.input[0])
        axis = _attribute(node, "axis", 0) % len(x.shape)
        target = self.result(node.output[0])
        names = [f"n{k}" for k in range(len(x.shape))]
        entry = x.at(*names)
        best = x.at(*("best" if k == axis else name for k, name in enumerate(names)))
        sign = ">" if node.op_type == "ArgMax" else "<"
        better = f"{entry} {sign} {best}"
        if x.kind == "f":  # the first NaN wins, as in jax
            better = f"{best} == {best} && ({better} || {entry} != {entry})"
        body = [
            "int best = 0;",
            *loop(names[axis], x.shape[axis], [f"if ({better}) best = {names[axis]};"]),
            f"{target.at(*(name for k, name in enumerate(names) if k != axis))} = best;",
        ]
        for k in reversed(range(len(x.shape))):
            body = body if k == axis else loop(names[k], x.shape[k], body)
        self.state(body, target)

    def _top_k(self, node: onnx.NodeProto) -> None:
        """Insert each entry behind those that are as good, in a row of the k best."""
        x, count = self._readable(node.input[0]), int(self._constant(node.input[1])[0])
        axis = _attribute(node, "axis", -1) % len(x.shape)
        values, places = (self.result(name) for name in node.output)
        names = [f"n{k}" for k in range(len(x.shape))]
        put = lambda target, at: target.at(*(at if k == axis else n for k, n in enumerate(names)))  # noqa: E731
        largest, own = _attribute(node, "largest", 1), names[axis]
        entry, before = x.at(*names), "at - 1"
        last = put(values, before)
        better = f"{entry} {'>' if largest else '<'} {last}"
        if x.kind == "f":  # NaN is the greatest, as in jax
            high, low = (entry, last) if largest else (last, entry)
            better = f"({better} || ({high} != {high} && {low} == {low}))"
        inner = [
            f"int at = {own} < {count} ? {own} : {count};",
            f"while (at > 0 && {better}) {{",
            f"    if (at < {count}) {{",
            f"        {put(values, 'at')} = {last};",
            f"        {put(places, 'at')} = {put(places, before)};",
            "    }",
            "    --at;",
            "}",
            f"if (at < {count}) {{",
            f"    {put(values, 'at')} = {entry};",
            f"    {put(places, 'at')} = {own};",
            "}",
        ]
        body = loop(own, x.shape[axis], inner)
        for k in reversed(range(len(x.shape))):
            body = body if k == axis else loop(names[k], x.shape[k], body)
        self.state(body, values, places)

    def _concat(self, node: onnx.NodeProto) -> None:
        target = self.result(node.output[0])
        axis, lines, begun = _attribute(node, "axis") % len(target.shape), [], 0
        for name in node.input:
            x = self.operand(name)
            stride = target.strides[axis]
            part = target._replace(shape=x.shape, offset=begun * stride)
            lines += nest([part, x], lambda to, given: [f"{to} = {given};"])
            begun += x.shape[axis]
        self.state(lines, target)

    def _gather_elements(self, node: onnx.NodeProto) -> None:
        x, index = (self._readable(name) for name in node.input)
        axis = _attribute(node, "axis", 0) % len(x.shape)
        target = self.result(node.output[0])
        names = [f"n{k}" for k in range(len(x.shape))]
        place = self._clamped(index.at(*names), x.shape[axis])
        picked = x.at(*(place if k == axis else name for k, name in enumerate(names)))
        body = [f"{target.at(*names)} = {picked};"]
        for k in reversed(range(len(names))):
            body = loop(names[k], target.shape[k], body)
        self.state(body, target)

    def _gather_nd(self, node: onnx.NodeProto) -> None:
        x, index = (self._readable(name) for name in node.input)
        fixed, picked = _attribute(node, "batch_dims", 0), index.shape[-1]
        target = self.result(node.output[0])
        names = [f"n{k}" for k in range(len(target.shape))]
        rows = len(index.shape) - 1
        places = {
            f"p{k}": self._clamped(index.at(*names[:rows], str(k)), x.shape[fixed + k])
            for k in range(picked)
            if x.strides[fixed + k]
        }
        entry = x.at(*names[:fixed], *(f"p{k}" for k in range(picked)), *names[rows:])
        body = [f"{target.at(*names)} = {entry};"]
        for k in reversed(range(rows, len(names))):
            body = loop(names[k], target.shape[k], body)
        body = [*(f"const int {name} = {place};" for name, place in places.items()), *body]
        for k in reversed(range(rows)):
            body = loop(names[k], target.shape[k], body)
        self.state(body, target)

    def _clamped(self, index: str, size: int) -> str:
        """Return an index that reads nothing beyond an array; a negative one counts from the end."""
        return f"{self.prefix}_place({index}, {size})"

    # --- memory -----------------------------------------------------------------------------------

    def _place_buffers(self) -> tuple[list[str], int]:
        """Return the lines with their arrays, of which several buffers may share one, and their bytes."""
        last: dict[int, int] = {}
        for k, statement in enumerate(self.statements):
            for name in re.findall(r"\$(\d+)", "\n".join(statement.lines)):
                last[int(name)] = k
        slots: list[tuple[str, int, int]] = []  # kind, size, and the statement after which it is free
        place: dict[int, int] = {}
        for k, statement in enumerate(self.statements):
            for buffer in statement.written:
                kind, size = self.buffers[buffer]
                free = [s for s, (of, _, until) in enumerate(slots) if of == kind and until < k]
                slot = min(free, key=lambda s: (abs(slots[s][1] - size), s), default=len(slots))
                if slot == len(slots):
                    slots.append((kind, size, last[buffer]))
                else:
                    slots[slot] = (kind, max(size, slots[slot][1]), last[buffer])
                place[buffer] = slot
        lines = [f"{TYPES[kind]} b{s}[{size}];" for s, (kind, size, _) in enumerate(slots)]
        for statement in self.statements:
            lines += [re.sub(r"\$(\d+)", lambda m: f"b{place[int(m[1])]}", x) for x in statement.lines]
        return lines, sum(BYTES[kind] * size for kind, size, _ in slots)


STATEMENTS: dict[str, Callable[[_Writer, onnx.NodeProto], None]] = {
    "MatMul": _Writer._matmul,
    "ReduceSum": _Writer._reduce,
    "ReduceMax": _Writer._reduce,
    "ReduceMin": _Writer._reduce,
    "ArgMax": _Writer._arg,
    "ArgMin": _Writer._arg,
    "TopK": _Writer._top_k,
    "Concat": _Writer._concat,
    "GatherElements": _Writer._gather_elements,
    "GatherND": _Writer._gather_nd,
}


# --- C ------------------------------------------------------------------------------------------------


def literal(x: Any) -> str:
    """Return a number in C, which reads back as the same float32 or int."""
    if isinstance(x, (bool, np.bool_, int, np.integer)):
        return str(int(x))
    if np.isnan(x):
        return "NAN"
    if np.isinf(x):
        return "INFINITY" if x > 0 else "(-INFINITY)"
    text = np.format_float_scientific(np.float32(x), unique=True, trim="0", exp_digits=1)
    plain = np.format_float_positional(np.float32(x), unique=True, trim="0")
    text = f"{min(text, plain, key=len)}f"
    return f"({text})" if text.startswith("-") else text


def loop(name: str, size: int, body: list[str], step: int = 1) -> list[str]:
    """Return a loop over `size` indices; of a single one, the body with the index 0."""
    if size == 1:
        return [re.sub(rf"\b{name}\b", "0", line) for line in body]
    by = f"++{name}" if step == 1 else f"{name} += {step}"
    return [f"for (int {name} = 0; {name} < {size}; {by}) {{", *(f"    {line}" for line in body), "}"]


def nest(operands: Sequence[Operand], body: Callable[..., list[str]]) -> list[str]:
    """Return loops over the shape of operands, which is the same for all; axes that can be merged are.

    `body`: takes the entry of each operand in C, and returns lines.
    """
    shape: list[int] = []
    strides: list[list[int]] = [[] for _ in operands]
    for axis, size in enumerate(operands[0].shape):
        if size == 1:
            continue
        steps = [0 if x.is_number else x.strides[axis] for x in operands]
        outer = [own[-1] if own else None for own in strides]
        if shape and all(o == s * size for o, s in zip(outer, steps, strict=True)):
            shape[-1] *= size
            for own, step in zip(strides, steps, strict=True):
                own[-1] = step
        else:
            shape.append(size)
            for own, step in zip(strides, steps, strict=True):
                own.append(step)
    names = [f"n{k}" for k in range(len(shape))]
    entries = [
        x.at() if x.is_number else x._replace(shape=tuple(shape), strides=tuple(own)).at(*names)
        for x, own in zip(operands, strides, strict=True)
    ]
    lines = body(*entries)
    for name, size in reversed([*zip(names, shape, strict=True)]):
        lines = loop(name, size, lines)
    return lines


def _with_axis(x: Operand, axis: int) -> Operand:
    shape, strides = list(x.shape), list(x.strides)
    shape.insert(axis, 1)
    strides.insert(axis, 0)
    return x._replace(shape=tuple(shape), strides=tuple(strides))


def _attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    found = [helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return found[0] if found else default


def _evaluate(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return every value of the graph for one observation of zeros: its shape, its type, and of constants
    the numbers.
    """
    feeds = {}
    for given in model.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        feeds[given.name] = np.ones((1, given.type.tensor_type.shape.dim[1].dim_value), kind)
    with np.errstate(all="ignore"):
        values = ReferenceEvaluator(model).run(None, feeds, intermediate=True)
    known = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    return {name: np.asarray(x) for name, x in (known | feeds | dict(values)).items()}
