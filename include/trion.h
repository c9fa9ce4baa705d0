/*
 * Trion: ternary language models in C programs. Made from trion-ffi/src by `cargo xtask header`; do not edit.
 *
 * C99 and C++. This file says everything that a caller needs to know; docs/embedding.md has examples.
 *
 * Conventions, for all functions:
 *
 *  1. A call that can fail returns a trion_status. Outputs are written only when it is TRION_OK. An `error` parameter
 *     receives the words; it may be NULL, and is written only on failure.
 *  2. NULL is refused with TRION_INVALID_ARGUMENT, except where a function says what it stands for. Other pointers are
 *     valid, and aligned for their type. A pair of pointer and size may be NULL and 0.
 *  3. Handles come from a call and are given back to the function named `_free`, once. `_free` takes NULL. Sessions,
 *     texts and constraints keep their model alive, and models their runtime, so the order of freeing does not matter.
 *  4. `const` means that the call does not change what others see. Nothing is both input and output.
 *  5. Options begin with `struct_size`, and a field that is zero has its default: `trion_session_options options =
 *     {.struct_size = sizeof options};` is enough, and so is NULL. A library that knows more fields takes them for
 *     zero; one that knows fewer refuses what it does not know, unless it is zero.
 *  6. Callbacks get the `user` pointer of their registration first. They return; they do not throw or jump out.
 *  7. Functions marked `any thread` may be called on any thread at any time. Others are called by one thread at a time
 *     for one handle.
 *  8. No function prints, exits, reads the environment or the clock, or changes a global; none unwinds into the caller.
 *     What the driver of a GPU does, where one is asked for, is the driver's.
 */
#ifndef TRION_H
#define TRION_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(TRION_DLL)
#define TRION_API __declspec(dllimport)
#elif defined(__GNUC__) && __GNUC__ >= 4
#define TRION_API __attribute__((visibility("default")))
#else
#define TRION_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Version -------------------------------------------------------------------------------------------------------------
 *
 * The interface has a version of its own: TRION_ABI_VERSION = major * 65536 + minor. A library serves a program that
 * was compiled with the same major and with the same or a smaller minor. A new minor only adds: functions, status
 * codes, fields at the end of options. Check it once, at the start, when the library is loaded at run time.
 */

/** The version of this header: major * 65536 + minor. */
#define TRION_ABI_VERSION ((1 << 16) | 3)

/**
 * The bit of trion_features() that tells of tokenizers, chat templates, streamed text and constraints. A library built
 * without it lacks the functions of the last three sections.
 */
#define TRION_FEATURE_TEXT 1

/** The bit of trion_features() that tells of NVIDIA GPUs. It does not tell whether the machine has one. */
#define TRION_FEATURE_CUDA 2

/** The version of the library's interface, to be compared with TRION_ABI_VERSION. Any thread. */
TRION_API
uint32_t trion_abi_version(void);

/**
 * 1 if this library serves a program that was compiled with version `wanted` (pass TRION_ABI_VERSION), else 0. Any
 * thread.
 */
TRION_API
int trion_abi_is_compatible(uint32_t wanted);

/** The release of the library, such as "0.1.0". The text is constant. Any thread. */
TRION_API
const char *trion_version(void);

/** What the library was built with: TRION_FEATURE_ bits. Any thread. */
TRION_API
uint32_t trion_features(void);

/*
 * Status --------------------------------------------------------------------------------------------------------------
 *
 * Every call that can fail returns one of these numbers. Their meaning never changes, and a number that is retired is
 * not used again. A function with an `error` parameter also says in words what was found and what was expected; NULL
 * is allowed where nobody wants the words.
 */

/** Bytes of trion_error.message, the final zero included. */
#define TRION_MESSAGE_SIZE 512

/** What became of a call. */
typedef enum trion_status {
    /** Done; the outputs are written. Any other status means that no output was written. */
    TRION_OK = 0,
    /**
     * An argument is NULL where it may not be, an option is outside its range, or text is not UTF-8. Cure: the message
     * says what was expected.
     */
    TRION_INVALID_ARGUMENT = 1,
    /** The caller's buffer is too small. Cure: ask for the size first; each such function tells how. */
    TRION_BUFFER_TOO_SMALL = 2,
    /**
     * Memory could not be had, from the system, from the caller's allocator or on the GPU. Cure: a smaller `context`
     * or `max_batch`, or fewer sessions.
     */
    TRION_OUT_OF_MEMORY = 3,
    /** A file could not be read, or the caller's reader failed. Cure: the message says what the system said. */
    TRION_IO = 4,
    /**
     * A model is not what it claims to be: truncated, overlapping, of the wrong type, shape or value. Cure: another
     * copy of the file; the message names the tensor or field.
     */
    TRION_MALFORMED = 5,
    /** A model is well formed, but needs something that Trion does not do. Cure: docs/formats.md lists what it does. */
    TRION_UNSUPPORTED = 6,
    /** There is nothing to compute. Cure: push tokens first. */
    TRION_NO_TOKENS = 7,
    /** A token is not in the model's vocabulary. Cure: use the tokenizer of this model. */
    TRION_TOKEN_OUT_OF_RANGE = 8,
    /** The tokens do not fit in the session's context. Cure: rewind, or make a session with a larger `context`. */
    TRION_CONTEXT_FULL = 9,
    /**
     * Bytes are not a saved state, of another version, damaged, or of a session with another `cache` or a larger
     * `context`. Cure: the message says which.
     */
    TRION_STATE = 10,
    /** A state, a session or a constraint belongs to another model. Cure: use the model that it was made with. */
    TRION_OTHER_MODEL = 11,
    /**
     * The session is in use by another call, on another thread. Cure: one call at a time; only trion_session_cancel()
     * may come between.
     */
    TRION_BUSY = 12,
    /**
     * The session has no logits at present. Cure: ask between TRION_EVENT_TOKEN and the next trion_session_advance().
     */
    TRION_NO_LOGITS = 13,
    /**
     * The model comes without a tokenizer or a chat template. Cure: put tokenizer.json or chat_template.jinja beside
     * the checkpoint before it is packed.
     */
    TRION_NO_TOKENIZER = 14,
    /** The tokenizer or the chat template refused the text. Cure: the message says why. */
    TRION_TEXT = 15,
    /**
     * A schema, a regular expression or a grammar cannot be used. Cure: the message says what is wrong with it, and
     * where.
     */
    TRION_CONSTRAINT = 16,
    /**
     * A defect of Trion. The process is unharmed; the session that was in use answers only trion_session_free() from
     * now on. Cure: please report it.
     */
    TRION_INTERNAL = 17,
    /**
     * A GPU cannot be had, or it failed: no driver, no GPU of that number, one that is too old, or a library that was
     * built without. Cure: the device "cpu" computes the same, and "auto" takes it where there is no GPU.
     */
    TRION_DEVICE = 18,
} trion_status;

/** What went wrong, in words. It belongs to the caller, and is written only by a call that fails. */
typedef struct trion_error {
    /** What the call returned. */
    trion_status status;
    /** UTF-8 with a zero at the end, cut off where it would be longer. */
    char message[TRION_MESSAGE_SIZE];
} trion_error;

/**
 * One sentence about a status, for people; "unknown status" for a number that is none. The text is constant. Any
 * thread.
 */
TRION_API
const char *trion_status_string(int status);

