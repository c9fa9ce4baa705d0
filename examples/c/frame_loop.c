/*
 * A game's loop: text is written during frames, of which 2 ms are for the model. How many units fit is measured first.
 *
 *     frame_loop MODEL [FRAMES] [--sleep]
 *
 * With --sleep frames begin 60 times a second; without it one follows the other.
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime, nanosleep */
#include <trion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SHARE_MS 2.0 /* of a frame */
#define FRAME_MS (1000.0 / 60.0)
#define SLICE_MS (SHARE_MS / 4) /* one call of trion_session_advance(); the clock is looked at between them */

static double now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

static void check(trion_status status, const trion_error *error)
{
    if (status != TRION_OK) {
        fprintf(stderr, "%s\n", error ? error->message : trion_status_string(status));
        exit(1);
    }
}

static void push(trion_session *session, const char *prompt)
{
    trion_error error;
    check(trion_session_push_text(session, prompt, strlen(prompt), 0, &error), &error);
}

/* Units that take SLICE_MS on this machine: a prompt is computed in small steps, and the median step counts. */
static size_t calibrate(trion_session *session, const char *prompt)
{
    enum { STEPS = 31, UNITS = 16 };
    double steps[STEPS];
    size_t units;

    for (int i = 0; i < STEPS; i++) {
        trion_event event;
        trion_error error;
        double start;
        if (i % 8 == 0) { /* early positions again, so that the prompt does not end */
            check(trion_session_rewind(session, 0, &error), &error);
            push(session, prompt);
        }
        start = now_ms();
        check(trion_session_advance(session, UNITS, &event), NULL);
        steps[i] = now_ms() - start;
        for (int k = i; k > 0 && steps[k] < steps[k - 1]; k--) {
            double swap = steps[k];
            steps[k] = steps[k - 1];
            steps[k - 1] = swap;
        }
    }
    units = (size_t)(UNITS * SLICE_MS / steps[STEPS / 2]);
    return units > 0 ? units : 1;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    const char *prompt = "It was a dark night, and";
    size_t frames = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 120;
    int sleeping = argc > 3 && strcmp(argv[3], "--sleep") == 0;
    trion_error error;
    trion_model *model;
    trion_session *session, *whole;
    trion_text *text;
    const uint32_t *sliced, *unsliced;
    size_t units, count, other, prompt_tokens, chosen = 0;
    int same;
    double *times;

    if (argc < 2 || frames == 0 || (times = malloc(frames * sizeof *times)) == NULL) {
        fprintf(stderr, "usage: frame_loop MODEL [FRAMES] [--sleep]\n");
        return 2;
    }
    check(trion_model_open(NULL, argv[1], &model, &error), &error);
    check(trion_session_new(model, NULL, NULL, &session, &error), &error);
    check(trion_text_new(model, NULL, &text, &error), &error);
    units = calibrate(session, prompt);
    check(trion_session_token_units(session, &count), NULL);
    printf("a slice of %.1f ms is %zu units, a token about %zu\n", SLICE_MS, units, count);

    check(trion_session_rewind(session, 0, &error), &error);
    push(session, prompt);
    check(trion_session_tokens(session, &sliced, &prompt_tokens), NULL);
    printf("frame      ms  text\n");
    for (size_t frame = 0; frame < frames; frame++) {
        double start = now_ms();
        printf("%5zu  ", frame);
        char line[512] = "";
        while (now_ms() - start + SLICE_MS <= SHARE_MS) {
            trion_event event;
            check(trion_session_advance(session, units, &event), NULL);
            if (event.kind == TRION_EVENT_DONE)
                break;
            if (event.kind == TRION_EVENT_TOKEN) {
                trion_piece piece;
                check(trion_text_push(text, event.token, &piece), NULL);
                strncat(line, piece.data, piece.size < 64 ? piece.size : 64);
                chosen++;
            }
        }
        times[frame] = now_ms() - start;
        line[strcspn(line, "\n")] = '\0';
        printf("%6.3f  %s\n", times[frame], line);
        if (sleeping && times[frame] < FRAME_MS) { /* a game would draw */
            struct timespec rest = {0, (long)((FRAME_MS - times[frame]) * 1e6)};
            nanosleep(&rest, NULL);
        }
    }
    qsort(times, frames, sizeof *times, compare);
    printf("%zu frames, %zu tokens; a frame took %.3f ms (median), %.3f ms (99 of 100), %.3f ms (most)\n", frames,
           chosen, times[frames / 2], times[frames * 99 / 100], times[frames - 1]);

    /* Slices change no word: the same text without them. */
    check(trion_session_new(model, NULL, NULL, &whole, &error), &error);
    push(whole, prompt);
    for (size_t i = 0; i < chosen; i++) {
        trion_event event;
        check(trion_session_advance(whole, SIZE_MAX, &event), NULL);
    }
    check(trion_session_tokens(session, &sliced, &count), NULL);
    check(trion_session_tokens(whole, &unsliced, &other), NULL);
    same = count == prompt_tokens + chosen && other == count && memcmp(sliced, unsliced, count * sizeof *sliced) == 0;
    printf("same text as in one call: %s\n", same ? "yes" : "no");

    free(times);
    trion_text_free(text);
    trion_session_free(whole);
    trion_session_free(session);
    trion_model_free(model);
    return 0;
}
