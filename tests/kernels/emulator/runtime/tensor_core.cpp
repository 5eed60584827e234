#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "state.h"

namespace cuda_emulator {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;

// How one sum of sixteen products and a start value is rounded.
struct Rounding {
  int order[kDepth];
  int chunk;       // products added at a time: 4, 8 and 16 have all been seen in hardware
  int extra_bits;  // kept beyond float's 24 when a chunk is aligned to its largest term; the rest is cut off. -1: exact
};

Rounding choose_rounding() {
  Rounding r{};
  for (int k = 0; k < kDepth; ++k) r.order[k] = options().schedule == Schedule::reverse ? kDepth - 1 - k : k;
  r.chunk = 1;
  r.extra_bits = -1;
  if (options().schedule == Schedule::sequential) return r;  // one after the other, each rounded to nearest
  r.chunk = 8;
  r.extra_bits = 0;
  if (options().schedule == Schedule::reverse) return r;
  for (int k = kDepth - 1; k > 0; --k) std::swap(r.order[k], r.order[random_number() % (k + 1)]);
  r.chunk = 1 << (2 + random_number() % 3);
  r.extra_bits = static_cast<int>(random_number() % 5) - 1;
  return r;
}

// The value must be positive and normal.
int exponent_of(double value) { return static_cast<int>(std::bit_cast<uint64_t>(value) >> 52) - 1023; }

double power_of_two(int exponent) { return std::bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52); }

// Rounds toward zero, to a multiple of 2^exponent. The quotient must fit into 64 bits.
double cut(double value, int exponent) {
  return static_cast<double>(static_cast<int64_t>(value * power_of_two(-exponent))) * power_of_two(exponent);
}

float add_chunk(float start, const double* products, int count, int extra_bits) {
  double sum = start;
  double largest = std::fabs(sum);
  bool finite = std::isfinite(sum);
  for (int i = 0; i < count; ++i) {
    largest = std::max(largest, std::fabs(products[i]));
    finite = finite && std::isfinite(products[i]);
  }
  if (!finite || largest == 0 || extra_bits < 0) {
    for (int i = 0; i < count; ++i) sum += products[i];
    return static_cast<float>(sum);
  }
  const int last_bit = exponent_of(largest) - 23 - extra_bits;
  sum = cut(sum, last_bit);
  for (int i = 0; i < count; ++i) sum += cut(products[i], last_bit);  // exact: few bits, one scale
  if (sum == 0) return 0;
  return static_cast<float>(cut(sum, std::max(exponent_of(std::fabs(sum)) - 23, -149)));
}

float sum_products(float start, const float* a, const float* b, const Rounding& r) {
  for (int k = 0; k < kDepth; k += r.chunk) {
    double products[kDepth];
    for (int i = 0; i < r.chunk; ++i) products[i] = static_cast<double>(a[r.order[k + i]]) * b[r.order[k + i]];
    start = add_chunk(start, products, r.chunk, r.extra_bits);
  }
  return start;
}

float element(uint32_t pair, int high) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(high ? pair >> 16 : pair)));
}

// Register i of lane l, as the PTX manual lays out the fragments.
void answer_product(Thread* lanes, uint32_t) {
  static float a[kRows][kDepth], b[kColumns][kDepth], c[kRows][kColumns];
  for (int l = 0; l < static_cast<int>(kWarpSize); ++l) {
    const WarpArgument& x = lanes[l].argument;
    const int group = l / 4, place = l % 4;
    for (int i = 0; i < 8; ++i) a[group + i / 2 % 2 * 8][place * 2 + i % 2 + i / 4 * 8] = element(x.a[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) b[group][place * 2 + i % 2 + i / 2 * 8] = element(x.b[i / 2], i % 2);
    for (int i = 0; i < 4; ++i) c[group + i / 2 * 8][place * 2 + i % 2] = x.c[i];
  }
  const Rounding rounding = choose_rounding();
  for (int l = 0; l < static_cast<int>(kWarpSize); ++l) {
    for (int i = 0; i < 4; ++i) {
      const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
      lanes[l].argument.d[i] = sum_products(c[row][column], a[row], b[column], rounding);
    }
  }
}

}  // namespace

void matrix_product(float* d, const uint32_t* a, const uint32_t* b, const float* c, Site site) {
  WarpArgument& argument = current_thread->argument;
  argument.a = a;
  argument.b = b;
  argument.c = c;
  meet(0xffffffffu, site, false, answer_product);
  for (int i = 0; i < 4; ++i) d[i] = argument.d[i];
}

}  // namespace cuda_emulator
