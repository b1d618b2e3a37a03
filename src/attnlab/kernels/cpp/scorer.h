// The score network on tiles of pairs: the only part of the kernels that knows what a score is.
//   one hidden layer:  s_ij = sum_r w_r act(a_ir + c_jr)
//   two hidden layers: s_ij = sum_t w_t act(b_t + sum_r W_tr act(a_ir + c_jr))
// a: queries' share of the first layer, c: keys' share (arXiv 2502.17206, eqs 7-9, in sum form).
#pragma once
#include <cstring>
#include <type_traits>
#include <vector>

#include "vec.h"

constexpr int KEYS = 64;                // keys in a block; tiles of pairs are (queries, KEYS)
constexpr int VECTORS = KEYS / W;       // vectors in a row of a tile
constexpr int ROWS = 4;                 // queries that share a loaded key
constexpr int UNITS = 4;                // hidden units worked on together in two layers
template <int n>
using Count = std::integral_constant<int, n>;

// Calls body(Count<size>, start) for whole groups of `size`, then halves the size for the rest.
template <int size, class Body>
inline void in_groups(int n, Body body, int start = 0) {
  for (; start + size <= n; start += size) body(Count<size>{}, start);
  if constexpr (size > 1) in_groups<size / 2>(n, body, start);
}

// Score network of one head. h, t: widths of the hidden layers (t = 1 without a second);
// weight (t, h): W, or w without a second layer; bias (t): b; out (t): w of the second layer.
template <class Act, bool two>
struct Scorer {
  int h, t;
  const float *weight, *bias, *out;

  // relu(a + c) = max(a, -c) + c, where the part without a costs one sum per key instead of one
  // per pair: a unit takes two instructions.
  static constexpr bool by_maximum = std::is_same_v<Act, ReLU>;
  // relu(u) = u relu'(u): the gradient of a single row of weights follows from those of a and c.
  bool homogeneous() const { return by_maximum && t == 1; }

  // Keys of a block, transposed: (h, KEYS), then the start of each pair's inner sums, (t, KEYS).
  int packed_vectors() const { return (h + t) * VECTORS; }

  // Gradient sums of a block's keys (h, KEYS), of a tile's queries (rows, h), and of the weights
  // (t, h), bias (t), out (t); vectors whose elements are yet to be added up. With t = 1, keys and
  // queries still lack the factor weight_r.
  struct Sums {
    Vec *key, *query, *weight, *bias, *out;
  };

  // What the sums of unit r still lack.
  float missing_factor(int r) const { return t == 1 ? weight[r] : 1; }

  // c (keys, h) -> packed; columns past the last key are zero.
  void pack(const float* c, int keys, float* packed) const {
    float* start = packed + h * KEYS;
    for (int j = 0; j < KEYS; ++j, c += h) {
      const bool real = j < keys;
      for (int r = 0; r < h; ++r) packed[r * KEYS + j] = !real ? 0 : by_maximum ? -c[r] : c[r];
      for (int i = 0; i < t; ++i) {
        float s = two ? bias[i] : 0;
        for (int r = 0; by_maximum && real && r < h; ++r) s += weight[i * h + r] * c[r];
        start[i * KEYS + j] = s;
      }
    }
  }

  // a (rows, h) and a packed block -> s (rows, KEYS), the first `vectors` of each row.
  void scores(const float* a, int rows, const Vec* packed, int vectors, Vec* s) const {
    auto rows_of = [&](auto R, auto T, int i) {
      in_groups<COLUMNS>(vectors, [&](auto J, int x) {
        tile<R, T, J>(a + i * h, packed + x, s + i * VECTORS + x);
      });
    };
    if (t >= UNITS)
      for (int i = 0; i < rows; ++i) rows_of(Count<1>{}, Count<UNITS>{}, i);
    else
      in_groups<ROWS>(rows, [&](auto R, int i) { rows_of(R, Count<1>{}, i); });
  }

  // Adds the gradients of a tile's pairs; ds (rows, KEYS): those of its scores.
  void backward(const float* a, int rows, const Vec* packed, int vectors, const Vec* ds, Sums g) const {
    in_groups<ROWS>(rows, [&](auto R, int i) {
      in_groups<COLUMNS>(vectors, [&](auto J, int x) {
        Sums at = g;
        at.key += x, at.query += i * h;
        if (t == 1) one_unit<R, J>(a + i * h, packed + x, ds + i * VECTORS + x, at);
        else
          for (int row = i; row < i + R; ++row, at.query += h)
            many_units<J>(a + row * h, packed + x, ds + row * VECTORS + x, at);
      });
    });
  }

 private:
  static Vec unit(float a, Vec key) {
    if constexpr (by_maximum) return larger(key, all(a));
    else return Act::value(a + key);
  }

  // Inner sums of R queries, T units from t0, J vectors of keys.
  template <int R, int T, int J>
  void inner_sums(const float* a, const Vec* packed, int t0, Vec (&y)[R][T][J]) const {
    for (int i = 0; i < R; ++i)
      for (int k = 0; k < T; ++k)
        for (int x = 0; x < J; ++x) y[i][k][x] = packed[(h + t0 + k) * VECTORS + x];
    for (int r = 0; r < h; ++r) {
      Vec key[J];
      for (int x = 0; x < J; ++x) key[x] = packed[r * VECTORS + x];
      for (int i = 0; i < R; ++i)
        for (int x = 0; x < J; ++x) {
          const Vec u = unit(a[i * h + r], key[x]);
          for (int k = 0; k < T; ++k) y[i][k][x] += weight[(t0 + k) * h + r] * u;
        }
    }
  }

