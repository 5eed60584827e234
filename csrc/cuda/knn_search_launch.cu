#include "knn_exact_kernel.cuh"

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

// Whether bank rows can be copied to shared memory as they are, 16 bytes at a time.
template <typename T>
bool copies_vectors(const KnnSearchArguments& a) {
  const auto multiple = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(T)) % 16 == 0; };
  return a.bank.dtype == (sizeof(T) == 8 ? Dtype::float64 : Dtype::float32) && !a.normalise_bank &&
         reinterpret_cast<uintptr_t>(a.bank.data) % 16 == 0 && multiple(a.bank.row_stride) &&
         multiple(a.bank.group_stride);
}

template <typename T>
int launch_exact(const KnnSearchArguments& a, const KnnSearchPlan& plan, void* stream) {
  const auto kernel = exact_kernel<T>(a);
  DGCL_LAUNCH(kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(kExactThreads), kExactShared<T>, stream, a,
              plan.items, copies_vectors<T>(a));
  return static_cast<int>(cudaGetLastError());
}

template <typename T>
int launch_norms(const KnnSearchArguments& a, void* stream) {
  constexpr int kThreads = 256;
  const int64_t rows = a.num_classes * a.bank_rows;
  const dim3 grid(static_cast<unsigned>((rows + kThreads / kWarp - 1) / (kThreads / kWarp)));
  DGCL_LAUNCH(knn_bank_norms_kernel<T>, grid, dim3(kThreads), 0, stream, a);
  return static_cast<int>(cudaGetLastError());
}

int power_of_two(int64_t least) {
  int size = 1;
  while (size < least) size *= 2;
  return size;
}

}  // namespace

int plan_knn_search(const KnnSearchArguments& a, bool is_double, bool allow_filter, KnnSearchPlan* plan) {
  (void)allow_filter;
  plan->filter = false;
  const int error = is_double
                        ? resident_blocks(exact_kernel<double>(a), kExactThreads, kExactShared<double>, &plan->blocks)
                        : resident_blocks(exact_kernel<float>(a), kExactThreads, kExactShared<float>, &plan->blocks);
  if (error != 0) return error;
  plan->capacity = power_of_two(a.k + 4 * kExactColumns<float>);
  // Few queries: parts of the bank go to different blocks, but none so small that lists outweigh scores.
  constexpr int64_t kLeastSplitRows = 512;
  const int64_t tiles = a.num_queries / kItemQueries + a.num_classes;
  const int64_t wanted = (plan->blocks + tiles - 1) / tiles,
                most = (a.bank_rows + kLeastSplitRows - 1) / kLeastSplitRows;
  int64_t splits = wanted < most ? wanted : most;
  splits = splits < kMostSplits ? splits : kMostSplits;
  splits = splits > 1 ? splits : 1;
  plan->split_rows = (a.bank_rows + splits - 1) / splits;
  plan->splits = static_cast<int32_t>(splits);
  plan->items = tiles * splits;
  if (plan->blocks > plan->items) plan->blocks = plan->items;
  return 0;
}

int launch_knn_search(const KnnSearchArguments& a, bool is_double, const KnnSearchPlan& plan, void* stream) {
  int error = 0;
  if (a.normalise_bank) error = is_double ? launch_norms<double>(a, stream) : launch_norms<float>(a, stream);
  if (error != 0) return error;
  return is_double ? launch_exact<double>(a, plan, stream) : launch_exact<float>(a, plan, stream);
}

}  // namespace dgcl
