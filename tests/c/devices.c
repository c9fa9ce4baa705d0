/*
 * Devices: what a runtime takes for one, what it says of one that is not there, and that sessions on each do the same,
 * bit by bit. Everything that is compared with the CPU is compared for the device "auto", and where there is an NVIDIA
 * GPU for the devices "cuda" and "cuda:0" too; where there is none, the test says so and goes by the rest.
 */
#include <pthread.h>

#include "check.h"
#include "support.h"

/* What a missing GPU is said to be. */
static char reason[sizeof error.message];

static trion_status make(const char *device, trion_runtime **runtime) {
    trion_runtime_options options = {.struct_size = sizeof options};
    options.device = device;
    return trion_runtime_new(&options, runtime, &error);
}

/* Whether the runtime of that device, which must come to be, computes on a CPU. */
static int is_cpu(const char *device, const char *path) {
    trion_runtime *runtime;
    trion_model *model;
    trion_model_info info;
    int cpu;
    CHECK_OK(make(device, &runtime));
    model = open_model(runtime, path);
    trion_runtime_free(runtime);
    CHECK_OK(trion_model_get_info(model, &info, sizeof info));
    CHECK(info.device != NULL && info.device[0] != 0);
    cpu = strcmp(info.device, "cpu") == 0;
    trion_model_free(model);
    return cpu;
}

/* Which names there are, and what is said of others. Returns whether there is a GPU. */
static int names(const char *path) {
    const char *const wrong[] = {"", "gpu", "CUDA", "cuda:", "cuda:-1", "cuda:x", "cuda1", " cpu", "auto:0",
                                 "cuda:99999999999999999999999"};
    trion_runtime_options options = {.struct_size = offsetof(trion_runtime_options, device)};
    trion_runtime *runtime;
    trion_status status;
    size_t i;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        CHECK_STATUS(make(wrong[i], &runtime), TRION_INVALID_ARGUMENT);
        CHECK(strstr(error.message, "cpu, cuda, cuda:NUMBER or auto") != NULL);
        CHECK(strstr(error.message, wrong[i]) != NULL);
    }
    CHECK_STATUS(make("\xff", &runtime), TRION_INVALID_ARGUMENT);
    CHECK(is_cpu(NULL, path) && is_cpu("cpu", path));

    /* A program of version 1.0 has something else behind its options. */
    options.device = "gpu";
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    trion_runtime_free(runtime);

    /* A number that no machine has: a reason, and the way out. */
    CHECK_STATUS(make("cuda:1000", &runtime), TRION_DEVICE);
    CHECK(strstr(error.message, "the device cpu computes the same") != NULL);
    status = make("cuda", &runtime);
    if (status == TRION_OK) {
        trion_runtime_free(runtime);
        CHECK((trion_features() & TRION_FEATURE_CUDA) != 0);
        CHECK(!is_cpu("cuda", path) && !is_cpu("cuda:0", path) && !is_cpu("auto", path));
        return 1;
    }
    CHECK(status == TRION_DEVICE && error.status == TRION_DEVICE);
    CHECK(strstr(error.message, (trion_features() & TRION_FEATURE_CUDA) != 0 ? "driver" : "feature") != NULL
          || strstr(error.message, "compute capability") != NULL || strstr(error.message, "GPU number 0") != NULL);
    memcpy(reason, error.message, sizeof reason);
    CHECK_STATUS(make("cuda:0", &runtime), TRION_DEVICE);
    CHECK(strcmp(error.message, reason) == 0);
    CHECK(is_cpu("auto", path));
    return 0;
}

/* One model on the CPU and on another device. */
typedef struct pair {
    trion_model *models[2];
    size_t vocab_size, context;
    int on_gpu;
} pair;

