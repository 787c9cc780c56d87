// How a long rollout learns that it is no longer wanted: the calling thread asks now and then, and all threads leave
// behind the same barrier. Whoever asked gets no result, so sweeps may skip what is left of a step.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>

namespace ncakern {

class Interrupt {
 public:
  using Question = bool (*)();  // is it to end? Asked by the calling thread alone.
  explicit Interrupt(Question question) : question_(question) {}

  // The calling thread, after so many cells of a sweep. Short calls never get as far as reading the clock.
  void worked(int64_t cells) {
    if ((cells_left_ -= cells) <= 0) look();
  }
  bool is_set() const { return is_set_.load(std::memory_order_relaxed); }

  // The calling thread at the beginning of a step, then every thread at its end, with a barrier in between. The step is
  // compared, as a fast thread may have begun the next one before a slow one has asked.
  void begin_step(int64_t step) {
    if (is_set() && !ends_at(step)) last_step_.store(step, std::memory_order_relaxed);
  }
  bool ends_at(int64_t step) const { return last_step_.load(std::memory_order_relaxed) <= step; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kCells = 1024;  // between two looks at the clock: 5 us at the very least
  static constexpr std::chrono::milliseconds kPause{50};

  void look();

  const Question question_;
  int64_t cells_left_ = kCells;
  Clock::time_point next_{};
  std::atomic<bool> is_set_{false};
  std::atomic<int64_t> last_step_{INT64_MAX};
};

}  // namespace ncakern
