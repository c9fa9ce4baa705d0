/* Sessions that live and end in the caller's memory: at any address, with not a byte too few, and none too many. */
#include "check.h"
#include "support.h"

#define GUARD 256

/* A block with guards on both sides of what a session is given. */
typedef struct arena {
    unsigned char *whole;
    unsigned char *buffer;
    size_t size;
} arena;

static arena take_arena(size_t offset, size_t size) {
    arena arena;
    arena.whole = take(size + 2 * GUARD + 128);
    memset(arena.whole, 0xa5, size + 2 * GUARD + 128);
    arena.buffer = arena.whole + GUARD;
    arena.buffer += 64 - (uintptr_t)arena.buffer % 64 + offset;
    arena.size = size;
    return arena;
}

static void end_arena(arena *arena) {
    size_t i, before = (size_t)(arena->buffer - arena->whole);
    size_t whole = arena->size + 2 * GUARD + 128;
    for (i = 0; i < whole; i++) {
        CHECK((i >= before && i < before + arena->size) || arena->whole[i] == 0xa5);
    }
    free(arena->whole);
}

static trace continue_and_free(trion_session *session) {
    trace trace;
    sample(session, 3);
    trace = take_trace(session, SIZE_MAX, 4);
    trion_session_free(session);
    return trace;
}

static void every_offset(const trion_model *model, trion_session_options options) {
    trion_session *session, *fork;
    trace expected[2], found;
    size_t offset, size;
    CHECK_OK(trion_session_new(model, &options, NULL, &session, &error));
    push_numbers(session, 288, 9, 1);
    expected[0] = take_trace(session, SIZE_MAX, 4);
    expected[1] = continue_and_free(session);
    CHECK_OK(trion_session_size(model, &options, &size, &error));
    for (offset = 0; offset < 64; offset++) {
        arena first = take_arena(offset, size), second = take_arena(63 - offset, size);
        CHECK_OK(trion_session_init(model, &options, first.buffer, size, &session, &error));
        CHECK((unsigned char *)session >= first.buffer && (unsigned char *)session < first.buffer + size);
        push_numbers(session, 288, 9, 1);
        found = take_trace(session, SIZE_MAX, 4);
        CHECK(same_trace(&found, &expected[0]));
        free_trace(&found);
        CHECK_OK(trion_session_fork_init(session, second.buffer, size, &fork, &error));
        CHECK((unsigned char *)fork >= second.buffer && (unsigned char *)fork < second.buffer + size);
        found = continue_and_free(session);
        CHECK(same_trace(&found, &expected[1]));
        free_trace(&found);
        /* The memory is the caller's again, and the fork does not miss it. */
        memset(first.buffer, 0xa5, size);
        end_arena(&first);
        found = continue_and_free(fork);
        CHECK(same_trace(&found, &expected[1]));
        free_trace(&found);
        end_arena(&second);
    }
    free_trace(&expected[0]);
    free_trace(&expected[1]);
}

/* Goes down byte by byte from what trion_session_size() says: it works down to some size, and never again below. */
static void smallest_sizes(const trion_model *model, trion_session_options options, size_t step) {
    trion_session *none = NULL;
    size_t offset, size;
    CHECK_OK(trion_session_size(model, &options, &size, &error));
    for (offset = 0; offset < 64; offset += step) {
        size_t found, smallest = size, needed = size - 63 + (64 - offset) % 64;
        for (found = size; found + 200 > size; found--) {
            arena arena = take_arena(offset, found);
            trion_session *session = NULL;
            trion_event event;
            trion_status status = trion_session_init(model, &options, arena.buffer, found, &session, &error);
            if (status == TRION_OK) {
                CHECK(found == smallest || found + 1 == smallest);
                smallest = found;
                push_numbers(session, 288, options.context, 1);
                CHECK_OK(trion_session_advance(session, SIZE_MAX, &event));
                trion_session_free(session);
            } else {
                CHECK(status == TRION_BUFFER_TOO_SMALL && session == NULL);
            }
            end_arena(&arena);
        }
        /* The size is for the worst address; elsewhere it takes less by what needs no skipping. */
        CHECK(smallest == needed);
    }
    CHECK_STATUS(trion_session_init(model, &options, NULL, 0, &none, &error), TRION_BUFFER_TOO_SMALL);
    CHECK(none == NULL);
    for (size /= 2; size > 0; size /= 2) {
        arena arena = take_arena(1, size);
        trion_session *session = NULL;
        CHECK_STATUS(trion_session_init(model, &options, arena.buffer, size, &session, &error), TRION_BUFFER_TOO_SMALL);
        end_arena(&arena);
    }
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_model *model = open_model(NULL, golden(&arguments, "bitnet_offline"));
    trion_session_options options = {.struct_size = sizeof options};
    trion_session_options large, small;
    size_t size, smaller;
    options.context = 24;
    options.max_batch = 5;
    options.ignore_end = 1;
    every_offset(model, options);
    smallest_sizes(model, options, arguments.quick ? 21 : 1);
    options.context = 1;
    options.max_batch = 1;
    options.cache = TRION_CACHE_F16;
    smallest_sizes(model, options, arguments.quick ? 63 : 7);

    /* What the options say is what decides the size. */
    large = small = options;
    CHECK_OK(trion_session_size(model, &options, &size, &error));
    large.context = 64;
    CHECK_OK(trion_session_size(model, &large, &smaller, &error));
    CHECK(size < smaller);
    size = smaller;
    large.cache = TRION_CACHE_F32;
    CHECK_OK(trion_session_size(model, &large, &smaller, &error));
    CHECK(size < smaller);
    small.context = 64;
    small.max_batch = 64;
    small.cache = TRION_CACHE_F32;
    CHECK_OK(trion_session_size(model, &small, &size, &error));
    CHECK(smaller < size);
    trion_model_free(model);
    return 0;
}
