/* Placing pages into restored address spaces that already run: what lazy.py and lazyspace.py do for each page.
 *
 * Compiled because a page takes the kernel 1 us and Python 3 more, and because Python's lock is not held here: the
 * restore goes on beside it. One thread calls this; the layouts stay as they are while it is in here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE_BYTES = 4096, MOST = 64 };
enum { MISSING = -1, GONE = -2 }; /* instead of a slot: see LazySpace */

/* So many placed one after the other are not kept in the store: the kernel places the next ones in their memory, which
 * it need not get from the host of a virtual machine, and which the processor's cache still holds. */
const int GIVEN_BACK_PAGES = 32;
/* What a fault brings at once, aligned: each page makes it longer by 1 us. */
const int AROUND_PAGES = 4;
/* So many pages of zeros a fault brings at once, if there are so many: they take no memory, and who goes on into memory
 * that was not there yet mostly goes on. */
const int ZERO_PAGES = 512;
/* So far after a fault the fill goes on there, for programs read forwards; and so far before it. */
const int FOLLOW_PAGES = 512, BEFORE_PAGES = 32;
/* A program that faults so near to where the fill has come after its last fault reads on. */
const int NEAR_PAGES = 32;
/* A step of the fill, some 10 us: who faults meanwhile waits for it. */
const int STEP_PAGES = 8;
/* After so long memory that was not mapped yet is tried again. */
enum { UNMAPPED_NS = 200000 };

struct run {
    int64_t at, count;
};

struct queue {
    struct run *runs;
    int64_t first, end;
};

struct space {
    const uint64_t *pages; /* ascending numbers of pages */
    int64_t *slots;        /* where in the store each lies, MISSING or GONE */
    uint8_t *settled;      /* 0: to be placed out of the store */
    const uint8_t *cut;    /* 1: does not lie next to the one before, in the program or in the store */
    int64_t count;
    char *store;
    struct queue hot, needed, warm;
    struct queue missed; /* stretches of pages, in order: first page, how many; full at its `end` */
    int64_t next, follow, follow_end;
    int64_t spent_at, spent_slot, spent;
    int64_t faults, filled_pages;
    int32_t uffd;
    uint8_t laid_out, gone, gives_back, reads_on;
};

struct server {
    struct space **spaces;
    int64_t count;
    int32_t epoll, bell;
    uint8_t filling, laid_out, hot_told, end_told; /* filling: no pages, hot ones, or all */
    int64_t fault_ns;
    /* What an answer is about: number `of` of the spaces; and either `size` bytes of messages of its userfaultfd, or
     * `size` indices of pages that somebody waits for and that have not come; or what is wrong, an errno. */
    int64_t of, size;
    union {
        struct uffd_msg messages[MOST];
        int64_t asked[MOST];
    };
};

enum answer { NOTHING, BELL, MESSAGES, ASKED, ENDED, HOT_PLACED, ALL_PLACED, FAILED, GO_ON = -1 };
enum filling { NO_PAGES, HOT_PAGES, ALL_PAGES };
enum order { READ_ON, HOT, AROUND, NEEDED, WARM, REST, ORDERS };

const char SOURCE[] = SOURCE_DIGEST; /* of this file */

