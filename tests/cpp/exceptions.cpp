// What calls throw, and what becomes of what callbacks throw.
#include "check.hpp"
#include "objects.hpp"

#include <trion.hpp>

#include <new>

namespace {

/** What the callbacks here throw: nothing that the library could know. */
struct Thrown {
    int number;
};

/** The number that `function` throws; -1 if it does not. */
template <class F>
int thrown_by(F&& function) {
    try {
        function();
    } catch (const Thrown& thrown) {
        return thrown.number;
    }
    return -1;
}

/** The status that `function` throws, with words. */
template <class F>
trion_status status_of(F&& function, std::string_view words) {
    try {
        function();
    } catch (const trion::error& error) {
        const std::runtime_error& base = error;
        if (std::string_view(base.what()).find(words) == std::string_view::npos) {
            std::fprintf(stderr, "found \"%s\", expected \"%s\"\n", base.what(), words.data());
            return TRION_OK;
        }
        return error.status();
    }
    return TRION_OK;
}

void errors(const trion::model& model) {
    CHECK(status_of([] { trion::model::open("nowhere"); }, "nowhere") == TRION_IO);
    CHECK(status_of([] { trion::model::copy("abc", 3); }, "memory") == TRION_MALFORMED);
    CHECK(status_of([] { trion::session::make(trion::model()); }, "NULL") == TRION_INVALID_ARGUMENT);
    CHECK(status_of([] { trion::runtime::make(trion::runtime_options().threads(10'000)); }, "") ==
          TRION_INVALID_ARGUMENT);
    CHECK(status_of([&] { model.encode("a", 64); }, "flags") == TRION_INVALID_ARGUMENT);
    CHECK(status_of([&] { model.chat({}); }, "chat template") == TRION_NO_TOKENIZER);

    trion::session_options options;
    options.context = 16;
    trion::session session = trion::session::make(model, options);
    // Calls without a place for words have the sentence of their status.
    CHECK(status_of([&] { session.advance(1); }, trion_status_string(TRION_NO_TOKENS)) == TRION_NO_TOKENS);
    CHECK(status_of([&] { session.logits(); }, "logits") == TRION_NO_LOGITS);
    CHECK(status_of([&] { session.candidates(3); }, "logits") == TRION_NO_LOGITS);
    CHECK(status_of([&] { session.push({1'000'000}); }, "1000000") == TRION_TOKEN_OUT_OF_RANGE);
    CHECK(status_of([&] { session.push(std::vector<trion::token>(17, 1)); }, "16") == TRION_CONTEXT_FULL);
    CHECK(status_of([&] { session.load("abc", 3); }, "") == TRION_STATE);
    CHECK(status_of([&] { session.rewind(1); }, "") == TRION_INVALID_ARGUMENT);
    CHECK(status_of([&] { session.compute(1); }, trion_status_string(TRION_NO_TOKENS)) == TRION_NO_TOKENS);
    CHECK(status_of([&] { trion::constraint::regex(model, "("); }, "") == TRION_CONSTRAINT);
    CHECK(status_of([&] { trion::constraint::json_schema(model, R"({"not": {}})"); }, "not") == TRION_CONSTRAINT);
    CHECK(status_of([&] { trion::constraint::lark(model, "start: missing"); }, "missing") == TRION_CONSTRAINT);
    CHECK(status_of([] { trion::constraint::regex(trion::model(), "a"); }, "NULL") == TRION_INVALID_ARGUMENT);
    CHECK(status_of([&] { session.set_constraint(trion::constraint()); }, "NULL") == TRION_INVALID_ARGUMENT);
    CHECK(status_of([] { trion::session().clear_constraint(); }, "NULL") == TRION_INVALID_ARGUMENT);
    std::byte buffer[64];
    CHECK(status_of([&] { trion::session::init(model, options, buffer, sizeof buffer); }, "64") ==
          TRION_BUFFER_TOO_SMALL);
    CHECK(status_of([&] { session.fork_init(buffer, sizeof buffer); }, "64") == TRION_BUFFER_TOO_SMALL);
    CHECK(status_of([] { trion::session().advance(1); }, "NULL") == TRION_INVALID_ARGUMENT);
}

void callbacks(const char* path, const trion::model& model) {
    CHECK(thrown_by([] {
              trion::model::read([](void*, std::size_t) -> std::size_t { throw Thrown{1}; }, 1000);
          }) == 1);

    trion::session_options options;
    options.context = 64;
    trion::session session = trion::session::make(model, options);
    session.push_text("Once upon a time");
    const std::size_t before = session.tokens().size();
    CHECK(thrown_by([&] { session.run(50, [](const trion::event&) { throw Thrown{2}; }); }) == 2);
    CHECK(session.tokens().size() == before);
    CHECK(thrown_by([&] { trion::generate(session, 3, [](std::string_view) -> bool { throw Thrown{3}; }); }) == 3);
    CHECK(session.tokens().size() == before + 1);

    // A call inside a callback throws through both.
    CHECK(status_of([&] { session.run(trion::unlimited, [&](const trion::event&) { session.rewind(1'000); }); }, "") ==
          TRION_INVALID_ARGUMENT);
    CHECK(session.advance(trion::unlimited).kind == TRION_EVENT_TOKEN);

    struct Refusing {
        int how = 0;
        void* allocate(std::size_t, std::size_t) {
            if (how == 0) return nullptr;
            if (how == 1) throw std::bad_alloc();
            throw Thrown{how};
        }
        void deallocate(void*, std::size_t, std::size_t) noexcept {}
    } refusing;
    const trion_allocator allocator = trion::allocator_from(refusing);
    CHECK(status_of([&] { trion::session::make(model, options, &allocator); }, "memory") == TRION_OUT_OF_MEMORY);
    refusing.how = 4;
    CHECK(thrown_by([&] { trion::session::make(model, options, &allocator); }) == 4);
    CHECK(thrown_by([&] { session.fork(&allocator); }) == 4);
    refusing.how = 1;
    bool bad_alloc = false;
    try {
        session.fork(&allocator);
    } catch (const std::bad_alloc&) {
        bad_alloc = true;
    }
    CHECK(bad_alloc);

    // Jobs that fail now and then: nothing is lost, and the tokens are the same. A batch that was ended begins anew, so
    // the failures become rare.
    int calls = 0, next_failure = 3, log_throws = 0;
    const trion::runtime runtime = trion::runtime::make(
        trion::runtime_options()
            .jobs(2, [&](std::size_t count, trion::task task) {
                if (++calls == next_failure) {
                    next_failure *= 3;
                    throw Thrown{5};
                }
                for (std::size_t index = 0; index < count; ++index) task(index);
            })
            .log([&](trion_log_level, std::string_view) {
                if (log_throws > 0) throw Thrown{6};
            }));
    log_throws = 1;
    CHECK(thrown_by([&] { trion::model::open(path, runtime); }) == 6);
    log_throws = 0;
    const trion::model shaky = trion::model::open(path, runtime);
    trion::session worked = trion::session::make(shaky, options);
    worked.push(session.tokens());
    int caught = 0;
    std::vector<trion::token> tokens;
    while (tokens.size() < 4) {
        try {
            if (tokens.empty()) CHECK(worked.compute(trion::unlimited).kind == TRION_EVENT_READY);
            const trion::event event = worked.advance(trion::unlimited);
            CHECK(event.kind == TRION_EVENT_TOKEN);
            tokens.push_back(event.token);
        } catch (const Thrown& thrown) {
            CHECK(thrown.number == 5);
            ++caught;
        }
    }
    CHECK(caught > 3);
    for (const trion::token token : tokens) CHECK(session.advance(trion::unlimited).token == token);
}

} // namespace

int main(int argc, char** argv) {
    CHECK(argc == 2 && trion::abi_is_compatible() && (trion::features() & TRION_FEATURE_TEXT) != 0);
    const trion::model model = trion::model::open(argv[1]);
    errors(model);
    callbacks(argv[1], model);
    objects(argv[1]);
    CHECK(tokens_elsewhere(argv[1], "two files") == model.encode("two files").size());
    std::puts("everything held");
    return 0;
}
