"""The noise of philox.py, drawn inside a Triton kernel.

Box-Muller is written with polynomials, because Triton's sin and cos keep a table in local memory, and a logarithm that
needs no special cases is shorter. The results equal those of philox.py to a few 1e-7. The coefficients are minimax fits
by iteratively reweighted least squares: of log(1 + f) to 6e-9 relative, of sine and cosine to 5e-9 and 6e-8 absolute.
"""

import triton
import triton.language as tl


@triton.jit
def times(constant: tl.constexpr, x):
    """High and low word of the 64-bit product, which is one instruction."""
    product = x.to(tl.uint64) * constant
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox_4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32 on uint32 tensors."""
    for _ in tl.static_range(10):
        hi0, lo0 = times(0xD2511F53, c0)
        hi1, lo1 = times(0xCD9E8D57, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def count(word):
    """uint32 to i in 1 .. 2^24, of which u = i / 2^24 is the uniform number in (0, 1]."""
    return (word >> 8).to(tl.int32) + 1


@triton.jit
def log(u):
    """Natural logarithm of u = i / 2^24 in (0, 1]: u = 2^e (1 + f) with 1 + f between the roots of 1/2 and 2."""
    bits = u.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23  # 0x3F3504F3: the root of 1/2
    f = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    p = tl.fma(f, -0.07634494, 0.12761577)
    p = tl.fma(p, f, -0.13160184)
    p = tl.fma(p, f, 0.14201759)
    p = tl.fma(p, f, -0.16623357)
    p = tl.fma(p, f, 0.20001227)
    p = tl.fma(p, f, -0.2500082)
    p = tl.fma(p, f, 0.33333331)
    f2 = f * f
    # log 2 = 0.693145752 + 1.42860677e-6; the smaller parts first.
    tail = tl.fma(e.to(tl.float32), 1.42860677e-06, f * f2 * p)
    return tl.fma(e.to(tl.float32), 0.693145752, f + tl.fma(f2, -0.5, tail))


@triton.jit
def box_muller(word, angle):
    """Two normal numbers: sqrt(-2 log u) times cosine and sine of 2 pi v."""
    radius = tl.sqrt(-2.0 * log(count(word).to(tl.float32) * 5.9604644775390625e-08))
    # 2 pi v = pi half + t with |t| <= pi / 2, in whole numbers: exact. An odd half turns both signs.
    i = count(angle)
    half = (i + (1 << 22)) >> 23
    t = (i - (half << 23)).to(tl.float32) * 3.7450702e-07
    radius = (radius.to(tl.int32, bitcast=True) ^ (half << 31)).to(tl.float32, bitcast=True)
    t2 = t * t
    s = tl.fma(t2, 2.6000548e-06, -0.00019806615)
    s = tl.fma(s, t2, 0.008333017)
    s = tl.fma(s, t2, -0.16666657)
    s = tl.fma(s * t2, t, t)
    c = tl.fma(t2, 2.3194387e-05, -0.0013855927)
    c = tl.fma(c, t2, 0.04166399)
    c = tl.fma(c, t2, -0.4999993)
    c = tl.fma(c, t2, 1.0)
    return radius * c, radius * s


@triton.jit
def four_normals(block, step, k0, k1):
    """The four numbers of each counter in `block`."""
    zero = block * 0
    w0, w1, w2, w3 = philox_4x32(block, zero + step, zero, zero, k0, k1)
    z0, z1 = box_muller(w0, w1)
    z2, z3 = box_muller(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def normal(seed, step, offsets, first, BLOCK: tl.constexpr, TOGETHER: tl.constexpr):
    """Elements first, ..., first + BLOCK - 1 of philox.normal's row, float32 [BLOCK]; `first` is a multiple of 8.

    TOGETHER, 8 or 4, arranges neighbours in a thread like 16-byte accesses of 16-bit or 32-bit latents, so that the
    noise is drawn in the registers in which it is added. With 1 each element is drawn separately for any `offsets`;
    this draws four for each.
    """
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    step = step.to(tl.uint32)
    if TOGETHER == 1:
        z0, z1, z2, z3 = four_normals((offsets // 4).to(tl.uint32), step, k0, k1)
        return tl.where(offsets % 2 == 0, tl.where(offsets % 4 == 0, z0, z2), tl.where(offsets % 4 == 1, z1, z3))
    # join(join(a, c), join(b, d)) read row by row is a, b, c, d.
    if TOGETHER == 8:
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
