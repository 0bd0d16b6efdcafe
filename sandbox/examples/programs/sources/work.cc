// Exceptions through the unwinder, streams, containers, std::thread, std::async, regular expressions, filesystem.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <future>
#include <iostream>
#include <map>
#include <mutex>
#include <numeric>
#include <random>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <vector>

struct Noisy {
    const char *name;
    ~Noisy() { std::cout << "gone: " << name << "\n"; }
};

static int deep(int n) {
    Noisy noisy{"frame"};
    if (n == 0) throw std::runtime_error("at the bottom");
    return deep(n - 1) + 1;
}

int main(int, char **argv) {
    try {
        deep(3);
    } catch (const std::exception &error) {
        std::cout << "caught: " << error.what() << "\n";
    }
    std::vector<std::future<long>> futures;
    for (int i = 0; i < 6; i++)
        futures.push_back(std::async(std::launch::async, [i] {
            std::mt19937_64 random(i);
            std::vector<unsigned long> numbers(20000);
            std::generate(numbers.begin(), numbers.end(), std::ref(random));
            std::sort(numbers.begin(), numbers.end());
            return (long)(numbers[100] >> 8);
        }));
    for (auto &future : futures) std::cout << future.get() << "\n";
    std::mutex mutex;
    std::condition_variable_any changed;
    int turn = 0;
    std::vector<std::thread> threads;
    for (int i = 3; i >= 0; i--)
        threads.emplace_back([&, i] {
            std::unique_lock lock(mutex);
            changed.wait(lock, [&] { return turn == i; });
            std::cout << "turn " << i << "\n";
            turn++;
            changed.notify_all();
        });
    for (auto &thread : threads) thread.join();
    try {
        std::async(std::launch::async, [] { throw std::logic_error("in a thread"); }).get();
    } catch (const std::logic_error &error) {
        std::cout << "from a thread: " << error.what() << "\n";
    }
    std::map<std::string, int> words;
    std::ifstream text(std::string(argv[1]) + "/text.txt");
    for (std::string word; text >> word;) words[std::regex_replace(word, std::regex("[^a-z]"), "_")]++;
    for (auto &[word, times] : words) std::cout << word << " " << times << "\n";
    namespace fs = std::filesystem;
    fs::create_directories(fs::path(argv[1]) / "a/b/c");
    fs::copy(fs::path(argv[1]) / "text.txt", fs::path(argv[1]) / "a/b/copy");
    fs::create_symlink("b/copy", fs::path(argv[1]) / "a/link");
    std::vector<std::string> found;
    for (auto &entry : fs::recursive_directory_iterator(argv[1])) found.push_back(entry.path());
    std::sort(found.begin(), found.end());
    for (auto &path : found) std::cout << path << "\n";
    std::cout << fs::file_size(fs::path(argv[1]) / "a/link") << " " << fs::is_symlink(fs::path(argv[1]) / "a/link") << "\n";
    std::cout << std::accumulate(found.begin(), found.end(), std::string(), [](auto a, auto &b) { return a + b.back(); }) << std::endl;
    throw std::runtime_error("uncaught");
}
