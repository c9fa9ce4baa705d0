// What the objects of trion.hpp own, share and give back, and that they come to what the C calls come to.
#include "check.hpp"
#include "objects.hpp"

#include <trion.hpp>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <type_traits>

namespace {

constexpr std::string_view prompt = "It was a dark night, and";

static_assert(std::is_nothrow_move_constructible_v<trion::runtime> && !std::is_copy_constructible_v<trion::runtime>);
static_assert(std::is_nothrow_move_constructible_v<trion::model> && std::is_nothrow_copy_constructible_v<trion::model>);
static_assert(std::is_nothrow_move_constructible_v<trion::session> && !std::is_copy_constructible_v<trion::session>);
static_assert(std::is_nothrow_move_constructible_v<trion::text> && !std::is_copy_constructible_v<trion::text>);
static_assert(std::is_nothrow_move_constructible_v<trion::constraint> &&
              !std::is_copy_constructible_v<trion::constraint> && std::is_nothrow_move_assignable_v<trion::constraint>);
static_assert(std::is_nothrow_move_assignable_v<trion::model> && std::is_nothrow_move_assignable_v<trion::session>);
static_assert(std::is_nothrow_move_assignable_v<trion::runtime> && std::is_nothrow_move_assignable_v<trion::text>);

/** Itself, by a way that compilers do not warn of. */
template <class T>
T& same(T& object) {
    return object;
}

trion::session_options small() {
    trion::session_options options;
    options.context = 64;
    return options;
}

std::vector<trion::token> chosen(trion::session& session, std::size_t count) {
    std::vector<trion::token> tokens;
    while (tokens.size() < count) {
        const trion::event event = session.advance(trion::unlimited);
        CHECK(event.kind == TRION_EVENT_TOKEN);
        tokens.push_back(event.token);
    }
    return tokens;
}

void handles(const char* path) {
    trion::model model = trion::model::open(path);
    const trion::model copy = model;
    CHECK(copy.get() == model.get());
    model = same(model);
    model = std::move(same(model));
    CHECK(copy.get() == model.get());

    trion::session session = trion::session::make(model, small());
    model = trion::model();
    CHECK(model.get() == nullptr);
    session.push_text(prompt);
    session = std::move(same(session));
    trion::session moved = std::move(session);
    CHECK(session.get() == nullptr);
    trion::session fork = moved.fork();
    CHECK(chosen(moved, 4) == chosen(fork, 4));
    fork.push({1, 2, 3});
    CHECK(fork.tokens().size() == moved.tokens().size() + 3);
    moved.assign(fork);
    CHECK(fork.tokens().size() == moved.tokens().size());
    moved = std::move(fork);
    CHECK(chosen(moved, 1).size() == 1);

    trion::text text = trion::text::make(copy);
    text = std::move(same(text));
    trion::text writing = std::move(text);
    CHECK(!writing.push(copy.encode(" night", TRION_ENCODE_PLAIN)[0]).text.empty());
}

/** Sessions outlive models and runtimes, and callables outlive them all. */
void order(const char* path) {
    struct Parts {
        trion::session session;
        trion::text text;
    };
    bool gone = false;
    struct Flag {
        bool* gone;
        explicit Flag(bool* out) : gone(out) {}
        ~Flag() { *gone = true; }
    };
    auto flag = std::make_shared<Flag>(&gone);
    std::size_t lines = 0;
    {
        Parts parts = [&] {
            trion::runtime runtime = trion::runtime::make(
                trion::runtime_options()
                    .jobs(2, [flag = std::move(flag)](std::size_t count, trion::task task) {
                        for (std::size_t index = 0; index < count; ++index) task(index);
                    })
                    .log([&](trion_log_level, std::string_view line) { lines += !line.empty(); }, TRION_LOG_DEBUG));
            const trion::model model = trion::model::open(path, runtime);
            runtime = trion::runtime();
            return Parts{trion::session::make(model, small()), trion::text::make(model)};
        }();
        CHECK(lines == 2);
        parts.session.push_text(prompt);
        CHECK(parts.text.push(chosen(parts.session, 1)[0]).text.size() > 0);
        parts.session = parts.session.fork();
        CHECK(lines == 3 && !gone);
        chosen(parts.session, 1);
        parts.session = trion::session();
        CHECK(!gone);
    }
    CHECK(gone);
}

void same_as_c(const char* path) {
    const trion::model model = trion::model::open(path);
    const trion::model_info info = model.info();
    CHECK(info.vocab_size > 0 && info.has_tokenizer == 1);
    const std::vector<trion::token> tokens = model.encode(prompt);
    std::array<trion::token, 64> plain{};
    std::size_t count = 0;
    CHECK(trion_model_encode(model.get(), prompt.data(), prompt.size(), 0, plain.data(), plain.size(), &count,
                             nullptr) == TRION_OK);
    CHECK(tokens == std::vector<trion::token>(plain.begin(), plain.begin() + static_cast<std::ptrdiff_t>(count)));
    CHECK(model.decode(tokens, TRION_DECODE_SKIP_SPECIAL).find(prompt) != std::string::npos);
    CHECK(model.encode("", TRION_ENCODE_PLAIN).empty() && model.decode({}).empty());

    trion::session_options options = small();
    options.probabilities = 1;
    trion::sampler_options sampler;
    sampler.temperature = 0.8F;
    sampler.top_k = 40;
    sampler.seed = 7;
    trion::session session = trion::session::make(model, options);
    session.set_sampler(sampler);
    session.push(tokens);
    trion_session* c = nullptr;
    CHECK(trion_session_new(model.get(), &options, nullptr, &c, nullptr) == TRION_OK);
    CHECK(trion_session_set_sampler(c, &sampler, nullptr) == TRION_OK);
    CHECK(trion_session_push(c, tokens.data(), tokens.size(), nullptr) == TRION_OK);
    CHECK(session.token_units() > 0);
    for (int step = 0; step < 12; ++step) {
        trion_event event{};
        do CHECK(trion_session_advance(c, 50, &event) == TRION_OK);
        while (event.kind == TRION_EVENT_MORE);
        const trion::event ours = session.advance(trion::unlimited);
        CHECK(ours.kind == event.kind && ours.token == event.token && ours.probability == event.probability);
        const std::vector<trion::candidate> best = session.candidates(3);
        CHECK(best.size() == 3 && best[0].probability >= best[2].probability);
        CHECK(session.logits().size() == info.vocab_size);
    }
    trion_session_free(c);

    session.rewind(tokens.size());
    CHECK(session.tokens().size() == tokens.size() && session.tokens()[0] == tokens[0]);
    session.set_sampler();
    session.rewind(tokens.size() - 1);
    session.push({tokens.back()});
    std::string streamed;
    trion::text text = trion::text::make(model, {{" the", "\n"}, false, false});
    const trion_stop stop = trion::generate(session, text, 30, [&](std::string_view piece) { streamed += piece; });
    CHECK(stop == TRION_STOP_STRING && streamed.find(" the") == std::string::npos);
    CHECK(trion::generate(session, 5, [](std::string_view) { return false; }) == TRION_STOP_CANCELLED);
    const trion::event last = session.run(10, [](const trion::event& event) { return event.kind == TRION_EVENT_MORE; });
    CHECK(last.reason == TRION_REASON_CANCELLED);
    session.cancel();
    CHECK(session.advance(trion::unlimited).reason == TRION_REASON_CANCELLED);
}

/** What a session writes until it is done. */
std::string written_by(const trion::model& model, trion::session& session, trion_reason reason) {
    std::vector<trion::token> tokens;
    trion::event event = session.advance(trion::unlimited);
    while (event.kind == TRION_EVENT_TOKEN) {
        tokens.push_back(event.token);
        event = session.advance(trion::unlimited);
    }
    CHECK(event.kind == TRION_EVENT_DONE && event.reason == reason);
    return model.decode(tokens);
}

void constraints(const char* path) {
    trion::model model = trion::model::open(path);
    trion::session session = trion::session::make(model, small());
    trion::session free = session.fork();
    session.push_text(prompt);
    // A string_view need not end with a zero.
    constexpr std::string_view source = "[0-9]{4}-[0-9]{2}and what is not meant";
    trion::constraint date = trion::constraint::regex(model, source.substr(0, 17));
    session.set_constraint(date);
    trion::session fork = session.fork();
    {
        trion::constraint moved = std::move(date);
        CHECK(date.get() == nullptr && moved.get() != nullptr);
    }
    const std::string text = written_by(model, session, TRION_REASON_CONSTRAINT);
    CHECK(text.size() == 7 && text[4] == '-' && text.find_first_not_of("0123456789-") == std::string::npos);
    CHECK(written_by(model, fork, TRION_REASON_CONSTRAINT) == text);

    const trion::constraint choice = trion::constraint::json_schema(model, R"({"enum": ["yes", "no"]})");
    session.set_constraint(choice);
    session.push_text(prompt, TRION_ENCODE_PLAIN);
    const std::string answer = written_by(model, session, TRION_REASON_CONSTRAINT);
    CHECK(answer == "\"yes\"" || answer == "\"no\"");
    const trion::constraint rule = trion::constraint::lark(model, "start: \"on\" \"ce\"~3\n");
    model = trion::model();
    session.set_constraint(rule);
    std::string streamed;
    CHECK(trion::generate(session, 30, [&](std::string_view piece) { streamed += piece; }) == TRION_STOP_CONSTRAINT);
    CHECK(streamed == "oncecece");

    session.rewind(0);
    session.set_constraint(rule);
    session.clear_constraint();
    session.push_text(prompt);
    free.push_text(prompt);
    CHECK(chosen(session, 8) == chosen(free, 8));
}

/** What is computed ahead is taken over, and takes no units again. */
void computed_ahead(const char* path) {
    const trion::model model = trion::model::open(path);
    trion::session ahead = trion::session::make(model, small()), whole = ahead.fork(), assigned = ahead.fork();
    ahead.push_text(prompt);
    whole.push_text(prompt);
    std::size_t units = 0;
    trion::event event{};
    do {
        event = ahead.compute(10);
        units += event.units;
    } while (event.kind == TRION_EVENT_MORE);
    CHECK(event.kind == TRION_EVENT_READY && ahead.tokens().size() == model.encode(prompt).size());
    trion::session fork = ahead.fork();
    assigned.assign(ahead);
    const trion::event expected = whole.advance(trion::unlimited);
    CHECK(expected.units > 0 && expected.units <= units);
    for (trion::session* session : {&ahead, &fork, &assigned}) {
        event = session->advance(0);
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == expected.token && event.units == 0);
    }
}

