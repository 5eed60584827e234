// Prints the bits that the numeric leaf functions compute from the same pseudo-random numbers, one line per call. Built
// for two processors, it must print equal lines (.ci/check_aarch64). DGCL_OPS_CPU_CAPABILITY chooses the instruction set.
//
// Lines that begin with "level" are sums whose rounding may depend on the instruction set. All others must be the same on
// every one. All NaNs are printed the same way, because processors make different ones. Functions that call exp or log
// are left out, because the C library provides those.
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "../../../csrc/cpu/panel.h"
#include "../../../csrc/cpu/rows.h"
#include "../../../csrc/cpu/simd/primitives.h"
#include "../../../csrc/math/density.h"
#include "../../../csrc/math/filter_bound.h"
#include "../../../csrc/math/score_gradient.h"
#include "../../../csrc/math/unit_row.h"

namespace {

using namespace dgcl;

constexpr int64_t kColumns[] = {1,  2,  3,  5,  7,  8,  9,   15,  16,  17,  23,   31,   32,
                                33, 47, 63, 64, 65, 95, 100, 127, 128, 255, 1023, 2047, 2048};

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

enum Kind { plain, spread, denormal, any, kinds };
constexpr const char* kKindNames[] = {"plain", "spread", "denormal", "any"};

template <typename T>
using Word = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <typename T>
T from_bits(uint64_t bits) {
  const Word<T> word = static_cast<Word<T>>(bits >> (64 - 8 * sizeof(T)));
  T x;
  std::memcpy(&x, &word, sizeof(T));
  return x;
}

template <typename T>
T number(Random& random, Kind kind) {
  const uint64_t bits = random.bits();
  const T unit = static_cast<T>(static_cast<int64_t>(bits) >> 8) * T(0x1p-55);  // in [-1, 1)
  switch (kind) {
    case plain:
      return unit;
    case spread:  // squares that overflow and underflow
      return std::scalbn(unit, static_cast<int>(bits % 160) - 80);
    case denormal:
      return unit * std::numeric_limits<T>::min() * 2;
    default:
      return from_bits<T>(bits);  // NaN and infinity among them
  }
}

template <typename T>
std::vector<T> numbers(uint64_t seed, Kind kind, int64_t count) {
  Random random(seed * 1000003 + static_cast<uint64_t>(kind) * 7919 + static_cast<uint64_t>(count));
  std::vector<T> out(static_cast<size_t>(count));
  for (T& x : out) x = number<T>(random, kind);
  return out;
}

// One line: name, arguments, and the values' bits (few of them) or a digest (FNV-1a).
class Line {
 public:
  template <typename... Parts>
  explicit Line(const char* format, Parts... parts) {
    std::printf(format, parts...);
  }
  ~Line() {
    if (count_ > 1) std::printf(" %lld values, digest %016llx", static_cast<long long>(count_), digest_);
    if (count_ == 1) std::printf(" %016llx", last_);
    std::printf("\n");
  }
  template <typename T>
  Line& operator<<(T x) {
    if (x != x) x = std::numeric_limits<T>::quiet_NaN();
    last_ = 0;
    std::memcpy(&last_, &x, sizeof(T));
    for (size_t i = 0; i < sizeof(T); ++i) digest_ = (digest_ ^ (last_ >> (8 * i) & 255)) * 0x100000001b3;
    ++count_;
    return *this;
  }
  template <typename T>
  Line& operator<<(const std::vector<T>& values) {
    for (const T& x : values) *this << x;
    return *this;
  }

