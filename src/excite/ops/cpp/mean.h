// The mean over positions, in one walk over a map.
#pragma once

#include <vector>

#include "work.h"

namespace {

// Sums of the positions [begin, end) of `width` channels of a row-wise map.
template <class T>
void sum_rows(const T* rows, Index stride, Index begin, Index end, Index width, Sum<T>* out) {
    using A = Sum<T>;
    A sum[kBlock] = {}, part[kBlock] = {};
    for (Index p = begin; p < end; ++p) {
        const T* row = rows + p * stride;
        each(width, [&](auto lanes, Index c) {
            constexpr int L = decltype(lanes)::value;
            fetch(row + c);
            store<L>(part + c, load<L>(part + c) + load<L>(row + c));
        });
        if ((p + 1 - begin) % kRows == 0 || p + 1 == end) move_sums(part, sum, width);
    }
    std::copy(sum, sum + width, out);
}

// Few samples of few channels are cut by positions as well, the shape alone deciding where.
template <class T>
void mean_of_rows(const Map map, const T* x, Sum<T>* out) {
    using A = Sum<T>;
    const Index blocks = map.n * ((map.c + kBlock - 1) / kBlock);
    const Index cuts = std::clamp<Index>(std::min(8 / blocks, map.p / 128), 1, 8);
    std::vector<A> parts(cuts == 1 ? 0 : cuts * map.n * map.c);
    A* sums = cuts == 1 ? out : parts.data();
    const Map cut{map.n * cuts, map.c, map.p / cuts, map.threads};
    share_channels(cut, [=](Index part, Index first, Index width) {
        const Index n = part / cuts, i = part % cuts;
        sum_rows(x + n * map.p * map.c + first, map.c, map.p * i / cuts, map.p * (i + 1) / cuts, width,
                 sums + part * map.c + first);
    });
    const A factor = A(1) / A(map.p);
    for (Index n = 0; n < map.n; ++n)
        for (Index c = 0; c < map.c; ++c) {
            A total = 0;
            for (Index i = 0; i < cuts; ++i) total += sums[(n * cuts + i) * map.c + c];
            out[n * map.c + c] = total * factor;
        }
}

template <class T>
void mean_of_planes(const Map map, const T* x, Sum<T>* out) {
    using A = Sum<T>;
    share<false>(map, map.n * map.c, [=](Index plane) {
        A sum = 0;
        for (Index p = 0; p < map.p; p += kRun) {
            Pack<A, 16> s = {};
            A rest = 0;
            each(std::min<Index>(kRun, map.p - p), [&](auto lanes, Index i) {
                constexpr int L = decltype(lanes)::value;
                const auto value = load<L>(x + plane * map.p + p + i);
                if constexpr (L == 1) rest += value;
                else s += value;
            });
            sum += total_of(s) + rest;
        }
        out[plane] = sum * (A(1) / A(map.p));
    });
}

template <class T>
void mean(const Map map, bool rows, const T* x, Sum<T>* out) {
    rows ? mean_of_rows(map, x, out) : mean_of_planes(map, x, out);
}

}  // namespace