/** Several sessions in one call come to what each comes to alone; what a job throws ends the call for all. */
void together(const char* path) {
    struct Oops {};
    bool throws = false;
    const trion::model model = trion::model::open(
        path, trion::runtime::make(trion::runtime_options().jobs(2, [&](std::size_t count, trion::task task) {
            if (throws) throw Oops();
            for (std::size_t index = 0; index < count; ++index) task(index);
        })));
    std::vector<trion::session> sessions, alone;
    std::vector<trion::session*> all;
    for (unsigned seed = 0; seed < 3; ++seed) {
        sessions.push_back(trion::session::make(model, small()));
        trion::sampler_options sampler;
        sampler.temperature = 0.9F;
        sampler.seed = seed;
        sessions.back().set_sampler(sampler);
        sessions.back().push_text(prompt.substr(0, 10 + 6 * seed));
        alone.push_back(sessions.back().fork());
    }
    for (trion::session& each : sessions) all.push_back(&each);
    throws = true;
    try {
        static_cast<void>(trion::advance(all, trion::unlimited));
        CHECK(false);
    } catch (const Oops&) {
    }
    throws = false;
    CHECK(trion::compute(all, 0).size() == 3 && sessions[1].tokens().size() == alone[1].tokens().size());
    for (int step = 0; step < 4; ++step) {
        const std::vector<trion::event> events = trion::advance(all, trion::unlimited);
        CHECK(events.size() == 3);
        for (std::size_t i = 0; i < 3; ++i) {
            CHECK(events[i].kind == TRION_EVENT_TOKEN && events[i].token == chosen(alone[i], 1)[0]);
        }
    }
    const std::vector<trion::event> two = trion::compute({&sessions[0], &sessions[2]}, trion::unlimited);
    CHECK(two.size() == 2 && two[0].kind == TRION_EVENT_READY && two[1].kind == TRION_EVENT_READY);
    CHECK(trion::advance({&sessions[0]}, 0)[0].token == chosen(alone[0], 1)[0]);
    trion::session empty;
    for (const std::vector<trion::session*>& wrong :
         {std::vector<trion::session*>{}, {&sessions[0], &sessions[0]}, {&sessions[0], nullptr}, {&empty}}) {
        try {
            static_cast<void>(trion::advance(wrong, trion::unlimited));
            CHECK(false);
        } catch (const trion::error& error) {
            CHECK(error.status() == TRION_INVALID_ARGUMENT);
        }
    }
}

