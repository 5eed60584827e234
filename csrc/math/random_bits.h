// Counter-based random numbers: each is a hash of (seed, step, stream, index). So all devices draw the same numbers, in
// any order. All arithmetic is modulo 2^32.
//
// There are two key words. One is xored before two rounds of mixing, the other is added between them. With only one key
// word, two streams would be permutations of each other.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace dgcl {

constexpr int64_t kMostRandomWords = (int64_t(1) << 32) - 1;  // an index has 32 bits

// A search for the least avalanche bias chose the multipliers: flipping an input bit flips each output bit half the time,
// within the noise of 32,768 samples. They are below 2^31, so that plain PyTorch can multiply in int64.
constexpr uint32_t kFirstMultiplier = 0x4777BA65u, kSecondMultiplier = 0x727CB4EFu;
// They move 0, which mixing maps to itself, off the fixed point.
constexpr uint32_t kKeyOffset = 0x6D2B79F5u, kStreamOffset = 0x3C6EF372u;

struct RandomKeys {
  uint32_t first, second;
};

// A bijection of [0, 2^32). Each output bit looks independent of each input bit.
DGCL_HOST_DEVICE inline uint32_t mix_word(uint32_t word) {
  word = (word ^ (word >> 14)) * kFirstMultiplier;
  word = (word ^ (word >> 16)) * kSecondMultiplier;
  return word ^ (word >> 17);
}

DGCL_HOST_DEVICE inline uint32_t low_word(int64_t x) { return static_cast<uint32_t>(x); }
DGCL_HOST_DEVICE inline uint32_t high_word(int64_t x) { return static_cast<uint32_t>(static_cast<uint64_t>(x) >> 32); }

// The key words of a stream, which is known modulo 2^32.
DGCL_HOST_DEVICE inline RandomKeys random_keys(int64_t seed, int64_t step, int64_t stream) {
  uint32_t first = mix_word(low_word(seed) + kKeyOffset + low_word(stream) * kStreamOffset);
  first = mix_word(first ^ high_word(seed));
  first = mix_word(first + low_word(step));
  return {first, mix_word((first + kStreamOffset) ^ high_word(step))};
}

DGCL_HOST_DEVICE inline uint32_t random_word(RandomKeys keys, uint32_t index) {
  return mix_word(mix_word(index ^ keys.first) + keys.second);
}

}  // namespace dgcl
