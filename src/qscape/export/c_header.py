"""A policy as one header in C99, without allocation and with no dependency but math.h.

It is compiled and compared with the library on 1,000 observations before it is written, where there is a C
compiler.
"""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qscape.errors import Inexact, Unexportable, WrongValue, need_extra, one_line
from qscape.export import policy
from qscape.inspect.store import write_atomically

if TYPE_CHECKING:  # of the extra `export`
    import onnx

COMPILERS = ("cc", "gcc", "clang")  # $CC goes before them
FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
MARK = "Written by qscape export"  # in the first line of a header
INPUTS = {"observation": ("float", "OBSERVATION_SIZE"), "action_mask": ("unsigned char", "MASK_SIZE")}
STATE = ("memory", "start")  # inputs that the header keeps from call to call


class Header(NamedTuple):
    """A header in C.

    Attributes:
        text: the file.
        constant_bytes: of the arrays that never change: weights and tables.
        stack_bytes: of the arrays of one call.
    """

    text: str
    constant_bytes: int
    stack_bytes: int


class HeaderCheck(NamedTuple):
    """Comparison of a header with the library.

    Attributes:
        difference: the largest absolute difference of an action, in the environment's units; None: there was
            no compiler.
        constant_bytes, stack_bytes: as in `Header`.
    """

    difference: float | None
    constant_bytes: int
    stack_bytes: int


def check_prefix(prefix: str) -> str:
    """Return a prefix of names in C.

    Raises:
        UsageError: it is no name in C and C++, or a reserved one.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", prefix, re.ASCII) or "__" in prefix or len(prefix) > 40:
        raise WrongValue(
            f"--prefix {prefix}: names in C would begin with it, so it has to be up to 40 letters, digits "
            "and single underscores, and begin with a letter, like --prefix policy.",
            field="prefix",
        )
    return prefix


def write_header(
    source: policy.PolicySource, file: Path, prefix: str, tolerance: float = policy.TOLERANCE
) -> HeaderCheck:
    """Write the policy as a header in C, if it acts like the library on 1,000 observations.

    Without a C compiler it is written unchecked.

    Raises:
        UsageError: a package is missing, the policy sees images, or it uses an operation without a
            conversion.
        RunError: header and library differ by more than `tolerance`, the compiler refuses the header, or the
            file cannot be written.
    """
    if source.loaded.adapter.spec.frame is not None:
        raise Unexportable(
            f"{source.record['recipe']} sees images, and --c writes policies that see vectors: use --onnx.",
            field="c",
        )
    with need_extra("--c", "export", field="c"):
        model = policy.make_onnx(source)
    header = make_header(model, prefix, policy.describe(source))
    compiler, difference = find_compiler(), None
    if compiler is not None:
        difference = policy.compare(
            source, "C header", lambda inputs: [run_header(header.text, prefix, compiler, inputs)], tolerance
        ).difference
    write_atomically(file, header.text.encode())
    return HeaderCheck(difference, header.constant_bytes, header.stack_bytes)


def make_header(model: "onnx.ModelProto", prefix: str, about: Mapping[str, Any]) -> Header:
    """Return the header of a model.

    Args:
        model: as `policy.make_onnx` returns it.
        prefix: of all names.
        about: recipe, environment and step, as `policy.describe` returns them.
    """
    from qscape.export.c_code import TYPES, write_code

    code, upper = write_code(model, prefix), prefix.upper()
    inputs = [(given.name, given.type.tensor_type.shape.dim[1].dim_value) for given in model.graph.input]
    inputs = [(name, size) for name, size in inputs if name not in STATE]
    state = _state(prefix, code.memory_size) if code.memory_size else []
    arguments = ", ".join(
        [
            *([f"{prefix}_state *state"] if state else []),
            *(f"const {INPUTS[name][0]} *{name}" for name, _ in inputs),
            f"{TYPES[code.kind]} *action",
        ]
    )
    body = "\n".join(
        [
            *code.constants,
            *_helpers(code.lines, prefix),
            *state,
            "",
            f"static inline void {prefix}_act({arguments}) {{",
            *(f"    (void){name};" for name, _ in inputs),
            *(f"    {line}" for line in code.lines),
            "}",
        ]
    )
    sizes = {INPUTS[name][1]: str(size) for name, size in inputs} | {"ACTION_SIZE": str(code.size)}
    version = importlib.metadata.version("qscape")
    macros = sizes | {
        "VERSION": f'"{version}"',
        "CHECKSUM": f"0x{zlib.crc32(body.encode()):08x}UL",
        "CONSTANT_BYTES": str(code.constant_bytes),
        "STACK_BYTES": str(code.stack_bytes),
    }
    text = f"""/* {MARK}: {_comment(about["label"])} on {_comment(about["env"])}, step {about["step"]}.
 *
 * {prefix}_act({arguments})
 *
 * Reads {_read(inputs)} as the environment gives them, and writes an
 * action of {code.size} entries in its units. It allocates nothing, and {_keeps(prefix, bool(state))}.
 * NaN in an observation gives {NAN_GIVES[code.kind]}.
 * CHECKSUM is the CRC-32 of the lines between the next two comments.
 */
#ifndef {upper}_POLICY_H
#define {upper}_POLICY_H

#include <math.h>

#ifdef __FAST_MATH__
#error "NaN has to stay NaN: compile without -ffast-math"
#endif

{chr(10).join(f"#define {upper}_{name} {value}" for name, value in macros.items())}

