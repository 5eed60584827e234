#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/parallel.h"
#include "../math/random_bits.h"
#include "../ops/checks.h"

namespace dgcl {
namespace {

constexpr int64_t kWordsPerItem = 1 << 15;

Tensor random_bits_cpu(const Tensor& rng_state, int64_t stream, int64_t count) {
  check_random_bits(rng_state, count);
  const Tensor state = torch::stable::contiguous(rng_state);
  const int64_t* words = static_cast<const int64_t*>(state.const_data_ptr());
  const RandomKeys keys = random_keys(words[0], words[1], stream);
  Tensor out = torch::stable::new_empty(rng_state, {count}, ScalarType::Long);
  int64_t* bits = static_cast<int64_t*>(out.mutable_data_ptr());
  run_queue((count + kWordsPerItem - 1) / kWordsPerItem, [&](auto& next) {
    for (int64_t item; (item = next()) >= 0;) {
      const int64_t begin = item * kWordsPerItem, end = std::min(begin + kWordsPerItem, count);
      for (int64_t i = begin; i < end; ++i) bits[i] = random_word(keys, static_cast<uint32_t>(i));
    }
  });
  return out;
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(dgcl_ops, CPU, m) { m.impl("random_bits", TORCH_BOX(&dgcl::random_bits_cpu)); }
