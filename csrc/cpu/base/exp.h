// Exponentials of a register, written with the operations of simd.h alone.
//
// Included once per instruction set, like simd.h.
#pragma once

#include "base/simd.h"

namespace marco_fast {
namespace MF_NS {

// 2^y for y <= 0 with an error below 2 ulp: the same bits in every instruction set, exactly 1 at 0,
// 0 below -126 (where 2^y leaves the normal range), NaN for a NaN. The result is 2^floor(y) times a
// polynomial in the fraction of y, which was fitted for the least relative error, 8.3e-8, with
// p(0) = 1.
inline Vec exp2_nonpositive(Vec y) {
  const Vec r = fraction(y);
  Vec p = set1(0x1.e974fcp-10f);
  p = fma(p, r, set1(0x1.277854p-7f));
  p = fma(p, r, set1(0x1.c91ce6p-5f));
  p = fma(p, r, set1(0x1.ebdb56p-3f));
  p = fma(p, r, set1(0x1.62e4bap-1f));
  p = fma(p, r, set1(1.0f));
  return scale2_floor(p, y);
}

// e^r for |r| <= ln(2)/2: the Taylor polynomial of degree 7, whose remainder r^8/40320 is below
// 2^-27 of the result.
inline Vec exp_polynomial(Vec r) {
  Vec p = set1(1.0f / 5040);
  p = fma(p, r, set1(1.0f / 720));
  p = fma(p, r, set1(1.0f / 120));
  p = fma(p, r, set1(1.0f / 24));
  p = fma(p, r, set1(1.0f / 6));
  p = fma(p, r, set1(0.5f));
  p = fma(p, r, set1(1.0f));
  p = fma(p, r, set1(1.0f));
  return p;
}

// e^(x * scale) for x * scale <= 0 with an error below 2 ulp. The product is not rounded before the
// exponential. The result is 0 where the product is below -86 (e^x leaves the normal range there),
// and for -inf and NaN. The argument is reduced by multiples of ln 2, which is subtracted in two
// parts (Cody and Waite), to |r| <= ln(2)/2.
inline Vec exp_scaled_nonpositive(Vec x, float scale) {
  const Vec n = round(mul(x, set1(1.44269504f * scale)));
  const Vec r = fma(n, set1(1.42860677e-6f), fma(x, set1(scale), mul(n, set1(-0.693148613f))));
  return zero_below(n, -125.0f, scale2(exp_polynomial(r), max(n, set1(-126.0f))));
}

}  // namespace MF_NS
}  // namespace marco_fast
