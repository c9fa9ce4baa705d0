/* Wrong arguments of everything that sessions do, but for text. */
#include "arguments.h"

static trion_model *model;
static trion_session *session;
static size_t vocab_size;

static trion_status make_session(const void *options) {
    return trion_session_new(model, options, NULL, &out.one.session, words);
}

static trion_status size_session(const void *options) {
    return trion_session_size(model, options, &out.one.count, words);
}

static trion_status plan_session(const void *options) {
    return trion_session_gpu_memory(model, options, &out.one.memory, sizeof out.one.memory, words);
}

static trion_status init_session(const void *options) {
    static unsigned char buffer[1 << 20];
    return trion_session_init(model, options, buffer, sizeof buffer, &out.one.session, words);
}

static void release_session(void) {
    trion_session_free(out.one.session);
}

static trion_status set_sampler(const void *options) {
    return trion_session_set_sampler(session, options, words);
}

static void nothing(void) {
}

/* Options that all functions which take them must refuse. */
static void refused_options(const trion_session_options *options) {
    INVALID(make_session(options));
    INVALID(size_session(options));
    INVALID(plan_session(options));
    INVALID(init_session(options));
}

static void session_options(void) {
    const trion_session_options none = {.struct_size = sizeof none};
    trion_session_options options;
    sized_call calls[4] = {
        {make_session, release_session, sizeof none, sizeof none},
        {init_session, release_session, sizeof none, sizeof none},
        {size_session, nothing, sizeof none, sizeof none},
        {plan_session, nothing, sizeof none, sizeof none},
    };
    size_t i, wrong[] = {65, 66, 1 << 30, SIZE_MAX / 2, SIZE_MAX - 1, SIZE_MAX};
    uint32_t kernel;
    for (i = 0; i < sizeof calls / sizeof *calls; i++) {
        check_struct_sizes(calls[i]);
    }
    /* The tiny model has a context of 64. */
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        options = none;
        options.context = wrong[i];
        refused_options(&options);
        options = none;
        options.max_batch = wrong[i];
        refused_options(&options);
    }
    options = none;
    options.context = 8;
    options.max_batch = 9;
    refused_options(&options);
    options.max_batch = 0; /* not 64, which would not fit */
    ACCEPTED(make_session(&options));
    release_session();

    options = none;
    for (options.cache = 2; options.cache != 0; options.cache *= 2) {
        refused_options(&options);
    }
    options.cache = UINT32_MAX;
    refused_options(&options);
    options = none;
    for (options.kernel = 8; options.kernel != 0; options.kernel *= 2) {
        refused_options(&options);
    }
    options.kernel = 6;
    refused_options(&options);
    options.kernel = UINT32_MAX;
    refused_options(&options);
    /* What is on or off is nothing else. */
    for (i = 0; i < 32; i++) {
        options = none;
        options.ignore_end = i == 0 ? UINT32_MAX : (uint32_t)1 << i;
        refused_options(&options);
        options = none;
        options.probabilities = i == 0 ? 3 : (uint32_t)1 << i;
        refused_options(&options);
    }
    options = none;
    options.ignore_end = options.probabilities = 1;
    ACCEPTED(make_session(&options));
    release_session();
    options = none;
    /* Which of these there are depends on the CPU; it is an answer in any case. */
    for (kernel = TRION_KERNEL_AUTO; kernel <= TRION_KERNEL_SIMD128; kernel++) {
        trion_session *made;
        trion_status status;
        options.kernel = kernel;
        status = trion_session_new(model, &options, NULL, &made, &error);
        CHECK(status == TRION_OK || (status == TRION_INVALID_ARGUMENT && kernel > TRION_KERNEL_SCALAR));
        if (status == TRION_OK) {
            trion_session_free(made);
        }
    }
}

static void *allocate(void *user, size_t size, size_t alignment) {
    (void)user, (void)size, (void)alignment;
    CHECK(!"an allocator that lacks a function was called");
    return NULL;
}

static void release(void *user, void *memory, size_t size, size_t alignment) {
    (void)user, (void)memory, (void)size, (void)alignment;
    CHECK(!"an allocator that lacks a function was called");
}