 private:
  unsigned long long digest_ = 0xcbf29ce484222325, last_ = 0;
  int64_t count_ = 0;
};

template <typename T>
constexpr const char* kTypeName = sizeof(T) == 4 ? "float" : "double";

template <typename T>
void rows(int64_t dim, Kind kind) {
  const Primitives<T>& prims = primitives<T>();
  const char *type = kTypeName<T>, *how = kKindNames[kind];
  const int columns = static_cast<int>(dim);
  const std::vector<T> x = numbers<T>(1, kind, dim), y = numbers<T>(2, kind, dim);
  std::vector<T> out(x.size());

  Line("dot %s %d %s", type, columns, how) << prims.dot(x.data(), y.data(), dim);
  const std::vector<T> a = numbers<T>(8, kind, 4 * dim), b = numbers<T>(9, kind, 4 * dim);
  const T *left[4], *right[4];
  for (int64_t i = 0; i < 4; ++i) left[i] = a.data() + i * dim, right[i] = b.data() + i * dim;
  std::vector<T> sums(16), more(4);
  prims.dot_4x4(left, right, dim, sums.data());
  prims.dot_4x1(left, right, dim, more.data());
  Line("dot_4x4, dot_4x1 %s %d %s", type, columns, how) << sums << more;
  prims.squared_distance_4x4(left, right, dim, sums.data());
  prims.squared_distance_4x1(left, right, dim, more.data());
  Line("squared_distance_4x4, 4x1 %s %d %s", type, columns, how) << sums << more;
  const std::vector<T> across = numbers<T>(10, kind, kDistanceRows * dim),
                       down = numbers<T>(11, kind, kDistanceRows * dim);
  std::vector<T> squares(kDistanceRows * kDistanceRows);
  prims.add_squared_distances(across.data(), down.data(), dim, squares.data());
  Line("add_squared_distances %s %d %s", type, columns, how) << squares;
  prims.take_roots(squares.data(), static_cast<int64_t>(squares.size()));
  Line("take_roots %s %d %s", type, columns, how) << squares;
  std::vector<T> scores = numbers<T>(12, kind, 64), kept(80);
  std::vector<int32_t> index(64), kept_index(80);
  for (int i = 0; i < 64; ++i) index[static_cast<size_t>(i)] = 3 * i;
  for (T& score : scores) score = score != score ? T(0) : score;
  const int64_t n = prims.append(scores.data(), index.data(), 0x8421f00d5a5a1234u, kept.data(), kept_index.data());
  kept.resize(static_cast<size_t>(n));
  Line("append, reached_by %s %d %s", type, columns, how)
      << kept << kept_index[0] << kept_index[static_cast<size_t>(n - 1)] << prims.reached_by(scores.data(), 61, 7, 9);
  scores.resize(static_cast<size_t>(prims.drop_below(scores.data(), index.data(), 61, kept[3])));
  Line("drop_below %s %d %s", type, columns, how) << scores << index[0];
  prims.divide(x.data(), y[0], dim, out.data());
  Line("divide %s %d %s", type, columns, how) << out;
  const RowNorm<T> norm = unit_row(prims, x.data(), dim, out.data());
  Line("unit_row %s %d %s", type, columns, how) << out << norm.value << norm.exponent;
  std::vector<T> gradient = y;
  unit_row_backward(prims, out.data(), norm, dim, gradient.data());
  Line("unit_row_backward %s %d %s", type, columns, how) << gradient;
  for (const ScalarType dtype : {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Double}) {
    std::vector<double> stored(x.size());  // room for every dtype
    store_row(dtype, x.data(), dim, reinterpret_cast<char*>(stored.data()));
    load_row(prims, dtype, reinterpret_cast<const char*>(stored.data()), dim, out.data());
    Line("stored and loaded %s %d %s dtype %d", type, columns, how, static_cast<int>(dtype)) << out;
  }
  out = y;
  prims.axpy(x[0], x.data(), dim, out.data());
  Line("level axpy %s %d %s", type, columns, how) << out;
}

template <typename T>
void tile(int64_t dim, Kind kind) {
  const Primitives<T>& prims = primitives<T>();
  const int rows = prims.tile_rows, columns = prims.tile_columns;
  const std::vector<T> queries = numbers<T>(3, kind, rows * dim), bank = numbers<T>(4, kind, columns * dim),
                       bias = numbers<T>(5, kind, columns), threshold = numbers<T>(6, kind, rows);
  std::vector<const T*> row;
  for (int c = 0; c < columns - 1; ++c) row.push_back(bank.data() + c * dim);  // the last one is missing
  std::vector<T> panel(bank.size()), scores(static_cast<size_t>(rows * columns));
  std::vector<uint64_t> passes(static_cast<size_t>(rows));
  pack_columns(row.data(), columns - 1, dim, columns, panel.data());
  prims.score_tile(queries.data(), panel.data(), bias.data(), dim, threshold.data(), scores.data(), passes.data());
  const int shown = static_cast<int>(dim);
  Line("level pack_columns %s %d %s", kTypeName<T>, shown, kKindNames[kind]) << panel;
  Line("level score_tile %s %d %s", kTypeName<T>, shown, kKindNames[kind]) << scores << passes;
}

template <typename T>
void widening() {
  const Primitives<T>& prims = primitives<T>();
  std::vector<uint16_t> all(1 << 16);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  std::vector<T> out(all.size());
  for (const int64_t cut : {0, 1, 3, 9}) {  // with tails
    const int64_t dim = (1 << 16) - cut;
    out.assign(all.size(), T(0));
    prims.from_half(all.data() + cut, dim, out.data());
    Line("from_half %s, %d", kTypeName<T>, static_cast<int>(dim)) << out;
    prims.from_bfloat16(all.data() + cut, dim, out.data());
    Line("from_bfloat16 %s, %d", kTypeName<T>, static_cast<int>(dim)) << out;
  }
}

template <typename T>
void formulas(Kind kind) {
  constexpr int64_t scales[] = {1, 3, 20, 64, 200}, found = 100;
  std::vector<T> weights(found), values;
  scale_weights(scales, 5, found, weights.data());
  Line("scale_weights %s", kTypeName<T>) << weights;
  const std::vector<T> scores = numbers<T>(7, kind, found);
  std::vector<uint64_t> passes;
  for (int64_t count = 1; count <= 64; ++count)
    passes.push_back(primitives<T>().passing(scores.data(), count, scores[99]));
  Line("passing %s %s", kTypeName<T>, kKindNames[kind]) << passes;
  Line("weighted_sum %s %s", kTypeName<T>, kKindNames[kind]) << weighted_sum(weights.data(), scores.data(), found);
  for (int64_t dim : kColumns)
    for (const bool l2 : {false, true}) {
      const T gamma = filter_gamma<T>(dim), underflow = filter_underflow<T>(dim);
      values.push_back(filter_bound(l2, gamma, underflow, scores[0], scores[1]));
      values.push_back(pair_factor(l2, scores[2], scores[3]));
      values.push_back(score_direction(l2, scores[4], scores[5]));
    }
  Line("filter_bound and score_gradient %s %s", kTypeName<T>, kKindNames[kind]) << values;
}

template <typename T>
void everything() {
  for (int kind = plain; kind < kinds; ++kind) {
    for (int64_t dim : kColumns) rows<T>(dim, static_cast<Kind>(kind));
    for (int64_t dim : kColumns) tile<T>(dim, static_cast<Kind>(kind));
    formulas<T>(static_cast<Kind>(kind));
  }
  widening<T>();
}

}  // namespace

int main() {
  std::fprintf(stderr, "%s\n", cpu_level());
  everything<float>();
  everything<double>();
}
