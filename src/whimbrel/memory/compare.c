/* Pages against what crossed of them before, and back: what codecs.py does to each of their words.
 *
 * Compiled because numpy goes through all of them once for each question (which differ, how many, their sum) and once
 * more for each answer (the difference, the copy renewed): coding took 33 ms of a processor in a freeze of `objects`.
 *
 * A difference is eight bitmaps of 64 words each, the first word the lowest bit, that say which words differ; then,
 * bitmap by bitmap, those words XORed with what they were.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { WORDS = 512, LINE_WORDS = 64, LINES = WORDS / LINE_WORDS, PAGE_BYTES = WORDS * 8, MAPS_BYTES = LINES * 8 };
enum { LINE_BYTES = LINE_WORDS * 8 };
enum coding { RAW, ZERO, PACKED, DELTA, SAME };
/* With more words changed than so many its contents pack better than its difference. */
enum { MOST_CHANGED = WORDS / 2 };

const char SOURCE[] = SOURCE_DIGEST; /* of this file */
/* What `compare` may need for the difference of one page; and what a difference has at least. */
const int ROOM_BYTES = MAPS_BYTES + MOST_CHANGED * 8, LEAST_BYTES = MAPS_BYTES;

struct page {
    uint64_t words[WORDS];
};

static bool is_zero(const struct page *page)
{
    return !page->words[0] && !memcmp(page->words, page->words + 1, PAGE_BYTES - 8);
}

static uint64_t sum_of(const struct page *page)
{
    uint64_t sum = 0;
    for (int i = 0; i < WORDS; i++)
        sum += page->words[i];
    return sum;
}

/* Which words differ; returns how many. */
static int differing(const struct page *now, const struct page *before, uint64_t maps[LINES])
{
    int changed = 0;
    for (int line = 0; line < LINES; line++) {
        const uint64_t *here = now->words + line * LINE_WORDS, *there = before->words + line * LINE_WORDS;
        maps[line] = 0;
        if (!memcmp(here, there, LINE_BYTES))
            continue;
        for (int i = 0; i < LINE_WORDS; i++)
            maps[line] |= (uint64_t)(here[i] != there[i]) << i;
        changed += __builtin_popcountll(maps[line]);
    }
    return changed;
}

/* The words that differ, XORed, go to `words`; returns how many. */
static int64_t xored(const struct page *now, const struct page *before, const uint64_t maps[LINES], uint64_t *words)
{
    int64_t count = 0;
    for (int line = 0; line < LINES; line++)
        for (uint64_t left = maps[line]; left; left &= left - 1) {
            int i = line * LINE_WORDS + __builtin_ctzll(left);
            words[count++] = now->words[i] ^ before->words[i];
        }
    return count;
}

/* How each of `count` pages crosses: `codings` become ZERO, SAME, DELTA or PACKED. `slots[i]`: which of the `copies`,
 * of which there are so many, is that of page i; any other number: there is none. The differences follow each other in
 * `differences`, with room for ROOM_BYTES a page; `sum` becomes that of the words of all DELTA pages as they are now.
 * If it `renews` them, the copies are as the pages are from now on, but not number 0, which all pages of zeros have in
 * common. Returns the bytes of all differences. */
int64_t compare(const struct page *pages, int64_t count, const int64_t *slots, struct page *copies, int64_t copy_count,
                bool renews, uint8_t *codings, char *differences, uint64_t *sum)
{
    char *end = differences;
    *sum = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct page *now = pages + i;
        struct page *before = slots[i] < 0 || slots[i] >= copy_count ? NULL : copies + slots[i];
        uint64_t maps[LINES];
        int changed = before ? differing(now, before, maps) : WORDS;
        if (is_zero(now))
            codings[i] = ZERO;
        else if (!changed)
            codings[i] = SAME;
        else if (changed > MOST_CHANGED)
            codings[i] = PACKED;
        else {
            codings[i] = DELTA;
            memcpy(end, maps, MAPS_BYTES);
            end += MAPS_BYTES;
            end += 8 * xored(now, before, maps, (uint64_t *)end);
            *sum += sum_of(now);
        }
        if (renews && before && slots[i] > 0 && changed)
            memcpy(before, now, PAGE_BYTES);
    }
    return end - differences;
}

/* The other way: `count` pages, made out of number `slots[i]` of the `copies` and difference i, at number `places[i]`
 * of the `pages`. False when the `size` bytes of differences are not just as many as that takes, or there is no such
 * copy. */
bool apply(const char *differences, int64_t size, int64_t count, const int64_t *slots, const struct page *copies,
           int64_t copy_count, const int64_t *places, struct page *pages)
{
    const char *at = differences, *end = differences + size;
    for (int64_t i = 0; i < count; i++) {
        uint64_t maps[LINES];
        int64_t changed = 0;
        struct page *page = pages + places[i];
        if (end - at < MAPS_BYTES || slots[i] < 0 || slots[i] >= copy_count)
            return false;
        memcpy(maps, at, MAPS_BYTES);
        at += MAPS_BYTES;
        for (int line = 0; line < LINES; line++)
            changed += __builtin_popcountll(maps[line]);
        if (end - at < 8 * changed)
            return false;
        memcpy(page, copies + slots[i], PAGE_BYTES);
        for (int line = 0; line < LINES; line++)
            for (uint64_t left = maps[line]; left; left &= left - 1) {
                uint64_t word;
                memcpy(&word, at, 8);
                page->words[line * LINE_WORDS + __builtin_ctzll(left)] ^= word;
                at += 8;
            }
    }
    return at == end;
}
