// Neural Attention (arXiv 2502.17206) on CPU in the manner of flash attention: scores of a tile of
// pairs at a time, online softmax, recomputation in the backward; nothing of size N x M is stored.
// Every number is summed in an order that does not depend on the number of threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>

#include "scorer.h"

namespace {

using at::Tensor;
constexpr int QUERIES = 48;               // queries in a tile
constexpr int TILE = (QUERIES + W - 1) / W * W;  // the same in whole vectors
constexpr int GEMM_ROWS = 6;
constexpr float INF = std::numeric_limits<float>::infinity();

int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }

// C = A B or, with `add`, C += A B, for R rows and J vectors of columns; A is read one number at a
// time, with any strides.
template <bool add, int R, int J>
inline void gemm_tile(const float* A, int64_t a_row, int64_t a_col, const float* B, int64_t ldb, float* C,
                      int64_t ldc, int64_t inner) {
  Vec sums[R][J] = {};
  for (int64_t m = 0; m < inner; ++m) {
    Vec b[J];
    for (int x = 0; x < J; ++x) b[x] = load(B + m * ldb + x * W);
    for (int i = 0; i < R; ++i)
      for (int x = 0; x < J; ++x) sums[i][x] += A[i * a_row + m * a_col] * b[x];
  }
  for (int i = 0; i < R; ++i)
    for (int x = 0; x < J; ++x) {
      float* at = C + i * ldc + x * W;
      store(at, add ? load(at) + sums[i][x] : sums[i][x]);
    }
}

// The same for whole matrices: A (rows, inner), B (inner, columns); columns a multiple of W.
template <bool add>
void gemm(const float* A, int64_t a_row, int64_t a_col, const float* B, int64_t ldb, float* C, int64_t ldc,
          int64_t rows, int64_t inner, int64_t columns) {
  in_groups<GEMM_ROWS>(int(rows), [&](auto R, int i) {
    in_groups<COLUMNS>(int(columns / W), [&](auto J, int x) {
      gemm_tile<add, R, J>(A + i * a_row, a_row, a_col, B + x * W, ldb, C + i * ldc + x * W, ldc, inner);
    });
  });
}

// What both passes share: sizes, the score network's weights, and who sees whom.
struct Problem {
  int64_t batch, heads, n, m, d;
  bool causal;
  int h, t;
  const float *a, *c, *v, *weight, *bias, *out;

  template <class S>
  S scorer(int64_t bh) const {
    const int64_t head = bh % heads;
    return {h, t, weight + head * t * h, bias + head * t, out + head * t};
  }
  int64_t visible(int64_t query) const { return causal ? query + 1 + m - n : m; }
  int keys_from(int64_t j, int64_t query) const { return int(std::clamp<int64_t>(visible(query) - j, 0, KEYS)); }
};

template <class S>
void pack_keys(const Problem& p, const S& scorer, int64_t bh, Vec* packed) {
  for (int64_t j = 0; j < p.m; j += KEYS, packed += scorer.packed_vectors())
    scorer.pack(p.c + (bh * p.m + j) * p.h, int(std::min<int64_t>(KEYS, p.m - j)), reinterpret_cast<float*>(packed));
}

// Scores of queries i.. and keys j.. into s, -inf where a key is not visible; returns vectors a row.
template <class S>
int visible_scores(const Problem& p, const S& scorer, int64_t bh, int64_t i, int rows, const Vec* packed, int64_t j,
                   Vec* s) {
  const int vectors = int(blocks(p.keys_from(j, i + rows - 1), W));
  scorer.scores(p.a + (bh * p.n + i) * p.h, rows, packed + j / KEYS * scorer.packed_vectors(), vectors, s);
  if (p.keys_from(j, i) < vectors * W)
    for (int row = 0; row < rows; ++row) {
      float* line = reinterpret_cast<float*>(s + row * VECTORS);
      for (int x = p.keys_from(j, i + row); x < vectors * W; ++x) line[x] = -INF;
    }
  return vectors;
}

