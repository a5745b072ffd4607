// The work of the compiled passes: a map's parts over threads.
//
// A map has N samples, C channels and P positions, either "planes" (each channel's positions together: contiguous) or
// "rows" (each position's channels together: channels_last). Sums are taken in `Sum<T>`, in an order that depends on
// the shape alone: results are the same for any number of threads.
#pragma once

#include <algorithm>

#include <sys/mman.h>

#include "numbers.h"

namespace {

struct Map {
    Index n, c, p;
    int threads;
};

// Below this many values a second thread costs more than it brings.
constexpr Index kAlone = 1 << 14;
// Channels of a part of a row-wise sum: its sums stay in the first cache.
constexpr Index kBlock = 2048;
// Rows, and positions of a plane, summed before their sum is added to the rest.
constexpr Index kRows = 64, kRun = 1024;
// From how many bytes on a result is worth asking for larger pages.
constexpr Index kLarge = 1 << 21;

// Maps rarely lie in a cache when a pass begins; the processor alone does not fetch several streams far enough ahead.
template <class T>
inline void fetch(const T* p) {
    __builtin_prefetch(reinterpret_cast<const char*>(p) + 4096);
}

// A part is copied to each thread: its pointers then stay in registers, where those of a shared one would be read again
// after every store. Compiled once: two copies of the code might round differently, and threads would be told apart.
template <bool backwards, class Part>
[[gnu::noinline]] void walk(const Part part, Index first, Index last) {
    for (Index i = first; i < last; ++i) part(backwards ? last - 1 - (i - first) : i);
}

// `part(i)` over 0 <= i < parts, each thread taking neighbours. The second pass over a map goes backwards: what the
// first read last is still in the cache.
template <bool backwards, class Part>
void share(const Map& map, Index parts, const Part& part) {
    const Index threads = map.n * map.c * map.p < kAlone ? 1 : std::max(1, map.threads);
    if (threads == 1) return walk<backwards>(part, 0, parts);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (Index thread = 0; thread < threads; ++thread)
        walk<backwards>(part, parts * thread / threads, parts * (thread + 1) / threads);
}

// Sums of a row-wise map: `part(n, c, width)`. Whole rows are fastest to walk; channels are cut where threads would
// have unequal work. No sum crosses a cut.
template <class Part>
void share_channels(const Map& map, const Part part) {
    Index width = std::min(map.c, kBlock), blocks = (map.c + width - 1) / width;
    while (width > 64 && map.n * blocks % map.threads != 0 && map.n * blocks < 4 * map.threads) {
        width = (width / 2 + 15) / 16 * 16;
        blocks = (map.c + width - 1) / width;
    }
    share<false>(map, map.n * blocks, [=, channels = map.c](Index i) {
        const Index c = i % blocks * width;
        part(i / blocks, c, std::min(width, channels - c));
    });
}

// A row-wise map value by value: `body(lanes, i, k)` for the values from i on, whose [N, C] numbers stand from k on.
template <class Body>
void share_values(const Map& map, const Body body) {
    const Index height = std::max<Index>(1, 8192 / map.c), blocks = (map.p + height - 1) / height;
    share<true>(map, map.n * blocks, [=, p = map.p, channels = map.c](Index block) {
        const Index n = block / blocks, first = block % blocks * height, last = std::min(p, first + height);
        for (Index row = n * p + first; row < n * p + last; ++row)
            each(channels, [&](auto lanes, Index c) { body(lanes, row * channels + c, n * channels + c); });
    });
}

// Fresh memory for a large result costs one fault a page, more than the pass itself: larger pages are asked for.
// Memory that is there already stays as it is.
inline void expect(void* p, Index bytes) {
    constexpr uintptr_t page = 4096;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(p) + page - 1) / page * page;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(p) + bytes) / page * page;
    if (bytes >= kLarge) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

// Adds the sums of a few rows to the sums of all.
template <class A>
inline void move_sums(A* few, A* all, Index width) {
    for (Index c = 0; c < width; ++c) {
        all[c] += few[c];
        few[c] = 0;
    }
}

}  // namespace
