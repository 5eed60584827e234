// Barriers, shuffles and votes. All lanes in the mask, or all threads of the block, must come to the same line.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scheduler.h"

namespace cuda_emulator {

void block_barrier(Site site);
// Orders memory among the lanes in the mask.
void warp_barrier(uint32_t mask, Site site);
uint64_t shuffle(uint32_t mask, uint64_t value, int source, Site site);
uint32_t ballot(uint32_t mask, bool vote, Site site);

template <typename T>
constexpr bool can_shuffle =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, long> ||
    std::is_same_v<T, unsigned long> || std::is_same_v<T, long long> || std::is_same_v<T, unsigned long long> ||
    std::is_same_v<T, float> || std::is_same_v<T, double>;

template <typename T>
T shuffle_from(uint32_t mask, T value, int source, Site site) {
  static_assert(can_shuffle<T>, "CUDA has no shuffle of this type");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = shuffle(mask, bits, source, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int own_lane(int width) {
  if (width < 1 || width > 32 || (width & (width - 1))) fail("shuffle: width must be a power of two, got %d", width);
  return static_cast<int>(current_thread->lane);
}

template <typename T>
T shuffle_index(Site site, uint32_t mask, T value, int source, int width = 32) {
  const int lane = own_lane(width);
  return shuffle_from(mask, value, (lane & ~(width - 1)) + (source & (width - 1)), site);
}

template <typename T>
T shuffle_xor(Site site, uint32_t mask, T value, int lane_mask, int width = 32) {
  const int lane = own_lane(width);
  const int source = lane ^ lane_mask;
  const bool beyond = (source & ~(width - 1)) > (lane & ~(width - 1));
  return shuffle_from(mask, value, beyond ? lane : source, site);
}

template <typename T>
T shuffle_down(Site site, uint32_t mask, T value, unsigned delta, int width = 32) {
  const int lane = own_lane(width);
  const bool beyond = (lane & (width - 1)) + static_cast<int>(delta) >= width;
  return shuffle_from(mask, value, beyond ? lane : lane + static_cast<int>(delta), site);
}

inline void warp_barrier_at(Site site, uint32_t mask = 0xffffffffu) { warp_barrier(mask, site); }
inline uint32_t ballot_at(Site site, uint32_t mask, bool vote) { return ballot(mask, vote, site); }

}  // namespace cuda_emulator

#define CUDA_EMULATOR_SITE(what) (::cuda_emulator::Site{what, __FILE__, __LINE__})
#define __syncthreads() ::cuda_emulator::block_barrier(CUDA_EMULATOR_SITE("__syncthreads"))
#define __syncwarp(...) ::cuda_emulator::warp_barrier_at(CUDA_EMULATOR_SITE("__syncwarp") __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) ::cuda_emulator::shuffle_index(CUDA_EMULATOR_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...) ::cuda_emulator::shuffle_xor(CUDA_EMULATOR_SITE("__shfl_xor_sync"), __VA_ARGS__)
#define __shfl_down_sync(...) ::cuda_emulator::shuffle_down(CUDA_EMULATOR_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __ballot_sync(mask, vote) ::cuda_emulator::ballot_at(CUDA_EMULATOR_SITE("__ballot_sync"), mask, vote)
#define __any_sync(mask, vote) (::cuda_emulator::ballot_at(CUDA_EMULATOR_SITE("__any_sync"), mask, vote) != 0)
#define __all_sync(mask, vote) (::cuda_emulator::ballot_at(CUDA_EMULATOR_SITE("__all_sync"), mask, !(vote)) == 0)

// The program does not determine which lanes run together, so a call is an error.
unsigned __activemask() = delete;
