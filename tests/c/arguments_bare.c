/* Wrong arguments of everything that sessions on bare metal do, and tables that are not what they claim to be. */
#include "arguments.h"
#include "bare_models.h"

static unsigned char buffer[1 << 20];
static const trion_bare_model *model;
static trion_bare_session *session;

static trion_status size_session(const void *options) {
    return trion_bare_size(model, options, &out.one.count, words);
}

static trion_status init_session(const void *options) {
    return trion_bare_init(model, options, buffer, sizeof buffer, &out.one.bare_session, words);
}

static trion_status set_sampler(const void *options) {
    return trion_bare_set_sampler(session, options, words);
}

static void nothing(void) {
}

static trion_bare_session *new_bare_session(void) {
    static unsigned char memory[1 << 20];
    const trion_bare_options options = {.struct_size = sizeof options, .context = 16, .max_batch = 2};
    trion_bare_session *made;
    CHECK_OK(trion_bare_init(model, &options, memory, sizeof memory, &made, &error));
    return made;
}

static void options(void) {
    const trion_bare_options none = {.struct_size = sizeof none};
    const trion_sampler_options greedy = {.struct_size = sizeof greedy};
    sized_call calls[3] = {
        {size_session, nothing, sizeof none, sizeof none},
        {init_session, nothing, sizeof none, sizeof none},
        {set_sampler, nothing, sizeof greedy, sizeof greedy},
    };
    size_t i, wrong[] = {65, 66, 1 << 30, SIZE_MAX / 2, SIZE_MAX - 1, SIZE_MAX};
    trion_bare_options options;
    trion_sampler_options warm = greedy;
    session = new_bare_session();
    for (i = 0; i < sizeof calls / sizeof *calls; i++) {
        check_struct_sizes(calls[i]);
    }
    /* The tiny model has a context of 64. */
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        options = none;
        options.context = wrong[i];
        INVALID(size_session(&options));
        INVALID(init_session(&options));
        options = none;
        options.max_batch = wrong[i];
        INVALID(size_session(&options));
        INVALID(init_session(&options));
    }
    options = none;
    options.context = 8;
    options.max_batch = 9;
    INVALID(init_session(&options));
    for (i = 1; i < 32; i++) {
        options = none;
        options.cache = (uint32_t)1 << i;
        INVALID(size_session(&options));
        INVALID(init_session(&options));
    }
    warm.temperature = -1.0f;
    INVALID(set_sampler(&warm));
    warm.temperature = 1.0f;
    warm.top_k = 257;
    INVALID(set_sampler(&warm));
}

static void making(void) {
    crooked copy;
    size_t size;
    INVALID(trion_bare_size(NULL, NULL, &out.one.count, words));
    INVALID(trion_bare_size(model, NULL, NULL, words));
    INVALID(trion_bare_init(NULL, NULL, buffer, sizeof buffer, &out.one.bare_session, words));
    INVALID(trion_bare_init(model, NULL, NULL, sizeof buffer, &out.one.bare_session, words));
    INVALID(trion_bare_init(model, NULL, buffer, sizeof buffer, NULL, words));
    INVALID(trion_bare_init(model, NULL, buffer, SIZE_MAX, &out.one.bare_session, words));
    CHECK_OK(trion_bare_size(model, NULL, &size, &error));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_bare_init(model, NULL, NULL, 0, &out.one.bare_session, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_bare_init(model, NULL, buffer, 0, &out.one.bare_session, words));
    REFUSED(TRION_BUFFER_TOO_SMALL, trion_bare_init(model, NULL, buffer, size - 1, &out.one.bare_session, words));
    ACCEPTED(trion_bare_init(model, NULL, buffer, size, &out.one.bare_session, words));
    /* Tables that were never given a size, or lie where none can. */
    CHECK(sizeof copy > sizeof *model);
    memset(&copy, 0, sizeof copy);
    INVALID(trion_bare_size((const trion_bare_model *)&copy, NULL, &out.one.count, words));
    INVALID(trion_bare_size((const trion_bare_model *)(const void *)(copy.bytes + 1), NULL, &out.one.count, words));
}

