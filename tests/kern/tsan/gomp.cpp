// What the kernel uses of OpenMP, on threads and barriers that ThreadSanitizer knows: it does not see those of libgomp.
// With NO_BARRIERS set in the environment a barrier is none, which must show as a race.
#include <pthread.h>

#include <cstdlib>
#include <thread>
#include <vector>

namespace {
struct Team {
  int count;
  pthread_barrier_t barrier;
};
thread_local Team* team = nullptr;
thread_local int number = 0;
const bool has_barriers = std::getenv("NO_BARRIERS") == nullptr;
}  // namespace

extern "C" {
int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return team != nullptr ? team->count : 1; }

void GOMP_barrier() {
  if (has_barriers) pthread_barrier_wait(&team->barrier);
}

void GOMP_parallel(void (*body)(void*), void* data, unsigned count, unsigned) {
  Team all;
  all.count = int(count);
  pthread_barrier_init(&all.barrier, nullptr, count);
  auto run = [&](int i) {
    team = &all, number = i;
    body(data);
    team = nullptr, number = 0;
  };
  std::vector<std::thread> others;
  for (int i = 1; i < int(count); ++i) others.emplace_back(run, i);
  run(0);
  for (std::thread& other : others) other.join();
  pthread_barrier_destroy(&all.barrier);
}
}
