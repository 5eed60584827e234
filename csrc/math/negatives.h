// The negatives of a class, among pixels that are sorted by class: all pixels of other classes if they are few, else
// random ones.
#pragma once
#include "random_bits.h"

namespace dgcl {

// Maps a random word to [0, size), for size < 2^31. The bias is below size / 2^32.
DGCL_HOST_DEVICE inline int64_t random_below(uint32_t word, int64_t size) {
  return static_cast<int64_t>((static_cast<uint64_t>(word) * static_cast<uint64_t>(size)) >> 32);
}

// Where a class has its pixels, and how many others there are.
struct ClassSegment {
  int64_t start, count, others;
};

// The position of entry i of `limit` entries. The pixels outside the segment are numbered [0, others). A number at or
// beyond the segment's start moves up by its size.
DGCL_HOST_DEVICE inline int64_t negative_position(const ClassSegment& segment, int64_t i, int64_t limit, int64_t bits) {
  const int64_t number = segment.others > limit ? random_below(low_word(bits), segment.others) : i;
  return number < segment.start ? number : number + segment.count;
}

}  // namespace dgcl
