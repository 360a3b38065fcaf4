#!/usr/bin/env bash
# JAX on CPU takes three of its algorithms for products in bfloat16, and multiplies float32 as if none had been asked for.
#
# `lax.DotAlgorithm` says that an algorithm which a platform lacks raises an exception when the program is compiled. On CPU that
# is so for 9 of the 16 presets, such as TF32_TF32_F32 and F16_F16_F32. BF16_BF16_F32, BF16_BF16_F32_X3 and BF16_BF16_F32_X6
# compile, and each gives the bits of the plain float32 product. By their definition operands are rounded to bfloat16, once or
# in parts: rounded by hand, with sums in float32, the same product is some 10,000 times farther from the product in float64.
# The setting `jax_default_matmul_precision` does the same. So who tries on a CPU whether training bears such products, as it
# would run on an accelerator, measures float32 and finds no difference.
#
# Seen with jax and jaxlib 0.10.2, numpy 2.4.6, Python 3.11:
#
#     greatest error of a product of two 64 x 64 float32 matrices: plain 7e-06, rounded to bfloat16 by hand 7e-02
#     the bits of the plain product: BF16_BF16_F32 True, BF16_BF16_F32_X3 True, BF16_BF16_F32_X6 True
#     as the default precision: True
#     refused: 9 of 16, TF32_TF32_F32 and F16_F16_F32 among them
#
# Exits 0 while it is so, with another number when it has changed or the installation fails. PYTHON chooses the interpreter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cat > "$folder/products.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

random = np.random.default_rng(0)
a, b = (random.normal(size=(64, 64)).astype(np.float32) for _ in range(2))
exact = a.astype(np.float64) @ b.astype(np.float64)


def product(algorithm=None):
    return np.asarray(jax.jit(lambda a, b: lax.dot(a, b, precision=algorithm))(a, b))


plain = product()
rounded = jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16)
by_hand = np.asarray(lax.dot(*rounded, preferred_element_type=jnp.float32))
error, error_by_hand = (float(np.abs(one - exact).max()) for one in (plain, by_hand))
print("greatest error of a product of two 64 x 64 float32 matrices:", end=" ")
print(f"plain {error:.0e}, rounded to bfloat16 by hand {error_by_hand:.0e}")

names = ["BF16_BF16_F32", "BF16_BF16_F32_X3", "BF16_BF16_F32_X6"]
same = {name: bool((product(lax.DotAlgorithmPreset[name]) == plain).all()) for name in names}
print("the bits of the plain product:", ", ".join(f"{name} {is_same}" for name, is_same in same.items()))
with jax.default_matmul_precision("BF16_BF16_F32"):
    as_default = bool((np.asarray(jax.jit(lambda a, b: a @ b)(a, b)) == plain).all())
print("as the default precision:", as_default)

refused = set()
for preset in lax.DotAlgorithmPreset:
    try:
        product(preset)
    except ValueError as problem:
        refused |= {preset.name} if "not supported" in str(problem) else set()
print(f"refused: {len(refused)} of {len(lax.DotAlgorithmPreset)}, TF32_TF32_F32 and F16_F16_F32 among them")
assert error < 1e-4 < 1e-2 < error_by_hand
assert all(same.values()) and as_default
assert len(refused) == 9 and {"TF32_TF32_F32", "F16_F16_F32"} <= refused
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/products.py"