/*
 * Runtime -------------------------------------------------------------------------------------------------------------
 *
 * What a host lends to its models: a device, threads and a place for log messages. Without one (NULL) a model computes
 * on the calling thread alone and says nothing. The library has no globals, reads no environment variables, handles no
 * signals and prints nothing.
 *
 * Results do not depend on the device or on threads: any of them, any number, in any order, gives the same bits.
 */

/** How much a host wants to hear. Each level includes those before it. */
typedef enum trion_log_level {
    /** Calls that failed while a model was made. */
    TRION_LOG_ERROR = 1,
    /** Models that were made. */
    TRION_LOG_INFO = 2,
    /** Sessions that were made, with their size. */
    TRION_LOG_DEBUG = 3,
} trion_log_level;

/** A device, threads and a log. Reference counted: a model keeps its runtime alive. */
typedef struct trion_runtime trion_runtime;

/** A task of a host's job system: trion_parallel_for_fn calls `task(data, index)`. */
typedef void (*trion_task_fn)(void *data, size_t index);

/**
 * A host's job system: calls `task(data, i)` for each i from 0 to `count` - 1, on any threads, in any order, at once
 * or one after another, and returns when all calls have returned. A call that is left out costs time and changes no
 * result. It may be called from several threads at once, if sessions of the runtime are.
 */
typedef void (*trion_parallel_for_fn)(void *user, size_t count, trion_task_fn task, void *data);

/**
 * Receives a log message: one line of UTF-8 with a zero at its end, valid during the call. It may be called from any
 * thread that makes a call of this library, and must not call back into it.
 */
typedef void (*trion_log_fn)(void *user, trion_log_level level, const char *message);

/** Options of a runtime. Fields that are zero have their default. */
typedef struct trion_runtime_options {
    /** sizeof(trion_runtime_options). */
    size_t struct_size;
    /**
     * Threads of a pool of the library's own, the calling one included, at most 256; 0 and 1 for no threads. Not
     * together with `parallel_for`.
     */
    size_t threads;
    /** The host's job system; NULL for none. */
    trion_parallel_for_fn parallel_for;
    /** Tasks that the job system is given at a time, at most: its number of workers; 0 stands for 1. */
    size_t parallel_workers;
    /** Handed to `parallel_for`. */
    void *parallel_user;
    /** Receives messages; NULL for none. */
    trion_log_fn log;
    /** The largest trion_log_level that is wanted; 0 stands for TRION_LOG_INFO. */
    uint32_t log_level;
    /** Handed to `log`. */
    void *log_user;
    /**
     * Where its models compute, with a zero at its end: "cpu"; "cuda", or "cuda:1" with another number, an NVIDIA GPU
     * in the driver's order; "auto", the first GPU if there is one that works, and the CPU otherwise. NULL for "cpu".
     * Read by the call, and not kept. Since version 1.1.
     */
    const char *device;
} trion_runtime_options;

/**
 * Makes a runtime. Free it with trion_runtime_free(). Any thread.
 *
 * TRION_INVALID_ARGUMENT for options outside their range, or threads that the system does not give; TRION_DEVICE for a
 * GPU that is not there.
 */
TRION_API
trion_status trion_runtime_new(const trion_runtime_options *options,
                               trion_runtime **runtime,
                               trion_error *error);

/**
 * Gives a runtime back; NULL does nothing. Its threads end, and its callbacks are forgotten, when the last model that
 * was made with it is gone. Any thread, once.
 */
TRION_API
void trion_runtime_free(trion_runtime *runtime);

/*
 * Model ---------------------------------------------------------------------------------------------------------------
 *
 * A model is immutable. Any number of sessions on any threads share one, and keep it alive: trion_model_free() takes
 * back one reference, and the last one frees it.
 *
 * A path may lead to a file that `trion quantize` packed, which is mapped and used in place, to a GGUF file, or to a
 * directory in the form of Hugging Face; the last two are packed in memory.
 *
 * Weights and sessions are asked for in a way that can fail. The rest (names, the tokenizer's tables) comes from the
 * process's heap, in pieces of a vocabulary's size at most; where even that is exhausted, the process ends, as it does
 * in any Rust program.
 */

/** Weights, and what comes with them: a vocabulary, a tokenizer, a chat template. */
typedef struct trion_model trion_model;

/**
 * Gives the next bytes of a model: writes up to `size` bytes to `buffer` and returns how many, 0 only at the end or
 * when it fails.
 */
typedef size_t (*trion_read_fn)(void *user, void *buffer, size_t size);

/** What a model is like. */
typedef struct trion_model_info {
    /** Tokens in the vocabulary, and logits of a token. */
    size_t vocab_size;
    /** Width of the residual stream. */
    size_t hidden_size;
    /** Width inside the MLP. */
    size_t intermediate_size;
    /** Blocks. */
    size_t num_hidden_layers;
    /** Heads of queries. */
    size_t num_attention_heads;
    /** Heads of keys and values. */
    size_t num_key_value_heads;
    /** Width of a head. */
    size_t head_dim;
    /** The longest context. */
    size_t max_position_embeddings;
    /** Bytes of the weights and everything that lies beside them. */
    size_t packed_bytes;
    /** The token that begins a text; -1 for none. */
    int64_t bos_token;
    /** 1 if the model has a tokenizer, else 0. */
    int has_tokenizer;
    /** 1 if the model has a chat template, else 0. */
    int has_chat_template;
    /** Where it computes: "cpu", or the GPU's name. Valid as long as the model. Since version 1.1. */
    const char *device;
} trion_model_info;

/**
 * Opens the model at `path`, UTF-8 with a zero at its end. Any thread.
 *
 * The tokenizer is built by the first call that needs it; trion_model_encode() of an empty text is one.
 *
 * TRION_IO, TRION_MALFORMED, TRION_UNSUPPORTED, TRION_OUT_OF_MEMORY, TRION_TEXT for its chat template, TRION_DEVICE if
 * the runtime's GPU fails.
 */
TRION_API
trion_status trion_model_open(const trion_runtime *runtime,
                              const char *path,
                              trion_model **model,
                              trion_error *error);

/**
 * A model in the `size` bytes of a packed file or of a GGUF file at `data`, which are copied. Any thread.
 *
 * As trion_model_open(); messages call the file `memory`.
 */
TRION_API
trion_status trion_model_copy(const trion_runtime *runtime,
                              const void *data,
                              size_t size,
                              trion_model **model,
                              trion_error *error);

/**
 * A model in the `size` bytes of a packed file at `data`, which are used where they are: nothing is copied. Any
 * thread.
 *
 * The caller promises that the bytes stay as they are, at their place, until the model and all its sessions are gone.
 * `data` lies at a multiple of 64.
 *
 * As trion_model_open(); TRION_INVALID_ARGUMENT for another address.
 */
TRION_API
trion_status trion_model_borrow(const trion_runtime *runtime,
                                const void *data,
                                size_t size,
                                trion_model **model,
                                trion_error *error);

/**
 * A model in `size` bytes of a packed file or of a GGUF file that `read(user, ...)` gives, from the first to the last.
 * Any thread; the reader is called on this one, before the call returns.
 *
 * As trion_model_open(); TRION_IO if the reader ends early.
 */
TRION_API
trion_status trion_model_read(const trion_runtime *runtime,
                              trion_read_fn read,
                              void *user,
                              size_t size,
                              trion_model **model,
                              trion_error *error);