void states_and_memory(const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> content((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::size_t at = 0;
    const auto reader = [&](void* buffer, std::size_t size) {
        const std::size_t step = std::min(size, content.size() - at);
        std::memcpy(buffer, content.data() + at, step);
        at += step;
        return step;
    };
    const trion::model read = trion::model::read(reader, content.size());
    const trion::model model = trion::model::copy(content.data(), content.size());

    std::vector<std::byte> buffer(trion::session::size(model, small()));
    trion::session in_buffer = trion::session::init(model, small(), buffer.data(), buffer.size());
    in_buffer.push_text(prompt);
    chosen(in_buffer, 3);
    const std::vector<std::byte> saved = in_buffer.save();
    CHECK(saved.size() == in_buffer.saved_size());

    struct Counting {
        std::size_t blocks = 0, bytes = 0, all = 0;
        void* allocate(std::size_t size, std::size_t alignment) {
            ++blocks, ++all, bytes += size;
            return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
        }
        void deallocate(void* memory, std::size_t size, std::size_t) noexcept {
            --blocks, bytes -= size;
            std::free(memory);
        }
    } counting;
    const trion_allocator allocator = trion::allocator_from(counting);
    {
        trion::session first = trion::session::make(model, small(), &allocator);
        CHECK(counting.blocks == 1 && counting.bytes <= buffer.size());
        first.load(saved);
        trion::session second = first.fork(&allocator);
        std::vector<std::byte> other(buffer.size());
        trion::session third = first.fork_init(other.data(), other.size());
        CHECK(counting.blocks == 2);
        const std::vector<trion::token> tokens = chosen(in_buffer, 5);
        CHECK(tokens == chosen(first, 5) && tokens == chosen(second, 5) && tokens == chosen(third, 5));
        first = std::move(second);
        CHECK(counting.blocks == 1);
        trion::session reread = trion::session::make(read, small());
        reread.push(in_buffer.tokens());
        CHECK(chosen(reread, 2) == chosen(in_buffer, 2));
    }
    CHECK(counting.blocks == 0 && counting.bytes == 0 && counting.all == 2);
}

/** A runtime's device by its name, also where the options are a copy; what a model would take of a GPU. */
void devices(const char* path) {
    trion::runtime_options options;
    options.device("auto").threads(2);
    const trion::runtime_options copy = options;
    options.device("a name that is no device, and longer than what a string holds in itself");
    const trion::model there = trion::model::open(path, trion::runtime::make(copy)), here = trion::model::open(path);
    CHECK(std::string_view(here.info().device) == "cpu" && there.info().device != nullptr);
    trion::session first = trion::session::make(there, small()), second = trion::session::make(here, small());
    first.push_text(prompt);
    second.push_text(prompt);
    CHECK(chosen(first, 6) == chosen(second, 6));
    CHECK(first.save() == second.save());
    for (const char* name : {"gpu", "cuda:1000"}) {
        try {
            trion::runtime::make(trion::runtime_options().device(name));
            CHECK(false);
        } catch (const trion::error& error) {
            CHECK(error.status() == (name[0] == 'g' ? TRION_INVALID_ARGUMENT : TRION_DEVICE));
            CHECK(std::string_view(error.what()).find("cpu") != std::string_view::npos);
        }
    }
    trion::session_options half = small();
    half.cache = TRION_CACHE_F16;
    const trion::gpu_memory_plan plan = trion::session::gpu_memory(here, small());
    CHECK(plan.weights > 0 && plan.cache == 2 * trion::session::gpu_memory(here, half).cache);
}

} // namespace

void objects(const char* path) {
    handles(path);
    order(path);
    same_as_c(path);
    constraints(path);
    computed_ahead(path);
    together(path);
    states_and_memory(path);
    devices(path);
}