static void using(void) {
    trion_bare_session *crooked_session;
    uint32_t tokens[20] = {0}, beyond[2] = {1, UINT32_MAX};
    session = new_bare_session();
    /* No session begins at an odd address. */
    crooked_session = (trion_bare_session *)(void *)((char *)session + 1);
    beyond[1] = model->config.vocab_size;
    INVALID(trion_bare_set_sampler(NULL, NULL, words));
    INVALID(trion_bare_set_sampler(crooked_session, NULL, words));
    INVALID(trion_bare_push(NULL, tokens, 1, words));
    INVALID(trion_bare_push(crooked_session, tokens, 1, words));
    INVALID(trion_bare_push(session, NULL, 1, words));
    INVALID(trion_bare_push(session, tokens, SIZE_MAX, words));
    REFUSED(TRION_NO_TOKENS, trion_bare_push(session, NULL, 0, words));
    REFUSED(TRION_NO_TOKENS, trion_bare_push(session, tokens, 0, words));
    REFUSED(TRION_TOKEN_OUT_OF_RANGE, trion_bare_push(session, beyond, 2, words));
    REFUSED(TRION_CONTEXT_FULL, trion_bare_push(session, tokens, 17, words));
    INVALID_SILENTLY(trion_bare_advance(NULL, 1, &out.one.progress));
    INVALID_SILENTLY(trion_bare_advance(crooked_session, 1, &out.one.progress));
    INVALID_SILENTLY(trion_bare_advance(session, 1, NULL));
    REFUSED_SILENTLY(TRION_NO_TOKENS, trion_bare_advance(session, 1, &out.one.progress));
    INVALID_SILENTLY(trion_bare_logits(NULL, &out.one.logits, &out.two.count));
    INVALID_SILENTLY(trion_bare_logits(crooked_session, &out.one.logits, &out.two.count));
    INVALID_SILENTLY(trion_bare_logits(session, NULL, &out.two.count));
    INVALID_SILENTLY(trion_bare_logits(session, &out.one.logits, NULL));
    REFUSED_SILENTLY(TRION_NO_LOGITS, trion_bare_logits(session, &out.one.logits, &out.two.count));
    INVALID_SILENTLY(trion_bare_sample(NULL, &out.one.ids[0]));
    INVALID_SILENTLY(trion_bare_sample(crooked_session, &out.one.ids[0]));
    INVALID_SILENTLY(trion_bare_sample(session, NULL));
    REFUSED_SILENTLY(TRION_NO_LOGITS, trion_bare_sample(session, &out.one.ids[0]));
    INVALID(trion_bare_rewind(NULL, 0, words));
    INVALID(trion_bare_rewind(crooked_session, 0, words));
    INVALID(trion_bare_rewind(session, 1, words));
    INVALID_SILENTLY(trion_bare_position(NULL, &out.one.count));
    INVALID_SILENTLY(trion_bare_position(crooked_session, &out.one.count));
    INVALID_SILENTLY(trion_bare_position(session, NULL));
    ACCEPTED(trion_bare_position(session, &out.one.count));
    CHECK(out.one.count == 0);

    /* After all of this the session works, up to its last position. */
    ACCEPTED(trion_bare_push(session, tokens, 16, words));
    REFUSED_SILENTLY(TRION_NO_LOGITS, trion_bare_sample(session, &out.one.ids[0]));
    ACCEPTED(trion_bare_advance(session, SIZE_MAX, &out.one.progress));
    CHECK(out.one.progress == TRION_BARE_READY);
    ACCEPTED(trion_bare_advance(session, 0, &out.one.progress));
    CHECK(out.one.progress == TRION_BARE_READY);
    ACCEPTED(trion_bare_sample(session, &out.one.ids[0]));
    REFUSED(TRION_CONTEXT_FULL, trion_bare_push(session, tokens, 1, words));
    INVALID(trion_bare_rewind(session, 17, words));
    ACCEPTED(trion_bare_rewind(session, 15, words));
    REFUSED_SILENTLY(TRION_NO_LOGITS, trion_bare_sample(session, &out.one.ids[0]));
    REFUSED_SILENTLY(TRION_NO_TOKENS, trion_bare_advance(session, 1, &out.one.progress));
    /* A budget of nothing is one step all the same. */
    ACCEPTED(trion_bare_push(session, tokens, 1, words));
    ACCEPTED(trion_bare_advance(session, 0, &out.one.progress));
    CHECK(out.one.progress == TRION_BARE_MORE);
}