/** Adds a reference: one more trion_model_free() is due. NULL does nothing. Any thread. */
TRION_API
void trion_model_retain(const trion_model *model);

/** Takes back a reference; NULL does nothing. Any thread. */
TRION_API
void trion_model_free(trion_model *model);

/**
 * What a model is like. `info_size` is sizeof(trion_model_info): a library that knows more fields leaves those out,
 * and one that knows fewer writes zeros. Any thread.
 */
TRION_API
trion_status trion_model_get_info(const trion_model *model,
                                  trion_model_info *info,
                                  size_t info_size);

/** 1 if `token` ends a text, else 0; 0 for NULL. Any thread. */
TRION_API
int trion_model_ends_text(const trion_model *model, uint32_t token);

/*
 * Session -------------------------------------------------------------------------------------------------------------
 *
 * A session is one sequence of tokens: a character in a game, a conversation, a document. Push tokens, then advance
 * until the model has chosen its next token; it is part of the sequence at once, and advancing again computes the one
 * after it.
 *
 * All memory of a session is one block that is asked for when it is made: from the library, from an allocator of the
 * caller's, or a buffer that the caller hands in. A session with a constraint also uses the heap. Of a session on a
 * GPU the block has only a small part; see below, at GPU.
 *
 * Work is counted in units, not in time: the same calls do the same work on every machine. A unit is 64 tiles of 32
 * rows of a ternary matrix, each for one token, or what takes about as long; trion_session_token_units() says how many
 * a token costs, and every event how many its call took. How long a unit takes depends on the model and the machine,
 * so measure some at the start, and spend as many in a frame as fit. How work is divided into calls changes no bit of
 * the result.
 *
 * One call at a time may use a session; another that comes between returns TRION_BUSY and changes nothing. Only
 * trion_session_cancel() may be called at any time. Different sessions do not disturb each other, on any threads.
 */

/** Number format of keys and values. */
typedef enum trion_cache {
    /** Single precision: nothing is lost. */
    TRION_CACHE_F32 = 0,
    /** Half precision: half the memory, with values rounded. */
    TRION_CACHE_F16 = 1,
} trion_cache;

/** Instruction sets. All give the same bits; but for AMX, a choice is for tests. A GPU has none to choose from. */
typedef enum trion_kernel {
    /** The fastest that the CPU has and that asks nothing of the operating system: all but TRION_KERNEL_AMX. */
    TRION_KERNEL_AUTO = 0,
    /** Plain code, on every machine. */
    TRION_KERNEL_SCALAR = 1,
    /** AVX2 and F16C. */
    TRION_KERNEL_AVX2 = 2,
    /** AVX2 with VNNI. */
    TRION_KERNEL_AVX_VNNI = 3,
    /** AVX-512 F, BW and VNNI. */
    TRION_KERNEL_AVX512 = 4,
    /**
     * The same with the tile registers of AMX, by which prompts on server processors are twice as fast. Linux lends them
     * to a process that asks, as this choice does, and sigaltstack() then refuses stacks of less than some 11 KiB to all
     * of the process's threads. A call takes some 32 KiB of stack. The choice is refused, as one that the CPU lacks, where
     * Linux refuses, and on other systems.
     */
    TRION_KERNEL_AMX = 5,
    /** NEON of AArch64. */
    TRION_KERNEL_NEON = 6,
    /** NEON with dot products of bytes. */
    TRION_KERNEL_NEON_DOT = 7,
    /** WebAssembly compiled with simd128. */
    TRION_KERNEL_SIMD128 = 8,
} trion_kernel;

/** A sequence of tokens and everything that the model keeps of it. */
typedef struct trion_session trion_session;

/** Options of a session. Fields that are zero have their default. */
typedef struct trion_session_options {
    /** sizeof(trion_session_options). */
    size_t struct_size;
    /** Tokens that the session can hold; 0 for the model's longest context. */
    size_t context;
    /**
     * Tokens of a prompt that are computed together; 0 for 64. More is faster for prompts and takes more memory; the
     * results are the same.
     */
    size_t max_batch;
    /** A trion_cache. */
    uint32_t cache;
    /** A trion_kernel. */
    uint32_t kernel;
    /** 1 to go on after tokens that end a text. */
    uint32_t ignore_end;
    /**
     * 1 to have the probability of each chosen token in its event: one more pass over the vocabulary for each token.
     */
    uint32_t probabilities;
} trion_session_options;

/**
 * Where sessions get their block from: one call of `allocate` for each session, and one of `release` when it is freed,
 * on the threads that make and free sessions.
 */
typedef struct trion_allocator {
    /** Handed to both functions. */
    void *user;
    /** Gives `size` bytes at a multiple of `alignment` (a power of two), or NULL. */
    void *(*allocate)(void *user, size_t size, size_t alignment);
    /** Takes a block back, with the size and alignment that it was asked for with. */
    void (*release)(void *user, void *memory, size_t size, size_t alignment);
} trion_allocator;

/**
 * Bytes of a session with these options in a buffer at any address; trion_session_gpu_memory() tells what one on a GPU
 * takes there. Any thread.
 *
 * TRION_INVALID_ARGUMENT for options outside their range.
 */
TRION_API
trion_status trion_session_size(const trion_model *model,
                                const trion_session_options *options,
                                size_t *size,
                                trion_error *error);

/**
 * Makes a session in memory of `allocator`'s; NULL for the library's own. Free it with trion_session_free(). Any
 * thread.
 *
 * TRION_INVALID_ARGUMENT for options outside their range, TRION_OUT_OF_MEMORY, TRION_DEVICE if a GPU fails.
 */
TRION_API
trion_status trion_session_new(const trion_model *model,
                               const trion_session_options *options,
                               const trion_allocator *allocator,
                               trion_session **session,
                               trion_error *error);

/**
 * Makes a session in `buffer` of `size` bytes, at least trion_session_size(), at any address. The handle lies in the
 * buffer too; trion_session_free() ends the session and leaves the buffer to the caller. Any thread.
 *
 * TRION_INVALID_ARGUMENT for options outside their range, TRION_BUFFER_TOO_SMALL; on a GPU also TRION_OUT_OF_MEMORY
 * and TRION_DEVICE.
 */
TRION_API
trion_status trion_session_init(const trion_model *model,
                                const trion_session_options *options,
                                void *buffer,
                                size_t size,
                                trion_session **session,
                                trion_error *error);

/**
 * Makes a session that has come to the same point and goes its own way from there: same options, tokens, sampler and
 * constraint. In memory of `allocator`'s; NULL for the library's own.
 *
 * TRION_OUT_OF_MEMORY, TRION_BUSY, TRION_DEVICE if a GPU fails.
 */
TRION_API
trion_status trion_session_fork(const trion_session *session,
                                const trion_allocator *allocator,
                                trion_session **fork,
                                trion_error *error);

/**
 * trion_session_fork() into `buffer` of `size` bytes, as with trion_session_init().
 *
 * TRION_BUFFER_TOO_SMALL, TRION_BUSY; on a GPU also TRION_OUT_OF_MEMORY and TRION_DEVICE.
 */
TRION_API
trion_status trion_session_fork_init(const trion_session *session,
                                     void *buffer,
                                     size_t size,
                                     trion_session **fork,
                                     trion_error *error);