static pair open_pair(const char *device, const char *path) {
    pair pair;
    trion_runtime *runtime;
    trion_model_info info;
    CHECK_OK(make(device, &runtime));
    pair.models[0] = open_model(NULL, path);
    pair.models[1] = open_model(runtime, path);
    trion_runtime_free(runtime);
    CHECK_OK(trion_model_get_info(pair.models[1], &info, sizeof info));
    pair.vocab_size = info.vocab_size;
    pair.context = info.max_position_embeddings;
    pair.on_gpu = strcmp(info.device, "cpu") != 0;
    return pair;
}

static void close_pair(const pair *pair) {
    trion_model_free(pair->models[0]);
    trion_model_free(pair->models[1]);
}

/* Both go on by `count` tokens, in calls of their own budgets, with the same bits. */
static void same_future(trion_session *one, trion_session *other, size_t count) {
    trace first = take_trace(one, SIZE_MAX, count), second = take_trace(other, 30, count);
    CHECK(same_trace(&first, &second));
    free_trace(&first);
    free_trace(&second);
}

static unsigned char *save(const trion_session *session, size_t *size) {
    size_t expected;
    unsigned char *state;
    CHECK_OK(trion_session_saved_size(session, &expected));
    state = take(expected);
    CHECK_STATUS(trion_session_save(session, state, expected - 1, size, &error), TRION_BUFFER_TOO_SMALL);
    CHECK_OK(trion_session_save(session, state, expected, size, &error));
    CHECK(*size == expected);
    return state;
}

/* Prompts in batches of all sizes, then tokens, in calls of all sizes; events, candidates and logits agree. */
static void same_tokens(const pair *pair, size_t prompt, size_t more, trion_cache cache) {
    const size_t batches[] = {0, 1, 7};
    size_t i, j, k;
    for (i = 0; i < sizeof batches / sizeof *batches; i++) {
        trion_session *sessions[2];
        trion_candidate best[2][5];
        trion_event events[2];
        const uint32_t *tokens[2];
        const float *logits[2];
        size_t units[2], count;
        for (j = 0; j < 2; j++) {
            sessions[j] = session_of(pair->models[j], prompt + more + 8, batches[i], cache);
            push_numbers(sessions[j], pair->vocab_size, prompt, i);
            CHECK_OK(trion_session_advance(sessions[j], 0, &events[j]));
            CHECK(events[j].kind == TRION_EVENT_MORE && events[j].units == 0);
            CHECK_STATUS(trion_session_logits(sessions[j], &logits[j], &count), TRION_NO_LOGITS);
            if (i > 0) {
                sample(sessions[j], i);
            }
        }
        same_future(sessions[0], sessions[1], more);
        for (k = 0; k < 4; k++) {
            for (j = 0; j < 2; j++) {
                CHECK_OK(trion_session_token_units(sessions[j], &units[j]));
                CHECK_OK(trion_session_advance(sessions[j], SIZE_MAX, &events[j]));
                CHECK(events[j].kind == TRION_EVENT_TOKEN && events[j].units > 0 && events[j].units <= units[j] + 1);
                CHECK_OK(trion_session_candidates(sessions[j], best[j], 5, &count));
                CHECK(count == 5);
                CHECK_OK(trion_session_logits(sessions[j], &logits[j], &count));
                CHECK(count == pair->vocab_size);
                CHECK_OK(trion_session_tokens(sessions[j], &tokens[j], &count));
                CHECK(count == prompt + more + k + 1);
            }
            CHECK(events[0].token == events[1].token && events[0].probability == events[1].probability);
            CHECK(events[0].probability > 0 && units[0] == units[1]);
            CHECK(memcmp(best[0], best[1], sizeof best[0]) == 0);
            CHECK(memcmp(logits[0], logits[1], pair->vocab_size * sizeof *logits[0]) == 0);
            CHECK(memcmp(tokens[0], tokens[1], count * sizeof *tokens[0]) == 0);
        }
        trion_session_free(sessions[0]);
        trion_session_free(sessions[1]);
    }
}

