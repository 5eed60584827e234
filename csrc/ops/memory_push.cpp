#include <cstdint>
#include <iterator>
#include <utility>

#include "checks.h"

namespace dgcl {
namespace {

// Whether the byte ranges of two tensors overlap. No tensor has negative strides.
bool may_overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto span = [](const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    return std::pair(begin, begin + static_cast<uintptr_t>((last + 1) * static_cast<int64_t>(t.element_size())));
  };
  const auto [a_begin, a_end] = span(a);
  const auto [b_begin, b_end] = span(b);
  return a_begin < b_end && b_begin < a_end;
}

}  // namespace

void check_memory_push(const Tensor& bank_features, const Tensor& bank_projections, const Tensor& bank_density,
                       const Tensor& counts, const Tensor& heads, const Tensor& features, const Tensor& projections,
                       const Tensor& density, const Tensor& row_counts) {
  const char* op = "memory_push";
  check_shape(op, "bank_features", bank_features, {-1, -1, -1}, "[C, capacity, D]");
  const int64_t classes = bank_features.size(0), capacity = bank_features.size(1);
  if (capacity < 1) fail(op, "bank_features must have a capacity of at least 1, got ", shape_of(bank_features));
  check_shape(op, "bank_projections", bank_projections, {classes, capacity, -1}, "[C, capacity, E]");
  check_shape(op, "bank_density", bank_density, {classes, capacity}, "[C, capacity]");
  check_int64_vector(op, "counts", counts, classes, "[C]");
  check_int64_vector(op, "heads", heads, classes, "[C]");
  check_shape(op, "features", features, {classes, -1, bank_features.size(2)}, "[C, P, D] with the bank's C and D");
  const int64_t rows = features.size(1);
  check_shape(op, "projections", projections, {classes, rows, bank_projections.size(2)},
              "[C, P, E] with the bank's C and E");
  check_shape(op, "density", density, {classes, rows}, "[C, P]");
  check_int64_vector(op, "row_counts", row_counts, classes, "[C]");
  const std::pair<const char*, const Tensor*> written[] = {{"bank_features", &bank_features},
                                                           {"bank_projections", &bank_projections},
                                                           {"bank_density", &bank_density},
                                                           {"counts", &counts},
                                                           {"heads", &heads}};
  for (const auto& [name, tensor] : written)
    if (!tensor->is_contiguous())
      fail(op, name, " must be contiguous, because it is written in place, got strides ", list_of(tensor->strides()));
  const std::pair<const char*, const Tensor*> floats[] = {
      {"bank_features", &bank_features}, {"bank_projections", &bank_projections}, {"bank_density", &bank_density},
      {"features", &features},           {"projections", &projections},           {"density", &density}};
  for (const auto& [name, tensor] : floats) check_float(op, name, *tensor);
  const std::pair<const char*, const Tensor*> all[] = {{"bank_projections", &bank_projections},
                                                       {"bank_density", &bank_density},
                                                       {"counts", &counts},
                                                       {"heads", &heads},
                                                       {"features", &features},
                                                       {"projections", &projections},
                                                       {"density", &density},
                                                       {"row_counts", &row_counts}};
  for (const auto& [name, tensor] : all) check_same_device(op, name, *tensor, "bank_features", bank_features);
  // A row must not be overwritten before it is read.
  for (size_t i = 0; i < std::size(written); ++i)
    for (size_t j = i; j < std::size(all); ++j)  // all[j] comes after written[i]
      if (may_overlap(*written[i].second, *all[j].second))
        fail(op, all[j].first, " must not share memory with ", written[i].first, ", which is written in place");
}

}  // namespace dgcl