/**
 * Makes `session` come to the point where `from` is, in its own memory: tokens, sampler and constraint. The two may
 * differ in `context` and `max_batch`. A character that begins anew from a shared beginning needs no new memory so.
 * Between two devices this is saving and loading, and takes memory for that.
 *
 * TRION_OTHER_MODEL, TRION_STATE for another `cache`, TRION_CONTEXT_FULL, TRION_OUT_OF_MEMORY, TRION_BUSY; `session`
 * is unchanged then. TRION_DEVICE if a GPU fails; `session` may have no tokens then.
 */
TRION_API
trion_status trion_session_assign(trion_session *session,
                                  const trion_session *from,
                                  trion_error *error);

/** Ends a session and gives its memory back to where it came from; NULL does nothing. No call may be using it. */
TRION_API
void trion_session_free(trion_session *session);

/*
 * Sampler -------------------------------------------------------------------------------------------------------------
 *
 * How a session chooses tokens. Each session has its own; without options it always takes the most probable token.
 * With the same seed and the same calls the tokens are the same on every machine.
 */

/** Options of a sampler. Fields that are zero have their default. The steps are taken in the order of the fields. */
typedef struct trion_sampler_options {
    /** sizeof(trion_sampler_options). */
    size_t struct_size;
    /**
     * Divides the logits of tokens that were there lately, where positive, and multiplies them where negative; 0 and 1
     * for off.
     */
    float repetition_penalty;
    /** Tokens that the penalty looks back; 0 stands for 64. */
    uint32_t repetition_window;
    /** 0 for always the most probable token, 1 for the model's own distribution. */
    float temperature;
    /** Choose among the k most probable tokens, at most 256; 0 for off. */
    uint32_t top_k;
    /** Choose among the most probable tokens that together reach p, up to 1; 0 and 1 for off. */
    float top_p;
    /** Choose among tokens at least this fraction as probable as the first, up to 1; 0 for off. */
    float min_p;
    /** Starts the random numbers. */
    uint64_t seed;
} trion_sampler_options;

/**
 * Gives a session another sampler, from the next token on; NULL options for always the most probable token.
 *
 * TRION_INVALID_ARGUMENT for options outside their range, TRION_BUSY; the session is unchanged then.
 */
TRION_API
trion_status trion_session_set_sampler(trion_session *session,
                                       const trion_sampler_options *options,
                                       trion_error *error);

/*
 * Advance -------------------------------------------------------------------------------------------------------------
 *
 * The loop of every program:
 *
 *     while ((status = trion_session_advance(session, budget, &event)) == TRION_OK) {
 *         if (event.kind == TRION_EVENT_MORE) wait_for_the_next_frame();
 *         else if (event.kind == TRION_EVENT_TOKEN) use(event.token);
 *         else break;
 *     }
 */

/** What trion_session_advance() came to. */
typedef enum trion_event_kind {
    /** The budget is spent: advance again, in the next frame for example. */
    TRION_EVENT_MORE = 0,
    /** A token was chosen and added to the sequence. */
    TRION_EVENT_TOKEN = 1,
    /**
     * There will be no more tokens, for the reason that the event gives, until the session is changed (tokens pushed,
     * rewound, loaded).
     */
    TRION_EVENT_DONE = 2,
    /** All tokens that were pushed are computed: trion_session_compute() and trion_sessions_compute() choose none. */
    TRION_EVENT_READY = 3,
} trion_event_kind;

/** Why there will be no more tokens. */
typedef enum trion_reason {
    /** The event is not TRION_EVENT_DONE. */
    TRION_REASON_NONE = 0,
    /** The model ended the text. The event has the token that says so; it was not added to the sequence. */
    TRION_REASON_END = 1,
    /** The context is full, so no token was chosen. */
    TRION_REASON_CONTEXT = 2,
    /** trion_session_cancel() was called, or a callback wanted no more. Advancing again goes on where it was. */
    TRION_REASON_CANCELLED = 3,
    /** The text is all that the constraint allows. */
    TRION_REASON_CONSTRAINT = 4,
    /** No token can go on with the text under the constraint. */
    TRION_REASON_DEAD_END = 5,
} trion_reason;

/** What became of a call of trion_session_advance(), or of one session in a call of trion_sessions_advance(). */
typedef struct trion_event {
    /** What happened. */
    trion_event_kind kind;
    /** With TRION_EVENT_DONE, why. */
    trion_reason reason;
    /** With TRION_EVENT_TOKEN, and with TRION_REASON_END, the token; else 0. */
    uint32_t token;
    /**
     * The token's probability by the model's own distribution (temperature 1, nothing cut off), if the session was
     * made with `probabilities`; else 0.
     */
    float probability;
    /**
     * Units that the call took, rounded up; of a cancelled call, those of the steps that were completed; of a call for
     * several sessions, this one's share.
     */
    size_t units;
} trion_event;

/** Receives what happens during trion_session_run(). Returns 0 to stop. It may use the session, but not free it. */
typedef int (*trion_event_fn)(void *user, const trion_event *event);

/**
 * Appends `count` tokens, which later calls of trion_session_advance() compute.
 *
 * TRION_NO_TOKENS for none, TRION_TOKEN_OUT_OF_RANGE, TRION_CONTEXT_FULL, TRION_BUSY; the session is unchanged then.
 */
TRION_API
trion_status trion_session_push(trion_session *session,
                                const uint32_t *tokens,
                                size_t count,
                                trion_error *error);

/**
 * Computes for `budget` units, or until a token is chosen; SIZE_MAX for no limit. The last step may go beyond the
 * budget: a step is a tile of 32 rows for all tokens of a batch, which with `max_batch` up to 64 is about one unit; on
 * a GPU it is the whole batch. A budget of 0 computes nothing. The call in which a token is chosen also samples: a
 * pass over the vocabulary.
 *
 * TRION_NO_TOKENS if nothing was pushed since the session was made or rewound, TRION_BUSY, TRION_DEVICE if a GPU
 * fails.
 */
TRION_API
trion_status trion_session_advance(trion_session *session, size_t budget, trion_event *event);

/**
 * trion_session_advance() without choosing a token: computes what was pushed and ends with TRION_EVENT_READY. What
 * many sessions begin with is computed once so, and they take it over by trion_session_fork() or
 * trion_session_assign().
 *
 * As trion_session_advance().
 */
TRION_API
trion_status trion_session_compute(trion_session *session, size_t budget, trion_event *event);

/**
 * Advances until TRION_EVENT_DONE, `budget` units at a time, and hands every event to `on_event(user, ...)`, the last
 * one included. When it returns 0, the reason is TRION_REASON_CANCELLED.
 *
 * As trion_session_advance(), TRION_INVALID_ARGUMENT for a budget of 0; `event`, which may be NULL, receives the last
 * event.
 */
TRION_API
trion_status trion_session_run(trion_session *session,
                               size_t budget,
                               trion_event_fn on_event,
                               void *user,
                               trion_event *event);

/**
 * Ends the call that is computing, within one unit and also within a prompt (on a GPU after the batch under way), or
 * else the next one: it returns TRION_EVENT_DONE with TRION_REASON_CANCELLED. What was pushed stays, and advancing
 * again begins anew with the batch that was under way. NULL does nothing. Any thread, at any time, from a signal
 * handler too.
 */
