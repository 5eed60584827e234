// Chooses the instruction set at run time.
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "levels.h"

namespace dgcl {
namespace {

enum Level { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512Amx };
constexpr const char* kLevelNames[] = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_amx"};

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports does not know this one.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

// Linux saves the tile registers of a process only after it asked for them. Other systems are not asked.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) && (d & kInt8) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

Level widest_available() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !has_f16c()) return kPortable;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return !__builtin_cpu_supports("avx512vnni") ? kAvx512 : has_amx() ? kAvx512Amx : kAvx512Vnni;
  return kAvx2;
#else
  return kPortable;
#endif
}

Level choose_level() {
  const Level widest = widest_available();
  const char* requested = std::getenv("DGCL_OPS_CPU_CAPABILITY");
  if (!requested || !*requested) return widest;
  for (int level = kPortable; level <= kAvx512Amx; ++level) {
    if (std::string(requested) != kLevelNames[level]) continue;
    if (level > widest)
      throw std::runtime_error(std::string("DGCL_OPS_CPU_CAPABILITY: this processor has no ") + requested +
                               "; its widest level is " + kLevelNames[widest]);
    return static_cast<Level>(level);
  }
  throw std::runtime_error(
      std::string("DGCL_OPS_CPU_CAPABILITY must be portable, avx2, avx512, avx512_vnni or avx512_amx, got ") +
      requested);
}

Level level() {
  static const Level chosen = choose_level();
  return chosen;
}

}  // namespace

const char* cpu_level() { return kLevelNames[level()]; }

const Int8Primitives* int8_primitives() {
#if defined(__x86_64__)
  if (level() == kAvx512Amx) return &avx512_amx::int8_table;
  if (level() == kAvx512Vnni) return &avx512_vnni::int8_table;
#endif
  return nullptr;
}

template <>
const Primitives<float>& primitives<float>() {
  [[maybe_unused]] const Level chosen = level();  // on every processor, so that an unavailable level raises
#if defined(__x86_64__)
  if (chosen >= kAvx512) return avx512::float_primitives;
  if (chosen == kAvx2) return avx2::float_primitives;
#endif
  return portable::float_primitives;
}

template <>
const Primitives<double>& primitives<double>() {
  [[maybe_unused]] const Level chosen = level();  // on every processor, so that an unavailable level raises
#if defined(__x86_64__)
  if (chosen >= kAvx512) return avx512::double_primitives;
  if (chosen == kAvx2) return avx2::double_primitives;
#endif
  return portable::double_primitives;
}

}  // namespace dgcl
