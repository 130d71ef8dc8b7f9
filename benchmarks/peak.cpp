// What one core of this machine can do: copied bytes (read and written) per second by size, multiply-adds per second.
// Prints JSON. benchmarks/roofline.py compiles and runs it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float V __attribute__((vector_size(kLanes * sizeof(float))));

template <class F>
double best(int rounds, const F& f) {
  double shortest = 1e9;
  for (int i = 0; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (took.count() < shortest) shortest = took.count();
  }
  return shortest;
}

// Twelve sums that do not wait for each other: more than any processor's latency times its units needs, and few
// enough for sixteen registers.
double multiply_adds() {
  constexpr int kSums = 12, kSteps = 100000;
  const V a = V{} + 0.5f, b = V{} + 0.25f;
  V sums[kSums] = {};
  const double seconds = best(50, [&] {
    for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
      for (int s = 0; s < kSums; ++s) sums[s] = sums[s] * a + b;
    }
  });
  float total = 0;
  for (const V& s : sums) total += s[0];
  if (total == 1.0f) std::fputs(" ", stderr);  // the sums are used
  return 2.0 * kSums * kSteps * kLanes / seconds;
}

int main() {
  std::printf("{\"lanes\": %d, \"flops\": %.4e, \"copy\": {", kLanes, multiply_adds());
  for (size_t size = 1 << 15; size <= 1 << 26; size <<= 1) {
    const size_t half = size / 2;
    char* from = static_cast<char*>(std::aligned_alloc(64, half));
    char* to = static_cast<char*>(std::aligned_alloc(64, half));
    std::memset(from, 1, half);
    std::memset(to, 1, half);
    const int calls = size < (1 << 22) ? (1 << 22) / size : 1;
    const double seconds = best(40, [&] {
      for (int i = 0; i < calls; ++i) {
        std::memcpy(to, from, half);
        asm volatile("" ::: "memory");
      }
    });
    std::printf("%s\"%zu\": %.4e", size == 1 << 15 ? "" : ", ", size, size * calls / seconds);
    std::free(from);
    std::free(to);
  }
  std::puts("}}");
}