/* Compute, fork, assign, save and load: from each point a session of either device goes on as one of the other does. */
static void same_copies(const pair *pair, trion_cache cache) {
    const size_t budgets[] = {0, 1, 40, SIZE_MAX};
    size_t i, j, k;
    for (i = 0; i < sizeof budgets / sizeof *budgets; i++) {
        for (j = 0; j < 2; j++) {
            /* From the device j to both. */
            trion_session *origin = session_of(pair->models[j], 60, 6, cache), *ways[6];
            unsigned char *state, *again, *memory;
            trion_session_options options = {.struct_size = sizeof options};
            trion_event event;
            size_t size, again_size, block;
            trace expected, found;
            push_numbers(origin, pair->vocab_size, 20, i);
            sample(origin, i);
            CHECK_OK(trion_session_compute(origin, budgets[i], &event));
            CHECK(event.kind == TRION_EVENT_READY || (event.kind == TRION_EVENT_MORE && budgets[i] != SIZE_MAX));
            CHECK(event.units > 0 || budgets[i] == 0);
            state = save(origin, &size);
            for (k = 0; k < 2; k++) {
                /* Something else is there before. */
                ways[k] = session_of(pair->models[k], 50, k == 0 ? 1 : 0, cache);
                push_numbers(ways[k], pair->vocab_size, 9, 7);
                (void)next_token(ways[k]);
                CHECK_OK(trion_session_load(ways[k], state, size, &error));
                again = save(ways[k], &again_size);
                CHECK(size == again_size && memcmp(state, again, size) == 0);
                free(again);
                ways[2 + k] = session_of(pair->models[k], 45, 0, cache);
                push_numbers(ways[2 + k], pair->vocab_size, 30, 8);
                (void)next_token(ways[2 + k]);
                CHECK_OK(trion_session_assign(ways[2 + k], origin, &error));
                again = save(ways[2 + k], &again_size);
                CHECK(size == again_size && memcmp(state, again, size) == 0);
                free(again);
            }
            CHECK_OK(trion_session_fork(origin, NULL, &ways[4], &error));
            options.context = 60;
            options.max_batch = 6;
            options.cache = cache;
            CHECK_OK(trion_session_size(pair->models[j], &options, &block, &error));
            memory = take(block + 1);
            CHECK_OK(trion_session_fork_init(origin, memory + 1, block, &ways[5], &error));
            expected = take_trace(origin, SIZE_MAX, 8);
            for (k = 0; k < 6; k++) {
                found = take_trace(ways[k], k % 2 == 0 ? SIZE_MAX : 1, 8);
                CHECK(same_trace(&expected, &found));
                free_trace(&found);
                trion_session_free(ways[k]);
            }
            free_trace(&expected);
            free(memory);
            free(state);
            trion_session_free(origin);
        }
    }
}

/* After as many tokens a saved state is the same bytes on both. */
static void same_states(const pair *pair, trion_cache cache) {
    trion_session *sessions[2];
    unsigned char *states[2];
    size_t sizes[2], i, j;
    for (j = 0; j < 2; j++) {
        sessions[j] = session_of(pair->models[j], 40, 4, cache);
    }
    for (i = 0; i < 6; i++) {
        for (j = 0; j < 2; j++) {
            states[j] = save(sessions[j], &sizes[j]);
        }
        CHECK(sizes[0] == sizes[1] && memcmp(states[0], states[1], sizes[0]) == 0);
        for (j = 0; j < 2; j++) {
            push_numbers(sessions[j], pair->vocab_size, i % 3 + 1, i);
            (void)next_token(sessions[j]);
            free(states[j]);
        }
    }
    trion_session_free(sessions[0]);
    trion_session_free(sessions[1]);
}

