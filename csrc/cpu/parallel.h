// parallel(threads, f): run f(thread, threads) on a team, and wait for it.
//
// PyTorch ships its own OpenMP runtime, and its workers spin for a while after every operation. A
// second pool would fight them for the same cores, so the team is borrowed: GOMP_parallel is looked
// up in the process at run time and nothing is linked. Without it (no libgomp in the process) the
// team is made of std::thread, slower to start and otherwise the same.
#pragma once

#include <dlfcn.h>

#include <system_error>
#include <thread>
#include <vector>

namespace marco_fast {

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;

  static const OpenMP& get() {
    static const OpenMP found = [] {
      OpenMP omp;
      void* scope = dlsym(RTLD_DEFAULT, "GOMP_parallel") ? RTLD_DEFAULT
                                                         : dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
      if (scope == nullptr && dlsym(RTLD_DEFAULT, "GOMP_parallel") == nullptr) return omp;
      omp.thread_num = reinterpret_cast<int (*)()>(dlsym(scope, "omp_get_thread_num"));
      omp.num_threads = reinterpret_cast<int (*)()>(dlsym(scope, "omp_get_num_threads"));
      if (omp.thread_num && omp.num_threads)
        omp.parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(
            dlsym(scope, "GOMP_parallel"));
      return omp;
    }();
    return found;
  }
};

// f must not throw, nor wait for another thread of its team (call parallel twice instead). The team
// may be smaller than asked for; f is told its real size.
template <class F>
void parallel(int threads, F&& f) {
  if (threads <= 1) {
    f(0, 1);
    return;
  }
  const OpenMP& omp = OpenMP::get();
  if (omp.parallel) {
    omp.parallel(
        [](void* context) {
          const OpenMP& team = OpenMP::get();
          (*static_cast<F*>(context))(team.thread_num(), team.num_threads());
        },
        &f, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> team;
  int started = 1;
  try {
    for (; started < threads; ++started)
      team.emplace_back([&f, started, threads] { f(started, threads); });
  } catch (const std::system_error&) {
    // No more threads to be had: this one does their share, below.
  }
  f(0, threads);
  for (int i = started; i < threads; ++i) f(i, threads);
  for (std::thread& worker : team) worker.join();
}

}  // namespace marco_fast
