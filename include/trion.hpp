/*
 * Trion for C++17 and later: trion.h with owners instead of handles, and errors that cannot be overlooked.
 *
 * Header only, with trion_support.hpp beside it; it needs the standard library and libtrion. Names, units and rules are
 * those of trion.h, which documents them: `trion::session::advance` is trion_session_advance(). What is different:
 *
 *  1. Objects give their handle back when they end. A model can be copied, which shares the weights; a session can be
 *     moved, and copied by fork(). An object that was moved from or made without arguments is empty: a runtime stands
 *     for none then, as NULL does, and calls of the others fail with TRION_INVALID_ARGUMENT.
 *  2. A call that fails throws trion::error. With TRION_NO_EXCEPTIONS defined, or exceptions switched off in the
 *     compiler, it returns a trion::result<T> instead: TRION_RESULT(T) below stands for T or for result<T>. Both kinds
 *     of code can be linked into one program.
 *  3. Callbacks are any callables. What one throws does not cross the library: the call comes to its end early, and the
 *     exception goes on from there. An allocator's deallocate() may not throw, and with TRION_NO_EXCEPTIONS no callback
 *     may, or the program ends.
 *  4. Text goes in as std::string_view and comes out as std::string, arrays come out as std::vector. A `span` that
 *     comes out leads into the session's memory, and is valid until the next call that changes the session.
 */
#ifndef TRION_HPP
#define TRION_HPP

#include "trion_support.hpp"

#include <initializer_list>
#include <string_view>
#include <vector>