/* A copy of the tables, for one fault at a time. */
static trion_bare_model faulty;
static trion_bare_layer layers[8];

static trion_status init_faulty(void) {
    return trion_bare_init(&faulty, NULL, buffer, sizeof buffer, &out.one.bare_session, words);
}

/* The fault that was put into the copy is found, and the words say where. */
static void found(const char *where) {
    REFUSED(TRION_MALFORMED, init_faulty());
    if (strstr(error.message, where) == NULL) {
        fprintf(stderr, "%s\nsays nothing of %s\n", error.message, where);
        exit(1);
    }
    faulty = *model;
    memcpy(layers, model->layers, model->config.num_hidden_layers * sizeof *layers);
    faulty.layers = layers;
}

static void tables(void) {
    static const float no_numbers[64] = {0};
    const float infinite = (float)strtod("inf", NULL), nan = (float)strtod("nan", NULL);
    trion_bare_matrix *matrix = &layers[0].up_proj;
    CHECK(model->config.num_hidden_layers <= sizeof layers / sizeof *layers);
    CHECK(model->layers[0].up_proj.form == TRION_BARE_TWOS && model->layers[0].up_proj.group == 0);
    CHECK(model->embedding.form == TRION_BARE_F32 || model->embedding.form == TRION_BARE_BF16);
    faulty = *model;
    faulty.config.vocab_size = 0;
    found("vocab_size");
    ACCEPTED(init_faulty());
    faulty.config.num_hidden_layers = 0;
    found("num_hidden_layers");
    faulty.config.num_hidden_layers = UINT32_MAX;
    found("num_hidden_layers");
    faulty.config.hidden_act = 2;
    found("hidden_act");
    faulty.config.rms_norm_eps = nan;
    found("rms_norm_eps");
    faulty.config.rope_theta = infinite;
    found("rope_theta");
    faulty.config.vocab_size++;
    found("embed_tokens");
    faulty.layers = NULL;
    found("layers");
    faulty.layers = (const trion_bare_layer *)(const void *)((const char *)layers + 1);
    found("layers");
    faulty.norm.count--;
    found("norm");
    faulty.norm.values = NULL;
    found("norm");
    faulty.norm.count = 0;
    faulty.norm.values = NULL;
    found("norm");
    faulty.embedding.form = TRION_BARE_NONE;
    found("embed_tokens");
    faulty.embedding.size -= 4;
    found("embed_tokens");
    faulty.embedding.size--;
    found("embed_tokens");
    faulty.embedding.data = (const char *)faulty.embedding.data + 1;
    found("embed_tokens");
    faulty.embedding.data = NULL;
    found("embed_tokens");
    faulty.head = faulty.embedding;
    faulty.head.size = 0;
    found("lm_head");
    matrix->form = 8;
    found("layer 0: mlp.up_proj");
    matrix->form = UINT32_MAX;
    found("layer 0: mlp.up_proj");
    matrix->size--;
    found("layer 0: mlp.up_proj");
    matrix->data = NULL;
    found("layer 0: mlp.up_proj");
    matrix->scale = nan;
    found("layer 0: mlp.up_proj");
    matrix->divides = 1;
    matrix->scale = 0;
    found("layer 0: mlp.up_proj");
    matrix->divides = 2;
    found("layer 0: mlp.up_proj");
    matrix->group = 16; /* without scales */
    found("layer 0: mlp.up_proj");
    matrix->norm.count = 1;
    found("layer 0: mlp.up_proj");
    matrix->norm.values = no_numbers;
    matrix->norm.count = 1;
    found("layer 0: mlp.up_proj");
    layers[1].input_layernorm.count = 0;
    layers[1].input_layernorm.values = NULL;
    found("layer 1: input_layernorm");
    layers[1].q_norm.values = no_numbers;
    layers[1].q_norm.count = 1;
    found("layer 1: self_attn.q_norm");
    layers[1].k_norm.values = (const float *)(const void *)((const char *)no_numbers + 1);
    layers[1].k_norm.count = 4;
    found("layer 1: self_attn.k_norm");
    ACCEPTED(init_faulty());
}

int main(int argc, char **argv) {
    (void)read_arguments(argc, argv);
    CHECK(bare_model_count > 0);
    model = bare_models[0].tables;
    options();
    making();
    using();
    tables();
    return 0;
}