// Online softmax of one tile: s becomes exp(s - top); top and total (a sum per element of a vector)
// are kept up to date, and what rows of o (rows, d) hold so far is brought to the new top.
void softmax_step(Vec* s, int rows, int vectors, float* top, Vec* total, float* o, int64_t d) {
  alignas(Vec) float shrink[TILE];
  for (int row = 0; row < rows; ++row) {
    Vec most = s[row * VECTORS];
    for (int x = 1; x < vectors; ++x) most = larger(most, s[row * VECTORS + x]);
    const float now = std::max(largest(most), top[row]);
    shrink[row] = top[row] - now;
    top[row] = now;
  }
  for (int row = 0; row < rows; row += W) store(shrink + row, exp2(load(shrink + row) * LOG2E));
  for (int row = 0; row < rows; ++row) {
    const Vec offset = all(top[row] * LOG2E);
    Vec sums = total[row] * shrink[row];
    in_groups<COLUMNS>(vectors, [&](auto J, int x) {
      for (int y = row * VECTORS + x; y < row * VECTORS + x + J; ++y) sums += s[y] = exp2(s[y] * LOG2E - offset);
    });
    total[row] = sums;
    if (shrink[row] != 1.f)
      for (int64_t x = 0; x < d; x += W) store(o + row * d + x, load(o + row * d + x) * shrink[row]);
  }
}

template <class S>
void forward(const Problem& p, float* out, float* lse) {
  const int64_t heads = p.batch * p.heads, tiles = blocks(p.n, QUERIES);
  const int64_t size = blocks(p.m, KEYS) * p.scorer<S>(0).packed_vectors();
  std::vector<Vec> keys(heads * size);
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t bh = begin; bh < end; ++bh) pack_keys(p, p.scorer<S>(bh), bh, &keys[bh * size]);
  });
  at::parallel_for(0, heads * tiles, 1, [&](int64_t begin, int64_t end) {
    Vec s[QUERIES * VECTORS];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t bh = task / tiles, i = task % tiles * QUERIES;
      const int rows = int(std::min<int64_t>(QUERIES, p.n - i));
      const S scorer = p.scorer<S>(bh);
      float *o = out + (bh * p.n + i) * p.d, top[TILE];
      Vec total[QUERIES] = {};
      std::fill_n(o, rows * p.d, 0.f);
      std::fill_n(top, TILE, -INF);
      for (int64_t j = 0; j < p.visible(i + rows - 1); j += KEYS) {
        const int vectors = visible_scores(p, scorer, bh, i, rows, &keys[bh * size], j, s);
        softmax_step(s, rows, vectors, top, total, o, p.d);
        gemm<true>(reinterpret_cast<float*>(s), KEYS, 1, p.v + (bh * p.m + j) * p.d, p.d, o, p.d, rows,
             std::min<int64_t>(vectors * W, p.m - j), p.d);
      }
      for (int row = 0; row < rows; ++row) {
        const float all_keys = sum(total[row]);
        for (int64_t x = 0; x < p.d; x += W) store(o + row * p.d + x, load(o + row * p.d + x) / all_keys);
        lse[bh * p.n + i + row] = top[row] + std::log(all_keys);
      }
    }
  });
}

// Gradients in the layout of the inputs; those of the weights per batch and head.
struct Outputs {
  float *a, *c, *v, *weight, *bias, *out;
};