/* Rewinding chooses again where only the chosen token is forgotten, and computes anew where more is. */
static void same_rewinds(const pair *pair) {
    trion_session *sessions[2];
    trion_event event;
    uint32_t token;
    size_t j, length;
    for (j = 0; j < 2; j++) {
        sessions[j] = session_of(pair->models[j], 60, 5, TRION_CACHE_F32);
        push_numbers(sessions[j], pair->vocab_size, 20, 1);
        token = next_token(sessions[j]);
        CHECK_OK(trion_session_rewind(sessions[j], 20, &error));
        CHECK_OK(trion_session_advance(sessions[j], 0, &event));
        CHECK(event.kind == TRION_EVENT_TOKEN && event.token == token && event.units == 0);
        CHECK_STATUS(trion_session_rewind(sessions[j], 22, &error), TRION_INVALID_ARGUMENT);
    }
    for (length = 0; length < 20; length += 3) {
        for (j = 0; j < 2; j++) {
            CHECK_OK(trion_session_rewind(sessions[j], length, &error));
            CHECK_STATUS(trion_session_advance(sessions[j], SIZE_MAX, &event), TRION_NO_TOKENS);
            push_numbers(sessions[j], pair->vocab_size, 12, length);
        }
        same_future(sessions[0], sessions[1], 9);
    }
    trion_session_free(sessions[0]);
    trion_session_free(sessions[1]);
}

/* What is refused is refused alike, and leaves the session as it was. */
static void same_refusals(const pair *pair) {
    trion_session *sessions[2], *half;
    uint32_t tokens[50] = {0}, beyond = (uint32_t)pair->vocab_size;
    trion_event event;
    unsigned char *state;
    size_t size, j;
    for (j = 0; j < 2; j++) {
        sessions[j] = session_of(pair->models[j], 40, 4, TRION_CACHE_F32);
        half = session_of(pair->models[j], 40, 4, TRION_CACHE_F16);
        CHECK_STATUS(trion_session_advance(sessions[j], SIZE_MAX, &event), TRION_NO_TOKENS);
        push_numbers(half, pair->vocab_size, 10, 1);
        (void)next_token(half);
        state = save(half, &size);
        push_numbers(sessions[j], pair->vocab_size, 10, 1);
        (void)next_token(sessions[j]);
        CHECK_STATUS(trion_session_load(sessions[j], state, size, &error), TRION_STATE);
        CHECK_STATUS(trion_session_assign(sessions[j], half, &error), TRION_STATE);
        free(state);
        state = save(sessions[j], &size);
        CHECK_STATUS(trion_session_load(sessions[j], state, size - 1, &error), TRION_STATE);
        CHECK_STATUS(trion_session_push(sessions[j], tokens, 30, &error), TRION_CONTEXT_FULL);
        CHECK_STATUS(trion_session_push(sessions[j], &beyond, 1, &error), TRION_TOKEN_OUT_OF_RANGE);
        CHECK_STATUS(trion_session_push(sessions[j], NULL, 0, &error), TRION_NO_TOKENS);
        free(state);
        trion_session_free(half);
        half = session_of(pair->models[1 - j], 10, 4, TRION_CACHE_F32);
        CHECK_STATUS(trion_session_assign(half, sessions[j], &error), TRION_CONTEXT_FULL);
        trion_session_free(half);
        /* Cancelled before it begins; it goes on after. */
        trion_session_cancel(sessions[j]);
        CHECK_OK(trion_session_advance(sessions[j], SIZE_MAX, &event));
        CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CANCELLED && event.units == 0);
    }
    same_future(sessions[0], sessions[1], 29);
    for (j = 0; j < 2; j++) {
        CHECK_OK(trion_session_advance(sessions[j], SIZE_MAX, &event));
        CHECK(event.kind == TRION_EVENT_DONE && event.reason == TRION_REASON_CONTEXT);
        trion_session_free(sessions[j]);
    }
}

/* Memory: the block, what a GPU gives, and an allocator that is called once. */
static size_t blocks, block_bytes;

static void *allocate(void *user, size_t size, size_t alignment) {
    char *memory = take(size + alignment);
    size_t skip = alignment - (uintptr_t)memory % alignment;
    (void)user;
    blocks++;
    block_bytes = size;
    memory[skip - 1] = (char)(skip - 1);
    return memory + skip;
}

