// All scores of the tensor-core filter and its bounds, for tests of the bound. The search itself keeps only candidates.
#pragma once
#include <cstdint>
#include <vector>

namespace dgcl {

struct FilterScores {
  std::vector<float> scores;  // [queries][bank rows], without the part that is the same for all rows of a query
  std::vector<float> bounds;  // [queries]
  std::vector<float> mean;    // [dim], the row that both sides were centred at
};

// `queries` and `bank` have `dim` columns. `unit` divides all rows by their lengths first, as for cosine.
FilterScores filter_scores(const std::vector<float>& queries, const std::vector<float>& bank, int64_t dim, bool l2,
                           bool unit);

}  // namespace dgcl
