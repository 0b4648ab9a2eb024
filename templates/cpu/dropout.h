// Which weights dropout keeps: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, SC'11).
#pragma once

#include "meeting.h"

namespace orchard {

/// 32-bit words in 64-bit lanes, to be multiplied. Their upper halves are arbitrary.
typedef uint64_t Words __attribute__((vector_size(kVectorBytes)));

/// The full products of the lower halves.
ORCHARD_INLINE Words multiply(Words a, uint64_t b) {
#ifdef ORCHARD_X86_REGISTERS  // one instruction
  Words product;
#if defined(__AVX__)
  asm("vpmuludq %2, %1, %0" : "=v"(product) : "v"(a), "v"(b - Words{}));
#else
  asm("pmuludq %2, %0" : "=x"(product) : "0"(a), "x"(b - Words{}));
#endif
  return product;
#else
  return (a & 0xffffffff) * b;
#endif
}

ORCHARD_INLINE void philox(Words (&words)[4], uint32_t key0, uint32_t key1) {
  ORCHARD_UNROLL
  for (int round = 0; round < 10; round++) {
    const Words a = multiply(words[0], 0xD2511F53), b = multiply(words[2], 0xCD9E8D57);
    words[0] = b >> 32 ^ words[1] ^ key0;
    words[1] = b;
    words[2] = a >> 32 ^ words[3] ^ key1;
    words[3] = a;
    key0 += 0x9E3779B9, key1 += 0xBB67AE85;
  }
}

/// The dropout of one head's weights.
class Dropout {
 public:
  explicit Dropout(const Head& head)
      : head_(head), seed_(kDropout ? *static_cast<const uint64_t*>(head.call.seed.data) : 0) {}

  /// factors[key][query]: 0 for weights that are dropped.
  template <int Width>
  void draw(const Meeting& meeting, Rows<Real> factors) const {
    using Lane = std::conditional_t<sizeof(Real) == 4, uint32_t, uint64_t>;
    using LaneVector = typename Lanes<Lane>::Vector;
    const OrchardParams& params = head_.call.params;
    const Vector kept = broadcast(params.dropout_threshold >> 32 ? 0 : head_.call.keep_scale);
    const LaneVector threshold = Lane(params.dropout_threshold) - LaneVector{};
    const int64_t count = round_up(meeting.count, max(kStep, kRowGrain));  // all that products multiply
    for (int v = 0; v < Width; v++) {
      for (int64_t four = meeting.key / 4; four * 4 < meeting.key + count; four++) {
        Words bits[4];
        random(four, meeting.query + v * kLanes, bits);
        for (int i = 0; i < 4; i++) {
          const int64_t row = four * 4 + i - meeting.key;
          if (row < 0 || row >= count) continue;
          store(factors[row] + v * kLanes, (LaneVector)bits[i] >= threshold ? kept : Vector{});
        }
      }
    }
  }

 private:
  /// 32-bit words for four consecutive keys, with those of a vector of queries in its lanes.
  ORCHARD_INLINE void random(int64_t four, int64_t query, Words (&bits)[4]) const {
    const Words queries = (Words)(lane_numbers() + Integer(query));
    for (Words& word : bits) word = Words{};
    for (int part = 0; part < int(8 / sizeof(Real)); part++) {  // the even lanes, the odd lanes
      Words words[4] = {four - Words{}, queries >> 32 * part, head_.index - Words{}, head_.batch - Words{}};
      philox(words, seed_, seed_ >> 32);
      for (int i = 0; i < 4; i++) bits[i] |= part ? words[i] << 32 : words[i] & 0xffffffff;
    }
  }

  const Head& head_;
  uint64_t seed_;
};

}  // namespace orchard