TRION_API
void trion_session_cancel(trion_session *session);

/**
 * Forgets all tokens from position `length` on. Push before the next trion_session_advance(), unless only tokens are
 * forgotten that were not computed yet: rewinding by the token that was just chosen and advancing chooses again.
 *
 * TRION_INVALID_ARGUMENT if there are fewer tokens, TRION_BUSY; the session is unchanged then.
 */
TRION_API
trion_status trion_session_rewind(trion_session *session, size_t length, trion_error *error);

/*
 * Sessions together ---------------------------------------------------------------------------------------------------
 *
 * Many characters of one model: sessions that advance in one call go through the model together, so that each weight
 * is read once for all of them. Where reading weights is what takes the time, as it does for single tokens of a large
 * model, several sessions take hardly longer than one.
 *
 * A call takes whichever sessions there are, in any order, and nothing of it remains: before the next one any of them
 * may be pushed to, rewound, forked, freed, advanced alone or with others. They may differ in all but the model and
 * its device: positions, contexts, caches, samplers, constraints, how many tokens they have to compute. What each
 * comes to is what it comes to alone, bit for bit.
 *
 * Sessions with tokens begin together, each with at most its `max_batch` of them; the next of a longer prompt follow
 * when all have come through the model. On a GPU, sessions that have more than one token to compute go ahead alone, in
 * whole batches; then each computes one, all together. The GPU's memory for that is taken by the first such call for a
 * model, and again by one for more sessions, or longer ones, than any before; it is freed with the model and its
 * sessions. Calls for one model on a GPU wait for each other, if several threads make them.
 */

/** Most sessions of one call. */
#define TRION_MAX_SESSIONS 32

/**
 * trion_session_advance() for `count` sessions of one model, 1 to TRION_MAX_SESSIONS: computes for `budget` units of
 * all of them together, and chooses a token in each whose tokens are computed, at once, even while others are not so
 * far. `events`, one for each session and in their order, say what became of each, as trion_session_advance() would:
 * with a budget of SIZE_MAX every session comes to its next token, or to its end. `units` of an event is the session's
 * share. A session whose text has ended takes no part, and has the event of its end again.
 *
 * trion_session_cancel() for any of them ends the call for all: this one's event is TRION_EVENT_DONE with
 * TRION_REASON_CANCELLED, and that of each other whose tokens are not computed TRION_EVENT_MORE. The next call begins
 * anew with the batches that were under way.
 *
 * TRION_INVALID_ARGUMENT for another number of sessions, NULL among them, or one that is there twice;
 * TRION_OTHER_MODEL if they are not all of one model, TRION_NO_TOKENS if one has nothing to compute, TRION_BUSY if one
 * is in use, TRION_CONSTRAINT, TRION_OUT_OF_MEMORY if the GPU's memory is; all sessions are as they were then.
 * TRION_DEVICE if a GPU fails. Since version 1.1.
 */
TRION_API
trion_status trion_sessions_advance(trion_session *const *sessions,
                                    size_t count,
                                    size_t budget,
                                    trion_event *events,
                                    trion_error *error);

/**
 * trion_sessions_advance() without choosing tokens: the event of a session whose tokens are computed is
 * TRION_EVENT_READY, and trion_session_logits() has its logits. For prompts that are computed ahead, and for programs
 * that choose tokens themselves.
 *
 * As trion_sessions_advance(). Since version 1.1.
 */
TRION_API
trion_status trion_sessions_compute(trion_session *const *sessions,
                                    size_t count,
                                    size_t budget,
                                    trion_event *events,
                                    trion_error *error);

/*
 * Looking at a session ------------------------------------------------------------------------------------------------
 *
 * Pointers that these functions give lead into the session's memory, and are valid until the next call that changes
 * it.
 */

/** Most candidates of one call. */
#define TRION_MAX_CANDIDATES 256

/** A token with its probability. */
typedef struct trion_candidate {
    /** The token. */
    uint32_t token;
    /** By the model's own distribution: temperature 1, nothing cut off. */
    float probability;
} trion_candidate;

/**
 * Every token so far, those not yet computed included.
 *
 * TRION_BUSY.
 */
TRION_API
trion_status trion_session_tokens(const trion_session *session, const uint32_t **tokens, size_t *count);

/**
 * The logits that the last token was chosen from, one for each token of the vocabulary.
 *
 * TRION_NO_LOGITS after the next trion_session_advance() has begun, TRION_BUSY.
 */
TRION_API
trion_status trion_session_logits(const trion_session *session, const float **logits, size_t *count);

/**
 * The most probable tokens by these logits, the most probable first, at most `capacity` and TRION_MAX_CANDIDATES.
 *
 * As trion_session_logits().
 */
TRION_API
trion_status trion_session_candidates(const trion_session *session,
                                      trion_candidate *candidates,
                                      size_t capacity,
                                      size_t *count);

/**
 * Units that the next token costs when it is computed alone: more with every position. A token of a prompt costs no
 * more.
 *
 * TRION_BUSY.
 */
TRION_API
trion_status trion_session_token_units(const trion_session *session, size_t *units);

/*
 * Saved states --------------------------------------------------------------------------------------------------------
 *
 * A session as bytes: its tokens, what the model keeps of them, and the sampler. They can be loaded into any session
 * of the same model and with the same `cache` that has room for the tokens, on any machine, on a CPU or a GPU, and go
 * on with the same bits. A constraint is not part of them.
 */

/**
 * Bytes that trion_session_save() writes at present.
 *
 * TRION_BUSY.
 */
TRION_API
trion_status trion_session_saved_size(const trion_session *session, size_t *size);

/**
 * Writes the session to `buffer` of `capacity` bytes, at least trion_session_saved_size(), and the bytes written to
 * `size`.
 *
 * TRION_BUFFER_TOO_SMALL, TRION_BUSY, TRION_DEVICE if a GPU fails.
 */
TRION_API
trion_status trion_session_save(const trion_session *session,
                                void *buffer,
                                size_t capacity,
                                size_t *size,
                                trion_error *error);

/**
 * Replaces everything in the session by the `size` bytes of a saved state at `data`. A constraint is taken away.
 *
 * TRION_STATE, TRION_OTHER_MODEL, TRION_TOKEN_OUT_OF_RANGE, TRION_BUSY; the session is unchanged then. TRION_DEVICE if
 * a GPU fails; the session may have no tokens then.
 */
TRION_API
trion_status trion_session_load(trion_session *session, const void *data, size_t size, trion_error *error);

/*
 * GPU -----------------------------------------------------------------------------------------------------------------
 *
 * Models of a runtime whose `device` is a GPU have their weights there, beside those on the host, which the functions
 * of models read; their sessions compute there. Everything in this header works for them as it does on a CPU, with the
 * same bits. What is different:
 *
 *  - A session's keys, values and activations lie in the GPU's memory, which is taken from the driver when the session
 *    is made, and given back when it is freed. Its block, as trion_session_size() counts it, has the handle alone;
 *    its tokens and its last logits lie on the process's heap. A model or a session that does not fit on the GPU is
 *    refused with TRION_OUT_OF_MEMORY, also where the device was "auto".
 *  - The GPU computes whole batches of `max_batch` tokens. Budgets are spent so, and trion_session_cancel() ends a
 *    call between two. Choose a small `max_batch` where frames are short.
 *  - `threads` and `parallel_for` of the runtime, and `kernel` of a session, are for CPUs: they change nothing here.
 *  - Calls that compute or copy may also return TRION_DEVICE.
 *
 * The driver is NVIDIA's. It is looked for when a runtime asks for a GPU, and stays loaded. It reads environment
 * variables of its own (CUDA_VISIBLE_DEVICES), and the first time on a machine it compiles for about a second.
 */

