// The part of Interrupt that does not run often.
#include "interrupt.h"

namespace ncakern {

void Interrupt::look() {
  cells_left_ = kCells;
  const Clock::time_point now = Clock::now();
  if (now < next_) return;
  const bool is_first = next_ == Clock::time_point{};
  next_ = now + kPause;
  if (!is_first && !is_set() && question_()) is_set_.store(true, std::memory_order_relaxed);
}

}  // namespace ncakern
