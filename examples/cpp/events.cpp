// An event loop: many writes and a message in flight, their ends taken in batches when the engine's file is readable.
//
//   c++ -std=c++17 events.cpp $(pkg-config --cflags --libs transfer-engine) -o events && ./events
#include <poll.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <transfer_engine.h>
#include <vector>

namespace {

void check(int32_t status) {
  if (status >= 0) return;
  const te_error *error = te_last_error();
  throw std::runtime_error(std::string(te_status_name(error->code)) + ": " + error->message);
}

class Engine {
 public:
  explicit Engine(const char *name) {
    te_config config = TE_CONFIG_INIT;
    config.name = name;
    check(te_engine_open(&config, &handle_));
  }
  ~Engine() { te_engine_close(handle_); }
  Engine(const Engine &) = delete;
  Engine &operator=(const Engine &) = delete;

  te_engine handle() const { return handle_; }

  te_region allocate(uint64_t bytes) {
    te_region region;
    check(te_region_allocate(handle_, bytes, TE_REMOTE_WRITE, TE_ALL_NICS, 0, &region));
    return region;
  }

  std::vector<char> address() const {
    std::vector<char> bytes(4096);
    uint64_t length;
    check(te_engine_address(handle_, bytes.data(), bytes.size(), &length));
    bytes.resize(length);
    return bytes;
  }

 private:
  te_engine handle_ = 0;
};

std::vector<char> descriptor(te_region region) {
  std::vector<char> bytes(4096);
  uint64_t length;
  check(te_region_descriptor(region, bytes.data(), bytes.size(), &length));
  bytes.resize(length);
  return bytes;
}

// Waits in poll(2), as an event loop would, and hands every event to `take` until it says that it has seen enough.
template <typename Take>
void loop(const Engine &engine, Take take) {
  int fd;
  check(te_engine_fd(engine.handle(), &fd));
  std::array<te_event, 64> events;
  for (;;) {
    pollfd waiting = {fd, POLLIN, 0};
    if (poll(&waiting, 1, 10000) <= 0) throw std::runtime_error("no event within 10 s");
    uint64_t count;
    check(te_poll(engine.handle(), events.data(), events.size(), 0, &count));
    for (uint64_t i = 0; i < count; i++)
      if (take(events[i])) return;
  }
}

void run() {
  constexpr uint64_t writes = 200, bytes = 1000;
  Engine sender("sender"), receiver("receiver");
  te_region source = sender.allocate(writes * bytes), target = receiver.allocate(writes * bytes);
  const auto where = descriptor(target), who = receiver.address();
  te_remote remote;
  te_peer peer;
  check(te_remote_attach(sender.handle(), where.data(), where.size(), TE_TRAFFIC_NORMAL, &remote));
  check(te_peer_connect(sender.handle(), who.data(), who.size(), &peer));

  const std::string greeting = "all sent";
  std::vector<te_operation> batch(writes + 1);
  for (uint64_t i = 0; i < writes; i++) {
    te_prepare_write(&batch[i], source, i * bytes, bytes, remote, i * bytes, 7);
    batch[i].flags = TE_NOTIFY;
    batch[i].tag = i;
  }
  te_prepare_send(&batch[writes], peer, greeting.data(), greeting.size());
  check(te_submit(sender.handle(), batch.data(), batch.size(), nullptr, nullptr));

  uint64_t ended = 0;
  loop(sender, [&](const te_event &event) {
    check(event.status);
    return ++ended == writes;
  });
  loop(receiver, [&](const te_event &event) { return event.kind == TE_EVENT_MESSAGE; });
  std::array<char, 16384> text;
  te_message message;
  uint64_t messages, counted;
  check(te_receive(receiver.handle(), &message, 1, text.data(), text.size(), &messages));
  check(te_count(receiver.handle(), 7, &counted));
  std::printf("%llu writes have ended, %llu were counted; message: %.*s\n",
              static_cast<unsigned long long>(ended), static_cast<unsigned long long>(counted),
              static_cast<int>(message.length), text.data());
  if (counted != writes || messages != 1) throw std::runtime_error("something is missing");
}

}  // namespace

int main() {
  try {
    run();
    return 0;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