/**
 * Bytes of a GPU's memory. The driver takes some hundred MB besides, and sessions that advance together about as much
 * more as their `scratch` with a `max_batch` of 1, for the next power of two of them.
 */
typedef struct trion_gpu_memory {
    /** The blocks' matrices and all norms, once for a model. */
    size_t weights;
    /** The embedding, and the head where it is another matrix, once for a model. */
    size_t embedding;
    /** Keys and values, for each session. */
    size_t cache;
    /** Activations, scores and logits, for each session. */
    size_t scratch;
} trion_gpu_memory;

/**
 * What the model and a session with these options take of the GPU's memory; of a model on the CPU, what they would
 * take at most, on any GPU, and no GPU is needed for that. `memory_size` is sizeof(trion_gpu_memory), as with
 * trion_model_get_info(). Any thread. Since version 1.1.
 *
 * TRION_INVALID_ARGUMENT for options outside their range, TRION_DEVICE in a library without TRION_FEATURE_CUDA.
 */
TRION_API
trion_status trion_session_gpu_memory(const trion_model *model,
                                      const trion_session_options *options,
                                      trion_gpu_memory *memory,
                                      size_t memory_size,
                                      trion_error *error);

/*
 * Bare metal ----------------------------------------------------------------------------------------------------------
 *
 * The same models on machines without an operating system: microcontrollers with some hundred KB of flash and RAM. A
 * library that was built without std has these functions, those of the sections Version and Status, and nothing else;
 * every other build has them too, so that firmware can be tested on a PC. docs/bare-metal.md shows how it is built,
 * and examples/bare-metal-c is a whole program.
 *
 * A model is a constant table, trion_bare_model, that describes weights in flash. The command `trion embed` writes it
 * as C, of any model that it reads. A session lies in one buffer of the program's, with everything that changes; there
 * is no other memory, no heap, no global, no thread and no clock. Many sessions may use one table.
 *
 *     trion_bare_init(&model, &options, buffer, sizeof buffer, &session, NULL);
 *     trion_bare_push(session, prompt, prompt_count, NULL);
 *     for (;;) {
 *         do trion_bare_advance(session, budget, &progress); while (progress == TRION_BARE_MORE);
 *         trion_bare_sample(session, &token);
 *         print(token);
 *         trion_bare_push(session, &token, 1, NULL);
 *     }
 *
 * The table, the weights that it points to and the buffer stay where they are, and as they are, for as long as the
 * session is used. There is no function that ends it: the buffer is the program's again when it calls none. One call
 * at a time may use a session, and nothing guards it: an interrupt handler that comes between leaves it alone.
 *
 * The library without std asks the program for one function, `void trion_panic(void)`, which must not return. It would
 * be called where the library finds itself in a state that it holds to be impossible; no argument leads there. A
 * program that wants to go on resets the machine.
 */

/** What trion_bare_advance() came to. */
typedef enum trion_bare_progress {
    /** The budget is spent: advance again. */
    TRION_BARE_MORE = 0,
    /** All tokens that were pushed are computed, and there are logits. */
    TRION_BARE_READY = 1,
} trion_bare_progress;

/** How the numbers of a matrix lie in memory. Trits are in tiles of 32 rows, as `trion embed` writes them. */
typedef enum trion_bare_form {
    /** There is no such matrix: a head that is the embedding. */
    TRION_BARE_NONE = 0,
    /** Trits of two bits. */
    TRION_BARE_TWOS = 1,
    /** Five trits in a byte. */
    TRION_BARE_FIVES = 2,
    /** Six bits a weight, and `scales` with a float for each row. */
    TRION_BARE_INT6 = 3,
    /** Signed bytes, and `scales` with a float for each row. */
    TRION_BARE_INT8 = 4,
    /** Half precision. */
    TRION_BARE_F16 = 5,
    /** bfloat16. */
    TRION_BARE_BF16 = 6,
    /** Single precision. */
    TRION_BARE_F32 = 7,
} trion_bare_form;

/** What stands between the gate and the up projection. */
typedef enum trion_bare_activation {
    /** max(0, x)^2. */
    TRION_BARE_RELU2 = 0,
    /** x / (1 + exp(-x)). */
    TRION_BARE_SILU = 1,
} trion_bare_activation;

/** A sequence of tokens and everything that the model keeps of it. */
typedef struct trion_bare_session trion_bare_session;

/** Shapes and constants, in the names of config.json. */
typedef struct trion_bare_config {
    /** Rows of the embedding. */
    uint32_t vocab_size;
    /** Width of the residual stream. */
    uint32_t hidden_size;
    /** Width between the gate and up projections and the down projection. */
    uint32_t intermediate_size;
    /** Blocks. */
    uint32_t num_hidden_layers;
    /** Query heads. */
    uint32_t num_attention_heads;
    /** Key and value heads. */
    uint32_t num_key_value_heads;
    /** Width of one head. */
    uint32_t head_dim;
    /** The longest context. */
    uint32_t max_position_embeddings;
    /** A trion_bare_activation. */
    uint32_t hidden_act;
    /** The smallest group of columns that has a scale of its own in any matrix; 0 where there is none. */
    uint32_t activation_group;
    /** Epsilon of the norms. */
    float rms_norm_eps;
    /** Epsilon of the norms inside projections. */
    float projection_norm_eps;
    /** Base of the rotary embedding's frequencies. */
    float rope_theta;
} trion_bare_config;

/** Floats that lie somewhere; NULL and 0 where a model has none. */
typedef struct trion_bare_floats {
    /** The first one. */
    const float *values;
    /** How many. */
    size_t count;
} trion_bare_floats;

/** A matrix; its shape follows from the configuration. */
typedef struct trion_bare_matrix {
    /** A trion_bare_form. */
    uint32_t form;
    /** Of trits, columns that share a scale, in `scales`; 0 where one scale, `scale`, serves all. */
    uint32_t group;
    /** Of trits without groups, the scale. */
    float scale;
    /** 1 to divide by `scale`, 0 to multiply. */
    uint32_t divides;
    /** The numbers, aligned for their type. */
    const void *data;
    /** Bytes of `data`. */
    size_t size;
    /** Scales, as the form says: floats, or for groups of trits half-precision numbers. */
    const void *scales;
    /** Bytes of `scales`. */
    size_t scales_size;
    /** Of a projection, the norm of its input, where the model has one there. */
    trion_bare_floats norm;
} trion_bare_matrix;

