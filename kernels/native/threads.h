// A loop over independent items on several threads. Which thread takes an item changes no bit of its result.
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

// Workers spin for a moment after a loop, because the next one mostly comes within microseconds, and then sleep.
class Threads {
  public:
    template <class F>
    static void each(int items, int threads, const F& body) {
        if (threads <= 1 || items <= 1) {
            for (int i = 0; i < items; i++) body(i);
            return;
        }
        pool().run(items, threads < items ? threads : items, [&](int i) { body(i); });
    }

  private:
    static constexpr int kSpins = 4000;
    std::mutex mutex_, one_at_a_time_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
    const std::function<void(int)>* body_ = nullptr;
    int items_ = 0;
    std::atomic<int> next_{0}, wanted_{0}, active_{0};
    std::atomic<uint64_t> round_{0};

    // Never destroyed: workers may outlive static objects. A forked process has none of its parent's workers.
    static Threads& pool() {
        static std::mutex choosing;
        static Threads* one = nullptr;
        static pid_t owner = 0;
        std::lock_guard<std::mutex> lock(choosing);
        if (owner != getpid()) one = new Threads, owner = getpid();
        return *one;
    }

    void run(int items, int threads, const std::function<void(int)>& body) {
        std::lock_guard<std::mutex> only(one_at_a_time_);
        while ((int)workers_.size() < threads - 1) {
            workers_.emplace_back([this, id = (int)workers_.size(), seen = round_.load()] { work(id, seen); });
            workers_.back().detach();
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            body_ = &body;
            items_ = items;
            next_ = 0;
            wanted_ = threads - 1;
            active_ = (int)workers_.size();
            round_++;
        }
        wake_.notify_all();
        take(items, body);
        while (active_.load(std::memory_order_acquire)) std::this_thread::yield();
    }

    void take(int items, const std::function<void(int)>& body) {
        for (int i; (i = next_.fetch_add(1)) < items;) body(i);
    }

    void work(int id, uint64_t seen) {
        for (;;) {
            for (int spin = 0; spin < kSpins && round_.load(std::memory_order_acquire) == seen; spin++)
                std::this_thread::yield();
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return round_.load() != seen; });
                seen = round_.load();
            }
            if (id < wanted_.load()) take(items_, *body_);
            active_.fetch_sub(1, std::memory_order_release);
        }
    }
};
