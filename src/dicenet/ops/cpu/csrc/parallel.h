// Threads are the host's: torch's own inside torch, the driver's own in its tests. Denormal numbers count as zero
// inside a parallel body: dead channels of official checkpoints hold them, and arithmetic on them is many times
// slower.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace dicenet {

/// What the host provides: `run` calls body(begin, end, context) over parts of [0, count), each at least `grain`.
struct Threads {
  int (*count)();
  void (*run)(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
};

void set_threads(const Threads& threads);
const Threads& threads();

/// Whether denormal numbers are zero for this thread, until the end of the block or for good.
void set_flush(bool on);
bool flushes();

class FlushDenormals {
 public:
  FlushDenormals() : before_(flushes()) {
    if (!before_) set_flush(true);
  }
  ~FlushDenormals() {
    if (!before_) set_flush(false);
  }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  bool before_;
};

/// Calls f(begin, end) over parts of [0, count). One item costs about `cost` vector operations: what is too little
/// for a second thread stays in this one.
template <class F>
void parallel_for(int64_t count, double cost, const F& f) {
  constexpr double kWorthAThread = 40e3;
  const auto grain = static_cast<int64_t>(std::clamp(kWorthAThread / std::max(cost, 1.0), 1.0, 1e15));
  if (count <= 0) return;
  if (count <= grain || threads().count() == 1) {
    const FlushDenormals flush;
    f(int64_t{0}, count);
    return;
  }
  threads().run(
      count, grain,
      [](int64_t begin, int64_t end, void* context) {
        const FlushDenormals flush;
        (*static_cast<const F*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace dicenet