// One head: queries outside, keys inside, so that query gradients are complete after their tile.
template <class S>
void backward_head(const Problem& p, int64_t bh, const float* d_out, const float* out, const float* lse, Outputs g) {
  const S scorer = p.scorer<S>(bh);
  const int64_t key_blocks = blocks(p.m, KEYS), d = p.d;
  const int h = p.h, t = p.t;
  std::vector<Vec> packed(key_blocks * scorer.packed_vectors()), values(key_blocks * d * VECTORS);
  std::vector<Vec> key(key_blocks * h * VECTORS), query(QUERIES * h), weight(t * h), bias(t), last(t);
  std::vector<double> homogeneous(h);
  const float *a = p.a + bh * p.n * h, *c = p.c + bh * p.m * h, *v = p.v + bh * p.m * d;
  g.a += bh * p.n * h, g.c += bh * p.m * h, g.v += bh * p.m * d;
  d_out += bh * p.n * d, out += bh * p.n * d, lse += bh * p.n;

  pack_keys(p, scorer, bh, packed.data());
  float* columns = reinterpret_cast<float*>(values.data());  // v transposed, block by block: (d, KEYS)
  for (int64_t j = 0; j < p.m; ++j)
    for (int64_t x = 0; x < d; ++x) columns[(j / KEYS * d + x) * KEYS + j % KEYS] = v[j * d + x];
  std::fill_n(g.v, p.m * d, 0.f);

  Vec prob[QUERIES * VECTORS], ds[QUERIES * VECTORS];
  for (int64_t i = 0; i < p.n; i += QUERIES) {
    const int rows = int(std::min<int64_t>(QUERIES, p.n - i));
    Vec delta[QUERIES];
    for (int row = 0; row < rows; ++row) {
      Vec product{};
      for (int64_t x = (i + row) * d; x < (i + row + 1) * d; x += W) product += load(d_out + x) * load(out + x);
      delta[row] = all(sum(product));
    }
    std::fill(query.begin(), query.end(), Vec{});
    for (int64_t j = 0; j < p.visible(i + rows - 1); j += KEYS) {
      const int vectors = visible_scores(p, scorer, bh, i, rows, packed.data(), j, prob);
      gemm<false>(d_out + i * d, d, 1, columns + j * d, KEYS, reinterpret_cast<float*>(ds), KEYS, rows, d, vectors * W);
      for (int row = 0; row < rows; ++row) {
        const Vec offset = all(lse[i + row] * LOG2E);
        in_groups<COLUMNS>(vectors, [&](auto J, int x) {
          for (int y = row * VECTORS + x; y < row * VECTORS + x + J; ++y) {
            prob[y] = exp2(prob[y] * LOG2E - offset);
            ds[y] = prob[y] * (ds[y] - delta[row]);
          }
        });
      }
      gemm<true>(reinterpret_cast<float*>(prob), 1, KEYS, d_out + i * d, d, g.v + j * d, d,
           std::min<int64_t>(vectors * W, p.m - j), rows, d);
      scorer.backward(a + i * h, rows, &packed[j / KEYS * scorer.packed_vectors()], vectors, ds,
                      {&key[j / KEYS * h * VECTORS], query.data(), weight.data(), bias.data(), last.data()});
    }
    for (int64_t row = 0; row < rows; ++row)
      for (int r = 0; r < h; ++r) {
        const float total = sum(query[row * h + r]);
        homogeneous[r] += double(total) * a[(i + row) * h + r];
        g.a[(i + row) * h + r] = scorer.missing_factor(r) * total;
      }
  }
  const float* by_key = reinterpret_cast<float*>(key.data());
  for (int64_t j = 0; j < p.m; ++j)
    for (int r = 0; r < h; ++r) {
      const float total = by_key[(j / KEYS * h + r) * KEYS + j % KEYS];
      homogeneous[r] += double(total) * c[j * h + r];
      g.c[j * h + r] = scorer.missing_factor(r) * total;
    }
  for (int x = 0; x < t * h; ++x) g.weight[bh * t * h + x] = scorer.homogeneous() ? float(homogeneous[x]) : sum(weight[x]);
  for (int x = 0; x < t; ++x) g.bias[bh * t + x] = sum(bias[x]), g.out[bh * t + x] = sum(last[x]);
}

template <class S>
void backward(const Problem& p, const float* d_out, const float* out, const float* lse, Outputs g) {
  at::parallel_for(0, p.batch * p.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t bh = begin; bh < end; ++bh) backward_head<S>(p, bh, d_out, out, lse, g);
  });
}

// Calls with the scorer's type.
template <class Call>
void with_scorer(bool two, Call call) {
  if (two) call(std::type_identity<Scorer<ACTIVATION, true>>{});
  else call(std::type_identity<Scorer<ACTIVATION, false>>{});
}

// Before a pointer is taken: what follows reads and writes by these sizes alone.
const Tensor& checked(const char* name, const Tensor& x, at::IntArrayRef sizes) {
  TORCH_CHECK(x.device().is_cpu(), name, " must be on the CPU; got ", x.device());
  TORCH_CHECK(x.scalar_type() == at::kFloat, name, " must be float32; got ", x.scalar_type());
  TORCH_CHECK(x.sizes() == sizes, name, " must have sizes ", sizes, "; got ", x.sizes());
  return x;
}

float* numbers(const char* name, const Tensor& x, at::IntArrayRef sizes) {
  TORCH_CHECK(checked(name, x, sizes).is_contiguous(), name, " must be contiguous; got strides ", x.strides());
  return x.data_ptr<float>();
}

// Contiguous, with the last dimension zero-padded to whole vectors.
Tensor padded(const Tensor& x) {
  const int64_t extra = -x.size(-1) & (W - 1);
  // constant_pad_nd keeps the memory format of its input, such as channels_last
  return extra ? at::constant_pad_nd(x, {0, extra}).contiguous() : x.contiguous();
}

using Maybe = std::optional<Tensor>;

