// Characters that speak at once and go through the model together, computed by a job system of the program's own:
// std::async here, an engine's in a game.
//
//     characters MODEL
#include <trion.hpp>

#include <algorithm>
#include <array>
#include <future>
#include <iostream>
#include <thread>

namespace {

/** Calls a task with each index on threads that are started for it. A real job system keeps its threads. */
void parallel_for(std::size_t count, trion::task task) {
    std::vector<std::future<void>> others;
    for (std::size_t index = 1; index < count; ++index) {
        others.push_back(std::async(std::launch::async, task, index));
    }
    task(0);
    // The futures wait in their destructors: when this returns, no task is running.
}

struct character {
    std::string line;
    trion::session session;
    trion::text text;
    std::size_t tokens = 0;

    /** What became of it in a slice of work; false once the line is complete. */
    bool speak(const trion::event& event) {
        if (event.kind == TRION_EVENT_TOKEN) {
            line += text.push(event.token).text;
            ++tokens;
        }
        if (event.kind != TRION_EVENT_DONE && tokens < 12) return true;
        line += text.finish().text;
        return false;
    }
};

std::vector<std::string> conversation(const trion::model& model) {
    constexpr std::array<const char*, 3> openings = {"\"I am,\" said the captain,", "\"Never,\" cried the miller,",
                                                     "\"My dear sir,\" said the king,"};
    trion::session_options options;
    options.context = 64;
    const trion::session first = trion::session::make(model, options);

    std::vector<character> characters;
    for (const char* opening : openings) {
        // A fork has everything that the first session has: here its options, in a game also what all characters know.
        character next{opening, first.fork(), trion::text::make(model)};
        trion::sampler_options sampler;
        sampler.temperature = 0.7F;
        sampler.top_k = 40;
        sampler.seed = 40 + characters.size();
        next.session.set_sampler(sampler);
        next.session.push_text(opening);
        characters.push_back(std::move(next));
    }

    // A slice for all who speak, again and again. A game does one or some in a frame.
    std::vector<character*> speaking;
    for (character& each : characters) speaking.push_back(&each);
    while (!speaking.empty()) {
        std::vector<trion::session*> sessions;
        for (character* each : speaking) sessions.push_back(&each->session);
        const std::vector<trion::event> events = trion::advance(sessions, 100);
        std::vector<character*> others;
        for (std::size_t i = 0; i < speaking.size(); ++i) {
            if (speaking[i]->speak(events[i])) others.push_back(speaking[i]);
        }
        speaking = std::move(others);
    }

    std::vector<std::string> lines;
    for (character& each : characters) {
        std::replace(each.line.begin(), each.line.end(), '\n', ' ');
        lines.push_back(each.line);
    }
    return lines;
}

} // namespace

int main(int argc, char** argv) try {
    if (argc < 2) {
        std::cerr << "usage: characters MODEL\n";
        return 2;
    }
    const std::size_t workers = std::max(2U, std::thread::hardware_concurrency());
    const trion::runtime runtime = trion::runtime::make(
        trion::runtime_options()
            .jobs(workers, parallel_for)
            .log([](trion_log_level, std::string_view line) { std::clog << line << '\n'; }));

    const std::vector<std::string> lines = conversation(trion::model::open(argv[1], runtime));
    for (const std::string& line : lines) std::cout << line << '\n';
    // Threads divide the work, and have no part in the result.
    const bool same = lines == conversation(trion::model::open(argv[1]));
    std::cout << "same lines without threads: " << (same ? "yes" : "no") << '\n';
    return same ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
