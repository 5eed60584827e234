#include "search_binding.h"

#include <algorithm>
#include <cstdlib>

namespace dgcl {
namespace {

// DGCL_OPS_CUDA_SEARCH=exact disables tensor cores, for comparison and to isolate differences. Read by every call, so
// that a program can change it; the other facts of a plan are kept per device.
bool filter_allowed(const char* op) {
  const char* set = std::getenv("DGCL_OPS_CUDA_SEARCH");
  const std::string setting = set ? set : "auto";
  if (setting != "auto" && setting != "exact") fail(op, "DGCL_OPS_CUDA_SEARCH must be auto or exact, got ", setting);
  return setting == "auto";
}

// Cuts memory into parts that start at multiples of 256 bytes, as memory from the allocator does. Without memory it
// only counts.
class Cutter {
 public:
  explicit Cutter(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename U>
  void cut(U*& part, int64_t count, int64_t element_bytes) {
    if (memory_) part = static_cast<U*>(static_cast<void*>(memory_ + bytes_));
    bytes_ += count * element_bytes;
#ifdef DGCL_EMULATED_DEVICE
    bytes_ += cuda_emulator_red_zone(memory_ ? memory_ + bytes_ : nullptr);  // shows AddressSanitizer where parts end
#endif
    bytes_ = (bytes_ + kAlignment - 1) / kAlignment * kAlignment;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kAlignment = 256;
  char* memory_;
  int64_t bytes_ = 0;
};

struct ScratchBytes {
  int64_t zeros, all;  // the zeros come first
};

// Sets the pointers to the parts of `memory`. Without memory it only returns the sizes.
ScratchBytes cut_scratch(KnnSearchArguments& a, void* memory) {
  const KnnSearchPlan& plan = a.plan;
  const int64_t size = a.is_double ? sizeof(double) : sizeof(float);
  const int64_t rows = a.num_classes * a.bank_rows, lists = plan.splits * a.num_queries;
  const int64_t candidates = plan.candidate_lists * plan.capacity;
  Cutter parts(memory);
  parts.cut(a.list_length, lists, sizeof(int32_t));
  if (plan.filter) {
    parts.cut(a.lengths, a.num_classes, sizeof(BankLengths));
    parts.cut(a.unresolved, plan.items / plan.splits, sizeof(int32_t));
  }
  const int64_t zeros = parts.bytes();
  if (plan.items == 0) return {zeros, zeros};
  if (plan.filter) {
    parts.cut(a.mean, a.num_classes * a.dim, sizeof(float));
    parts.cut(a.bias, rows, sizeof(float));
  }
  if (a.normalize_bank) parts.cut(a.bank_norms, rows, row_norm_bytes(a.is_double));
  parts.cut(a.candidate_score, candidates, size);
  parts.cut(a.candidate_index, candidates, sizeof(int32_t));
  parts.cut(a.list_score, lists * a.k, size);
  parts.cut(a.list_index, lists * a.k, sizeof(int32_t));
  return {zeros, parts.bytes()};
}

}  // namespace

KnnSearchOnDevice::KnnSearchOnDevice(const char* op, const Tensor& queries, const Tensor& bank, int64_t k,
                                     const std::string& metric, const std::optional<Tensor>& query_offsets,
                                     const std::optional<Tensor>& bank_counts, bool exclude_self, bool unit_bank,
                                     void* stream) {
  const Metric kind = parse_metric(op, metric);
  a_.queries = row_view(queries, queries_);
  a_.bank = row_view(bank, bank_);
  a_.dim = queries.size(1);
  a_.num_queries = queries.size(0);
  a_.bank_rows = bank.size(bank.dim() - 2);
  a_.num_classes = bank.dim() == 3 ? bank.size(0) : 1;
  a_.offsets = values_of(query_offsets, offsets_);
  a_.counts = values_of(bank_counts, counts_);
  a_.k = static_cast<int32_t>(std::min(k, std::max<int64_t>(1, a_.bank_rows)));
  a_.normalize_queries = kind == Metric::cosine;
  a_.normalize_bank = kind == Metric::cosine && !unit_bank;
  a_.l2 = kind == Metric::l2;
  a_.exclude_self = exclude_self;
  a_.is_double = compute_type(queries, bank) == ScalarType::Double;

  // Indices and candidate lists are counted in 32 bits. A grid has fewer than 2^31 blocks of 8 rows.
  constexpr int64_t kMostRows = (1 << 30) - 4 * kItemQueries, kMostInAll = int64_t(8) * INT32_MAX;
  if (a_.bank_rows > kMostRows)
    fail(op, "bank must have at most ", kMostRows, " rows per class on CUDA, got ", a_.bank_rows);
  if (a_.num_queries > kMostInAll)
    fail(op, "queries must have at most ", kMostInAll, " rows on CUDA, got ", a_.num_queries);
  if (a_.num_classes > kMostInAll / std::max<int64_t>(1, a_.bank_rows))
    fail(op, "bank must have at most ", kMostInAll, " rows on CUDA, got ", shape_of(bank));

  const bool is_empty = a_.num_queries == 0 || a_.bank_rows == 0 || a_.num_classes == 0;
  if (!is_empty) check_launch(op, plan_knn_search(a_, filter_allowed(op)));
  const ScratchBytes bytes = cut_scratch(a_, nullptr);
  scratch_ = torch::stable::new_empty(queries, {bytes.all}, ScalarType::Byte);
  cut_scratch(a_, scratch_.mutable_data_ptr());
  check_launch(op, launch_knn_search(a_, bytes.zeros, stream));
}

}  // namespace dgcl
