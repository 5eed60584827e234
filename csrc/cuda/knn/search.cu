#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "exact.cuh"
#include "filter.cuh"

namespace dgcl {
namespace {

// The number of blocks that a device runs at a time, by device and kernel.
struct KnownBlocks {
  std::mutex mutex;
  std::map<std::pair<int, const void*>, int64_t> blocks;
};

// The number of blocks of `kernel` that fit on the current device at a time, or 0 if a block needs too much shared
// memory. The first call on a device queries it, and opts in to the dynamic shared memory.
template <typename Kernel>
int resident_blocks(Kernel* kernel, int threads, size_t smem, int64_t* blocks) {
  static KnownBlocks& known = *new KnownBlocks;  // never destroyed, since a thread may search while the process exits
  int device = 0, processors = 0, each = 0, most = 0;
  cudaFuncAttributes compiled{};
  cudaError_t error = cudaGetDevice(&device);
  const std::pair<int, const void*> key(device, reinterpret_cast<const void*>(kernel));
  const std::lock_guard<std::mutex> lock(known.mutex);
  if (const auto found = known.blocks.find(key); error == cudaSuccess && found != known.blocks.end()) {
    *blocks = found->second;
    return 0;
  }
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&compiled, kernel);
  if (smem + compiled.sharedSizeBytes <= static_cast<size_t>(most)) {
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
    if (error == cudaSuccess) error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, smem);
  }
  *blocks = static_cast<int64_t>(processors) * each;
  if (error == cudaSuccess)
    known.blocks[key] = *blocks;
  else
    cudaGetLastError();  // reported here, so the next launch must not see it
  return static_cast<int>(error);
}

template <typename T>
auto exact_kernel(const KnnSearchArguments& a) {
  return a.l2 ? knn_exact_kernel<T, true> : knn_exact_kernel<T, false>;
}

// Whether bank rows can be copied to shared memory 16 bytes at a time.
bool is_aligned(const RowView& rows) {
  const int64_t size = bytes_of(rows.dtype);
  return reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 && rows.row_stride * size % 16 == 0 &&
         rows.group_stride * size % 16 == 0;
}

template <typename T>
int launch_exact(const KnnSearchArguments& a, void* stream) {
  const bool as_stored = a.bank.dtype == (sizeof(T) == 8 ? Dtype::float64 : Dtype::float32) && !a.normalize_bank;
  const bool vectors = as_stored && is_aligned(a.bank);
  const dim3 grid = blocks_for(a.plan.exact_blocks, 1), block(kExactThreads);
  if (a.l2)
    DGCL_LAUNCH((knn_exact_kernel<T, true>), grid, block, kExactShared<T>, stream, a, a.plan.items, vectors);
  else
    DGCL_LAUNCH((knn_exact_kernel<T, false>), grid, block, kExactShared<T>, stream, a, a.plan.items, vectors);
  return static_cast<int>(cudaGetLastError());
}

template <typename T>
int launch_norms(const KnnSearchArguments& a, void* stream) {
  static_assert(sizeof(RowNorm<T>) == row_norm_bytes(sizeof(T) == sizeof(double)));
  DGCL_LAUNCH(row_norms_kernel<T>, blocks_for(a.num_classes * a.bank_rows, kRowsPerBlock), dim3(kRowThreads), 0, stream,
              a.bank, a.num_classes, a.bank_rows, a.counts, a.dim, static_cast<RowNorm<T>*>(a.bank_norms));
  return static_cast<int>(cudaGetLastError());
}

// One compiled filter.
template <typename Stored_, int kStep_>
struct Filter {
  using Stored = Stored_;
  static constexpr int kStep = kStep_;
  static constexpr size_t kShared = kFilterShared<Stored, kStep>;
};

// Calls use(filter) with the plan's filter. Rows of 16 bits always fit with wide steps (cuda/README.md).
template <typename Use>
int with_filter(const KnnSearchArguments& a, const Use& use) {
  if (a.bank.dtype == Dtype::float16) return use(Filter<__half, kWideStep>());
  if (a.bank.dtype == Dtype::bfloat16) return use(Filter<__nv_bfloat16, kWideStep>());
  if (a.plan.wide_steps) return use(Filter<float, kWideStep>());
  return use(Filter<float, kNarrowStep>());
}

// Wide steps of float32 rows need more shared memory. They are used only if as many blocks stay resident.
int plan_filter(KnnSearchArguments& a) {
  const auto blocks = [&](bool wide, int64_t* number) {
    a.plan.wide_steps = wide;
    return with_filter(a, [&](auto filter) {
      using F = decltype(filter);
      return resident_blocks(knn_filter_kernel<typename F::Stored, F::kStep>, kFilterThreads, F::kShared, number);
    });
  };
  int64_t narrow = 0, wide = 0;
  int error = blocks(false, &narrow);
  if (error == 0) error = blocks(true, &wide);
  a.plan.wide_steps = wide >= narrow;
  a.plan.filter_blocks = wide >= narrow ? wide : narrow;
  return error;
}