static void release(void *user, void *memory, size_t size, size_t alignment) {
    (void)user, (void)alignment;
    CHECK(size == block_bytes);
    blocks--;
    free((char *)memory - 1 - ((char *)memory)[-1]);
}

static void memory_of(const pair *pair) {
    const trion_allocator allocator = {NULL, allocate, release};
    trion_session_options options = {.struct_size = sizeof options};
    trion_gpu_memory plans[2], half;
    trion_model_info info;
    trion_session *session, *fork;
    size_t sizes[2], j;
    CHECK_OK(trion_model_get_info(pair->models[0], &info, sizeof info));
    for (j = 0; j < 2; j++) {
        CHECK_OK(trion_session_size(pair->models[j], NULL, &sizes[j], &error));
    }
    CHECK(pair->on_gpu ? sizes[1] < 4096 && sizes[1] < sizes[0] : sizes[1] == sizes[0]);
    CHECK_OK(trion_session_new(pair->models[1], NULL, &allocator, &session, &error));
    CHECK(blocks == 1 && block_bytes <= sizes[1]);
    CHECK_OK(trion_session_fork(session, &allocator, &fork, &error));
    CHECK(blocks == 2);
    trion_session_free(session);
    trion_session_free(fork);
    CHECK(blocks == 0);

    if ((trion_features() & TRION_FEATURE_CUDA) == 0) {
        CHECK_STATUS(trion_session_gpu_memory(pair->models[0], NULL, &half, sizeof half, &error), TRION_DEVICE);
        return;
    }
    for (j = 0; j < 2; j++) {
        CHECK_OK(trion_session_gpu_memory(pair->models[j], NULL, &plans[j], sizeof plans[j], &error));
    }
    options.cache = TRION_CACHE_F16;
    CHECK_OK(trion_session_gpu_memory(pair->models[1], &options, &half, sizeof half, &error));
    CHECK(plans[0].weights == plans[1].weights && plans[0].embedding == plans[1].embedding);
    CHECK(plans[0].cache == plans[1].cache && plans[0].scratch >= plans[1].scratch && plans[1].scratch > 0);
    CHECK(plans[0].weights + plans[0].embedding > info.packed_bytes / 2);
    /* Layers, heads, keys and values, positions, columns, bytes; whole pieces of 256. */
    size_t cache = 2 * info.num_hidden_layers * info.num_key_value_heads * info.max_position_embeddings
        * info.head_dim * sizeof(float);
    CHECK(plans[0].cache == (cache + 255) / 256 * 256);
    CHECK(half.cache == (cache / 2 + 255) / 256 * 256 && half.weights == plans[0].weights);
}

/* Several sessions at once, on threads; each is freed on another one. */
typedef struct worker {
    const trion_model *model;
    size_t vocab_size;
    trion_session *session;
    trace trace;
} worker;

static void *work(void *user) {
    worker *worker = user;
    worker->session = session_of(worker->model, 60, 8, TRION_CACHE_F32);
    push_numbers(worker->session, worker->vocab_size, 30, 3);
    worker->trace = take_trace(worker->session, 50, 20);
    return NULL;
}

static void *cancel_soon(void *session) {
    trion_session_cancel(session);
    return NULL;
}

static void threads(const pair *pair) {
    worker workers[4];
    pthread_t ids[4], other;
    trion_event event;
    size_t i;
    for (i = 0; i < 4; i++) {
        workers[i].model = pair->models[i == 0 ? 0 : 1];
        workers[i].vocab_size = pair->vocab_size;
        CHECK(pthread_create(&ids[i], NULL, work, &workers[i]) == 0);
    }
    for (i = 0; i < 4; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
        CHECK(same_trace(&workers[0].trace, &workers[i].trace));
        if (i > 0) {
            free_trace(&workers[i].trace);
        }
    }
    /* Cancelled from another thread, at some time: within the call, or before the next. */
    CHECK_OK(trion_session_rewind(workers[1].session, 0, &error));
    push_numbers(workers[1].session, pair->vocab_size, 30, 3);
    CHECK(pthread_create(&other, NULL, cancel_soon, workers[1].session) == 0);
    do {
        CHECK_OK(trion_session_compute(workers[1].session, 1, &event));
    } while (event.kind != TRION_EVENT_DONE);
    CHECK(pthread_join(other, NULL) == 0 && event.reason == TRION_REASON_CANCELLED);
    workers[1].trace = take_trace(workers[1].session, SIZE_MAX, 20);
    CHECK(same_trace(&workers[0].trace, &workers[1].trace));
    free_trace(&workers[0].trace);
    free_trace(&workers[1].trace);
    for (i = 0; i < 4; i++) {
        trion_session_free(workers[i].session);
    }
}

