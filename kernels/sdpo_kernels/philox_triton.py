"""philox.py's noise, drawn inside a Triton kernel.

Box-Muller is written with polynomials: Triton's sin and cos keep their slow path's table in local memory, and its
log is exact enough only away from 1 on some targets. Both agree with philox.py to a few 1e-7.
"""

import triton
import triton.language as tl


@triton.jit
def philox_4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32 tensors."""
    for _ in tl.static_range(10):
        hi0 = tl.umulhi(c0, 0xD2511F53)
        hi1 = tl.umulhi(c2, 0xCD9E8D57)
        lo0 = c0 * 0xD2511F53
        lo1 = c2 * 0xCD9E8D57
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log(u):
    """Natural logarithm of u = i / 2^24 in (0, 1], to 1 ulp: u = 2^e (1 + f) with f in (-0.3, 0.42)."""
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23  # 0x3F3504F3: the square root of 1/2
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    # log(1 + f) = 2 atanh(s) with s = f / (2 + f): odd, so few terms suffice.
    s = f / (2.0 + f)
    t = s * s
    p = tl.fma(t, 0.22222222, 0.28571429)
    p = tl.fma(p, t, 0.4)
    p = tl.fma(p, t, 0.66666667)
    tail = tl.fma(e.to(tl.float32), 1.42860677e-06, s * t * p)  # log 2 = 0.693145752 + 1.42860677e-6
    return tl.fma(e.to(tl.float32), 0.693145752, tl.fma(2.0, s, tail))


@triton.jit
def cos_sin_of_turns(x):
    """cos(2 pi x) and sin(2 pi x) for x in [0, 1]: Taylor polynomials on the nearest eighth, |angle| <= pi / 4."""
    quarter = tl.floor(tl.fma(x, 4.0, 0.5))
    t = 6.28318531 * tl.fma(quarter, -0.25, x)
    t2 = t * t
    s = tl.fma(t2, 2.75573192e-06, -1.98412698e-04)
    s = tl.fma(s, t2, 8.33333333e-03)
    s = tl.fma(s, t2, -1.66666667e-01)
    s = tl.fma(s * t2, t, t)
    c = tl.fma(t2, 2.48015873e-05, -1.38888889e-03)
    c = tl.fma(c, t2, 4.16666667e-02)
    c = tl.fma(c, t2, -0.5)
    c = tl.fma(c, t2, 1.0)
    n = quarter.to(tl.int32) & 3
    odd = (n & 1) == 1
    cosine = tl.where(odd, s, c)
    sine = tl.where(odd, c, s)
    return tl.where((n == 1) | (n == 2), -cosine, cosine), tl.where(n >= 2, -sine, sine)


@triton.jit
def uniform(word):
    """uint32 to i / 2^24 in (0, 1]."""
    return ((word >> 8).to(tl.int32) + 1).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def four_normals(block, step, k0, k1):
    """The four numbers of each counter in `block`."""
    zero = block * 0
    w0, w1, w2, w3 = philox_4x32(block, zero + step, zero, zero, k0, k1)
    r0 = tl.sqrt(-2.0 * log(uniform(w0)))
    r1 = tl.sqrt(-2.0 * log(uniform(w2)))
    c0, s0 = cos_sin_of_turns(uniform(w1))
    c1, s1 = cos_sin_of_turns(uniform(w3))
    return r0 * c0, r0 * s0, r1 * c1, r1 * s1


@triton.jit
def normal(seed, step, first, BLOCK: tl.constexpr, EIGHT: tl.constexpr):
    """Elements first, ..., first + BLOCK - 1 of philox.normal's row, float32 [BLOCK]; `first` is a multiple of 8.

    EIGHT arranges them eight to a thread, as 16-byte accesses of 16-bit latents do, and not four: so the noise is
    born in the registers where it is added.
    """
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    step = step.to(tl.uint32)
    # join(join(a, c), join(b, d)) read row by row is a, b, c, d.
    if EIGHT:
        block = (first // 4 + 2 * tl.arange(0, BLOCK // 8)).to(tl.uint32)
        z0, z1, z2, z3 = four_normals(block, step, k0, k1)
        z4, z5, z6, z7 = four_normals(block + 1, step, k0, k1)
        even = tl.join(tl.join(z0, z4), tl.join(z2, z6))
        odd = tl.join(tl.join(z1, z5), tl.join(z3, z7))
    else:
        block = (first // 4 + tl.arange(0, BLOCK // 4)).to(tl.uint32)
        z0, z1, z2, z3 = four_normals(block, step, k0, k1)
        even, odd = tl.join(z0, z2), tl.join(z1, z3)
    return tl.reshape(tl.join(even, odd), [BLOCK])