  template <int R, int T, int J>
  void tile(const float* a, const Vec* packed, Vec* s) const {
    if constexpr (!two) {
      Vec y[R][1][J];
      inner_sums(a, packed, 0, y);
      for (int i = 0; i < R; ++i)
        for (int x = 0; x < J; ++x) s[i * VECTORS + x] = y[i][0][x];
    } else {
      Vec sums[R][J] = {};
      in_groups<T>(t, [&](auto group, int t0) {
        Vec y[R][group()][J];
        inner_sums(a, packed, t0, y);
        for (int i = 0; i < R; ++i)
          for (int k = 0; k < group(); ++k)
            for (int x = 0; x < J; ++x) sums[i][x] += out[t0 + k] * Act::value(y[i][k][x]);
      });
      for (int i = 0; i < R; ++i)
        for (int x = 0; x < J; ++x) s[i * VECTORS + x] = sums[i][x];
    }
  }

  // Through the second layer: dy = ds w act'(y) of T of its units from t0.
  template <int R, int T, int J>
  void second_layer(const float* a, const Vec* packed, const Vec* ds, int t0, Vec (&dy)[R][T][J], Sums g) const {
    inner_sums(a, packed, t0, dy);
    for (int k = 0; k < T; ++k) {
      Vec by_bias{}, by_out{};
      for (int i = 0; i < R; ++i)
        for (int x = 0; x < J; ++x) {
          const Vec d = ds[i * VECTORS + x];
          const Unit u = Act::both(dy[i][k][x], d * out[t0 + k]);
          by_out += d * u.value;
          by_bias += dy[i][k][x] = u.gradient;
        }
      g.out[t0 + k] += by_out;
      g.bias[t0 + k] += by_bias;
    }
  }

  // One hidden layer, or a second one of a single unit.
  template <int R, int J>
  void one_unit(const float* a, const Vec* packed, const Vec* ds, Sums g) const {
    Vec d[R][1][J];
    if constexpr (two) second_layer(a, packed, ds, 0, d, g);
    else
      for (int i = 0; i < R; ++i)
        for (int x = 0; x < J; ++x) d[i][0][x] = ds[i * VECTORS + x];
    for (int r = 0; r < h; ++r) {
      Vec key[J], by_key[J], by_unit{};
      for (int x = 0; x < J; ++x) key[x] = packed[r * VECTORS + x], by_key[x] = g.key[r * VECTORS + x];
      for (int i = 0; i < R; ++i) {
        const Vec query = all(a[i * h + r]);
        Vec by_query = g.query[i * h + r];
        for (int x = 0; x < J; ++x) {
          if constexpr (by_maximum) {
            const auto active = query > key[x];
            by_query = add_where(active, by_query, d[i][0][x]);
            by_key[x] = add_where(active, by_key[x], d[i][0][x]);
          } else {
            const Unit u = Act::both(query + key[x], d[i][0][x]);
            by_unit += d[i][0][x] * u.value;
            by_query += u.gradient;
            by_key[x] += u.gradient;
          }
        }
        g.query[i * h + r] = by_query;
      }
      for (int x = 0; x < J; ++x) g.key[r * VECTORS + x] = by_key[x];
      if constexpr (!by_maximum) g.weight[r] += by_unit;
    }
  }

  // A second layer of several units, for one query.
  template <int J>
  void many_units(const float* a, const Vec* packed, const Vec* ds, Sums g) const {
    Vec dy[MOST][J], units[MOST][J];
    in_groups<UNITS>(t, [&](auto group, int t0) {
      Vec some[1][group()][J];
      second_layer(a, packed, ds, t0, some, g);
      std::memcpy(dy[t0], some, sizeof some);
    });
    in_groups<UNITS>(h, [&](auto group, int r0) {  // through W and the first layer
      constexpr int n = group();
      Vec d[n][J] = {};
      for (int k = 0; k < t; ++k)
        for (int r = 0; r < n; ++r)
          for (int x = 0; x < J; ++x) d[r][x] += weight[k * h + r0 + r] * dy[k][x];
#pragma GCC unroll 4
      for (int r = 0; r < n; ++r) {
        Vec by_query{};
#pragma GCC unroll 4
        for (int x = 0; x < J; ++x) {
          const Vec key = packed[(r0 + r) * VECTORS + x];
          const Unit u = Act::both(by_maximum ? a[r0 + r] - key : a[r0 + r] + key, d[r][x]);
          units[r0 + r][x] = u.value;
          by_query += u.gradient;
          g.key[(r0 + r) * VECTORS + x] += u.gradient;
        }
        g.query[r0 + r] += by_query;
      }
    });
    in_groups<UNITS>(t, [&](auto t_group, int t0) {  // gradient of W: dy units^T
      in_groups<UNITS>(h, [&](auto r_group, int r0) {
        constexpr int nt = t_group(), nr = r_group();
        Vec w[nt][nr];
        for (int k = 0; k < nt; ++k)
          for (int r = 0; r < nr; ++r) w[k][r] = g.weight[(t0 + k) * h + r0 + r];
#pragma GCC unroll 1
        for (int x = 0; x < J; ++x)
          for (int k = 0; k < nt; ++k)
            for (int r = 0; r < nr; ++r) w[k][r] += dy[t0 + k][x] * units[r0 + r][x];
        for (int k = 0; k < nt; ++k)
          for (int r = 0; r < nr; ++r) g.weight[(t0 + k) * h + r0 + r] = w[k][r];
      });
    });
  }
};