/* Sessions together: on one device only, cancelled, longer ones than before, and by several threads at once. */
typedef struct crowd {
    const trion_model *model;
    size_t vocab_size, context;
    uint32_t tokens[4][6];
} crowd;

static void *advance_crowd(void *user) {
    crowd *crowd = user;
    trion_session *sessions[4];
    trion_event events[4];
    size_t i, k;
    for (i = 0; i < 4; i++) {
        sessions[i] = session_of(crowd->model, crowd->context, 8, TRION_CACHE_F32);
        push_numbers(sessions[i], crowd->vocab_size, 1 + 6 * i, i);
    }
    for (k = 0; k < 6; k++) {
        CHECK_OK(trion_sessions_advance(sessions, 4, SIZE_MAX, events, &error));
        for (i = 0; i < 4; i++) {
            CHECK(events[i].kind == TRION_EVENT_TOKEN);
            crowd->tokens[i][k] = events[i].token;
        }
    }
    for (i = 0; i < 4; i++) {
        trion_session_free(sessions[i]);
    }
    return NULL;
}

static void together_on(const pair *pair) {
    trion_session *sessions[2];
    trion_event events[2];
    crowd crowds[3];
    pthread_t ids[3];
    size_t i, j;
    for (j = 0; j < 2; j++) {
        sessions[j] = session_of(pair->models[j], 40, 4, TRION_CACHE_F32);
        push_numbers(sessions[j], pair->vocab_size, 10, 1);
    }
    CHECK_STATUS(trion_sessions_advance(sessions, 2, SIZE_MAX, events, &error), TRION_OTHER_MODEL);
    same_future(sessions[0], sessions[1], 3);
    trion_session_free(sessions[0]);
    sessions[0] = session_of(pair->models[1], 40, 4, TRION_CACHE_F32);
    push_numbers(sessions[0], pair->vocab_size, 10, 1);
    trion_session_cancel(sessions[1]);
    CHECK_OK(trion_sessions_advance(sessions, 2, SIZE_MAX, events, &error));
    CHECK(events[0].kind == TRION_EVENT_MORE && events[0].reason == TRION_REASON_NONE);
    CHECK(events[1].kind == TRION_EVENT_DONE && events[1].reason == TRION_REASON_CANCELLED);
    CHECK_OK(trion_sessions_advance(sessions, 2, SIZE_MAX, events, &error));
    CHECK(events[0].kind == TRION_EVENT_TOKEN && events[1].kind == TRION_EVENT_TOKEN);
    trion_session_free(sessions[0]);
    trion_session_free(sessions[1]);

    for (i = 0; i < 3; i++) {
        crowds[i].model = pair->models[i == 0 ? 0 : 1];
        crowds[i].vocab_size = pair->vocab_size;
        crowds[i].context = pair->context - 10 * i;
        CHECK(pthread_create(&ids[i], NULL, advance_crowd, &crowds[i]) == 0);
    }
    for (i = 0; i < 3; i++) {
        CHECK(pthread_join(ids[i], NULL) == 0);
        CHECK(memcmp(crowds[0].tokens, crowds[i].tokens, sizeof crowds[0].tokens) == 0);
    }
}

