/*
 * Threads change no bit: job systems of a host that do as they like, pools of the library's own, and many sessions of
 * one model at once.
 */
#include <pthread.h>

#include "check.h"
#include "support.h"

/* Job systems ------------------------------------------------------------------------------------------------------ */

static void in_order(void *user, size_t count, trion_task_fn task, void *data) {
    size_t i;
    (void)user;
    for (i = 0; i < count; i++) {
        task(data, i);
    }
}

static void in_reverse(void *user, size_t count, trion_task_fn task, void *data) {
    (void)user;
    while (count-- > 0) {
        task(data, count);
    }
}

static void none_at_all(void *user, size_t count, trion_task_fn task, void *data) {
    (void)user, (void)count, (void)task, (void)data;
}

static void every_other(void *user, size_t count, trion_task_fn task, void *data) {
    size_t i;
    (void)user;
    for (i = 1; i < count; i += 2) {
        task(data, i);
    }
}

typedef struct job {
    trion_task_fn task;
    void *data;
    size_t index;
} job;

static void *run_job(void *user) {
    job *job = user;
    job->task(job->data, job->index);
    return NULL;
}

static void a_thread_each(void *user, size_t count, trion_task_fn task, void *data) {
    pthread_t threads[8];
    job jobs[8];
    size_t i;
    (void)user;
    CHECK(count <= 8);
    for (i = 0; i < count; i++) {
        jobs[i].task = task;
        jobs[i].data = data;
        jobs[i].index = i;
        CHECK(pthread_create(&threads[i], NULL, run_job, &jobs[i]) == 0);
    }
    while (i-- > 0) {
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

/* Workers that wait for jobs. Calls from several threads take turns. */
typedef struct workers {
    pthread_mutex_t turn, mutex;
    pthread_cond_t work, done;
    job job;
    size_t next, count, running;
    int over;
    size_t size;
    pthread_t threads[8];
} workers;

static void *work(void *user) {
    workers *workers = user;
    CHECK(pthread_mutex_lock(&workers->mutex) == 0);
    for (;;) {
        job job;
        while (!workers->over && workers->next == workers->count) {
            CHECK(pthread_cond_wait(&workers->work, &workers->mutex) == 0);
        }
        if (workers->over) {
            break;
        }
        job = workers->job;
        job.index = workers->next++;
        workers->running++;
        CHECK(pthread_mutex_unlock(&workers->mutex) == 0);
        job.task(job.data, job.index);
        CHECK(pthread_mutex_lock(&workers->mutex) == 0);
        if (--workers->running == 0 && workers->next == workers->count) {
            CHECK(pthread_cond_signal(&workers->done) == 0);
        }
    }
    CHECK(pthread_mutex_unlock(&workers->mutex) == 0);
    return NULL;
}

static void by_workers(void *user, size_t count, trion_task_fn task, void *data) {
    workers *workers = user;
    CHECK(pthread_mutex_lock(&workers->turn) == 0);
    CHECK(pthread_mutex_lock(&workers->mutex) == 0);
    workers->job.task = task;
    workers->job.data = data;
    workers->next = 0;
    workers->count = count;
    CHECK(pthread_cond_broadcast(&workers->work) == 0);
    while (workers->running > 0 || workers->next < workers->count) {
        CHECK(pthread_cond_wait(&workers->done, &workers->mutex) == 0);
    }
    CHECK(pthread_mutex_unlock(&workers->mutex) == 0);
    CHECK(pthread_mutex_unlock(&workers->turn) == 0);
}

static void start_workers(workers *workers, size_t size) {
    size_t i;
    memset(workers, 0, sizeof *workers);
    CHECK(pthread_mutex_init(&workers->turn, NULL) == 0 && pthread_mutex_init(&workers->mutex, NULL) == 0);
    CHECK(pthread_cond_init(&workers->work, NULL) == 0 && pthread_cond_init(&workers->done, NULL) == 0);
    workers->size = size;
    for (i = 0; i < size; i++) {
        CHECK(pthread_create(&workers->threads[i], NULL, work, workers) == 0);
    }
}

static void end_workers(workers *workers) {
    size_t i;
    CHECK(pthread_mutex_lock(&workers->mutex) == 0);
    workers->over = 1;
    CHECK(pthread_cond_broadcast(&workers->work) == 0);
    CHECK(pthread_mutex_unlock(&workers->mutex) == 0);
    for (i = 0; i < workers->size; i++) {
        CHECK(pthread_join(workers->threads[i], NULL) == 0);
    }
    CHECK(pthread_cond_destroy(&workers->done) == 0 && pthread_cond_destroy(&workers->work) == 0);
    CHECK(pthread_mutex_destroy(&workers->mutex) == 0 && pthread_mutex_destroy(&workers->turn) == 0);
}

/* One session ------------------------------------------------------------------------------------------------------ */

static const char *path;
static size_t prompt_tokens, new_tokens;

static trion_runtime *host_runtime(trion_parallel_for_fn parallel_for, size_t workers, void *user) {
    trion_runtime_options options = {.struct_size = sizeof options};
    trion_runtime *runtime;
    options.parallel_for = parallel_for;
    options.parallel_workers = workers;
    options.parallel_user = user;
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    return runtime;
}

static trion_runtime *pool_runtime(size_t threads) {
    trion_runtime_options options = {.struct_size = sizeof options};
    trion_runtime *runtime;
    options.threads = threads;
    CHECK_OK(trion_runtime_new(&options, &runtime, &error));
    return runtime;
}

static trace run(trion_session *session, size_t vocab_size, uint64_t seed) {
    push_numbers(session, vocab_size, prompt_tokens, seed);
    sample(session, seed);
    return take_trace(session, SIZE_MAX, new_tokens);
}

/* Frees the runtime. */
static void check_runtime(trion_runtime *runtime, const trace *expected) {
    trion_model *model = open_model(runtime, path);
    trion_session *session = new_session(model, 0, 0);
    trace found = run(session, vocab_size_of(model), 1);
    CHECK(same_trace(&found, expected));
    free_trace(&found);
    trion_session_free(session);
    trion_model_free(model);
    trion_runtime_free(runtime);
}

static void one_session(void) {
    trion_model *model = open_model(NULL, path);
    trion_session *session = new_session(model, 0, 0);
    trace expected = run(session, vocab_size_of(model), 1);
    const size_t sizes[] = {1, 2, 5};
    size_t i;
    workers workers;
    for (i = 2; i <= 5; i += 3) {
        check_runtime(host_runtime(in_order, i, NULL), &expected);
        check_runtime(host_runtime(in_reverse, i, NULL), &expected);
        check_runtime(host_runtime(none_at_all, i, NULL), &expected);
        check_runtime(host_runtime(every_other, i, NULL), &expected);
        check_runtime(host_runtime(a_thread_each, i, NULL), &expected);
    }
    check_runtime(host_runtime(in_order, 0, NULL), &expected);
    for (i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        start_workers(&workers, sizes[i]);
        check_runtime(host_runtime(by_workers, 4, &workers), &expected);
        end_workers(&workers);
    }
    for (i = 0; i <= 3; i++) {
        check_runtime(pool_runtime(i), &expected);
    }
    free_trace(&expected);
    trion_session_free(session);
    trion_model_free(model);
}

/* Many at once ----------------------------------------------------------------------------------------------------- */

#define THREADS 8

typedef struct player {
    const trion_model *model;
    size_t vocab_size;
    uint64_t seed;
    trace trace;
} player;

static void *play(void *user) {
    player *player = user;
    trion_session_options options = {.struct_size = sizeof options};
    trion_session *session;
    /* Made, used and freed on this thread. */
    options.ignore_end = 1;
    CHECK_OK(trion_session_new(player->model, &options, NULL, &session, &error));
    player->trace = run(session, player->vocab_size, player->seed);
    trion_session_free(session);
    return NULL;
}

static void many_at_once(trion_runtime *runtime, const trace *expected) {
    trion_model *model = open_model(runtime, path);
    player players[THREADS];
    pthread_t threads[THREADS];
    size_t i;
    for (i = 0; i < THREADS; i++) {
        players[i].model = model;
        players[i].vocab_size = vocab_size_of(model);
        players[i].seed = i;
        CHECK(pthread_create(&threads[i], NULL, play, &players[i]) == 0);
    }
    for (i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(same_trace(&players[i].trace, &expected[i]));
        free_trace(&players[i].trace);
    }
    trion_model_free(model);
    trion_runtime_free(runtime);
}

static void many_sessions(void) {
    trion_model *model = open_model(NULL, path);
    trace expected[THREADS];
    workers workers;
    size_t i;
    for (i = 0; i < THREADS; i++) {
        trion_session *session = new_session(model, 0, 0);
        expected[i] = run(session, vocab_size_of(model), i);
        trion_session_free(session);
    }
    many_at_once(NULL, expected);
    many_at_once(pool_runtime(3), expected);
    many_at_once(host_runtime(a_thread_each, 3, NULL), expected);
    start_workers(&workers, 2);
    many_at_once(host_runtime(by_workers, 3, &workers), expected);
    end_workers(&workers);
    for (i = 0; i < THREADS; i++) {
        free_trace(&expected[i]);
    }
    trion_model_free(model);
}

int main(int argc, char **argv) {
    arguments arguments = read_arguments(argc, argv);
    path = golden(&arguments, "bitnet_offline");
    prompt_tokens = 40;
    new_tokens = arguments.quick ? 2 : 10;
    one_session();
    many_sessions();
    if (!arguments.quick) {
        path = arguments.model;
        prompt_tokens = 70;
        new_tokens = 4;
        one_session();
        many_sessions();
    }
    return 0;
}
