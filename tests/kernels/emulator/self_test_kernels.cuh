// Small kernels in ordinary CUDA C++, with faults that can be planted in them. The emulator tests itself on these.
#pragma once
#include "../../../csrc/cuda/compat.cuh"

namespace dgcl::self_test {

enum class Fault {
  none,
  missing_barrier_before_read,
  missing_barrier_before_write,
  barrier_in_branch,
  shared_out_of_bounds,
  mask_too_wide,
  lane_exited,
  uninitialised_shared,
  race_between_blocks,
  missing_syncwarp,
  misaligned_vector,
  alignment_too_low,
  global_out_of_bounds,
  copy_never_waited_for,
  copy_waited_for_too_late,
  copy_overwrites_what_is_read,
};

// out = the transpose of in, both [count][16][16]; one block of 256 threads.
template <Fault fault>
__global__ void transpose_kernel(const float* in, float* out, int count) {
  DGCL_SHARED(float, tile, [16][17]);
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (int i = 0; i < count; ++i) {
    constexpr int stride = fault == Fault::shared_out_of_bounds ? 20 : 17;
    (&tile[0][0])[row * stride + column] = in[i * 256 + threadIdx.x];
    if (fault == Fault::barrier_in_branch) {
      if (threadIdx.x < 128) __syncthreads();
    } else if (fault != Fault::missing_barrier_before_read) {
      __syncthreads();
    }
    out[i * 256 + threadIdx.x] = (&tile[0][0])[column * stride + row];
    if (fault != Fault::missing_barrier_before_write) __syncthreads();
  }
}

// total += sum of in [n]; blocks of 128 threads, an element each.
template <Fault fault>
__global__ void sum_kernel(const float* in, float* total, int n) {
  DGCL_SHARED(float, partial, [4]);
  const int i = blockIdx.x * 128 + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (fault == Fault::lane_exited && i >= n) return;
  float sum = i < n ? in[i] : 0.0f;
  for (int step = 16; step > 0; step /= 2) {
    if (fault == Fault::mask_too_wide) {
      if (lane < step) sum += __shfl_down_sync(kFullWarp, sum, step);
    } else {
      sum += __shfl_down_sync(kFullWarp, sum, step);
    }
  }
  const int first = fault == Fault::uninitialised_shared ? 1 : 0;
  if (lane == 0 && warp >= first) partial[warp] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < 4; ++w) partial[0] += partial[w];
  if (fault == Fault::race_between_blocks)
    *total += partial[0];
  else
    atomicAdd(total, partial[0]);
}

// out = in reversed, 32 values; one warp.
template <Fault fault>
__global__ void reverse_kernel(const float* in, float* out) {
  DGCL_SHARED(float, buffer, [32]);
  buffer[threadIdx.x] = in[threadIdx.x];
  if (fault == Fault::missing_syncwarp)
    __ballot_sync(kFullWarp, in[threadIdx.x] > 0);  // synchronises, but orders no memory
  else
    __syncwarp();
  out[threadIdx.x] = buffer[31 - threadIdx.x];
}

// out = 2 in, n values by fours through shared memory; blocks of 32 threads. n is a multiple of 4.
template <Fault fault>
__global__ void double_kernel(const float* in, float* out, int n) {
  DGCL_SHARED_ALIGNED((fault == Fault::alignment_too_low ? 4 : 16), float, buffer, [132]);
  const int i = (blockIdx.x * 32 + threadIdx.x) * 4, at = threadIdx.x * 4 + (fault == Fault::misaligned_vector ? 1 : 0);
  if (i < n || fault == Fault::global_out_of_bounds) {
    store_vector(&buffer[at], load_vector<float4>(in + i));
    const float4 v = load_vector<float4>(&buffer[at]);
    store_vector(out + i, make_float4(2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w));
  }
}

// c [16][8] = a [16][depth] times the transpose of b [8][depth], float16, on tensor cores, tiles of 16 columns by cp.async
// into two buffers; one warp.
template <Fault fault>
__global__ void product_kernel(const __half* a, const __half* b, float* c, int depth) {
  DGCL_SHARED_ALIGNED(16, __half, tile, [2][24][24]);  // rows 0 to 15: a, 16 to 23: b
  const int lane = threadIdx.x, group = lane / 4, place = lane % 4 * 2;
  const auto fetch = [&](int buffer, int k) {
    for (int i = lane; i < 48; i += 32) {
      const int row = i / 2, column = i % 2 * 8;
      const __half* from = row < 16 ? a + row * depth : b + (row - 16) * depth;
      __pipeline_memcpy_async(&tile[buffer][row][column], from + k + column, 16);
    }
    __pipeline_commit();
  };
  float sum[4] = {};
  fetch(0, 0);
  for (int k = 0, now = 0; k < depth; k += 16, now ^= 1) {
    if (k + 16 < depth)
      fetch(fault == Fault::copy_overwrites_what_is_read ? now : now ^ 1, k + 16);
    else
      __pipeline_commit();
    if (fault != Fault::copy_never_waited_for)
      __pipeline_wait_prior(fault == Fault::copy_waited_for_too_late && k + 16 < depth ? 2 : 1);
    __syncwarp();
    const auto pair = [&](int row, int column) { return load_vector<uint32_t>(&tile[now][row][column]); };
    const uint32_t left[4] = {pair(group, place), pair(group + 8, place), pair(group, place + 8),
                              pair(group + 8, place + 8)};
    const uint32_t right[2] = {pair(16 + group, place), pair(16 + group, place + 8)};
    mma_f16_16x8x16(sum, left, right, sum);
    __syncwarp();
  }
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + place + i % 2] = sum[i];
}

// c [16][8] += a [16][16] times the transpose of b [8][16]; one warp.
__global__ void small_product_kernel(const __half* a, const __half* b, float* c) {
  const int group = threadIdx.x / 4, place = threadIdx.x % 4 * 2;
  const auto pair = [](const __half* p) { return load_vector<uint32_t>(p); };
  uint32_t left[4], right[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    left[i] = pair(a + (group + i % 2 * 8) * 16 + place + i / 2 * 8);
    sum[i] = c[(group + i / 2 * 8) * 8 + place + i % 2];
  }
  for (int i = 0; i < 2; ++i) right[i] = pair(b + group * 16 + place + i * 8);
  mma_f16_16x8x16(sum, left, right, sum);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + place + i % 2] = sum[i];
}

__global__ void one_kibibyte_kernel() {
  DGCL_SHARED(float, array, [256]);
  if (threadIdx.x == 0) array[blockIdx.x % 256] = 0;
}

}  // namespace dgcl::self_test