/* Text, with and without a constraint. */
typedef struct text {
    size_t size;
    char bytes[4096];
} text;

static int hear(void *user, const char *bytes, size_t size) {
    text *text = user;
    CHECK(size <= sizeof text->bytes - text->size);
    memcpy(text->bytes + text->size, bytes, size);
    text->size += size;
    return 1;
}

static void same_text(const pair *pair) {
    static const char prompt[] = "She was born in ", year[] = "1[89][0-9]{2}, in (spring|summer|autumn|winter)";
    text texts[2][2];
    size_t i, j;
    memset(texts, 0, sizeof texts);
    for (j = 0; j < 2; j++) {
        trion_constraint *constraint;
        CHECK_OK(trion_constraint_new(pair->models[j], TRION_GRAMMAR_REGEX, year, strlen(year), &constraint, &error));
        for (i = 0; i < 2; i++) {
            trion_session *session = session_of(pair->models[j], 200, 0, TRION_CACHE_F16), *fork;
            trion_stop stop;
            sample(session, 5);
            CHECK_OK(trion_session_set_constraint(session, i == 0 ? NULL : constraint, &error));
            CHECK_OK(trion_session_push_text(session, prompt, strlen(prompt), 0, &error));
            CHECK_OK(trion_generate(session, NULL, 3, hear, &texts[j][i], &stop, &error));
            /* A fork goes on at the same place of the text. */
            CHECK_OK(trion_session_fork(session, NULL, &fork, &error));
            trion_session_free(session);
            CHECK_OK(trion_generate(fork, NULL, 60, hear, &texts[j][i], &stop, &error));
            CHECK(stop == (i == 0 ? TRION_STOP_MAX_TOKENS : TRION_STOP_CONSTRAINT));
            trion_session_free(fork);
        }
        trion_constraint_free(constraint);
    }
    CHECK(memcmp(texts[0], texts[1], sizeof texts[0]) == 0 && texts[0][0].size > 60);
    CHECK(texts[0][1].bytes[0] == '1' && memcmp(texts[0][1].bytes + 4, ", in ", 5) == 0);
}

static void compare(const char *device, const arguments *arguments) {
    /* Scales of a matrix, of rows and of groups; heads of their own and shared ones; norms in several places. */
    const char *const models[] = {"bitnet_offline", "qwen3_groups", "llama_bitlinear", "llama_rms_norm", "1bitllm"};
    size_t i, count = arguments->quick ? 1 : sizeof models / sizeof *models;
    trion_model_info info;
    pair pair;
    for (i = 0; i < count; i++) {
        pair = open_pair(device, golden(arguments, models[i]));
        CHECK(pair.context >= 60);
        same_tokens(&pair, 30, 12, i % 2 == 0 ? TRION_CACHE_F32 : TRION_CACHE_F16);
        same_copies(&pair, i % 2 == 0 ? TRION_CACHE_F16 : TRION_CACHE_F32);
        same_states(&pair, TRION_CACHE_F32);
        same_states(&pair, TRION_CACHE_F16);
        same_rewinds(&pair);
        same_refusals(&pair);
        threads(&pair);
        same_together(pair.models[1], pair.models[0], 8);
        together_on(&pair);
        memory_of(&pair);
        close_pair(&pair);
    }
    pair = open_pair(device, arguments->model);
    if (!arguments->quick) {
        same_tokens(&pair, 300, 40, TRION_CACHE_F16);
        same_together(pair.models[1], pair.models[0], 20);
    }
    same_text(&pair);
    memory_of(&pair);
    CHECK_OK(trion_model_get_info(pair.models[1], &info, sizeof info));
    printf("device %s, which is %s: %zu models, same bits as the CPU\n", device, info.device, count + 1);
    close_pair(&pair);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    int gpu = names(arguments.model);
    compare("auto", &arguments);
    if (gpu) {
        compare("cuda", &arguments);
        compare("cuda:0", &arguments);
    } else {
        printf("skipped: %s\n", reason);
    }
    return 0;
}