static void making(void) {
    static unsigned char buffer[1 << 20];
    trion_allocator lame[3] = {{NULL, NULL, NULL}, {NULL, allocate, NULL}, {NULL, NULL, release}};
    size_t i;
    INVALID(trion_session_size(NULL, NULL, &out.one.count, words));
    INVALID(trion_session_size(model, NULL, NULL, words));
    INVALID(trion_session_gpu_memory(NULL, NULL, &out.one.memory, sizeof out.one.memory, words));
    INVALID(trion_session_gpu_memory(model, NULL, NULL, sizeof out.one.memory, words));
    INVALID(trion_session_gpu_memory(model, NULL, &out.one.memory, SIZE_MAX, words));
    ACCEPTED(trion_session_gpu_memory(model, NULL, &out.one.memory, 8, words));
    CHECK(out.one.memory.weights > 0 && untouched(&out.one.memory.embedding, sizeof out.one.memory.embedding));
    INVALID(trion_session_new(NULL, NULL, NULL, &out.one.session, words));
    INVALID(trion_session_new(model, NULL, NULL, NULL, words));
    INVALID(trion_session_init(NULL, NULL, buffer, sizeof buffer, &out.one.session, words));
    INVALID(trion_session_init(model, NULL, NULL, sizeof buffer, &out.one.session, words));
    INVALID(trion_session_init(model, NULL, buffer, sizeof buffer, NULL, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_init(model, NULL, NULL, 0, &out.one.session, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_init(model, NULL, buffer, 0, &out.one.session, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_init(model, NULL, buffer, 1000, &out.one.session, words));
    INVALID(trion_session_fork(NULL, NULL, &out.one.session, words));
    INVALID(trion_session_fork(session, NULL, NULL, words));
    INVALID(trion_session_fork_init(NULL, buffer, sizeof buffer, &out.one.session, words));
    INVALID(trion_session_fork_init(session, NULL, sizeof buffer, &out.one.session, words));
    INVALID(trion_session_fork_init(session, buffer, sizeof buffer, NULL, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_fork_init(session, NULL, 0, &out.one.session, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_fork_init(session, buffer, 0, &out.one.session, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_fork_init(session, buffer, 1000, &out.one.session, words));
    for (i = 0; i < 3; i++) {
        INVALID(trion_session_new(model, NULL, &lame[i], &out.one.session, words));
        INVALID(trion_session_fork(session, &lame[i], &out.one.session, words));
    }
    INVALID(trion_session_assign(NULL, session, words));
    INVALID(trion_session_assign(session, NULL, words));
    trion_session_free(NULL);
    trion_session_cancel(NULL);
}

static void samplers(void) {
    /* There is neither NaN nor infinity in C99's float.h, and a division that makes them is an error to a sanitizer. */
    const float infinite = (float)strtod("inf", NULL), nan = (float)strtod("nan", NULL);
    const trion_sampler_options none = {.struct_size = sizeof none};
    const float below_zero[] = {-1.0f, -1e-30f, infinite, -infinite, nan};
    const float above_one[] = {1.0001f, 2.0f, -1.0f, infinite, -infinite, nan};
    trion_sampler_options options;
    sized_call call = {set_sampler, nothing, sizeof none, sizeof none};
    size_t i;
    check_struct_sizes(call);
    INVALID(trion_session_set_sampler(NULL, NULL, words));
    INVALID(trion_session_set_sampler(NULL, &none, words));
    for (i = 0; i < sizeof below_zero / sizeof *below_zero; i++) {
        options = none;
        options.temperature = below_zero[i];
        INVALID(set_sampler(&options));
        options = none;
        options.repetition_penalty = below_zero[i];
        INVALID(set_sampler(&options));
    }
    for (i = 0; i < sizeof above_one / sizeof *above_one; i++) {
        options = none;
        options.top_p = above_one[i];
        INVALID(set_sampler(&options));
        options = none;
        options.min_p = above_one[i];
        INVALID(set_sampler(&options));
    }
    options = none;
    options.top_k = 257;
    INVALID(set_sampler(&options));
    options.top_k = UINT32_MAX;
    INVALID(set_sampler(&options));
    options.top_k = 256;
    options.top_p = options.min_p = 1.0f;
    options.repetition_window = UINT32_MAX;
    options.seed = UINT64_MAX;
    ACCEPTED(set_sampler(&options));
    ACCEPTED(set_sampler(NULL));
}

static int never(void *user, const trion_event *event) {
    (void)user, (void)event;
    CHECK(!"a callback of a call that was refused was called");
    return 0;
}

static void advancing(void) {
    static crooked memory;
    uint32_t *crooked_tokens = (uint32_t *)(void *)(memory.bytes + 1);
    uint32_t beyond[3];
    beyond[0] = 1, beyond[1] = (uint32_t)vocab_size, beyond[2] = 1;
    INVALID(trion_session_push(NULL, beyond, 1, words));
    INVALID(trion_session_push(session, NULL, 1, words));
    INVALID(trion_session_push(session, beyond, SIZE_MAX, words));
    INVALID(trion_session_push(session, beyond, SIZE_MAX / 4, words));
    INVALID(trion_session_push(session, crooked_tokens, 1, words));
    INVALID(trion_session_push(session, (uint32_t *)(void *)(memory.bytes + 2), 1, words));
    REFUSED(TRION_NO_TOKENS, trion_session_push(session, NULL, 0, words));
    REFUSED(TRION_NO_TOKENS, trion_session_push(session, beyond, 0, words));
    REFUSED(TRION_TOKEN_OUT_OF_RANGE, trion_session_push(session, beyond, 2, words));
    REFUSED(TRION_TOKEN_OUT_OF_RANGE, trion_session_push(session, beyond, 3, words));
    beyond[1] = UINT32_MAX;
    REFUSED(TRION_TOKEN_OUT_OF_RANGE, trion_session_push(session, beyond, 2, words));

    INVALID_SILENTLY(trion_session_advance(NULL, 1, &out.one.event));
    INVALID_SILENTLY(trion_session_advance(session, 1, NULL));
    INVALID_SILENTLY(trion_session_compute(NULL, 1, &out.one.event));
    INVALID_SILENTLY(trion_session_compute(session, 1, NULL));
    INVALID_SILENTLY(trion_session_run(NULL, 1, never, NULL, &out.one.event));
    INVALID_SILENTLY(trion_session_run(session, 1, NULL, NULL, &out.one.event));
    INVALID_SILENTLY(trion_session_run(session, 0, never, NULL, &out.one.event));
    INVALID(trion_session_rewind(NULL, 0, words));
    INVALID(trion_session_rewind(session, 1000, words));
    INVALID(trion_session_rewind(session, SIZE_MAX, words));
}

static void together(void) {
    static crooked memory;
    trion_session *list[TRION_MAX_SESSIONS + 1], **crooked_list = (trion_session **)(void *)(memory.bytes + 1);
    trion_event *crooked_events = (trion_event *)(void *)(memory.bytes + 1);
    size_t i;
    for (i = 0; i <= TRION_MAX_SESSIONS; i++) {
        list[i] = session;
    }
    INVALID(trion_sessions_advance(NULL, 0, 1, out.one.events, words));
    INVALID(trion_sessions_advance(NULL, 1, 1, out.one.events, words));
    INVALID(trion_sessions_advance(list, 0, 1, out.one.events, words));
    INVALID(trion_sessions_advance(list, 1, 1, NULL, words));
    INVALID(trion_sessions_advance(list, 2, 1, out.one.events, words));
    INVALID(trion_sessions_advance(list, TRION_MAX_SESSIONS + 1, 1, out.one.events, words));
    INVALID(trion_sessions_advance(list, SIZE_MAX, 1, out.one.events, words));
    INVALID(trion_sessions_advance(crooked_list, 1, 1, out.one.events, words));
    INVALID(trion_sessions_advance(list, 1, 1, crooked_events, words));
    INVALID(trion_sessions_compute(NULL, 1, 1, out.one.events, words));
    INVALID(trion_sessions_compute(list, 0, 1, out.one.events, words));
    INVALID(trion_sessions_compute(list, 1, 1, NULL, words));
    INVALID(trion_sessions_compute(list, 2, 1, out.one.events, words));
    list[1] = NULL;
    INVALID(trion_sessions_advance(list, 2, 1, out.one.events, words));
    list[1] = new_session(model, 0, 0);
    REFUSED(TRION_NO_TOKENS, trion_sessions_advance(list, 2, 1, out.one.events, words));
    REFUSED(TRION_NO_TOKENS, trion_sessions_compute(list, 2, 1, out.one.events, words));
    /* As many events as sessions. */
    push_numbers(list[1], vocab_size, 30, 1);
    ACCEPTED(trion_sessions_advance(list + 1, 1, 1, out.one.events, words));
    CHECK(out.one.events[0].kind == TRION_EVENT_MORE && untouched(out.one.events + 1, sizeof *out.one.events));
    trion_session_free(list[1]);
}

static void looking(void) {
    static crooked memory;
    trion_candidate *crooked_candidates = (trion_candidate *)(void *)(memory.bytes + 1);
    INVALID_SILENTLY(trion_session_tokens(NULL, &out.one.tokens, &out.two.count));
    INVALID_SILENTLY(trion_session_tokens(session, NULL, &out.two.count));
    INVALID_SILENTLY(trion_session_tokens(session, &out.one.tokens, NULL));
    INVALID_SILENTLY(trion_session_logits(NULL, &out.one.logits, &out.two.count));
    INVALID_SILENTLY(trion_session_logits(session, NULL, &out.two.count));
    INVALID_SILENTLY(trion_session_logits(session, &out.one.logits, NULL));
    INVALID_SILENTLY(trion_session_candidates(NULL, out.one.candidates, 16, &out.two.count));
    INVALID_SILENTLY(trion_session_candidates(session, NULL, 16, &out.two.count));
    INVALID_SILENTLY(trion_session_candidates(session, out.one.candidates, 16, NULL));
    INVALID_SILENTLY(trion_session_candidates(session, out.one.candidates, SIZE_MAX, &out.two.count));
    INVALID_SILENTLY(trion_session_candidates(session, crooked_candidates, 16, &out.two.count));
    INVALID_SILENTLY(trion_session_token_units(NULL, &out.one.count));
    INVALID_SILENTLY(trion_session_token_units(session, NULL));

    /* Few candidates are asked for and no more are written; many, and there are no more than the library's limit. */
    ACCEPTED(trion_session_candidates(session, NULL, 0, &out.two.count));
    CHECK(out.two.count == 0);
    ACCEPTED(trion_session_candidates(session, out.one.candidates, 3, &out.two.count));
    CHECK(out.two.count == 3 && untouched(out.one.candidates + 3, sizeof out.one - 3 * sizeof *out.one.candidates));
    CHECK(out.one.candidates[0].probability >= out.one.candidates[1].probability);
    {
        trion_candidate many[TRION_MAX_CANDIDATES + 1];
        memset(many, PATTERN, sizeof many);
        ACCEPTED(trion_session_candidates(session, many, TRION_MAX_CANDIDATES + 1, &out.two.count));
        CHECK(out.two.count == TRION_MAX_CANDIDATES);
        CHECK(untouched(many + TRION_MAX_CANDIDATES, sizeof *many));
    }
}

static void saving(void) {
    unsigned char *buffer;
    size_t size;
    INVALID_SILENTLY(trion_session_saved_size(NULL, &out.one.count));
    INVALID_SILENTLY(trion_session_saved_size(session, NULL));
    CHECK_OK(trion_session_saved_size(session, &size));
    buffer = take(size + 1);
    memset(buffer, PATTERN, size + 1);
    INVALID(trion_session_save(NULL, buffer, size, &out.one.count, words));
    INVALID(trion_session_save(session, NULL, size, &out.one.count, words));
    INVALID(trion_session_save(session, buffer, size, NULL, words));
    INVALID(trion_session_save(session, buffer, SIZE_MAX, &out.one.count, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_save(session, NULL, 0, &out.one.count, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_save(session, buffer, 0, &out.one.count, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_save(session, buffer, 1, &out.one.count, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_session_save(session, buffer, size - 1, &out.one.count, words));
    CHECK(untouched(buffer, size + 1));
    ACCEPTED(trion_session_save(session, buffer, size + 1, &out.one.count, words));
    CHECK(out.one.count == size && untouched(buffer + size, 1));
    INVALID(trion_session_load(NULL, buffer, size, words));
    INVALID(trion_session_load(session, NULL, size, words));
    INVALID(trion_session_load(session, buffer, SIZE_MAX, words));
    REFUSED(TRION_STATE, trion_session_load(session, NULL, 0, words));
    REFUSED(TRION_STATE, trion_session_load(session, buffer, 0, words));
    REFUSED(TRION_STATE, trion_session_load(session, buffer, size + 1, words));
    free(buffer);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    trion_session *undisturbed;
    trace with, without;
    model = open_model(NULL, golden(&arguments, "bitnet_offline"));
    vocab_size = vocab_size_of(model);
    session = new_session(model, 0, 0);
    undisturbed = new_session(model, 0, 0);
    push_numbers(session, vocab_size, 10, 1);
    push_numbers(undisturbed, vocab_size, 10, 1);
    CHECK(next_token(session) == next_token(undisturbed));

    session_options();
    making();
    samplers();
    advancing();
    together();
    looking();
    saving();

    /* None of this has left a trace in the session. */
    CHECK(length_of(session) == 11);
    with = take_trace(session, SIZE_MAX, 10);
    without = take_trace(undisturbed, SIZE_MAX, 10);
    CHECK(same_trace(&with, &without));
    free_trace(&with);
    free_trace(&without);
    trion_session_free(session);
    trion_session_free(undisturbed);
    trion_model_free(model);
    return 0;
}
