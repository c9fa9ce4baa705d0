/* The caller's allocator: what it is asked for, what becomes of that, and what happens when it has nothing. */
#include "check.h"
#include "support.h"

#define SESSIONS 6

/* Counts, and fails at one call. */
typedef struct heap {
    size_t calls, fail_at, live_blocks, live_bytes;
    /* Gives blocks that lie this far beside where they should. */
    size_t skew;
    size_t largest;
} heap;

typedef struct block {
    size_t size, alignment;
    /* What was given out, and the memory around it. */
    void *given, *memory;
    struct block *next;
} block;

static block *blocks;

static void *heap_allocate(void *user, size_t size, size_t alignment) {
    heap *heap = user;
    block *block;
    unsigned char *memory;
    CHECK(size > 0 && alignment > 0 && (alignment & (alignment - 1)) == 0);
    if (++heap->calls == heap->fail_at) {
        return NULL;
    }
    block = take(sizeof *block);
    /* Not aligned for more than is asked for, and filled with what no session may take for its own. */
    memory = take(size + 3 * alignment);
    memset(memory, 0xa5, size + 3 * alignment);
    block->memory = memory;
    memory += alignment - (uintptr_t)memory % alignment;
    memory += (uintptr_t)memory % (2 * alignment) == 0 ? alignment : 0;
    memory += heap->skew;
    block->given = memory;
    block->size = size;
    block->alignment = alignment;
    block->next = blocks;
    blocks = block;
    heap->live_blocks++;
    heap->live_bytes += size;
    heap->largest = size > heap->largest ? size : heap->largest;
    return memory;
}

static void heap_release(void *user, void *memory, size_t size, size_t alignment) {
    heap *heap = user;
    block **place = &blocks, *found;
    while (*place != NULL && (*place)->given != memory) {
        place = &(*place)->next;
    }
    found = *place;
    CHECK(found != NULL && found->size == size && found->alignment == alignment);
    *place = found->next;
    heap->live_blocks--;
    heap->live_bytes -= size;
    /* What is read after this is not what was there. */
    memset(found->memory, 0x5a, size + 3 * alignment);
    free(found->memory);
    free(found);
}

/*
 * Several sessions and forks, with work between, freed in the order numbered `order`. Returns the first status that is
 * not TRION_OK; whatever was made is freed in any case.
 */
static trion_status scenario(const trion_model *model, heap *heap, size_t order, uint32_t *last) {
    trion_allocator allocator = {NULL, heap_allocate, heap_release};
    trion_session *sessions[SESSIONS] = {NULL};
    trion_session_options options = {.struct_size = sizeof options};
    trion_status status = TRION_OK;
    size_t i;
    allocator.user = heap;
    options.context = 32;
    options.ignore_end = 1;
    for (i = 0; i < SESSIONS && status == TRION_OK; i++) {
        memset(&error, 0, sizeof error);
        if (i % 2 == 0) {
            options.max_batch = 1 + i;
            status = trion_session_new(model, &options, &allocator, &sessions[i], &error);
        } else {
            status = trion_session_fork(sessions[i - 1], &allocator, &sessions[i], &error);
        }
        if (status == TRION_OK) {
            push_numbers(sessions[i], 288, 4, i);
            *last = next_token(sessions[i]);
            if (i == 3) {
                /* One goes early. */
                trion_session_free(sessions[1]);
                sessions[1] = NULL;
            }
        } else {
            CHECK(error.status == status && error.message[0] != 0 && sessions[i] == NULL);
        }
    }
    /* Steps of 1 and of 5 both come to each of the six once. */
    for (i = 0; i < SESSIONS; i++) {
        trion_session_free(sessions[(order + i * (order % 2 == 0 ? 1 : 5)) % SESSIONS]);
    }
    return status;
}

static void failures(const trion_model *model) {
    trion_session_options options = {.struct_size = sizeof options};
    uint32_t expected = 0, token = 0;
    size_t n, size;
    int worked = 0;
    heap none = {0, 0, 0, 0, 0, 0};
    CHECK_OK(scenario(model, &none, 0, &expected));
    CHECK(none.calls == SESSIONS && none.live_blocks == 0 && none.live_bytes == 0 && blocks == NULL);
    /* A block is no larger than a buffer would have to be. */
    options.context = 32;
    options.max_batch = SESSIONS - 1;
    CHECK_OK(trion_session_size(model, &options, &size, &error));
    CHECK(none.largest <= size && none.largest + 64 > size);
    for (n = 1; !worked; n++) {
        heap heap = {0, 0, 0, 0, 0, 0};
        trion_status status;
        heap.fail_at = n;
        status = scenario(model, &heap, n, &token);
        CHECK(status == TRION_OUT_OF_MEMORY || (status == TRION_OK && n > SESSIONS));
        CHECK(heap.live_blocks == 0 && heap.live_bytes == 0 && blocks == NULL);
        worked = status == TRION_OK;
    }
    CHECK(token == expected);
}

static void crooked_memory(const trion_model *model) {
    trion_session *session = new_session(model, 16, 0), *made = NULL;
    size_t skew;
    for (skew = 1; skew < 64; skew++) {
        heap heap = {0, 0, 0, 0, 0, 0};
        trion_allocator allocator = {NULL, heap_allocate, heap_release};
        allocator.user = &heap;
        heap.skew = skew;
        CHECK_STATUS(trion_session_new(model, NULL, &allocator, &made, &error), TRION_INVALID_ARGUMENT);
        CHECK(heap.calls == 1 && heap.live_blocks == 0 && made == NULL);
        CHECK_STATUS(trion_session_fork(session, &allocator, &made, &error), TRION_INVALID_ARGUMENT);
        CHECK(heap.calls == 2 && heap.live_blocks == 0 && made == NULL);
    }
    trion_session_free(session);
}

/* The allocator's struct is the caller's again after the call, and so is its model's handle. */
static void short_lives(const trion_model *model) {
    heap heap = {0, 0, 0, 0, 0, 0};
    trion_session *session, *fork;
    {
        trion_allocator *allocator = take(sizeof *allocator);
        allocator->user = &heap;
        allocator->allocate = heap_allocate;
        allocator->release = heap_release;
        CHECK_OK(trion_session_new(model, NULL, allocator, &session, &error));
        CHECK_OK(trion_session_fork(session, allocator, &fork, &error));
        memset(allocator, 0xa5, sizeof *allocator);
        free(allocator);
    }
    trion_session_free(session);
    push_numbers(fork, 288, 3, 1);
    CHECK(heap.live_blocks == 1 && length_of(fork) == 3);
    trion_session_free(fork);
    CHECK(heap.calls == 2 && heap.live_blocks == 0);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_model *model = open_model(NULL, golden(&arguments, "bitnet_offline"));
    failures(model);
    crooked_memory(model);
    short_lives(model);
    trion_model_free(model);
    return 0;
}