/** A block, in the names of checkpoints. */
typedef struct trion_bare_layer {
    /** self_attn.q_proj. */
    trion_bare_matrix q_proj;
    /** self_attn.k_proj. */
    trion_bare_matrix k_proj;
    /** self_attn.v_proj. */
    trion_bare_matrix v_proj;
    /** self_attn.o_proj. */
    trion_bare_matrix o_proj;
    /** mlp.gate_proj. */
    trion_bare_matrix gate_proj;
    /** mlp.up_proj. */
    trion_bare_matrix up_proj;
    /** mlp.down_proj. */
    trion_bare_matrix down_proj;
    /** input_layernorm. */
    trion_bare_floats input_layernorm;
    /** self_attn.attn_sub_norm, which not every model has. */
    trion_bare_floats attn_sub_norm;
    /** self_attn.q_norm, which not every model has. */
    trion_bare_floats q_norm;
    /** self_attn.k_norm, which not every model has. */
    trion_bare_floats k_norm;
    /** post_attention_layernorm. */
    trion_bare_floats post_attention_layernorm;
    /** mlp.ffn_sub_norm, which not every model has. */
    trion_bare_floats ffn_sub_norm;
} trion_bare_layer;

/** A model whose weights lie in memory, in flash for example. */
typedef struct trion_bare_model {
    /** sizeof(trion_bare_model). */
    size_t struct_size;
    /** Shapes and constants. */
    trion_bare_config config;
    /** The token embedding. */
    trion_bare_matrix embedding;
    /** The blocks, `config.num_hidden_layers` of them. */
    const trion_bare_layer *layers;
    /** The norm before the head. */
    trion_bare_floats norm;
    /** The output head; TRION_BARE_NONE where it is the embedding. */
    trion_bare_matrix head;
} trion_bare_model;

/** Options of a session on bare metal. Fields that are zero have their default. */
typedef struct trion_bare_options {
    /** sizeof(trion_bare_options). */
    size_t struct_size;
    /** Tokens that the session can hold; 0 for the model's longest context. */
    size_t context;
    /**
     * Tokens of a prompt that are computed together; 0 for 1, which takes the least memory. The results are the same.
     */
    size_t max_batch;
    /** A trion_cache; TRION_CACHE_F16 halves the memory of keys and values. */
    uint32_t cache;
} trion_bare_options;

/**
 * Bytes of the buffer for a session of a model, at any address; NULL options for the defaults. NAME_SESSION_SIZE of
 * `trion embed` is at least as large, for the options that the command was given.
 *
 * TRION_INVALID_ARGUMENT for options outside their range, TRION_MALFORMED for a configuration that is none.
 */
TRION_API
trion_status trion_bare_size(const trion_bare_model *model,
                             const trion_bare_options *options,
                             size_t *size,
                             trion_error *error);

/**
 * Makes a session in `buffer` of `size` bytes, at least trion_bare_size(), at any address. Every weight is looked at
 * once, so that what follows can rely on it. The session always takes the most probable token until it is given
 * another sampler.
 *
 * TRION_INVALID_ARGUMENT for options outside their range, TRION_BUFFER_TOO_SMALL, TRION_MALFORMED if the tables do not
 * hold what they say.
 */
TRION_API
trion_status trion_bare_init(const trion_bare_model *model,
                             const trion_bare_options *options,
                             void *buffer,
                             size_t size,
                             trion_bare_session **session,
                             trion_error *error);

/**
 * Gives a session another sampler, from the next token on; NULL options for always the most probable token.
 *
 * TRION_INVALID_ARGUMENT for options outside their range; the session is unchanged then.
 */
TRION_API
trion_status trion_bare_set_sampler(trion_bare_session *session,
                                    const trion_sampler_options *options,
                                    trion_error *error);

/**
 * Appends tokens. The next trion_bare_advance() computes them; until then the logits from before can be read.
 *
 * TRION_NO_TOKENS for none, TRION_TOKEN_OUT_OF_RANGE, TRION_CONTEXT_FULL; the session is unchanged then.
 */
TRION_API
trion_status trion_bare_push(trion_bare_session *session,
                             const uint32_t *tokens,
                             size_t count,
                             trion_error *error);

/**
 * Computes tokens that were pushed, for at most `budget` row-blocks or the smallest step beyond; SIZE_MAX for all. A
 * row-block is 32 rows of a ternary matrix for one token, or what takes about as long. How work is divided into calls
 * changes no bit of the result.
 *
 * TRION_NO_TOKENS if nothing was pushed since the session was made or rewound.
 */
TRION_API
trion_status trion_bare_advance(trion_bare_session *session,
                                size_t budget,
                                trion_bare_progress *progress);

/**
 * The logits of the last token that was computed, one for each token of the vocabulary. They lie in the session's
 * buffer, and are good until trion_bare_advance() begins new ones.
 *
 * TRION_NO_LOGITS.
 */
TRION_API
trion_status trion_bare_logits(const trion_bare_session *session, const float **logits, size_t *count);

/**
 * Chooses a token by the logits, which TRION_BARE_READY tells of, and by the tokens before. It is not added to the
 * session: push it to go on.
 *
 * TRION_NO_LOGITS.
 */
TRION_API
trion_status trion_bare_sample(trion_bare_session *session, uint32_t *token);

/**
 * Forgets all tokens from `position` on; 0 begins anew. The sampler goes on as it is.
 *
 * TRION_INVALID_ARGUMENT if there are fewer tokens; the session is unchanged then.
 */
TRION_API
trion_status trion_bare_rewind(trion_bare_session *session, size_t position, trion_error *error);

/** Tokens in the session, those included that are not computed yet. */
TRION_API
trion_status trion_bare_position(const trion_bare_session *session, size_t *position);

#ifndef TRION_NO_TEXT

/*
 * Tokenizer -----------------------------------------------------------------------------------------------------------
 *
 * Text is UTF-8, given as a pointer and a size in bytes. Functions that write arrays take a capacity: with NULL and 0
 * they write only the count, so call them once to learn it and once more to get the rest.
 */

/**
 * Leaves out the tokens that the model puts around a text (most often one at the beginning): for text in the middle,
 * and for what trion_model_chat() wrote.
 */
#define TRION_ENCODE_PLAIN 1

/** Leaves out the text of special tokens. */
#define TRION_DECODE_SKIP_SPECIAL 1

/** Ends the conversation with the words that begin the assistant's answer. */
#define TRION_CHAT_ANSWER 1

/** One turn of a conversation. */
typedef struct trion_message {
    /** Who speaks, with a zero at its end: "system", "user" or "assistant" for most models. */
    const char *role;
    /** What is said. */
    const char *content;
    /** Bytes of it. */
    size_t content_size;
} trion_message;

/**
 * The tokens of `size` bytes of text. `flags` are TRION_ENCODE_ bits or 0. Special tokens that are written in the text
 * are recognised. Any thread.
 *
 * TRION_BUFFER_TOO_SMALL, TRION_NO_TOKENIZER, TRION_TEXT, TRION_NO_TOKENS for a text without any, with flags 0.
 */
TRION_API
trion_status trion_model_encode(const trion_model *model,
                                const char *text,
                                size_t size,
                                uint32_t flags,
                                uint32_t *tokens,
                                size_t capacity,
                                size_t *count,
                                trion_error *error);

/**
 * The text of `count` tokens, without a zero at its end; bytes that are not UTF-8 become U+FFFD. `flags` are
 * TRION_DECODE_ bits or 0. For tokens that come one at a time use trion_text. Any thread.
 *
 * TRION_BUFFER_TOO_SMALL, TRION_NO_TOKENIZER, TRION_TEXT for a token that has no text.
 */
TRION_API
trion_status trion_model_decode(const trion_model *model,
                                const uint32_t *tokens,
                                size_t count,
                                uint32_t flags,
                                char *text,
                                size_t capacity,
                                size_t *size,
                                trion_error *error);

