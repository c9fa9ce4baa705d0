/*
 * What the calls of trion.hpp have in common: errors, spans, exceptions of callbacks. Include trion.hpp.
 */
#ifndef TRION_SUPPORT_HPP
#define TRION_SUPPORT_HPP

#include "trion.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

// Inline namespaces, since the two kinds of code compile the same functions differently, and may meet in one program.
#if !defined(TRION_NO_EXCEPTIONS) && (defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND))
#define TRION_EXCEPTIONS 1
#define TRION_RESULT(T) T
#define TRION_KIND throwing
#else
#define TRION_EXCEPTIONS 0
#define TRION_RESULT(T) ::trion::result<T>
#define TRION_KIND returning
#endif

namespace trion {
inline namespace TRION_KIND {

// Errors --------------------------------------------------------------------------------------------------------------

#if TRION_EXCEPTIONS

/** A call that failed: what() says what was found and what was expected. */
class error : public std::runtime_error {
public:
    error(trion_status status, const char* message) : std::runtime_error(message), status_(status) {}
    trion_status status() const noexcept { return status_; }

private:
    trion_status status_;
};

#else

/** A call that failed: what() says what was found and what was expected. */
class error {
public:
    error() = default;
    error(trion_status status, const char* message) : status_(status), message_(message) {}
    trion_status status() const noexcept { return status_; }
    const char* what() const noexcept { return message_.c_str(); }

private:
    trion_status status_ = TRION_OK;
    std::string message_;
};

/** A value, or why there is none. Asking for a value that is not there ends the program. */
template <class T>
class [[nodiscard]] result {
public:
    result(T value) : value_(std::move(value)) {}
    result(trion::error failure) : error_(std::move(failure)) {}

    bool has_value() const noexcept { return value_.has_value(); }
    explicit operator bool() const noexcept { return has_value(); }
    T& value() & noexcept { return has_value() ? *value_ : throw_none(); }
    const T& value() const& noexcept { return has_value() ? *value_ : throw_none(); }
    T&& value() && noexcept { return std::move(value()); }
    T& operator*() & noexcept { return value(); }
    const T& operator*() const& noexcept { return value(); }
    T&& operator*() && noexcept { return std::move(value()); }
    T* operator->() noexcept { return &value(); }
    const T* operator->() const noexcept { return &value(); }

    /** With a value: TRION_OK, and no words. */
    const trion::error& error() const noexcept { return error_; }
    trion_status status() const noexcept { return error_.status(); }
    const char* message() const noexcept { return error_.what(); }

private:
    [[noreturn]] static T& throw_none() noexcept { std::abort(); }

    std::optional<T> value_;
    trion::error error_;
};

/** What result<void> has for a value. */
struct nothing {};

template <>
class [[nodiscard]] result<void> : public result<nothing> {
public:
    result() : result<nothing>(nothing()) {}
    result(trion::error failure) : result<nothing>(std::move(failure)) {}
};

#endif

// Spans ---------------------------------------------------------------------------------------------------------------

/** A pointer and a size, made from them or from anything with data() and size(). It owns nothing. */
template <class T>
class span {
public:
    constexpr span() noexcept = default;
    constexpr span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <class From, class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<From&>().data()), T*>>>
    constexpr span(From&& from) noexcept : data_(from.data()), size_(from.size()) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }
    constexpr T& operator[](std::size_t index) const noexcept { return data_[index]; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

// Behind the scenes ---------------------------------------------------------------------------------------------------

namespace detail {

/** One call of the C interface: the words of its failure, and what its callbacks threw. */
class call {
public:
    explicit call(trion_session* session = nullptr) noexcept : session_(session) {
        words_.status = TRION_OK;
        words_.message[0] = '\0';
    }
    call(const call&) = delete;
    call& operator=(const call&) = delete;
    ~call() { innermost_ = outer_; }

    trion_error* words() noexcept { return &words_; }

    /** The end of the call: throws or returns what went wrong. */
    TRION_RESULT(void) done(trion_status status) {
#if TRION_EXCEPTIONS
        if (thrown_) std::rethrow_exception(std::move(thrown_));
        if (status != TRION_OK) throw failure(status);
#else
        return status == TRION_OK ? result<void>() : failure(status);
#endif
    }

    /** As done(); else the call comes to `value`. */
    template <class T>
    TRION_RESULT(T) done(trion_status status, T value) {
#if TRION_EXCEPTIONS
        done(status);
#else
        if (status != TRION_OK) return failure(status);
#endif
        return value;
    }

    /** Runs a callback. What it throws is kept for the end of the call, and `stop` is returned. */
    template <class R, class F>
    static R guarded(R stop, F&& callback) noexcept {
#if TRION_EXCEPTIONS
        try {
            return callback();
        } catch (...) {
            // Where no call of this header is under way on this thread, nobody could throw it on.
            if (innermost_ == nullptr) std::terminate();
            if (!innermost_->thrown_) innermost_->thrown_ = std::current_exception();
        }
        return stop;
#else
        static_cast<void>(stop);
        return callback();
#endif
    }

    /** Ends the computation that is under way on this thread, if a callback threw. */
    static void cancel_if_thrown() noexcept {
        if (innermost_ != nullptr && innermost_->thrown_) trion_session_cancel(innermost_->session_);
    }

private:
    error failure(trion_status status) const {
        return error(status, words_.message[0] != '\0' ? words_.message : trion_status_string(status));
    }

    static inline thread_local call* innermost_ = nullptr;
    call* outer_ = std::exchange(innermost_, this);
    trion_session* session_;
    std::exception_ptr thrown_;
    trion_error words_;
};

/** The callables of a runtime. Everything that may call them holds them: the runtime, models, what models made. */
struct host {
    std::shared_ptr<void> jobs;
    std::shared_ptr<void> log;
};

/** Gives handles back, and after that the callables that they used. */
struct freer {
    std::shared_ptr<host> callables;

    void operator()(trion_runtime* handle) const noexcept { trion_runtime_free(handle); }
    void operator()(trion_model* handle) const noexcept { trion_model_free(handle); }
    void operator()(trion_session* handle) const noexcept { trion_session_free(handle); }
#ifndef TRION_NO_TEXT
    void operator()(trion_text* handle) const noexcept { trion_text_free(handle); }
    void operator()(trion_constraint* handle) const noexcept { trion_constraint_free(handle); }
#endif
};

template <class T>
using handle = std::unique_ptr<T, freer>;

// The forms that calls have. `function` makes the call, and gets the places for what it writes.

template <class F>
TRION_RESULT(void) tell(F&& function) {
    call call;
    return call.done(function(call.words()));
}

template <class T, class F>
TRION_RESULT(T) ask(F&& function, trion_session* session = nullptr) {
    call call(session);
    T out{};
    const trion_status status = function(&out, call.words());
    return call.done(status, out);
}

template <class Owner, class T, class F>
TRION_RESULT(Owner) make(freer freer, F&& function) {
    call call;
    T* made = nullptr;
    const trion_status status = function(&made, call.words());
    return call.done(status, Owner(handle<T>(made, std::move(freer))));
}

template <class T, class F>
TRION_RESULT(span<const T>) look(F&& function) {
    call call;
    const T* data = nullptr;
    std::size_t count = 0;
    const trion_status status = function(&data, &count);
    return call.done(status, span<const T>(data, count));
}

/** `guess` is how many elements will do most often, which spares asking. */
template <class Container, class F>
TRION_RESULT(Container) fill(std::size_t guess, F&& function) {
    call call;
    Container out(guess, {});
    std::size_t count = 0;
    trion_status status = function(out.data(), out.size(), &count, call.words());
    if (status == TRION_BUFFER_TOO_SMALL) {
        status = function(nullptr, 0, &count, call.words());
        out.resize(count);
        if (status == TRION_OK) status = function(out.data(), out.size(), &count, call.words());
    }
    out.resize(count);
    return call.done(status, std::move(out));
}

/** Calls `f` with `argument`: 0 if it returns false, else 1. */
template <class F, class Argument>
int wants_more(F& f, const Argument& argument) {
    if constexpr (std::is_void_v<std::invoke_result_t<F&, const Argument&>>) {
        f(argument);
        return 1;
    } else {
        return f(argument) ? 1 : 0;
    }
}

} // namespace detail

} // namespace TRION_KIND
} // namespace trion

#endif
