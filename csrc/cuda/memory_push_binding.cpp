#include "../ops/checks.h"
#include "binding.h"
#include "memory_push_kernel.h"

namespace dgcl {
namespace {

void memory_push_cuda(const Tensor& bank_features, const Tensor& bank_projections, const Tensor& bank_density,
                      const Tensor& counts, const Tensor& heads, const Tensor& features, const Tensor& projections,
                      const Tensor& density, const Tensor& row_counts, bool normalize) {
  check_memory_push(bank_features, bank_projections, bank_density, counts, heads, features, projections, density,
                    row_counts);
  const OnDeviceOf device(bank_features);
  Tensor keep_features, keep_projections, keep_counts;
  const RowView density_rows = {density.const_data_ptr(), density.stride(1), density.stride(0), dtype_of(density)};
  auto push = [](const RowView& rows, const Tensor& ring, int64_t dim, bool unit) {
    return RingPush{rows, ring.mutable_data_ptr(), dtype_of(ring), dim, unit};
  };
  MemoryPushArguments a;
  a.pushes[0] = push(row_view(features, keep_features), bank_features, bank_features.size(2), normalize);
  a.pushes[1] = push(row_view(projections, keep_projections), bank_projections, bank_projections.size(2), false);
  a.pushes[2] = push(density_rows, bank_density, 1, false);
  a.num_classes = bank_features.size(0);
  a.capacity = bank_features.size(1);
  a.num_rows = features.size(1);
  a.row_counts = values_of(row_counts, keep_counts);
  a.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  a.heads = static_cast<int64_t*>(heads.mutable_data_ptr());
  check_launch("memory_push", launch_memory_push(a, device.stream()));
}

}  // namespace
}  // namespace dgcl

STABLE_TORCH_LIBRARY_IMPL(DGCL_NAMESPACE, DGCL_CUDA_KEY, m) {
  m.impl("memory_push", TORCH_BOX(&dgcl::memory_push_cuda));
}