int launch_filter(const KnnSearchArguments& a, void* stream) {
  const dim3 slices = blocks_for(a.num_classes * ((a.dim + kWarp - 1) / kWarp), 1);
  const dim3 rows = blocks_for(a.num_classes * a.bank_rows, kRowsPerBlock);
  return with_filter(a, [&](auto filter) {
    using F = decltype(filter);
    using Stored = typename F::Stored;
    DGCL_LAUNCH(knn_mean_kernel<Stored>, slices, dim3(kMeanThreads), 0, stream, a);
    DGCL_LAUNCH(knn_bank_lengths_kernel<Stored>, rows, dim3(kRowThreads), 0, stream, a);
    DGCL_LAUNCH((knn_filter_kernel<Stored, F::kStep>), blocks_for(a.plan.filter_blocks, 1), dim3(kFilterThreads),
                F::kShared, stream, a, is_aligned(a.bank));
    return static_cast<int>(cudaGetLastError());
  });
}

int64_t quotient_up(int64_t dividend, int64_t divisor) { return (dividend + divisor - 1) / divisor; }

// With few query tiles, different blocks of the exact search take parts of the bank.
void plan_parts(KnnSearchPlan& plan, int64_t bank_rows, int64_t tiles) {
  const int64_t wanted = quotient_up(plan.exact_blocks, tiles), most = quotient_up(bank_rows, kLeastSplitRows);
  plan.splits = static_cast<int32_t>(std::min({wanted, most, int64_t(kMostSplits)}));
}

// Cuts the steps of the filter (filter_cut.cuh). The host knows only upper bounds of the tiles and steps.
void plan_runs(KnnSearchPlan& plan, int64_t bank_rows, int64_t tiles) {
  constexpr int64_t kLeastSteps = kLeastSplitRows / kFilterColumns;
  const int64_t steps = quotient_up(bank_rows, kFilterColumns), rounds = quotient_up(tiles, plan.filter_blocks);
  plan.splits = 1;
  plan.least_steps = steps;
  // Whole tiles need fewer lists. They are cut only if otherwise a tenth of the blocks' time were lost.
  if (steps <= kLeastSteps || 10 * rounds * plan.filter_blocks <= 11 * tiles) return;
  const int64_t run = std::max(kLeastSteps, quotient_up(tiles * steps, plan.filter_blocks));
  // A tile begins anywhere in a run, so it may meet one run more than it fills.
  plan.splits = static_cast<int32_t>(std::min(quotient_up(steps - 1, run) + 1, int64_t(kMostSplits)));
  plan.least_steps = std::max(kLeastSteps, quotient_up(steps - 1, plan.splits - 1));
}

int power_of_two(int64_t least) {
  int size = 1;
  while (size < least) size *= 2;
  return size;
}

}  // namespace

int plan_knn_search(KnnSearchArguments& a, bool allow_filter) {
  KnnSearchPlan& plan = a.plan;
  plan.filter = allow_filter && !a.is_double && a.k <= kMostFilterK && a.dim <= kMostBoundedColumns;
  int error = a.is_double
                  ? resident_blocks(exact_kernel<double>(a), kExactThreads, kExactShared<double>, &plan.exact_blocks)
                  : resident_blocks(exact_kernel<float>(a), kExactThreads, kExactShared<float>, &plan.exact_blocks);
  if (plan.filter && error == 0) error = plan_filter(a);
  if (error != 0) return error;
  if (plan.exact_blocks == 0 || (plan.filter && plan.filter_blocks == 0)) return cudaErrorInvalidConfiguration;
  // Room for k entries, one more tile, and rows that the filter cannot separate from the k-th.
  plan.capacity =
      power_of_two(plan.filter ? 2 * a.k + kFilterColumns + kFilterColumns / 2 : a.k + 4 * kExactColumns<float>);
  const int64_t tiles = a.num_queries / kItemQueries + a.num_classes;
  const int64_t filled = std::min(a.num_queries, tiles);  // upper bound of the non-empty tiles
  if (plan.filter) {
    plan_runs(plan, a.bank_rows, filled);
    const int64_t steps = tiles * quotient_up(a.bank_rows, kFilterColumns);
    plan.filter_blocks = std::min(plan.filter_blocks, quotient_up(steps, plan.least_steps));
  } else {
    plan_parts(plan, a.bank_rows, filled);
  }
  plan.split_rows = quotient_up(a.bank_rows, plan.splits);
  plan.items = tiles * plan.splits;
  plan.exact_blocks = std::min(plan.exact_blocks, plan.items);
  const int64_t exact_lists = plan.exact_blocks * kExactRows, filter_lists = plan.filter_blocks * kItemQueries;
  plan.candidate_lists = exact_lists > filter_lists ? exact_lists : filter_lists;
  return 0;
}

int launch_knn_search(const KnnSearchArguments& a, int64_t zeros, void* stream) {
  int error = 0;
  if (zeros > 0) {
    cudaMemsetAsync(a.list_length, 0, static_cast<size_t>(zeros), static_cast<cudaStream_t>(stream));
    error = static_cast<int>(cudaGetLastError());
  }
  if (error != 0 || a.plan.items == 0) return error;
  if (a.normalize_bank) error = a.is_double ? launch_norms<double>(a, stream) : launch_norms<float>(a, stream);
  if (error == 0 && a.plan.filter) error = launch_filter(a, stream);
  if (error != 0) return error;
  return a.is_double ? launch_exact<double>(a, stream) : launch_exact<float>(a, stream);
}

}  // namespace dgcl
