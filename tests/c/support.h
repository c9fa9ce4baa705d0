/* What several tests need: their arguments, models, sessions, and runs that can be compared bit by bit. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <stddef.h>
#include <stdint.h>

#include <trion.h>

/* The arguments of every test: MODEL GOLDEN CHAT [--quick]. */
typedef struct arguments {
    /* The model of 14 million parameters. */
    const char *model;
    /* The directory of tiny models, which are in several formats. */
    const char *golden;
    /* A tiny model with a chat template, and without a way to write one tilde. */
    const char *chat;
    /* Do less: the test runs under a tool that makes it slow. */
    int quick;
} arguments;

/* Reads them; one that is missing is an empty string. */
arguments read_arguments(int argc, char **argv);

/* Memory, or the end of the test. */
void *take(size_t size);

/* The bytes of a file, or the end of the test. */
void *read_file(const char *path, size_t *size);

/* The path of something in the directory of tiny models, in static memory: good until the next call. */
const char *golden(const arguments *arguments, const char *name);

/* The next of a fixed row of numbers (Knuth's linear congruence): the same on every machine. */
uint32_t next_number(uint64_t *state);

trion_model *open_model(const trion_runtime *runtime, const char *path);

/* A session that goes on after the end of a text, so that it always has as many tokens as are asked for. */
trion_session *new_session(const trion_model *model, size_t context, size_t max_batch);

/* The same with a cache of that kind, and probabilities in its events. */
trion_session *session_of(const trion_model *model, size_t context, size_t max_batch, trion_cache cache);

/* Gives a session a sampler with temperature, top-p and repetition penalty, so that its state matters. */
void sample(trion_session *session, uint64_t seed);

/* Pushes `count` tokens that follow from `count` and `seed` alone. */
void push_numbers(trion_session *session, size_t vocab_size, size_t count, uint64_t seed);

size_t vocab_size_of(const trion_model *model);

/* Tokens in the session. */
size_t length_of(const trion_session *session);

/* The token that an advance without a limit chooses. */
uint32_t next_token(trion_session *session);

/* Tokens as they were chosen, and the logits of each. */
typedef struct trace {
    size_t count;
    size_t vocab_size;
    uint32_t *tokens;
    float *logits;
} trace;

/* Advances by `count` tokens, `budget` units at a time. */
trace take_trace(trion_session *session, size_t budget, size_t count);

/* Whether two runs are the same to the last bit. */
int same_trace(const trace *one, const trace *other);

void free_trace(trace *trace);

/*
 * Sessions of `together` that advance in one call come to what each comes to alone on `alone`, the same model, bit by
 * bit: at several positions, with prompts beside single tokens, both caches, any budget, in any company and order.
 */
void same_together(const trion_model *together, const trion_model *alone, size_t new_tokens);

#endif
