// Vectors of floats by the compiler's own vector extension, so that one source serves AVX-512, AVX2,
// SSE and NEON; and the functions of them that attention needs.
#pragma once
#include <cstdint>

#if defined(__AVX512F__)
constexpr int W = 16;       // floats in a vector
constexpr int COLUMNS = 4;  // vectors side by side in a tile: as many as the registers hold
#elif defined(__AVX__)
constexpr int W = 8;
constexpr int COLUMNS = 2;
#else
constexpr int W = 4;
constexpr int COLUMNS = 4;
#endif

using Vec = float __attribute__((vector_size(4 * W)));
using IntVec = int32_t __attribute__((vector_size(4 * W)));

inline Vec load(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof x); }
inline Vec all(float x) { return x - Vec{}; }

// All elements reduced by `combine`, halving the vector each time.
using Vec16 = float __attribute__((vector_size(64)));
using Vec8 = float __attribute__((vector_size(32)));
using Vec4 = float __attribute__((vector_size(16)));
template <class Half, class Whole, class Combine>
inline Half fold(Whole x, Combine combine) {
  Half halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  return combine(halves[0], halves[1]);
}
template <class Combine>
inline float reduce(Vec4 x, Combine combine) {
  return combine(combine(x[0], x[1]), combine(x[2], x[3]));
}
template <class Combine>
inline float reduce(Vec8 x, Combine combine) {
  return reduce(fold<Vec4>(x, combine), combine);
}
template <class Combine>
inline float reduce(Vec16 x, Combine combine) {
  return reduce(fold<Vec8>(x, combine), combine);
}
inline float sum(Vec x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}
inline float largest(Vec x) {
  return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

// The larger of two, or b if either is NaN: callers put what may be NaN second, so that it shows.
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// total + x where `on`, total elsewhere: one masked instruction where there are masks.
template <class Mask>
inline Vec add_where(Mask on, Vec total, Vec x) {
#if defined(__AVX512F__)
  return on ? total + x : total;
#else
  return total + (on ? x : Vec{});
#endif
}

// 2^x for x <= 127, 0 below -126; relative error below 1e-7 (minimax polynomial of 2^f, |f| <= 1/2).
inline Vec exp2(Vec x) {
  constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec p = f * 1.32764668e-3f + 9.67554129e-3f;
  p = p * f + 5.55071329e-2f;
  p = p * f + 2.40221197e-1f;
  p = p * f + 6.93146967e-1f;
  p = p * f + 1.00000007f;
  const Vec y = reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p) + (reinterpret_cast<IntVec>(shifted) << 23));
  return x < -126.f ? Vec{} : y;
}

constexpr int MOST = 256;  // widest hidden layer
constexpr float LOG2E = 1.44269504f;

// Activations: the value at u, alone or with a gradient d carried through, d act'(u).
struct Unit {
  Vec value, gradient;
};

inline Vec magnitude(Vec u) { return u < 0.f ? -u : u; }

struct ReLU {
  static Vec value(Vec u) { return larger(Vec{}, u); }
  static Unit both(Vec u, Vec d) { return {value(u), u > 0.f ? d : Vec{}}; }
};

struct LeakyReLU {
  static Vec value(Vec u) { return larger(0.01f * u, u); }
  static Unit both(Vec u, Vec d) { return {value(u), u > 0.f ? d : 0.01f * d}; }
};

struct Tanh {
  static Vec value(Vec u) {
    const Vec e = exp2(magnitude(u) * (-2 * LOG2E));
    const Vec y = (1.f - e) / (1.f + e);
    return u < 0.f ? -y : y;
  }
  static Unit both(Vec u, Vec d) {
    const Vec y = value(u);
    return {y, d * (1.f - y * y)};
  }
};

struct SiLU {
  static Vec sigmoid(Vec u) {
    const Vec e = exp2(magnitude(u) * -LOG2E);
    return (u < 0.f ? e : all(1.f)) / (1.f + e);
  }
  static Vec value(Vec u) { return u * sigmoid(u); }
  static Unit both(Vec u, Vec d) {
    const Vec s = sigmoid(u), y = u * s;
    return {y, d * (s + y * (1.f - s))};
  }
};

struct GELU {  // exact form, u Phi(u); erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7
  static Unit both(Vec u, Vec d) {
    const Vec density = exp2(u * u * (-0.5f * LOG2E));
    const Vec t = 1.f / (1.f + 0.3275911f * 0.70710678f * magnitude(u));
    Vec p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vec tail = 0.5f * p * t * density;  // Phi(-|u|)
    const Vec phi = u < 0.f ? tail : 1.f - tail;
    return {u * phi, d * (phi + u * density * 0.39894228f)};
  }
  static Vec value(Vec u) { return both(u, u).value; }
};
