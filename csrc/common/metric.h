// Similarity of two rows: larger is nearer. l2 is minus the Euclidean distance.
#pragma once
#include "check.h"

namespace dgcl {

enum class Metric { cosine, dot, l2 };

inline Metric parse_metric(const char* op, const std::string& name) {
  if (name == "cosine") return Metric::cosine;
  if (name == "dot") return Metric::dot;
  if (name == "l2") return Metric::l2;
  fail(op, "metric must be cosine, dot or l2, got ", name);
}

}  // namespace dgcl
