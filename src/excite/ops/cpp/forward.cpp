// The fused tail's passes forward, and two of inference, each in one walk over memory: affine_act, mean, moments.
//
// Plain C functions on raw pointers, so that no header of PyTorch is needed: they compile in seconds, and one build
// serves any version of Python. What each computes stands in tail_passes.py, whose PyTorch versions these equal up to
// rounding.
#include "mean.h"

namespace {

// ---- affine_act, and inference's rescaling: out = act(scale * (x - centre) + offset + shortcut); out may be x.

template <class T, Act act>
void affine_act(const Map map, bool rows, const T* x, const T* shortcut, const Sum<T>* centre, const Sum<T>* scale,
                const Sum<T>* offset, T* out) {
    if (rows) {
        share_values(map, [=](auto lanes, Index i, Index k) {
            constexpr int L = decltype(lanes)::value;
            fetch(x + i);
            if (shortcut) fetch(shortcut + i);
            auto h = load<L>(x + i);
            if (centre) h -= load<L>(centre + k);
            h *= load<L>(scale + k);
            if (offset) h += load<L>(offset + k);
            if (shortcut) h += load<L>(shortcut + i);
            store<L>(out + i, activate<act, Sum<T>, L>(h));
        });
    } else {
        share<true>(map, map.n * map.c, [=](Index plane) {
            const Sum<T> middle = centre ? centre[plane] : 0, factor = scale[plane];
            const Sum<T> added = offset ? offset[plane] : 0;
            each(map.p, [&](auto lanes, Index p) {
                constexpr int L = decltype(lanes)::value;
                const Index i = plane * map.p + p;
                auto h = (load<L>(x + i) - middle) * factor + added;
                if (shortcut) h += load<L>(shortcut + i);
                store<L>(out + i, activate<act, Sum<T>, L>(h));
            });
        });
    }
}

// ---- moments: mean and biased variance over positions, tile by tile about the tile's own mean (Chan et al., 1979)

// Rows of `moments` held in registers.
constexpr int kTile = 4;

// Adds `count` values with this mean and sum of squared deviations to `before` others.
template <class V, class A>
inline void merge(V& mean, V& squares, V tile_mean, V tile_squares, A before, A count) {
    const A weight = count / (before + count);
    const V apart = tile_mean - mean;
    mean += apart * weight;
    squares += tile_squares + apart * apart * (before * weight);
}

template <int height, class T>
inline void moments_tile(const T* tile, Index stride, Index width, Sum<T>* mean, Sum<T>* squares, Index before) {
    using A = Sum<T>;
    each(width, [&](auto lanes, Index c) {
        constexpr int L = decltype(lanes)::value;
        using V = Pack<A, L>;
        V value[height], m = {}, q = {};
        for (int k = 0; k < height; ++k) {
            __builtin_prefetch(tile + (k + height) * stride + c);
            m += value[k] = load<L>(tile + k * stride + c);
        }
        m *= A(1) / A(height);
        for (int k = 0; k < height; ++k) q += (value[k] - m) * (value[k] - m);
        V all = load<L>(mean + c), deviation = load<L>(squares + c);
        merge<V, A>(all, deviation, m, q, A(before), A(height));
        store<L>(mean + c, all);
        store<L>(squares + c, deviation);
    });
}

template <class T>
void moments(const Map map, bool rows, const T* x, Sum<T>* mean, Sum<T>* variance) {
    using A = Sum<T>;
    const A factor = A(1) / A(map.p);
    if (rows) {
        share_channels(map, [=](Index n, Index first, Index width) {
            A m[kBlock] = {}, q[kBlock] = {}, run_m[kBlock] = {}, run_q[kBlock] = {};
            for (Index start = 0; start < map.p; start += kRows) {
                const T* from = x + (n * map.p + start) * map.c + first;
                const Index rows_here = std::min(kRows, map.p - start);
                Index p = 0;
                for (; p + kTile <= rows_here; p += kTile)
                    moments_tile<kTile>(from + p * map.c, map.c, width, run_m, run_q, p);
                for (; p < rows_here; ++p) moments_tile<1>(from + p * map.c, map.c, width, run_m, run_q, p);
                for (Index c = 0; c < width; ++c) {
                    merge<A, A>(m[c], q[c], run_m[c], run_q[c], A(start), A(rows_here));
                    run_m[c] = run_q[c] = 0;
                }
            }
            for (Index c = 0; c < width; ++c) {
                mean[n * map.c + first + c] = m[c];
                variance[n * map.c + first + c] = q[c] * factor;
            }
        });
    } else {
        share<false>(map, map.n * map.c, [=](Index plane) {
            A m = 0, q = 0;
            for (Index p = 0; p < map.p; p += kRun) {
                const T* run = x + plane * map.p + p;
                const Index length = std::min(kRun, map.p - p);
                Pack<A, 16> s = {};
                A rest = 0;
                each(length, [&](auto lanes, Index i) {
                    constexpr int L = decltype(lanes)::value;
                    if constexpr (L == 1) rest += load<L>(run + i);
                    else s += load<L>(run + i);
                });
                const A middle = (total_of(s) + rest) / A(length);
                Pack<A, 16> squares = {};
                A few = 0;
                each(length, [&](auto lanes, Index i) {
                    constexpr int L = decltype(lanes)::value;
                    const auto d = load<L>(run + i) - middle;
                    if constexpr (L == 1) few += d * d;
                    else squares += d * d;
                });
                merge<A, A>(m, q, middle, total_of(squares) + few, A(p), A(length));
            }
            mean[plane] = m;
            variance[plane] = q * factor;
        });
    }
}

}  // namespace

// Called by native.py. dtype: float32, float64, bfloat16, float16; rows: channels_last; act: as in `Act`.
extern "C" {

void excite_affine_act(int dtype, int rows, int threads, Index n, Index c, Index p, const void* x,
                       const void* shortcut, const void* centre, const void* scale, const void* offset, void* out,
                       int act) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Sum<T>;
        if (out != x) expect(out, n * c * p * Index(sizeof(T)));
        const auto run = act == relu ? affine_act<T, relu> : act == silu ? affine_act<T, silu>
                         : act == hardswish ? affine_act<T, hardswish> : affine_act<T, none>;
        run(Map{n, c, p, threads}, rows, static_cast<const T*>(x), static_cast<const T*>(shortcut),
            static_cast<const A*>(centre), static_cast<const A*>(scale), static_cast<const A*>(offset),
            static_cast<T*>(out));
    });
}

void excite_mean(int dtype, int rows, int threads, Index n, Index c, Index p, const void* x, void* out) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        mean<T>(Map{n, c, p, threads}, rows, static_cast<const T*>(x), static_cast<Sum<T>*>(out));
    });
}

void excite_moments(int dtype, int rows, int threads, Index n, Index c, Index p, const void* x, void* mean,
                    void* variance) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Sum<T>;
        moments<T>(Map{n, c, p, threads}, rows, static_cast<const T*>(x), static_cast<A*>(mean),
                   static_cast<A*>(variance));
    });
}

}  // extern "C"
