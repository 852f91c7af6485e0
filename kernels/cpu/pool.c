/* Worker threads.  run() publishes a function and a number of tasks; the caller and the workers take task numbers
 * from one atomic counter until it is 0, and the caller returns when all are finished.  Who runs what never shows in
 * results.
 *
 * A worker looks for the next job for some microseconds, then sleeps: operations of a step follow each other closely,
 * but a machine with something else to do gets its cores back.
 *
 * SPDX-License-Identifier: MIT */
#include <fenv.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "cpu.h"

#ifdef DSV2I_X86
#include <immintrin.h>
#endif

#define MIN_WORK 1.0e6     /* multiply-adds: one core does them in 10 to 20 us, no longer than another takes to wake up */
#define SPIN 300           /* pauses, some 5 to 15 us */
#define STACK_BYTES (1 << 20)

static void pause_cpu(void)
{
#ifdef DSV2I_X86
    _mm_pause();
#else
    sched_yield();
#endif
}

/* A free task number, or -1.  Everything about the job is read after this has succeeded: until the task is finished,
 * the caller cannot publish another. */
static int32_t take(struct dsv2i_pool *p)
{
    int left = atomic_load(&p->left);

    while (left > 0)
        if (atomic_compare_exchange_weak(&p->left, &left, left - 1))
            return left - 1;
    return -1;
}

static void work(struct dsv2i_cpu *be, int32_t thread)
{
    struct dsv2i_pool *p = &be->pool;
    int32_t task;

    while ((task = take(p)) >= 0) {
        p->fn(be, p->arg, task, thread);
        if (atomic_fetch_sub(&p->unfinished, 1) == 1 && atomic_load(&p->waiting)) {
            pthread_mutex_lock(&p->lock);
            pthread_cond_signal(&p->done);
            pthread_mutex_unlock(&p->lock);
        }
    }
}

static void *worker_main(void *arg)
{
    struct dsv2i_worker *w = arg;
    struct dsv2i_pool *p = &w->be->pool;

    fesetenv(FE_DFL_ENV); /* not what the thread had that made this one */
    while (!atomic_load(&p->stop)) {
        work(w->be, w->thread);
        for (int i = 0; i < SPIN && atomic_load_explicit(&p->left, memory_order_relaxed) == 0; i++)
            pause_cpu();
        if (atomic_load(&p->left))
            continue;
        pthread_mutex_lock(&p->lock);
        atomic_fetch_add(&p->sleeping, 1);
        while (!atomic_load(&p->left) && !atomic_load(&p->stop))
            pthread_cond_wait(&p->wake, &p->lock);
        atomic_fetch_sub(&p->sleeping, 1);
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

static void wake(struct dsv2i_pool *p, int32_t n)
{
    pthread_mutex_lock(&p->lock);
    if (n >= p->n_threads - 1)
        pthread_cond_broadcast(&p->wake);
    else
        for (int32_t i = 0; i < n; i++)
            pthread_cond_signal(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void dsv2i_pool_run(struct dsv2i_cpu *be, dsv2i_task fn, const void *arg, int32_t n_tasks, double n_work)
{
    struct dsv2i_pool *p = &be->pool;

    if (n_tasks <= 1 || p->n_threads == 1 || n_work < p->min_work) {
        for (int32_t i = 0; i < n_tasks; i++)
            fn(be, arg, i, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store(&p->unfinished, n_tasks);
    atomic_store(&p->left, n_tasks);
    /* A worker counts itself as sleeping before its last look at left, so one of the two sees the other. */
    if (atomic_load(&p->sleeping))
        wake(p, n_tasks - 1);
    work(be, 0);
    for (int i = 0; i < SPIN && atomic_load(&p->unfinished); i++)
        pause_cpu();
    if (atomic_load(&p->unfinished)) {
        pthread_mutex_lock(&p->lock);
        atomic_store(&p->waiting, 1);
        while (atomic_load(&p->unfinished))
            pthread_cond_wait(&p->done, &p->lock);
        atomic_store(&p->waiting, 0);
        pthread_mutex_unlock(&p->lock);
    }
}

/* Cores that this process may use. */
static int32_t allowed_cores(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return dsv2i_max(1, CPU_COUNT(&set));
    return dsv2i_max(1, (int32_t)sysconf(_SC_NPROCESSORS_ONLN)); /* more cores than a cpu_set_t holds */
}

static int start_workers(struct dsv2i_cpu *be)
{
    struct dsv2i_pool *p = &be->pool;
    pthread_attr_t attr;
    sigset_t all, before;
    int failed;

    if (pthread_attr_init(&attr))
        return -1;
    failed = pthread_attr_setstacksize(&attr, STACK_BYTES);
    /* The host's signals are for the host's threads. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (!failed && p->n_started < p->n_threads - 1) {
        p->workers[p->n_started] = (struct dsv2i_worker){ be, p->n_started + 1 };
        failed = pthread_create(&p->threads[p->n_started], &attr, worker_main, &p->workers[p->n_started]);
        p->n_started += !failed;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return failed ? -1 : 0;
}

int dsv2i_pool_open(struct dsv2i_cpu *be, int32_t n_threads)
{
    struct dsv2i_pool *p = &be->pool;
    size_t n;

    p->n_threads = n_threads > 0 ? n_threads : allowed_cores();
    p->min_work = MIN_WORK;
    if (pthread_mutex_init(&p->lock, NULL))
        return -1;
    if (pthread_cond_init(&p->wake, NULL)) {
        pthread_mutex_destroy(&p->lock);
        return -1;
    }
    if (pthread_cond_init(&p->done, NULL)) {
        pthread_cond_destroy(&p->wake);
        pthread_mutex_destroy(&p->lock);
        return -1;
    }
    n = (size_t)p->n_threads; /* one too many: never 0 bytes */
    p->threads = be->hooks.alloc(be->hooks.user, n * sizeof *p->threads, 64);
    p->workers = be->hooks.alloc(be->hooks.user, n * sizeof *p->workers, 64);
    if (!p->threads || !p->workers || start_workers(be)) {
        dsv2i_pool_close(be);
        return -1;
    }
    return 0;
}

void dsv2i_pool_close(struct dsv2i_cpu *be)
{
    struct dsv2i_pool *p = &be->pool;
    size_t n = (size_t)p->n_threads;

    atomic_store(&p->stop, 1);
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int32_t i = 0; i < p->n_started; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    if (p->threads)
        be->hooks.free(be->hooks.user, p->threads, n * sizeof *p->threads);
    if (p->workers)
        be->hooks.free(be->hooks.user, p->workers, n * sizeof *p->workers);
}
