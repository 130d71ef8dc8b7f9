#include "parallel.h"

namespace dicenet {
namespace {

Threads one_thread() {
  return {[] { return 1; },
          [](int64_t count, int64_t, void (*body)(int64_t, int64_t, void*), void* context) { body(0, count, context); }};
}

Threads& current() {
  static Threads threads = one_thread();
  return threads;
}

}  // namespace

void set_threads(const Threads& threads) {
  current() = threads;
}

const Threads& threads() {
  return current();
}

#if defined(__SSE2__)
constexpr unsigned kFlushBits = 0x8040;  // flush to zero, denormals are zero

bool flushes() {
  return (_mm_getcsr() & kFlushBits) == kFlushBits;
}

void set_flush(bool on) {
  _mm_setcsr(on ? _mm_getcsr() | kFlushBits : _mm_getcsr() & ~kFlushBits);
}
#elif defined(__aarch64__)
constexpr uint64_t kFlushBit = uint64_t{1} << 24;

bool flushes() {
  uint64_t fpcr;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  return fpcr & kFlushBit;
}

void set_flush(bool on) {
  uint64_t fpcr;
  asm volatile("mrs %0, fpcr" : "=r"(fpcr));
  fpcr = on ? fpcr | kFlushBit : fpcr & ~kFlushBit;
  asm volatile("msr fpcr, %0" ::"r"(fpcr));
}
#else
bool flushes() {
  return true;
}

void set_flush(bool) {}
#endif

}  // namespace dicenet