typedef char {prefix}_int_has_32_bits[sizeof(int) >= 4 ? 1 : -1];

/* begin */
{body}
/* end */

#endif
"""
    return Header(text, code.constant_bytes, code.stack_bytes)


NAN_GIVES = {"f": "NaN in its action", "i": "the action that predict gives"}


def _read(inputs: list[tuple[str, int]]) -> str:
    of = {"observation": "numbers", "action_mask": "truths (which actions are valid)"}
    return " and ".join(f"{size} {of[name]}" for name, size in inputs)


def _keeps(prefix: str, has_state: bool) -> str:
    if has_state:
        return f"sees its past in a state: call\n * {prefix}_reset(&state) where an episode begins"
    return "keeps nothing from call to call"


def _state(prefix: str, size: int) -> list[str]:
    """Return the struct of a policy that sees its past, and the function that empties it."""
    return [
        "",
        f"typedef struct {{\n    float memory[{size}];\n    int started;\n}} {prefix}_state;",
        "",
        f"static inline void {prefix}_reset({prefix}_state *state) {{",
        f"    for (int k = 0; k < {size}; ++k) state->memory[k] = 0.0f;",
        "    state->started = 0;",
        "}",
    ]


def _comment(text: str) -> str:
    """Return text that a comment in C can hold."""
    plain = one_line(text).encode("ascii", "backslashreplace").decode()
    return re.sub(r"\*(?=/)|/(?=\*)|\?(?=\?)", r"\g<0> ", plain)


def _helpers(lines: list[str], prefix: str) -> list[str]:
    """Return the functions that the code calls."""
    helpers = {
        f"{prefix}_whole": f"""
/* A whole number; the least for NaN. */
static inline int {prefix}_whole(float x) {{
    if (!(x > -2147483648.0f)) return -2147483647 - 1;
    return x < 2147483648.0f ? (int)x : 2147483647;
}}""",
        f"{prefix}_place": f"""
/* An index that stays inside; a negative one counts from the end. */
static inline int {prefix}_place(int index, int size) {{
    if (index < 0) index += size;
    return index < 0 ? 0 : index < size ? index : size - 1;
}}""",
    }
    text = "\n".join(lines)
    return [function for name, function in helpers.items() if f"{name}(" in text]


def find_compiler() -> list[str] | None:
    """Return the command of a C compiler: $CC, or the first of `COMPILERS`; None: there is none."""
    if own := os.environ.get("CC"):
        return shlex.split(own)
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    return None if found is None else [found]


def run_header(text: str, prefix: str, compiler: list[str], inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Compile a header, and return its actions [B, A] for inputs [B, size] by name.

    Raises:
        RunError: the compiler refuses it, or the program fails.
    """
    with tempfile.TemporaryDirectory(prefix="qscape") as folder:
        path = Path(folder)
        (path / "policy.h").write_text(text)
        (path / "main.c").write_text(make_driver(prefix, [*inputs], "int *action" in text))
        rows = [
            np.ascontiguousarray(x, np.uint8 if x.dtype == bool else np.float32).view(np.uint8)
            for x in inputs.values()
        ]
        (path / "in").write_bytes(np.concatenate(rows, axis=1).tobytes())
        _run([*compiler, *FLAGS, "main.c", "-o", "act.exe", "-lm"], path)
        _run([str(path / "act.exe")], path)
        kind = np.int32 if "int *action" in text else np.float32
        return np.frombuffer((path / "out").read_bytes(), kind).reshape(len(rows[0]), -1)


def _run(argv: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
        said = (done.stderr or f"exit status {done.returncode}") if done.returncode else ""
    except OSError as problem:
        said = str(problem)
    if said:
        raise Inexact(
            f"the C header could not be checked with {argv[0]} ({_first_error(said)}); no file was written."
        )


def _first_error(said: str) -> str:
    """Return the first line of a compiler's output that says what is wrong."""
    lines = said.splitlines()
    return next((line for line in lines if "error" in line), lines[0])


def make_driver(prefix: str, inputs: list[str], whole: bool) -> str:
    """Return a program that reads rows of inputs from the file `in` and writes actions to `out`."""
    upper, has_state = prefix.upper(), "memory" in inputs
    arrays = [f"    static {INPUTS[x][0]} {x}[{upper}_{INPUTS[x][1]}];" for x in inputs if x not in STATE]
    places = {"memory": "state.memory", "start": "start"}
    reads = " && ".join(f"fread({x}, sizeof {x}, 1, in) == 1" for x in (places.get(x, x) for x in inputs))
    given = [*(["&state"] if has_state else []), *(x for x in inputs if x not in STATE)]
    if has_state:
        arrays += [f"    static {prefix}_state state;", "    unsigned char start[1];"]
    return "\n".join(
        [
            "#include <stdio.h>",
            '#include "policy.h"',
            "int main(void) {",
            *arrays,
            f"    static {'int' if whole else 'float'} action[{upper}_ACTION_SIZE];",
            '    FILE *in = fopen("in", "rb"), *out = fopen("out", "wb");',
            "    if (!in || !out) return 1;",
            f"    while ({reads}) {{",
            *(["        state.started = !start[0];"] if has_state else []),
            f"        {prefix}_act({', '.join(given)}, action);",
            "        if (fwrite(action, sizeof action, 1, out) != 1) return 1;",
            "    }",
            "    return fclose(out) != 0;",
            "}",
            "",
        ]
    )
