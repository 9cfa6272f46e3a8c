// parallel(threads, parts, f): runs f(part, parts) for every part, on this thread and idle helpers.
//
// A decode step makes some hundred short calls. An OpenMP team ends each call with a barrier, so
// one thread that the operating system has suspended (another process runs there) holds up all of
// them: a step then takes a hundred times as long. Here no thread waits for a helper that has not
// begun. Every thread that runs takes the next part, and a call ends when all parts are done. A
// helper without work polls for about 0.1 ms, then sleeps.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace marco_fast {

class Team {
 public:
  using Function = void (*)(const void* context, int part, int parts);

  // The one team of this process. It is never destroyed, because its threads may outlive all else.
  static Team& get() {
    static std::mutex guard;
    static Team* team = nullptr;
    static pid_t owner = 0;
    const std::lock_guard<std::mutex> lock(guard);
    if (owner != getpid()) team = new Team, owner = getpid();  // after a fork no helper is left
    return *team;
  }

  // Of several threads that call at once, the first gets the helpers; the others work alone.
  void run(int threads, int parts, Function function, const void* context) {
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock() || parts > kMostParts) {
      for (int part = 0; part < parts; ++part) function(context, part, parts);
      return;
    }
    start_helpers(threads - 1);
    wanted_.store(threads - 1, std::memory_order_relaxed);
    function_ = function;
    context_ = context;
    done_.store(0, std::memory_order_relaxed);
    const uint64_t call = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(call << 32 | uint64_t(parts) << 16, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
      const std::lock_guard<std::mutex> lock(sleep_);
      wake_.notify_all();
    }
    work();
    while (done_.load(std::memory_order_acquire) < parts) pause();
  }

 private:
  static constexpr int kMostParts = 0xffff;
  static constexpr int kPolls = 4000;  // about 0.1 ms

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
  }

  // Takes parts until none is left. A thread takes a part by counting up `state_`, which also holds
  // the number of the call: so a part is never taken from a call that has ended, and function_ and
  // context_ stay as they are until every part taken is done.
  void work() {
    uint64_t state = state_.load(std::memory_order_acquire);
    while (open(state)) {
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) continue;
      function_(context_, int(state & kMostParts), int(state >> 16 & kMostParts));
      done_.fetch_add(1, std::memory_order_release);
      state = state_.load(std::memory_order_acquire);
    }
  }

  static bool open(uint64_t state) { return (state & kMostParts) < (state >> 16 & kMostParts); }

  void start_helpers(int wanted) {
    for (; helpers_ < wanted; ++helpers_) {
      try {
        std::thread([this, number = helpers_] { help(number); }).detach();
      } catch (const std::system_error&) {
        return;  // the system gives no more threads: those that exist do the work
      }
    }
  }

  void help(int number) {
    const auto needed = [this, number] {
      return open(state_.load(std::memory_order_seq_cst)) &&
             number < wanted_.load(std::memory_order_relaxed);
    };
    for (;;) {
      for (int poll = 0; poll < kPolls; ++poll) {
        if (needed()) {
          work();
          poll = 0;
        }
        pause();
      }
      std::unique_lock<std::mutex> lock(sleep_);
      sleeping_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, needed);
      sleeping_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  std::mutex turn_;  // held by the thread whose call the helpers serve
  int helpers_ = 0;
  std::atomic<int> wanted_{0};  // helpers numbered below it serve the present call
  Function function_ = nullptr;
  const void* context_ = nullptr;
  std::atomic<uint64_t> state_{0};  // the call's number (32 bits), its parts (16), parts taken (16)
  std::atomic<int> done_{0};
  std::mutex sleep_;
  std::condition_variable wake_;
  std::atomic<int> sleeping_{0};
};

// While it lives, this thread rounds and keeps denormal numbers as every helper does, whatever the
// caller has set (torch.set_flush_denormal): a result must not depend on who computes a part.
class FloatSettings {
 public:
#if defined(__x86_64__)
  FloatSettings() : before_(_mm_getcsr()) {
    if ((before_ & kSettings) != kUsual) _mm_setcsr((before_ & ~kSettings) | kUsual);
  }
  ~FloatSettings() {
    if ((before_ & kSettings) != kUsual) _mm_setcsr(before_);
  }

 private:
  // Flush to zero, rounding, the masks of exceptions, denormals are zero.
  static constexpr unsigned kSettings = 0xffc0, kUsual = 0x1f80;
  unsigned before_;
#endif
};

// Runs on at most `threads` threads. f must not throw, and must not wait for another part: where
// parts depend on each other, call parallel twice.
template <class F>
void parallel(int threads, int parts, const F& f) {
  [[maybe_unused]] const FloatSettings settings;
  if (threads <= 1 || parts <= 1) {
    for (int part = 0; part < parts; ++part) f(part, parts);
    return;
  }
  const auto call = [](const void* context, int part, int all) {
    (*static_cast<const F*>(context))(part, all);
  };
  Team::get().run(threads, parts, call, &f);
}

template <class F>
void parallel(int threads, const F& f) {
  parallel(threads, threads, f);
}

}  // namespace marco_fast