// Everything but the pointer to v, which is padded first.
Problem problem(const Tensor& a, const Tensor& c, const Tensor& v, const Maybe& mid_weight, const Maybe& mid_bias,
                const Tensor& out_weight, bool causal) {
  for (const Tensor& x : {a, c, v})
    TORCH_CHECK(x.dim() == 4 && x.numel(), "a, c and v must have four dimensions, none of them 0; got ", x.sizes());
  TORCH_CHECK(mid_weight.has_value() == mid_bias.has_value(), "mid_weight and mid_bias must both be given, or neither");
  TORCH_CHECK(!mid_weight || mid_weight->dim() == 3, "mid_weight must have three dimensions; got ", mid_weight->sizes());
  const int64_t batch = a.size(0), heads = a.size(1), n = a.size(2), h = a.size(3), m = c.size(2);
  const int64_t t = mid_weight ? mid_weight->size(1) : 1;
  TORCH_CHECK(h <= MOST && 0 < t && t <= MOST, "hidden layers must have 1 to ", MOST, " units; got ", h, " and ", t);
  TORCH_CHECK(!causal || n <= m, "causal attention needs at least as many keys as queries; got ", m, " and ", n);
  checked("v", v, {batch, heads, m, v.size(3)});
  Problem p{batch, heads, n, m, (v.size(3) + W - 1) / W * W, causal, int(h), int(t)};
  p.a = numbers("a", a, {batch, heads, n, h}), p.c = numbers("c", c, {batch, heads, m, h});
  if (mid_weight) {
    p.weight = numbers("mid_weight", *mid_weight, {heads, t, h}), p.bias = numbers("mid_bias", *mid_bias, {heads, t});
    p.out = numbers("out_weight", out_weight, {heads, t});
  } else p.weight = numbers("out_weight", out_weight, {heads, h});
  return p;
}

// Tensors as in ops.py; all float32 and, but for v, contiguous.
std::tuple<Tensor, Tensor> forward_op(const Tensor& a, const Tensor& c, const Maybe& mid_weight, const Maybe& mid_bias,
                                      const Tensor& out_weight, const Tensor& v, bool causal) {
  Problem p = problem(a, c, v, mid_weight, mid_bias, out_weight, causal);
  const Tensor values = padded(v);
  p.v = values.data_ptr<float>();
  const Tensor out = at::empty({p.batch, p.heads, p.n, p.d}, a.options());
  const Tensor lse = at::empty({p.batch, p.heads, p.n}, a.options());
  with_scorer(mid_weight.has_value(), [&]<class S>(std::type_identity<S>) {
    forward<S>(p, out.data_ptr<float>(), lse.data_ptr<float>());
  });
  return {out.slice(-1, 0, v.size(-1)), lse};
}

// Gradients of a, c and v; those of weight, bias and out for each batch and head. d_out and out
// need not be contiguous.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward_op(
    const Tensor& d_out, const Tensor& a, const Tensor& c, const Maybe& mid_weight, const Maybe& mid_bias,
    const Tensor& out_weight, const Tensor& v, const Tensor& out, const Tensor& lse, bool causal) {
  Problem p = problem(a, c, v, mid_weight, mid_bias, out_weight, causal);
  const int64_t sizes[] = {p.batch, p.heads, p.n, v.size(3)};
  const Tensor values = padded(v), mixed = padded(checked("out", out, sizes));
  const Tensor upstream = padded(checked("d_out", d_out, sizes));
  p.v = values.data_ptr<float>();
  const Tensor da = at::empty_like(a), dc = at::empty_like(c), dv = at::empty_like(values);
  const Tensor weight = at::empty({p.batch, p.heads, p.t, p.h}, a.options());
  const Tensor bias = at::empty({p.batch, p.heads, p.t}, a.options()), last = at::empty_like(bias);
  const float* sums = numbers("lse", lse, {p.batch, p.heads, p.n});
  with_scorer(mid_weight.has_value(), [&]<class S>(std::type_identity<S>) {
    backward<S>(p, upstream.data_ptr<float>(), mixed.data_ptr<float>(), sums,
                {da.data_ptr<float>(), dc.data_ptr<float>(), dv.data_ptr<float>(), weight.data_ptr<float>(),
                 bias.data_ptr<float>(), last.data_ptr<float>()});
  });
  return {da, dc, dv.slice(-1, 0, v.size(-1)), weight, bias, last};
}

#define DEFINE_LIBRARY(name, m) TORCH_LIBRARY(name, m)  // so that NAMESPACE is expanded first
DEFINE_LIBRARY(NAMESPACE, m) {
  const std::string inputs = "Tensor a, Tensor c, Tensor? mid_weight, Tensor? mid_bias, Tensor out_weight, Tensor v";
  m.def(("forward(" + inputs + ", bool causal) -> (Tensor, Tensor)").c_str(), &forward_op);
  m.def(("backward(Tensor d_out, " + inputs + ", Tensor out, Tensor lse, bool causal) "
         "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)").c_str(),
        &backward_op);
}
}  // namespace