int64_t sizes(int which)
{
    return which ? sizeof(struct server) : sizeof(struct space);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int64_t least(int64_t one, int64_t other)
{
    return one < other ? one : other;
}

/* --- placing ----------------------------------------------------------------------------------------------------- */

static void wake(const struct space *space, uint64_t page)
{
    struct uffdio_range range = {page * PAGE_BYTES, PAGE_BYTES};
    ioctl(space->uffd, UFFDIO_WAKE, &range);
}

/* Copy `count` pages. Returns how many are done with, fewer when it is to be tried again; `clean` is whether all of them
 * were copied just now. */
static int64_t copy(struct space *space, uint64_t page, int64_t slot, int64_t count, bool *clean)
{
    int64_t done = 0, step = count;
    *clean = true;
    while (done < count) {
        step = least(step, count - done);
        struct uffdio_copy copied = {
            .dst = (page + done) * PAGE_BYTES,
            .src = (uintptr_t)space->store + (slot + done) * PAGE_BYTES,
            .len = step * PAGE_BYTES,
        };
        if (ioctl(space->uffd, UFFDIO_COPY, &copied) == 0) {
            done += step;
            step = count;
            continue;
        }
        int error = errno;
        *clean = false;
        if (copied.copy > 0)
            done += copied.copy / PAGE_BYTES;
        else if (error == ENOENT && step > 1)
            step /= 2; /* one call must stay within one mapping, and two may touch */
        else if (error == ENOENT && !space->laid_out)
            return done;
        else if (error == EEXIST || error == ENOENT) { /* there already, or unmapped meanwhile */
            wake(space, page + done);                  /* as a copy would have done */
            done++;
        } else if (error == ESRCH) {
            space->gone = true;
            return count;
        } else { /* EAGAIN: an event waits to be read before the layout is certain again */
            if (error != EAGAIN) /* memory is short: not at once again */
                usleep(UNMAPPED_NS / 1000);
            return done;
        }
    }
    return done;
}

/* These are not needed any more in the store: give them back together with those before them, when they are many. */
static void spend(struct space *space, int64_t at, int64_t slot, int64_t count)
{
    if (at != space->spent_at + space->spent || slot != space->spent_slot + space->spent) {
        space->spent_at = at;
        space->spent_slot = slot;
        space->spent = 0;
    }
    space->spent += count;
    if (space->spent < GIVEN_BACK_PAGES)
        return;
    madvise(space->store + space->spent_slot * PAGE_BYTES, space->spent * PAGE_BYTES, MADV_DONTNEED);
    for (int64_t i = space->spent_at; i < at + count; i++)
        space->slots[i] = GONE;
    space->spent_at = at + count;
    space->spent_slot = slot + count;
    space->spent = 0;
}

/* Place `count` pages that lie together from index `at` on; returns how many are done with. */
static int64_t place(struct space *space, int64_t at, int64_t count)
{
    bool clean;
    int64_t slot = space->slots[at];
    int64_t done = copy(space, space->pages[at], slot, count, &clean);
    memset(space->settled + at, 1, done);
    if (clean && space->gives_back)
        spend(space, at, slot, count);
    return done;
}

/* The first index from `at` to before `end` whose byte is `value`, `end` when there is none. */
static int64_t find(const uint8_t *bytes, int value, int64_t at, int64_t end)
{
    const uint8_t *found = at < end ? memchr(bytes + at, value, end - at) : NULL;
    return found ? found - bytes : end;
}

/* How many pages from index `at` to before `end` lie together on both sides and are still lacking. */
static int64_t run(const struct space *space, int64_t at, int64_t end)
{
    end = find(space->settled, 1, at, least(end, space->count));
    return at < end ? find(space->cut, 1, at + 1, end) - at : 0;
}

/* --- faults ------------------------------------------------------------------------------------------------------ */

/* The first index whose page is not before `page`. */
static int64_t not_before(const struct space *space, uint64_t page)
{
    int64_t low = 0, high = space->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (space->pages[middle] < page)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* How many pages from `page` on, within reach, were not there at the source and are not to come: they read as zeros.
 * `at` is the first index not before it. */
static int64_t hole_pages(const struct space *space, uint64_t page, int64_t at)
{
    for (; at < space->count && space->pages[at] < page + ZERO_PAGES; at++)
        if (space->slots[at] != GONE)
            return space->pages[at] - page;
    return ZERO_PAGES;
}

/* The kernel's page of zeros at `page`, and from there on at up to `count` pages: as far as the mapping goes and nothing
 * is there. */
static void place_zeros(struct space *space, uint64_t page, int64_t count)
{
    for (;; count /= 2) { /* beyond the end of the mapping */
        struct uffdio_zeropage zeros = {.range = {page * PAGE_BYTES, count * PAGE_BYTES}};
        if (ioctl(space->uffd, UFFDIO_ZEROPAGE, &zeros) == 0 || zeros.zeropage > 0)
            return; /* all, or up to one that is there */
        space->gone |= errno == ESRCH;
        if (errno != ENOENT || count == 1)
            break;
    }
    wake(space, page);
}

/* The program waited for these pages, or soon would have. */
static void miss(struct space *space, uint64_t page, int64_t count)
{
    struct queue *missed = &space->missed;
    struct run *last = missed->first ? &missed->runs[missed->first - 1] : NULL;
    if (count <= 0)
        return;
    if (last && (uint64_t)(last->at + last->count) == page)
        last->count += count;
    else if (missed->first < missed->end)
        missed->runs[missed->first++] = (struct run){page, count};
}

/* Place the page at index `at` and what lies closely around. */
static void place_around(struct space *space, uint64_t page, int64_t at)
{
    int64_t before = page % AROUND_PAGES, first = at;
    int64_t low = at > before ? at - before : 0;
    if (!space->settled[at] && run(space, low, at + 1) == at + 1 - low)
        first = low;
    int64_t count = run(space, first, at + AROUND_PAGES - before);
    if (place(space, first, count ? count : 1) <= at - first)
        wake(space, page); /* after EAGAIN it faults anew, when the event has been read */
    else
        miss(space, space->pages[first], count);
    space->reads_on = space->follow <= at && at < space->follow + NEAR_PAGES;
    space->follow = at > BEFORE_PAGES ? at - BEFORE_PAGES : 0;
    space->follow_end = at + FOLLOW_PAGES;
}

/* Place the page at `address` and its close neighbours; one that never existed becomes zeros, and so does what follows
 * it. Returns the index of one that has not come yet, to be asked for, or -1. */
int64_t serve_fault(struct space *space, uint64_t address)
{
    uint64_t page = address / PAGE_BYTES;
    int64_t at = not_before(space, page);
    space->faults++;
    if (at == space->count || space->pages[at] != page || space->slots[at] == GONE)
        place_zeros(space, page, hole_pages(space, page, at));
    else if (space->slots[at] == MISSING)
        return at;
    else
        place_around(space, page, at);
    return -1;
}

/* The kernel does not tell when the process has gone: a copy to where nothing can be finds out. */
bool alive(struct space *space)
{
    struct uffdio_copy copied = {.dst = PAGE_BYTES, .src = (uintptr_t)space->store, .len = PAGE_BYTES};
    if (ioctl(space->uffd, UFFDIO_COPY, &copied) < 0 && errno == ESRCH)
        space->gone = true;
    return !space->gone;
}

/* One that somebody waits for has come, or never will: it faults anew, wherever it is now. */
void serve_waiting(struct space *space, uint64_t page)
{
    int64_t at = not_before(space, page);
    if (at < space->count && space->pages[at] == page && space->slots[at] != GONE && space->slots[at] != MISSING)
        place_around(space, page, at);
    else
        wake(space, page);
}

/* --- the fill ---------------------------------------------------------------------------------------------------- */

static int64_t fill_run(struct space *space, int64_t at, int64_t end)
{
    int64_t done = place(space, at, run(space, at, end));
    space->filled_pages += done;
    return done;
}

static int64_t fill_around(struct space *space, int64_t limit, bool read_on)
{
    int64_t end = least(space->follow_end, space->count), at = find(space->settled, 0, space->follow, end);
    if (at >= end) {
        space->follow = space->follow_end;
        space->reads_on = false;
        return -1;
    }
    int64_t done = fill_run(space, at, least(at + limit, end));
    space->follow = at + done;
    if (read_on)
        miss(space, space->pages[at], done);
    return done;
}

/* As many runs as that takes: hot pages lie in hundreds of them, a few pages each. */
static int64_t fill_queue(struct space *space, struct queue *queue, int64_t limit)
{
    int64_t placed = 0;
    while (queue->first < queue->end && placed < limit) {
        struct run *next = &queue->runs[queue->first];
        int64_t end = next->at + next->count, at = find(space->settled, 0, next->at, end);
        if (at < end) {
            int64_t done = fill_run(space, at, least(end, at + limit - placed));
            placed += done;
            next->at = at + done;
            next->count = end - next->at;
            if (!done)
                return placed;
        }
        if (at >= end || next->count == 0)
            queue->first++;
    }
    return placed ? placed : -1;
}

static int64_t fill_rest(struct space *space, int64_t limit)
{
    int64_t at = find(space->settled, 0, space->next, space->count);
    space->next = at;
    if (at == space->count)
        return -1;
    int64_t done = fill_run(space, at, at + limit);
    space->next = at + done;
    return done;
}

/* Place up to `limit` pages of those that are due by `order`. Returns how many, 0 when it has to be tried again, -1 when
 * there are none. */
int64_t fill(struct space *space, int order, int64_t limit)
{
    switch (order) {
    case READ_ON:
        return space->reads_on ? fill_around(space, limit, true) : -1;
    case HOT:
        return fill_queue(space, &space->hot, limit);
    case AROUND:
        return fill_around(space, limit, false);
    case NEEDED:
        return fill_queue(space, &space->needed, limit);
    case WARM:
        return fill_queue(space, &space->warm, limit);
    default:
        return fill_rest(space, limit);
    }
}

/* --- turns ------------------------------------------------------------------------------------------------------- */

/* What the kernel says of number `of` of the spaces. If there is anything but faults, all of it is left to the caller. */
static int look(struct server *server, int64_t of)
{
    struct space *space = server->spaces[of];
    struct uffd_msg messages[MOST];
    int64_t began_ns = now_ns();
    ssize_t size = read(space->uffd, messages, sizeof messages);
    if (size < 0 && errno != EAGAIN && errno != EINTR) {
        server->of = of;
        server->size = errno;
        return FAILED;
    }
    if (size <= 0)
        return GO_ON;
    int64_t count = size / sizeof *messages, asked = 0;
    server->of = of;
    for (int64_t i = 0; i < count; i++)
        if (messages[i].event != UFFD_EVENT_PAGEFAULT) {
            memcpy(server->messages, messages, size);
            server->size = size;
            return MESSAGES;
        }
    for (int64_t i = 0; i < count; i++) {
        int64_t at = serve_fault(space, messages[i].arg.pagefault.address);
        if (at >= 0)
            server->asked[asked++] = at;
    }
    server->fault_ns += now_ns() - began_ns;
    server->size = asked;
    return asked ? ASKED : GO_ON;
}

/* One step of the fill, for all spaces; `wait_ns` becomes how long there is nothing more to do. */
static int step(struct server *server, int64_t *wait_ns)
{
    for (int64_t i = 0; i < server->count; i++)
        if (server->spaces[i]->gone) {
            server->of = i;
            return ENDED;
        }
    for (int order = 0; order < ORDERS; order++) {
        if (server->filling == HOT_PAGES && order != HOT)
            continue;
        for (int64_t i = 0; i < server->count; i++) {
            int64_t done = fill(server->spaces[i], order, STEP_PAGES);
            if (done > 0)
                server->end_told = false;
            if (done > 0 || (done == 0 && server->spaces[i]->laid_out)) { /* 0: an event is to be read first */
                *wait_ns = 0;
                return GO_ON;
            }
            if (done == 0)
                *wait_ns = least(*wait_ns, UNMAPPED_NS);
        }
        if (order == HOT && server->laid_out && !server->hot_told) {
            server->hot_told = true;
            return HOT_PLACED;
        }
    }
    if (server->filling == ALL_PAGES && *wait_ns > UNMAPPED_NS && server->laid_out && !server->end_told) {
        server->end_told = true;
        return ALL_PLACED;
    }
    return GO_ON;
}

/* Answer faults, and fill if that has begun, until there is something that the caller has to see to, or nothing for
 * `idle_ns`. A step of the fill is taken each time, and one descriptor at a time is heard, which the kernel gives by
 * turns: a process that changes its memory all the time keeps neither the fill nor the faults of others waiting. */
int serve(struct server *server, int64_t idle_ns)
{
    for (;;) {
        int64_t wait_ns = idle_ns;
        if (server->filling) {
            int answer = step(server, &wait_ns);
            if (answer != GO_ON)
                return answer;
        }
        struct pollfd ready = {.fd = server->epoll, .events = POLLIN};
        struct timespec most = {wait_ns / 1000000000, wait_ns % 1000000000};
        if (wait_ns > 0 && ppoll(&ready, 1, &most, NULL) == 0 && wait_ns >= idle_ns)
            return NOTHING;
        struct epoll_event event;
        if (epoll_wait(server->epoll, &event, 1, 0) < 1)
            continue;
        if (event.data.fd == server->bell)
            return BELL;
        int64_t of = 0;
        while (of < server->count && server->spaces[of]->uffd != event.data.fd)
            of++;
        if (of == server->count)
            continue;
        if (event.events & ~EPOLLIN || server->spaces[of]->gone) {
            server->of = of;
            return ENDED;
        }
        int answer = look(server, of);
        if (answer != GO_ON)
            return answer;
    }
}