namespace trion {
inline namespace TRION_KIND {

using token = std::uint32_t;
using event = trion_event;
using candidate = trion_candidate;
using model_info = trion_model_info;
using gpu_memory_plan = trion_gpu_memory;

/** A budget without limit. */
inline constexpr std::size_t unlimited = SIZE_MAX;

// Library -------------------------------------------------------------------------------------------------------------

/** Whether the library that is linked serves a program that was compiled with this header. */
inline bool abi_is_compatible() noexcept { return trion_abi_is_compatible(TRION_ABI_VERSION) != 0; }
inline const char* version() noexcept { return trion_version(); }
inline std::uint32_t features() noexcept { return trion_features(); }

/**
 * A trion_allocator that takes memory from `resource`, which has allocate(size, alignment) and deallocate(memory, size,
 * alignment) as std::pmr::memory_resource has, and outlives every session that is made with it. Null from allocate() is
 * TRION_OUT_OF_MEMORY, and what it throws goes on to who made the session. deallocate() may not throw.
 */
template <class Resource>
trion_allocator allocator_from(Resource& resource) noexcept {
    trion_allocator made{};
    made.user = std::addressof(resource);
    made.allocate = [](void* user, std::size_t size, std::size_t alignment) noexcept {
        void* none = nullptr;
        return detail::call::guarded(none, [&] { return static_cast<Resource*>(user)->allocate(size, alignment); });
    };
    made.release = [](void* user, void* memory, std::size_t size, std::size_t alignment) noexcept {
        static_cast<Resource*>(user)->deallocate(memory, size, alignment);
    };
    return made;
}

// Runtime -------------------------------------------------------------------------------------------------------------

/** A task of a job system: call it with each index below the count. */
class task {
public:
    task(trion_task_fn function, void* data) noexcept : function_(function), data_(data) {}
    void operator()(std::size_t index) const noexcept { function_(data_, index); }

private:
    trion_task_fn function_;
    void* data_;
};

/**
 * trion_runtime_options. Callables are moved in, and live until the last of the runtime, its models, their sessions,
 * texts and constraints is gone; std::ref() hands in one that stays the caller's, for at least as long.
 */
class runtime_options {
public:
    runtime_options() noexcept { options_.struct_size = sizeof options_; }

    /** Where models compute: "cpu", "cuda", "cuda:1", "auto". */
    runtime_options& device(std::string_view name) {
        device_ = std::string(name);
        return *this;
    }

    /** A pool of the library's own, of `count` threads. */
    runtime_options& threads(std::size_t count) noexcept {
        options_.threads = count;
        return *this;
    }

    /**
     * A job system of `workers` threads: `parallel_for(count, task)` calls the trion::task with each index below
     * `count` and returns, or throws, when no call is running any more. Several threads may call it at once, if several
     * use sessions. What it throws ends the computation that is under way; advancing again goes on with it.
     */
    template <class F>
    runtime_options& jobs(std::size_t workers, F parallel_for) {
        auto held = std::make_shared<F>(std::move(parallel_for));
        options_.parallel_workers = workers;
        options_.parallel_user = held.get();
        options_.parallel_for = [](void* user, std::size_t count, trion_task_fn function, void* data) noexcept {
            detail::call::guarded(0, [&] { return (*static_cast<F*>(user))(count, task(function, data)), 0; });
            detail::call::cancel_if_thrown();
        };
        callables_.jobs = std::move(held);
        return *this;
    }

    /** Receives messages, as `write(level, line)` with a trion_log_level and a std::string_view, on any thread. */
    template <class F>
    runtime_options& log(F write, trion_log_level level = TRION_LOG_INFO) {
        auto held = std::make_shared<F>(std::move(write));
        options_.log_level = static_cast<std::uint32_t>(level);
        options_.log_user = held.get();
        options_.log = [](void* user, trion_log_level of, const char* line) noexcept {
            detail::call::guarded(0, [&] { return (*static_cast<F*>(user))(of, std::string_view(line)), 0; });
        };
        callables_.log = std::move(held);
        return *this;
    }

private:
    friend class runtime;
    trion_runtime_options options_{};
    std::optional<std::string> device_;
    detail::host callables_;
};

/** A device, threads and a log. It may end before the models that were made with it. */
class runtime {
public:
    /** None: models compute on the calling thread alone and say nothing. */
    runtime() noexcept = default;
    explicit runtime(detail::handle<trion_runtime> owned) noexcept : handle_(std::move(owned)) {}

    static TRION_RESULT(runtime) make(const runtime_options& options = runtime_options()) {
        detail::freer freer{std::make_shared<detail::host>(options.callables_)};
        trion_runtime_options plain = options.options_;
        plain.device = options.device_ ? options.device_->c_str() : nullptr;
        return detail::make<runtime, trion_runtime>(std::move(freer), [&](trion_runtime** made, trion_error* words) {
            return trion_runtime_new(&plain, made, words);
        });
    }

    trion_runtime* get() const noexcept { return handle_.get(); }

private:
    friend class model;
    detail::handle<trion_runtime> handle_;
};

// Model ---------------------------------------------------------------------------------------------------------------

#ifndef TRION_NO_TEXT
/** One turn of a conversation, as trion_message. */
struct message {
    std::string role;
    std::string content;
};
#endif

/** Weights, a vocabulary, a tokenizer, a chat template: immutable, and shared by copies and sessions on any threads. */
class model {
public:
    model() noexcept = default;
    explicit model(detail::handle<trion_model> owned) noexcept : handle_(std::move(owned)) {}
    model(const model& other) noexcept : handle_(other.get(), other.freer()) { trion_model_retain(get()); }
    model(model&&) noexcept = default;
    model& operator=(const model& other) noexcept { return *this = model(other); }
    model& operator=(model&&) noexcept = default;
    ~model() = default;

    static TRION_RESULT(model) open(std::string_view path, const runtime& with = runtime()) {
        const std::string ended(path);
        return make(with, [&](trion_model** made, trion_error* words) {
            return trion_model_open(with.get(), ended.c_str(), made, words);
        });
    }

    static TRION_RESULT(model) copy(const void* data, std::size_t size, const runtime& with = runtime()) {
        return make(with, [&](trion_model** made, trion_error* words) {
            return trion_model_copy(with.get(), data, size, made, words);
        });
    }

    /** The bytes stay where they are, at a multiple of 64, until the model, its copies and all sessions are gone. */
    static TRION_RESULT(model) borrow(const void* data, std::size_t size, const runtime& with = runtime()) {
        return make(with, [&](trion_model** made, trion_error* words) {
            return trion_model_borrow(with.get(), data, size, made, words);
        });
    }

    /** `reader(buffer, size)` writes up to `size` bytes to `buffer`, a void*, and returns how many. */
    template <class F>
    static TRION_RESULT(model) read(F&& reader, std::size_t size, const runtime& with = runtime()) {
        auto* address = std::addressof(reader);
        const trion_read_fn next = [](void* user, void* buffer, std::size_t room) noexcept {
            return detail::call::guarded(std::size_t{0}, [&] {
                return static_cast<std::size_t>((**static_cast<decltype(address)*>(user))(buffer, room));
            });
        };
        return make(with, [&](trion_model** made, trion_error* words) {
            return trion_model_read(with.get(), next, &address, size, made, words);
        });
    }

    TRION_RESULT(model_info) info() const {
        return detail::ask<model_info>(
            [&](model_info* out, trion_error*) { return trion_model_get_info(get(), out, sizeof *out); });
    }

    bool ends_text(token of) const noexcept { return trion_model_ends_text(get(), of) != 0; }

#ifndef TRION_NO_TEXT
    /** `flags` are TRION_ENCODE_ bits. */
    TRION_RESULT(std::vector<token>) encode(std::string_view from, std::uint32_t flags = 0) const {
        using list = std::vector<token>;
        const std::size_t guess = from.size() + 8;
        return detail::fill<list>(guess, [&](token* to, std::size_t room, std::size_t* n, trion_error* words) {
            return trion_model_encode(get(), from.data(), from.size(), flags, to, room, n, words);
        });
    }

    /** `flags` are TRION_DECODE_ bits. */
    TRION_RESULT(std::string) decode(span<const token> from, std::uint32_t flags = 0) const {
        const std::size_t guess = 8 * from.size();
        return detail::fill<std::string>(guess, [&](char* to, std::size_t room, std::size_t* n, trion_error* words) {
            return trion_model_decode(get(), from.data(), from.size(), flags, to, room, n, words);
        });
    }

    /** The prompt of a conversation, to be encoded with TRION_ENCODE_PLAIN. `flags` are TRION_CHAT_ bits. */
    TRION_RESULT(std::string) chat(span<const message> messages, std::uint32_t flags = TRION_CHAT_ANSWER) const {
        std::vector<trion_message> turns;
        std::size_t guess = 256;
        for (const message& turn : messages) {
            turns.push_back({turn.role.c_str(), turn.content.data(), turn.content.size()});
            guess += turn.content.size() + 64;
        }
        return detail::fill<std::string>(guess, [&](char* to, std::size_t room, std::size_t* n, trion_error* words) {
            return trion_model_chat(get(), turns.data(), turns.size(), flags, to, room, n, words);
        });
    }
#endif

    trion_model* get() const noexcept { return handle_.get(); }

private:
    friend class constraint;
    friend class session;
    friend class text;

    template <class F>
    static TRION_RESULT(model) make(const runtime& with, F&& function) {
        return detail::make<model, trion_model>(with.handle_.get_deleter(), function);
    }
    const detail::freer& freer() const noexcept { return handle_.get_deleter(); }

    detail::handle<trion_model> handle_;
};

#ifndef TRION_NO_TEXT

// Constraint ----------------------------------------------------------------------------------------------------------

/** What texts must be, compiled for a model, which it keeps alive. Sessions that use it may outlive it. */
class constraint {
public:
    constraint() noexcept = default;
    explicit constraint(detail::handle<trion_constraint> owned) noexcept : handle_(std::move(owned)) {}

    static TRION_RESULT(constraint) json_schema(const model& of, std::string_view source) {
        return make(of, TRION_GRAMMAR_JSON_SCHEMA, source);
    }
    static TRION_RESULT(constraint) regex(const model& of, std::string_view source) {
        return make(of, TRION_GRAMMAR_REGEX, source);
    }
    static TRION_RESULT(constraint) lark(const model& of, std::string_view source) {
        return make(of, TRION_GRAMMAR_LARK, source);
    }

    trion_constraint* get() const noexcept { return handle_.get(); }

private:
    static TRION_RESULT(constraint) make(const model& of, std::uint32_t grammar, std::string_view source) {
        return detail::make<constraint, trion_constraint>(of.freer(), [&](trion_constraint** made, trion_error* words) {
            return trion_constraint_new(of.get(), grammar, source.data(), source.size(), made, words);
        });
    }

    detail::handle<trion_constraint> handle_;
};

#endif

// Session -------------------------------------------------------------------------------------------------------------

/** trion_session_options, with everything at its default. */
struct session_options : trion_session_options {
    session_options() noexcept : trion_session_options{} { struct_size = sizeof(trion_session_options); }
};

/** trion_sampler_options, with everything at its default: always the most probable token. */
struct sampler_options : trion_sampler_options {
    sampler_options() noexcept : trion_sampler_options{} { struct_size = sizeof(trion_sampler_options); }
};

/** One sequence of tokens and everything that the model keeps of it. It keeps its model alive. */
class session {
public:
    session() noexcept = default;
    explicit session(detail::handle<trion_session> owned) noexcept : handle_(std::move(owned)) {}

    /** Bytes of a session in a buffer at any address. */
    static TRION_RESULT(std::size_t) size(const model& of, const trion_session_options& options = session_options()) {
        return detail::ask<std::size_t>(
            [&](std::size_t* out, trion_error* words) { return trion_session_size(of.get(), &options, out, words); });
    }

    /** Bytes of a GPU's memory that the model and a session take there, or would take. */
    static TRION_RESULT(gpu_memory_plan) gpu_memory(const model& of,
                                                    const trion_session_options& options = session_options()) {
        return detail::ask<gpu_memory_plan>([&](gpu_memory_plan* out, trion_error* words) {
            return trion_session_gpu_memory(of.get(), &options, out, sizeof *out, words);
        });
    }

    /** A session in memory of `allocator`'s, which is copied; null for the library's own memory. */
    static TRION_RESULT(session) make(const model& of, const trion_session_options& options = session_options(),
                                      const trion_allocator* allocator = nullptr) {
        return made(of.freer(), [&](trion_session** out, trion_error* words) {
            return trion_session_new(of.get(), &options, allocator, out, words);
        });
    }

    /** A session in a buffer of the caller's, which outlives it. */
    static TRION_RESULT(session) init(const model& of, const trion_session_options& options, void* buffer,
                                      std::size_t size) {
        return made(of.freer(), [&](trion_session** out, trion_error* words) {
            return trion_session_init(of.get(), &options, buffer, size, out, words);
        });
    }

    /** A copy that goes its own way. */
    TRION_RESULT(session) fork(const trion_allocator* allocator = nullptr) const {
        return made(handle_.get_deleter(), [&](trion_session** out, trion_error* words) {
            return trion_session_fork(get(), allocator, out, words);
        });
    }

    TRION_RESULT(session) fork_init(void* buffer, std::size_t size) const {
        return made(handle_.get_deleter(), [&](trion_session** out, trion_error* words) {
            return trion_session_fork_init(get(), buffer, size, out, words);
        });
    }

    /** Comes to the point where `from` is, in its own memory. */
    TRION_RESULT(void) assign(const session& from) {
        return detail::tell([&](trion_error* words) { return trion_session_assign(get(), from.get(), words); });
    }

    TRION_RESULT(void) set_sampler(const trion_sampler_options& options = sampler_options()) {
        return detail::tell([&](trion_error* words) { return trion_session_set_sampler(get(), &options, words); });
    }

    TRION_RESULT(void) push(span<const token> list) {
        return detail::tell(
            [&](trion_error* words) { return trion_session_push(get(), list.data(), list.size(), words); });
    }
    TRION_RESULT(void) push(std::initializer_list<token> list) { return push({list.begin(), list.size()}); }

#ifndef TRION_NO_TEXT
    /** An empty one is refused, as an empty session is, so that no text goes without by mistake. */
    TRION_RESULT(void) set_constraint(const constraint& with) {
        trion_session* constrained = with.get() != nullptr ? get() : nullptr;
        return detail::tell(
            [&](trion_error* words) { return trion_session_set_constraint(constrained, with.get(), words); });
    }

    TRION_RESULT(void) clear_constraint() {
        return detail::tell([&](trion_error* words) { return trion_session_set_constraint(get(), nullptr, words); });
    }

    /** `flags` are TRION_ENCODE_ bits. */
    TRION_RESULT(void) push_text(std::string_view from, std::uint32_t flags = 0) {
        return detail::tell([&](trion_error* words) {
            return trion_session_push_text(get(), from.data(), from.size(), flags, words);
        });
    }
#endif

    TRION_RESULT(event) advance(std::size_t budget) {
        return detail::ask<event>(
            [&](event* out, trion_error*) { return trion_session_advance(get(), budget, out); }, get());
    }

    /** Computes what was pushed, and chooses no token: ends with TRION_EVENT_READY. */
    TRION_RESULT(event) compute(std::size_t budget) {
        return detail::ask<event>(
            [&](event* out, trion_error*) { return trion_session_compute(get(), budget, out); }, get());
    }

    /** Hands every event to `on_event(event)`, which returns nothing, or false to stop. Returns the last event. */
    template <class F>
    TRION_RESULT(event) run(std::size_t budget, F&& on_event) {
        auto* address = std::addressof(on_event);
        const trion_event_fn each = [](void* user, const trion_event* what) noexcept {
            return detail::call::guarded(
                0, [&] { return detail::wants_more(**static_cast<decltype(address)*>(user), *what); });
        };
        return detail::ask<event>(
            [&](event* out, trion_error*) { return trion_session_run(get(), budget, each, &address, out); }, get());
    }

    /** From any thread, at any time while the session is there. */
    void cancel() const noexcept { trion_session_cancel(get()); }

    TRION_RESULT(void) rewind(std::size_t length) {
        return detail::tell([&](trion_error* words) { return trion_session_rewind(get(), length, words); });
    }

    TRION_RESULT(span<const token>) tokens() const {
        return detail::look<token>(
            [&](const token** data, std::size_t* count) { return trion_session_tokens(get(), data, count); });
    }

    TRION_RESULT(span<const float>) logits() const {
        return detail::look<float>(
            [&](const float** data, std::size_t* count) { return trion_session_logits(get(), data, count); });
    }

    /** The most probable tokens, at most `most` and TRION_MAX_CANDIDATES. */
    TRION_RESULT(std::vector<candidate>) candidates(std::size_t most) const {
        detail::call call;
        std::vector<candidate> out(most < TRION_MAX_CANDIDATES ? most : TRION_MAX_CANDIDATES);
        std::size_t count = 0;
        const trion_status status = trion_session_candidates(get(), out.data(), out.size(), &count);
        out.resize(count);
        return call.done(status, std::move(out));
    }

    TRION_RESULT(std::size_t) token_units() const {
        return detail::ask<std::size_t>(
            [&](std::size_t* out, trion_error*) { return trion_session_token_units(get(), out); });
    }

    TRION_RESULT(std::size_t) saved_size() const {
        return detail::ask<std::size_t>(
            [&](std::size_t* out, trion_error*) { return trion_session_saved_size(get(), out); });
    }

    TRION_RESULT(std::vector<std::byte>) save() const {
        detail::call call;
        std::vector<std::byte> out;
        std::size_t size = 0;
        trion_status status = trion_session_saved_size(get(), &size);
        out.resize(size);
        if (status == TRION_OK) status = trion_session_save(get(), out.data(), out.size(), &size, call.words());
        return call.done(status, std::move(out));
    }

    TRION_RESULT(void) load(const void* data, std::size_t size) {
        return detail::tell([&](trion_error* words) { return trion_session_load(get(), data, size, words); });
    }
    TRION_RESULT(void) load(span<const std::byte> saved) { return load(saved.data(), saved.size()); }

    trion_session* get() const noexcept { return handle_.get(); }

private:
    template <class F>
    static TRION_RESULT(session) made(const detail::freer& freer, F&& function) {
        return detail::make<session, trion_session>(freer, function);
    }

    detail::handle<trion_session> handle_;
};

// Sessions together ---------------------------------------------------------------------------------------------------

namespace detail {

/** One of the calls for several sessions. */
template <class F>
TRION_RESULT(std::vector<event>) together(span<session* const> sessions, F&& function) {
    std::vector<trion_session*> handles;
    for (const session* each : sessions) handles.push_back(each != nullptr ? each->get() : nullptr);
    std::vector<event> events(handles.size());
    // Where a job throws, one that is cancelled ends the call for all.
    call call(handles.empty() ? nullptr : handles.front());
    const trion_status status = function(handles.data(), handles.size(), events.data(), call.words());
    return call.done(status, std::move(events));
}

} // namespace detail

/** trion_sessions_advance(): one call for several sessions of one model. Returns their events, in the same order. */
inline TRION_RESULT(std::vector<event>) advance(span<session* const> sessions, std::size_t budget) {
    return detail::together(sessions, [&](trion_session** each, std::size_t count, event* out, trion_error* words) {
        return trion_sessions_advance(each, count, budget, out, words);
    });
}
inline TRION_RESULT(std::vector<event>) advance(std::initializer_list<session*> sessions, std::size_t budget) {
    return advance(span<session* const>(sessions.begin(), sessions.size()), budget);
}

/** trion_sessions_compute(): as advance(), and chooses no tokens. */
inline TRION_RESULT(std::vector<event>) compute(span<session* const> sessions, std::size_t budget) {
    return detail::together(sessions, [&](trion_session** each, std::size_t count, event* out, trion_error* words) {
        return trion_sessions_compute(each, count, budget, out, words);
    });
}
inline TRION_RESULT(std::vector<event>) compute(std::initializer_list<session*> sessions, std::size_t budget) {
    return compute(span<session* const>(sessions.begin(), sessions.size()), budget);
}

#ifndef TRION_NO_TEXT

// Text ----------------------------------------------------------------------------------------------------------------

/** trion_text_options. */
struct text_options {
    std::vector<std::string> stops;
    bool special = false;
    bool beginning = false;
};

/** trion_piece: `text` belongs to the trion::text, and is valid until the next call with it. */
struct piece {
    std::string_view text;
    bool stopped = false;
};

/** A text that is being written from tokens. It keeps its model alive. */
class text {
public:
    text() noexcept = default;
    explicit text(detail::handle<trion_text> owned) noexcept : handle_(std::move(owned)) {}

    static TRION_RESULT(text) make(const model& of, const text_options& options = text_options()) {
        std::vector<const char*> stops;
        for (const std::string& stop : options.stops) stops.push_back(stop.c_str());
        const trion_text_options plain{sizeof plain, stops.data(), stops.size(), options.special, options.beginning};
        return detail::make<text, trion_text>(of.freer(), [&](trion_text** made, trion_error* words) {
            return trion_text_new(of.get(), &plain, made, words);
        });
    }

    TRION_RESULT(piece) push(token next) {
        detail::call call;
        trion_piece out{};
        const trion_status status = trion_text_push(get(), next, &out);
        return call.done(status, piece{{out.data, out.size}, out.stopped != 0});
    }

    TRION_RESULT(piece) finish() {
        detail::call call;
        trion_piece out{};
        const trion_status status = trion_text_finish(get(), &out);
        return call.done(status, piece{{out.data, out.size}, out.stopped != 0});
    }

    trion_text* get() const noexcept { return handle_.get(); }

private:
    detail::handle<trion_text> handle_;
};

/** As below, with a text that decides on stop strings. */
template <class F>
TRION_RESULT(trion_stop) generate(session& from, const text& into, std::size_t max_tokens, F&& on_text) {
    auto* address = std::addressof(on_text);
    const trion_text_fn each = [](void* user, const char* data, std::size_t size) noexcept {
        return detail::call::guarded(0, [&] {
            return detail::wants_more(**static_cast<decltype(address)*>(user), std::string_view(data, size));
        });
    };
    return detail::ask<trion_stop>(
        [&](trion_stop* out, trion_error* words) {
            return trion_generate(from.get(), into.get(), max_tokens, each, &address, out, words);
        },
        from.get());
}

/** trion_generate(): hands pieces of text to `on_text(std::string_view)`, which returns nothing, or false to stop. */
template <class F>
TRION_RESULT(trion_stop) generate(session& from, std::size_t max_tokens, F&& on_text) {
    return generate(from, text(), max_tokens, on_text);
}

#endif

} // namespace TRION_KIND
} // namespace trion

#endif
