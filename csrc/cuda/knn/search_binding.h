// Turns checked tensors into a search on the device: arguments, scratch memory, launches.
#pragma once
#include "../../common/metric.h"
#include "../binding.h"
#include "search.h"

namespace dgcl {

class KnnSearchOnDevice {
 public:
  // Launches the search. Later work in the stream can read the lists.
  KnnSearchOnDevice(const char* op, const Tensor& queries, const Tensor& bank, int64_t k, const std::string& metric,
                    const std::optional<Tensor>& query_offsets, const std::optional<Tensor>& bank_counts,
                    bool exclude_self, bool unit_bank, void* stream);

  const KnnSearchArguments& arguments() const { return a_; }

 private:
  KnnSearchArguments a_;
  Tensor queries_, bank_, offsets_, counts_;
  Tensor scratch_;  // as long as this object; PyTorch's allocator reuses memory in stream order
};

}  // namespace dgcl