/**
 * The prompt for a conversation of `count` messages, by the model's chat template, without a zero at its end. `flags`
 * are TRION_CHAT_ bits or 0. Encode it with TRION_ENCODE_PLAIN: it has its special tokens. Any thread.
 *
 * TRION_BUFFER_TOO_SMALL, TRION_NO_TOKENIZER for a model without a chat template, TRION_TEXT when the template refuses
 * the conversation.
 */
TRION_API
trion_status trion_model_chat(const trion_model *model,
                              const trion_message *messages,
                              size_t count,
                              uint32_t flags,
                              char *prompt,
                              size_t capacity,
                              size_t *size,
                              trion_error *error);

/**
 * trion_model_encode() and trion_session_push() in one.
 *
 * As these two; the session is unchanged then.
 */
TRION_API
trion_status trion_session_push_text(trion_session *session,
                                     const char *text,
                                     size_t size,
                                     uint32_t flags,
                                     trion_error *error);

#endif /* TRION_NO_TEXT */

#ifndef TRION_NO_TEXT

/*
 * Text ----------------------------------------------------------------------------------------------------------------
 *
 * Tokens become text one at a time. A character whose bytes are spread over several tokens comes out whole with the
 * last of them, and text that may be the beginning of a stop string is held back until it is known not to be.
 */

/** Why trion_generate() came to its end. */
typedef enum trion_stop {
    /** As many tokens were written as were asked for. */
    TRION_STOP_MAX_TOKENS = 0,
    /** As TRION_REASON_END. */
    TRION_STOP_END = 1,
    /** As TRION_REASON_CONTEXT. */
    TRION_STOP_CONTEXT = 2,
    /** As TRION_REASON_CANCELLED. */
    TRION_STOP_CANCELLED = 3,
    /** As TRION_REASON_CONSTRAINT. */
    TRION_STOP_CONSTRAINT = 4,
    /** As TRION_REASON_DEAD_END. */
    TRION_STOP_DEAD_END = 5,
    /** A stop string was met. */
    TRION_STOP_STRING = 6,
} trion_stop;

/** A text that is being written. One call at a time may use it. It keeps its model alive. */
typedef struct trion_text trion_text;

/** Options of a text. Fields that are zero have their default. */
typedef struct trion_text_options {
    /** sizeof(trion_text_options). */
    size_t struct_size;
    /** Strings that end the text, each with a zero at its end; NULL for none. They are copied. */
    const char *const *stops;
    /** How many. */
    size_t stop_count;
    /** 1 to have the text of special tokens too. */
    uint32_t special;
    /**
     * 1 for a text that begins here rather than going on with a prompt: some tokenizers put a space before a text,
     * which is taken away then.
     */
    uint32_t beginning;
} trion_text_options;

/** A piece of text. It belongs to the trion_text, and is valid until the next call with it. */
typedef struct trion_piece {
    /** UTF-8, whole characters, without a zero at its end; never NULL. */
    const char *data;
    /** Bytes, often 0. */
    size_t size;
    /** 1 once a stop string was met, else 0. Nothing of it comes out, and nothing after it. */
    int stopped;
} trion_piece;

/**
 * Receives text as it is written: `size` bytes of UTF-8, whole characters, without a zero at its end. Returns 0 to
 * stop.
 */
typedef int (*trion_text_fn)(void *user, const char *text, size_t size);

/**
 * Begins a text. Free it with trion_text_free(). Any thread.
 *
 * TRION_NO_TOKENIZER, TRION_MALFORMED for a tokenizer that is not what it should be.
 */
TRION_API
trion_status trion_text_new(const trion_model *model,
                            const trion_text_options *options,
                            trion_text **text,
                            trion_error *error);

/** Adds a token, and gives the text that is known with it. */
TRION_API
trion_status trion_text_push(trion_text *text, uint32_t token, trion_piece *piece);

/** Ends the text, and gives what was held back. Pushing again goes on with it. */
TRION_API
trion_status trion_text_finish(trion_text *text, trion_piece *piece);

/** Frees a text; NULL does nothing. */
TRION_API
void trion_text_free(trion_text *text);

/**
 * Writes at most `max_tokens` tokens of `session` to `on_text(user, ...)`, for programs that need no slices. `text`
 * decides on stop strings and is finished; NULL for one with default options. `stop` receives why the text ended, and
 * may be NULL. The session is left where the text ends, and can go on; what belongs to a stop string is in it.
 *
 * As trion_session_advance(); TRION_NO_TOKENIZER; TRION_OTHER_MODEL for a text of another model.
 */
TRION_API
trion_status trion_generate(trion_session *session,
                            trion_text *text,
                            size_t max_tokens,
                            trion_text_fn on_text,
                            void *user,
                            trion_stop *stop,
                            trion_error *error);

#endif /* TRION_NO_TEXT */

#ifndef TRION_NO_TEXT

/*
 * Constraint ----------------------------------------------------------------------------------------------------------
 *
 * Text that follows a JSON schema, a regular expression or a grammar: tokens that would lead away from it are not
 * chosen. A constraint is compiled ahead, once for a model, and any number of sessions use it.
 *
 * The text that is constrained begins after the last token that the caller pushed. Rewinding by the token that was
 * just chosen goes back in it; what is pushed after a rewind begins a new one. Where the text may end, the model may
 * end it (TRION_REASON_END); where nothing else may follow, it ends with TRION_REASON_CONSTRAINT; where nothing can
 * follow although it may not end, with TRION_REASON_DEAD_END. docs/constraints.md says what grammars may contain, and
 * which bounds there are.
 */

/** How a constraint is written. */
typedef enum trion_grammar {
    /** A JSON schema: the text is JSON for which it holds. */
    TRION_GRAMMAR_JSON_SCHEMA = 0,
    /** A regular expression that the whole text matches. */
    TRION_GRAMMAR_REGEX = 1,
    /** A grammar in the form of Lark: the text is derived from its rule `start`. */
    TRION_GRAMMAR_LARK = 2,
} trion_grammar;

/** A compiled constraint. Immutable. It keeps its model alive. */
typedef struct trion_constraint trion_constraint;

/**
 * Compiles `size` bytes of `source`; `grammar` is a trion_grammar. Free it with trion_constraint_free(). The work is
 * done on a thread of its own with a large stack, which ends before the call does. The first constraint of a model
 * also sorts its vocabulary. Any thread.
 *
 * TRION_CONSTRAINT when the source is wrong or too large, TRION_NO_TOKENIZER.
 */
TRION_API
trion_status trion_constraint_new(const trion_model *model,
                                  uint32_t grammar,
                                  const char *source,
                                  size_t size,
                                  trion_constraint **constraint,
                                  trion_error *error);

/** Frees a constraint; NULL does nothing. Sessions that use it keep what they need. Any thread. */
TRION_API
void trion_constraint_free(trion_constraint *constraint);

/**
 * Constrains the text that the session writes from here on, or from after the tokens that are pushed next; NULL for no
 * constraint.
 *
 * TRION_OTHER_MODEL, TRION_BUSY; the session is unchanged then.
 */
TRION_API
trion_status trion_session_set_constraint(trion_session *session,
                                          const trion_constraint *constraint,
                                          trion_error *error);

#endif /* TRION_NO_TEXT */

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* TRION_H */
