#include "knn_exact_kernel.cuh"
#include "knn_filter_kernel.cuh"

namespace dgcl {
namespace {

// Blocks of `kernel` that the current device runs at a time; also opts in to its dynamic shared memory.
template <typename Kernel>
int resident_blocks(Kernel* kernel, int threads, size_t smem, int64_t* blocks) {
  int device = 0, processors = 0, each = 0;
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, smem);
  *blocks = static_cast<int64_t>(processors) * each;
  return static_cast<int>(error);
}

template <typename T>
auto exact_kernel(const KnnSearchArguments& a) {
  return a.l2 ? knn_exact_kernel<T, true> : knn_exact_kernel<T, false>;
}

// Calls use(a value of the type that the bank is stored in).
template <typename Use>
int with_bank_type(const KnnSearchArguments& a, const Use& use) {
  if (a.bank.dtype == Dtype::float16) return use(__half());
  if (a.bank.dtype == Dtype::bfloat16) return use(__nv_bfloat16());
  return use(float());
}

// Whether bank rows can be copied to shared memory 16 bytes at a time.
bool is_aligned(const Rows& rows) {
  const int64_t size = rows.dtype == Dtype::float64 ? 8 : rows.dtype == Dtype::float32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride * size % 16 == 0 &&
         rows.group_stride * size % 16 == 0;
}

template <typename T>
int launch_exact(const KnnSearchArguments& a, const KnnSearchPlan& plan, void* stream) {
  const bool as_stored = a.bank.dtype == (sizeof(T) == 8 ? Dtype::float64 : Dtype::float32) && !a.normalise_bank;
  const bool vectors = as_stored && is_aligned(a.bank);
  const dim3 grid(static_cast<unsigned>(plan.exact_blocks)), block(kExactThreads);
  if (a.l2)
    DGCL_LAUNCH((knn_exact_kernel<T, true>), grid, block, kExactShared<T>, stream, a, plan.items, vectors);
  else
    DGCL_LAUNCH((knn_exact_kernel<T, false>), grid, block, kExactShared<T>, stream, a, plan.items, vectors);
  return static_cast<int>(cudaGetLastError());
}

dim3 blocks_for(int64_t work, int each) { return dim3(static_cast<unsigned>((work + each - 1) / each)); }

template <typename T>
int launch_norms(const KnnSearchArguments& a, void* stream) {
  DGCL_LAUNCH(knn_bank_norms_kernel<T>, blocks_for(a.num_classes * a.bank_rows, kRowsABlock), dim3(kRowThreads), 0,
              stream, a);
  return static_cast<int>(cudaGetLastError());
}

int launch_filter(const KnnSearchArguments& a, const KnnSearchPlan& plan, void* stream) {
  DGCL_LAUNCH(knn_mean_kernel, blocks_for(a.num_classes * ((a.dim + kWarp - 1) / kWarp), 1), dim3(kMeanThreads), 0,
              stream, a);
  DGCL_LAUNCH(knn_bank_reach_kernel, blocks_for(a.num_classes * a.bank_rows, kRowsABlock), dim3(kRowThreads), 0, stream,
              a);
  return with_bank_type(a, [&](auto stored) {
    using Stored = decltype(stored);
    DGCL_LAUNCH(knn_filter_kernel<Stored>, dim3(static_cast<unsigned>(plan.filter_blocks)), dim3(kFilterThreads),
                kFilterShared<Stored>, stream, a, plan.items, is_aligned(a.bank));
    return static_cast<int>(cudaGetLastError());
  });
}

int power_of_two(int64_t least) {
  int size = 1;
  while (size < least) size *= 2;
  return size;
}

}  // namespace

int plan_knn_search(const KnnSearchArguments& a, bool is_double, bool allow_filter, KnnSearchPlan* plan) {
  plan->filter = allow_filter && !is_double && a.k <= kMostFilterK;
  plan->filter_blocks = 0;
  int error = is_double
                  ? resident_blocks(exact_kernel<double>(a), kExactThreads, kExactShared<double>, &plan->exact_blocks)
                  : resident_blocks(exact_kernel<float>(a), kExactThreads, kExactShared<float>, &plan->exact_blocks);
  if (plan->filter && error == 0)
    error = with_bank_type(a, [&](auto stored) {
      using Stored = decltype(stored);
      return resident_blocks(knn_filter_kernel<Stored>, kFilterThreads, kFilterShared<Stored>, &plan->filter_blocks);
    });
  if (error != 0) return error;
  // Room for k, for a tile more, and for what the filter cannot tell apart from the k-th.
  plan->capacity =
      power_of_two(plan->filter ? 2 * a.k + kFilterColumns + kFilterColumns / 2 : a.k + 4 * kExactColumns<float>);
  // Few queries: parts of the bank go to different blocks, but none so small that lists outweigh scores.
  constexpr int64_t kLeastSplitRows = 512;
  const int64_t most_blocks = plan->filter ? plan->filter_blocks : plan->exact_blocks;
  const int64_t tiles = a.num_queries / kItemQueries + a.num_classes;
  const int64_t wanted = (most_blocks + tiles - 1) / tiles,
                most = (a.bank_rows + kLeastSplitRows - 1) / kLeastSplitRows;
  int64_t splits = wanted < most ? wanted : most;
  splits = splits < kMostSplits ? splits : kMostSplits;
  splits = splits > 1 ? splits : 1;
  plan->split_rows = (a.bank_rows + splits - 1) / splits;
  plan->splits = static_cast<int32_t>(splits);
  plan->items = tiles * splits;
  if (plan->exact_blocks > plan->items) plan->exact_blocks = plan->items;
  if (plan->filter_blocks > plan->items) plan->filter_blocks = plan->items;
  return 0;
}

int launch_knn_search(const KnnSearchArguments& a, bool is_double, const KnnSearchPlan& plan, void* stream) {
  int error = 0;
  if (a.normalise_bank) error = is_double ? launch_norms<double>(a, stream) : launch_norms<float>(a, stream);
  if (error == 0 && plan.filter) error = launch_filter(a, plan, stream);
  if (error != 0) return error;
  return is_double ? launch_exact<double>(a, plan, stream) : launch_exact<float>(a, plan, stream);
}

}  // namespace dgcl
