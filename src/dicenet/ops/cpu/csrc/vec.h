// A vector of floats by the compiler's own vector extensions (GCC and Clang): one source for AVX-512, AVX2 and NEON.
//
// They were preferred to at::vec::Vectorized because kernels written with them need no header of torch: the same
// files compile for another processor, under a sanitizer, or inside another runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

// Every level (see kernels.h) compiles these files into a namespace of its own, so that the linker never keeps
// the AVX-512 copy of an inline function for a processor without it.
#ifndef DICENET_LEVEL
#error "compile with -DDICENET_LEVEL=<avx512|avx2|baseline>"
#endif

#define DICENET_INLINE inline __attribute__((always_inline))

namespace dicenet {
namespace DICENET_LEVEL {

template <int L>
struct VecTypes {
  typedef float Float __attribute__((vector_size(L * 4)));
  typedef int32_t Int __attribute__((vector_size(L * 4)));
};

/// L floats. Arithmetic with FMA contraction; no operation traps or depends on the rounding mode.
template <int L>
struct Vec {
  using F = typename VecTypes<L>::Float;
  using I = typename VecTypes<L>::Int;
  static constexpr int lanes = L;
  F v;

  static DICENET_INLINE Vec load(const float* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(F));
    return r;
  }
  static DICENET_INLINE Vec splat(float s) {
    return {s - F{}};  // a sum with zero would be computed: it turns -0 into 0
  }
  static DICENET_INLINE Vec zero() {
    return {F{}};
  }
  DICENET_INLINE void store(float* p) const {
    std::memcpy(p, &v, sizeof(F));
  }
  DICENET_INLINE I bits() const {
    I r;
    std::memcpy(&r, &v, sizeof(F));
    return r;
  }
  static DICENET_INLINE Vec from_bits(I b) {
    Vec r;
    std::memcpy(&r.v, &b, sizeof(F));
    return r;
  }
  friend DICENET_INLINE Vec operator+(Vec a, Vec b) {
    return {a.v + b.v};
  }
  friend DICENET_INLINE Vec operator-(Vec a, Vec b) {
    return {a.v - b.v};
  }
  friend DICENET_INLINE Vec operator*(Vec a, Vec b) {
    return {a.v * b.v};
  }
  DICENET_INLINE Vec& operator+=(Vec b) {
    v = v + b.v;
    return *this;
  }
  /// Where `positive` where this is not negative (by its sign bit), else `negative`.
  DICENET_INLINE Vec by_sign(Vec positive, Vec negative) const {
    return {bits() < I{} ? negative.v : positive.v};
  }
  /// middle + half where the sign bit is clear, middle - half where it is set: a PReLU's slope without a
  /// comparison. The additions run beside the multiply-add units on processors with separate adders.
  DICENET_INLINE Vec slope(Vec middle, Vec half) const {
    const I sign = bits() & (I{} + INT32_MIN);
    return {middle.v + from_bits(half.bits() ^ sign).v};
  }
  /// Where `positive` where this is above zero, else `negative`.
  DICENET_INLINE Vec by_positive(Vec positive, Vec negative) const {
    return {v > F{} ? positive.v : negative.v};
  }
  /// The larger one; if one is no number, the second.
  friend DICENET_INLINE Vec max(Vec a, Vec b) {
    return {a.v > b.v ? a.v : b.v};
  }
  /// The larger one; if one is no number, that.
  friend DICENET_INLINE Vec max_or_nan(Vec a, Vec b) {
    return {(a.v > b.v) | (a.v != a.v) ? a.v : b.v};
  }
  /// Bits in lanes that are no numbers.
  DICENET_INLINE I is_nan() const {
    return v != v;
  }
  DICENET_INLINE float sum() const {
    float s = 0;
    for (int i = 0; i < L; ++i) s += v[i];
    return s;
  }
};

template <int L>
DICENET_INLINE Vec<L> fma(Vec<L> a, Vec<L> b, Vec<L> c) {
  return {a.v * b.v + c.v};
}

/// *a * b + c. Left to itself GCC loads the factor into a vector register by two instructions, of which one takes
/// the place of a multiply-add; AVX-512 can take it straight from memory.
template <int L>
DICENET_INLINE Vec<L> fma_at(const float* a, Vec<L> b, Vec<L> c) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c.v) : "v"(b.v), "m"(*a));
    return c;
  }
#endif
  return {*a * b.v + c.v};
}

template <int L>
DICENET_INLINE typename Vec<L>::I iota() {
  typename Vec<L>::I r{};
  for (int i = 0; i < L; ++i) r[i] = i;
  return r;
}

template <int L, int... I>
DICENET_INLINE Vec<L> shift_lanes_up(Vec<L> a, std::integer_sequence<int, I...>) {
  return {__builtin_shufflevector(a.v, typename Vec<L>::F{}, (I == 0 ? L : I - 1)...)};
}

template <int L, int... I>
DICENET_INLINE Vec<L> shift_lanes_down(Vec<L> a, std::integer_sequence<int, I...>) {
  return {__builtin_shufflevector(a.v, typename Vec<L>::F{}, (I + 1)...)};
}

/// Lane i takes lane i - 1, lane 0 takes zero: the left neighbours of a map's first channels.
template <int L>
DICENET_INLINE Vec<L> shift_in_first(Vec<L> a) {
  return shift_lanes_up(a, std::make_integer_sequence<int, L>{});
}

/// Lane i takes lane i + 1, the last takes zero: the right neighbours of a map's last channels.
template <int L>
DICENET_INLINE Vec<L> shift_in_last(Vec<L> a) {
  return shift_lanes_down(a, std::make_integer_sequence<int, L>{});
}

template <int H, int L, int... I>
DICENET_INLINE Vec<H> first_lanes(Vec<L> a, std::integer_sequence<int, I...>) {
  return {__builtin_shufflevector(a.v, a.v, I...)};
}

/// The first H lanes.
template <int H, int L>
DICENET_INLINE Vec<H> first_lanes(Vec<L> a) {
  return first_lanes<H>(a, std::make_integer_sequence<int, H>{});
}

/// The lanes below `end`, zero from there on.
template <int L>
DICENET_INLINE Vec<L> keep_below(Vec<L> a, int64_t end) {
  return {iota<L>() < static_cast<int>(end < L ? end : L) ? a.v : typename Vec<L>::F{}};
}

/// The lanes from `first` on, zero below.
template <int L>
DICENET_INLINE Vec<L> keep_from(Vec<L> a, int first) {
  return {iota<L>() >= first ? a.v : typename Vec<L>::F{}};
}

}  // namespace DICENET_LEVEL
}  // namespace dicenet
