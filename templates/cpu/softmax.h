// The softmax of one head, from the products of its queries and keys to what its values are multiplied by.
#pragma once

#include "dropout.h"
#include "scores.h"

namespace orchard {

struct Softmax {
  explicit Softmax(const Head& head) : scores(head), dropout(head) {}
  Scores scores;
  Dropout dropout;
};

}  // namespace orchard
