// The map-sized passes of the fused tail, and two of inference, each in one walk over memory.
//
// Plain C functions on raw pointers, so that no header of PyTorch is needed: the file compiles in seconds, and one
// build serves any version of Python. What each pass computes stands in tail_passes.py, whose PyTorch versions these
// equal up to rounding.
//
// A map has N samples, C channels and P positions, either "planes" (each channel's positions together: contiguous) or
// "rows" (each position's channels together: channels_last). Sums are taken in `Sum<T>`, in an order that depends on
// the shape alone: results are the same for any number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <sys/mman.h>

namespace {

using Index = int64_t;

// ---- Numbers: maps are read and written as T, computed on as Sum<T>, L of them at a time.

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A, int L>
struct pack_of {
    typedef A type __attribute__((vector_size(sizeof(A) * L)));
};
template <class A>
struct pack_of<A, 1> {
    using type = A;
};
template <class A, int L>
using Pack = typename pack_of<A, L>::type;

template <class To, class From>
inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <int L, class A>
inline Pack<A, L> splat(A a) {
    if constexpr (L == 1)
        return a;
    else
        return a - Pack<A, L>{};
}

template <class To, class From>
inline To convert(From from) {
    if constexpr (std::is_arithmetic_v<From>)
        return static_cast<To>(from);
    else
        return __builtin_convertvector(from, To);
}

template <int L, class T>
inline Pack<Sum<T>, L> load(const T* p) {
    using F = Pack<Sum<T>, L>;
    if constexpr (std::is_floating_point_v<T>) {
        F out;
        std::memcpy(&out, p, sizeof out);
        return out;
    } else {
        using U = Pack<uint32_t, L>;
        Pack<uint16_t, L> raw;
        std::memcpy(&raw, p, sizeof raw);
        const U wide = convert<U>(raw);
        if constexpr (std::is_same_v<T, bfloat16>) {
            return bits<F>(wide << 16);
        } else {
            // Moved into a float's exponent and scaled by 2^112, subnormal halves included; infinities and NaN apart.
            const U exponent = wide & 0x7c00u, sign = (wide & 0x8000u) << 16, body = (wide & 0x7fffu) << 13;
            const U finite = bits<U>(bits<F>(body) * 0x1p112f);
            const U special = body | 0x7f800000u;
            return bits<F>(sign | (exponent == 0x7c00u ? special : finite));
        }
    }
}

// Rounds to nearest, ties to even.
template <int L, class T>
inline void store(T* p, Pack<Sum<T>, L> value) {
    if constexpr (std::is_floating_point_v<T>) {
        std::memcpy(p, &value, sizeof value);
    } else {
        using F = Pack<float, L>;
        using U = Pack<uint32_t, L>;
        const U raw = bits<U>(value);
        U out;
        if constexpr (std::is_same_v<T, bfloat16>) {
            const U rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
            out = (raw & 0x7fffffffu) > 0x7f800000u ? (raw >> 16) | 0x40u : rounded;
        } else {
            const U sign = (raw >> 16) & 0x8000u, body = raw & 0x7fffffffu;
            const U normal = (body - 0x38000000u + 0xfffu + ((body >> 13) & 1u)) >> 13;
            // Below 2^-14 a sum with 1/2 rounds to the subnormals' spacing; from 65520 on there is infinity alone.
            const U small = bits<U>(bits<F>(body) + 0.5f) - 0x3f000000u;
            const U finite = body < 0x38800000u ? small : normal;
            const U large = body > 0x7f800000u ? splat<L>(0x7e00u) : splat<L>(0x7c00u);
            out = sign | (body >= 0x477ff000u ? large : finite);
        }
        const auto narrow = convert<Pack<uint16_t, L>>(out);
        std::memcpy(p, &narrow, sizeof narrow);
    }
}

template <class V>
inline auto total_of(V v) {
    if constexpr (std::is_arithmetic_v<V>) {
        return v;
    } else {
        constexpr int lanes = sizeof(V) / sizeof(v[0]);
        if constexpr (lanes == 2) {
            return v[0] + v[1];
        } else {
            using Half = Pack<std::decay_t<decltype(v[0])>, lanes / 2>;
            Half low, high;
            std::memcpy(&low, &v, sizeof low);
            std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
            return total_of<Half>(low + high);
        }
    }
}

// `body(lanes, i)` over 0 <= i < n, 16 at a time and the rest one by one.
template <class Body>
inline void each(Index n, Body&& body) {
    Index i = 0;
    for (; i + 16 <= n; i += 16) body(std::integral_constant<int, 16>{}, i);
    for (; i < n; ++i) body(std::integral_constant<int, 1>{}, i);
}

// e^x; float32 to 2 units in the last place: 2^n times a polynomial on |x| <= ln(2) / 2. From e^88 on a sigmoid is 0 or 1.
template <class A, int L>
inline Pack<A, L> exponential(Pack<A, L> x) {
    if constexpr (std::is_same_v<A, double>) {
        if constexpr (L == 1) {
            return std::exp(x);
        } else {
            for (int i = 0; i < L; ++i) x[i] = std::exp(x[i]);
            return x;
        }
    } else {
        using F = Pack<float, L>;
        x = x > 88.0f ? splat<L>(88.0f) : x;
        x = x < -87.0f ? splat<L>(-87.0f) : x;
        const F shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: a whole number, kept in the low bits
        const F n = shifted - 12582912.0f;
        F r = x - n * 0.693359375f;
        r = r + n * 2.12194440e-4f;
        F p = splat<L>(1.9875691500e-4f);
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        return p * bits<F>((bits<Pack<uint32_t, L>>(shifted) - 0x4b400000u + 127u) << 23);
    }
}

enum Act { none, relu, silu, hardswish };

// NaN stays NaN in each.
template <Act act, class A, int L>
inline Pack<A, L> activate(Pack<A, L> h) {
    using V = Pack<A, L>;
    if constexpr (act == relu) return h < 0 ? V{} : h;
    if constexpr (act == silu) return h / (exponential<A, L>(-h) + 1);
    if constexpr (act == hardswish) {
        V t = h + 3;
        t = t < 0 ? V{} : t;
        t = t > 6 ? splat<L>(A(6)) : t;
        return h * t / 6;
    }
    return h;
}

// ---- Work: a map's parts over threads.

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
// Rows of `moments` held in registers.
constexpr int kTile = 4;

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

// A row-wise map value by value: `part(n, first, last)` over ranges of positions.
template <class Part>
void share_rows(const Map& map, const Part part) {
    const Index height = std::max<Index>(1, 8192 / map.c), blocks = (map.p + height - 1) / height;
    share<true>(map, map.n * blocks, [=, positions = map.p](Index i) {
        const Index first = i % blocks * height;
        part(i / blocks, first, std::min(positions, first + height));
    });
}

// [N, C] tensors by columns: `part(first, width)` over ranges of at most kColumns channels.
constexpr Index kColumns = 256;
template <class Part>
void share_columns(const Map& map, const Part part) {
    share<false>(map, (map.c + kColumns - 1) / kColumns, [=, channels = map.c](Index i) {
        part(i * kColumns, std::min(kColumns, channels - i * kColumns));
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

// ---- affine_act, and inference's rescaling: out = act(scale * (x - centre) + offset + shortcut); out may be x.

template <class T, Act act>
void affine_act(const Map map, bool rows, const T* x, const T* shortcut, const Sum<T>* centre, const Sum<T>* scale,
                const Sum<T>* offset, T* out) {
    if (rows) {
        share_rows(map, [=](Index n, Index first, Index last) {
            const Index channel = n * map.c;
            for (Index row = n * map.p + first; row < n * map.p + last; ++row)
                each(map.c, [&](auto lanes, Index c) {
                    constexpr int L = decltype(lanes)::value;
                    const Index i = row * map.c + c;
                    fetch(x + i);
                    if (shortcut) fetch(shortcut + i);
                    auto h = load<L>(x + i);
                    if (centre) h -= load<L>(centre + channel + c);
                    h *= load<L>(scale + channel + c);
                    if (offset) h += load<L>(offset + channel + c);
                    if (shortcut) h += load<L>(shortcut + i);
                    store<L>(out + i, activate<act, Sum<T>, L>(h));
                });
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

// ---- mean over positions

// Adds the sums of a few rows to the sums of all.
template <class A>
inline void move_sums(A* few, A* all, Index width) {
    for (Index c = 0; c < width; ++c) {
        all[c] += few[c];
        few[c] = 0;
    }
}

template <class T>
void mean(const Map map, bool rows, const T* x, Sum<T>* out) {
    using A = Sum<T>;
    const A factor = A(1) / A(map.p);
    if (rows) {
        share_channels(map, [=](Index n, Index first, Index width) {
            A sum[kBlock] = {}, part[kBlock] = {};
            for (Index p = 0; p < map.p; ++p) {
                const T* row = x + (n * map.p + p) * map.c + first;
                each(width, [&](auto lanes, Index c) {
                    constexpr int L = decltype(lanes)::value;
                    fetch(row + c);
                    store<L>(part + c, load<L>(part + c) + load<L>(row + c));
                });
                if ((p + 1) % kRows == 0 || p + 1 == map.p) move_sums(part, sum, width);
            }
            for (Index c = 0; c < width; ++c) out[n * map.c + first + c] = sum[c] * factor;
        });
    } else {
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
            out[plane] = sum * factor;
        });
    }
}

// ---- moments: mean and biased variance over positions, tile by tile about the tile's own mean (Chan et al., 1979)

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

// ---- affine_act_grad: g = dy * act'(.), sum g, sum g * (x - centre); no g is written for act none, where it is dy

// g from dy and h, which is y for relu and the sum under the activation for silu.
template <Act act, class A, int L>
inline Pack<A, L> activate_grad(Pack<A, L> dy, Pack<A, L> h) {
    if constexpr (act == relu) return h > 0 ? dy : Pack<A, L>{};
    if constexpr (act == silu) {
        const Pack<A, L> sigmoid = 1 / (exponential<A, L>(-h) + 1);
        return dy * (sigmoid * (1 + h * (1 - sigmoid)));
    }
    return dy;
}

template <class T>
struct Gradients {
    const T *dy, *y, *x, *shortcut;
    const Sum<T> *centre, *scale, *offset;
    T* g;
};

// One pack: channel `c` of the [N, C] tensors (all L lanes the same one if `planes`), value `i` of the maps.
template <Act act, int L, bool planes, class T>
inline void gradient_at(const Gradients<T>& a, Index c, Index i, Pack<Sum<T>, L>& total, Pack<Sum<T>, L>& centred) {
    using A = Sum<T>;
    const auto factor = [c](const A* p) {
        if constexpr (planes) return splat<L>(p[c]);
        else return load<L>(p + c);
    };
    if constexpr (!planes) {
        fetch(a.dy + i);
        fetch(a.x + i);
        if constexpr (act == relu) fetch(a.y + i);
        if (act == silu && a.shortcut) fetch(a.shortcut + i);
    }
    auto g = load<L>(a.dy + i);
    const Pack<A, L> apart = load<L>(a.x + i) - factor(a.centre);
    if constexpr (act == relu) g = activate_grad<act, A, L>(g, load<L>(a.y + i));
    if constexpr (act == silu) {
        auto h = apart * factor(a.scale) + factor(a.offset);
        if (a.shortcut) h += load<L>(a.shortcut + i);
        g = activate_grad<act, A, L>(g, h);
    }
    if constexpr (act != none) store<L>(a.g + i, g);
    total += g;
    centred += g * apart;
}

template <class T, Act act>
void affine_act_grad(const Map map, bool rows, const Gradients<T> a, Sum<T>* total, Sum<T>* centred) {
    using A = Sum<T>;
    if (rows) {
        share_channels(map, [=](Index n, Index first, Index width) {
            A t[kBlock] = {}, q[kBlock] = {}, all_t[kBlock] = {}, all_q[kBlock] = {};
            const Index channel = n * map.c + first;
            for (Index p = 0; p < map.p; ++p) {
                const Index row = (n * map.p + p) * map.c + first;
                each(width, [&](auto lanes, Index c) {
                    constexpr int L = decltype(lanes)::value;
                    auto t_here = load<L>(t + c), q_here = load<L>(q + c);
                    gradient_at<act, L, false>(a, channel + c, row + c, t_here, q_here);
                    store<L>(t + c, t_here);
                    store<L>(q + c, q_here);
                });
                if ((p + 1) % kRows == 0 || p + 1 == map.p) {
                    move_sums(t, all_t, width);
                    move_sums(q, all_q, width);
                }
            }
            std::copy(all_t, all_t + width, total + channel);
            std::copy(all_q, all_q + width, centred + channel);
        });
    } else {
        share<false>(map, map.n * map.c, [=](Index plane) {
            A t = 0, q = 0;
            for (Index p = 0; p < map.p; p += kRun) {
                Pack<A, 16> ts = {}, qs = {};
                A t1 = 0, q1 = 0;
                each(std::min(kRun, map.p - p), [&](auto lanes, Index i) {
                    constexpr int L = decltype(lanes)::value;
                    const Index at = plane * map.p + p + i;
                    if constexpr (L == 1) gradient_at<act, L, true>(a, plane, at, t1, q1);
                    else gradient_at<act, L, true>(a, plane, at, ts, qs);
                });
                t += total_of(ts) + t1;
                q += total_of(qs) + q1;
            }
            total[plane] = t;
            centred[plane] = q;
        });
    }
}

// ---- moments_grad: dx = scale * g + constant + slope * (x - centre)

template <class T>
void moments_grad(const Map map, bool rows, const T* g, const T* x, const Sum<T>* centre, const Sum<T>* scale,
                  const Sum<T>* constant, const Sum<T>* slope, T* dx) {
    if (rows) {
        share_rows(map, [=](Index n, Index first, Index last) {
            const Index channel = n * map.c;
            for (Index row = n * map.p + first; row < n * map.p + last; ++row)
                each(map.c, [&](auto lanes, Index c) {
                    constexpr int L = decltype(lanes)::value;
                    const Index i = row * map.c + c, k = channel + c;
                    fetch(x + i);
                    fetch(g + i);
                    store<L>(dx + i, load<L>(scale + k) * load<L>(g + i) + load<L>(constant + k) +
                                         load<L>(slope + k) * (load<L>(x + i) - load<L>(centre + k)));
                });
        });
    } else {
        share<true>(map, map.n * map.c, [=](Index plane) {
            const Sum<T> middle = centre[plane], factor = scale[plane], added = constant[plane], slant = slope[plane];
            each(map.p, [&](auto lanes, Index p) {
                constexpr int L = decltype(lanes)::value;
                const Index i = plane * map.p + p;
                store<L>(dx + i, factor * load<L>(g + i) + added + slant * (load<L>(x + i) - middle));
            });
        });
    }
}

// ---- statistics and their derivative: batch norm on [N, C], see tail_norm.py

template <class A>
void statistics(const Map map, const A* m, const A* v, const A* weight, const A* bias, const A* given_mu,
                const A* given_var, double eps, A* mu, A* var, A* a, A* z) {
    share_columns(map, [=](Index first, Index width) {
        A centre[kColumns] = {}, spread[kColumns] = {};
        for (Index n = 0; n < map.n && !given_mu; ++n)
            for (Index c = 0; c < width; ++c) centre[c] += m[n * map.c + first + c];
        for (Index c = 0; c < width; ++c) centre[c] = given_mu ? given_mu[first + c] : centre[c] / A(map.n);
        for (Index n = 0; n < map.n && !given_var; ++n)
            for (Index c = 0; c < width; ++c) {
                const A d = m[n * map.c + first + c] - centre[c];
                spread[c] += v[n * map.c + first + c] + d * d;
            }
        for (Index c = 0; c < width; ++c) {
            spread[c] = given_var ? given_var[first + c] : spread[c] / A(map.n);
            mu[first + c] = centre[c];
            var[first + c] = spread[c];
            a[first + c] = spread[c] = (weight ? weight[first + c] : A(1)) / std::sqrt(spread[c] + A(eps));
        }
        for (Index n = 0; n < map.n; ++n)
            for (Index c = 0; c < width; ++c) {
                const Index i = n * map.c + first + c;
                z[i] = spread[c] * (m[i] - centre[c]) + (bias ? bias[first + c] : A(0));
            }
    });
}

template <class A>
void statistics_grad(const Map map, const A* m, const A* mu, const A* var, const A* a, const A* da, const A* dz,
                     const A* dz_m, double eps, bool by_batch, Index positions, A* dweight, A* dbias, A* constant,
                     A* slope) {
    const A share_of_one = A(1) / A(map.n), part = A(1) / A(positions);
    share_columns(map, [=](Index first, Index width) {
        A sum[kColumns] = {}, total[kColumns] = {};
        for (Index n = 0; n < map.n; ++n)
            for (Index c = 0; c < width; ++c) {
                const Index i = n * map.c + first + c;
                sum[c] += dz[i];
                total[c] += dz[i] * (m[i] - mu[first + c]);
            }
        for (Index c = 0; c < width; ++c) {
            const Index k = first + c;
            const A r = A(1) / std::sqrt(var[k] + A(eps));
            if (da) total[c] += da[k];
            dweight[k] = r * total[c];
            dbias[k] = sum[c];
            total[c] *= by_batch ? A(-0.5) * a[k] * r * r * share_of_one : A(0);
            sum[c] *= by_batch ? a[k] * share_of_one : A(0);
        }
        for (Index n = 0; n < map.n; ++n)
            for (Index c = 0; c < width; ++c) {
                const Index i = n * map.c + first + c;
                const A moved = dz_m ? a[first + c] * dz_m[i] : A(0);
                constant[i] = (moved - sum[c] + 2 * total[c] * (m[i] - mu[first + c])) * part;
                slope[i] = 2 * total[c] * part;
            }
    });
}

// `use` on the element type that `dtype` stands for; false for another.
template <class Use>
bool with_type(int dtype, Use&& use) {
    switch (dtype) {
        case 0: use(float{}); return true;
        case 1: use(double{}); return true;
        case 2: use(bfloat16{}); return true;
        case 3: use(float16{}); return true;
    }
    return false;
}

template <class Use>
void with_sum_type(int dtype, Use&& use) {
    if (dtype == 0) use(float{});
    if (dtype == 1) use(double{});
}

}  // namespace

// ---- What native.py calls. dtype: float32, float64, bfloat16, float16; rows: channels_last; act: as in `Act`.

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

void excite_affine_act_grad(int dtype, int rows, int threads, Index n, Index c, Index p, const void* dy, const void* y,
                            const void* x, const void* shortcut, const void* centre, const void* scale,
                            const void* offset, void* g, void* total, void* centred, int act) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Sum<T>;
        const Gradients<T> a{static_cast<const T*>(dy), static_cast<const T*>(y), static_cast<const T*>(x),
                             static_cast<const T*>(shortcut), static_cast<const A*>(centre),
                             static_cast<const A*>(scale), static_cast<const A*>(offset), static_cast<T*>(g)};
        if (act != none) expect(g, n * c * p * Index(sizeof(T)));
        const auto run = act == relu ? affine_act_grad<T, relu> : act == silu ? affine_act_grad<T, silu>
                                                                              : affine_act_grad<T, none>;
        run(Map{n, c, p, threads}, rows, a, static_cast<A*>(total), static_cast<A*>(centred));
    });
}

void excite_moments_grad(int dtype, int rows, int threads, Index n, Index c, Index p, const void* g, const void* x,
                         const void* centre, const void* scale, const void* constant, const void* slope, void* dx) {
    with_type(dtype, [&](auto element) {
        using T = decltype(element);
        using A = Sum<T>;
        expect(dx, n * c * p * Index(sizeof(T)));
        moments_grad<T>(Map{n, c, p, threads}, rows, static_cast<const T*>(g), static_cast<const T*>(x),
                        static_cast<const A*>(centre), static_cast<const A*>(scale), static_cast<const A*>(constant),
                        static_cast<const A*>(slope), static_cast<T*>(dx));
    });
}

void excite_statistics(int dtype, int, int threads, Index n, Index c, Index, const void* m, const void* v,
                       const void* weight, const void* bias, const void* given_mu, const void* given_var, void* mu,
                       void* var, void* a, void* z, double eps) {
    with_sum_type(dtype, [&](auto element) {
        using A = decltype(element);
        statistics<A>(Map{n, c, 1, threads}, static_cast<const A*>(m), static_cast<const A*>(v),
                      static_cast<const A*>(weight), static_cast<const A*>(bias), static_cast<const A*>(given_mu),
                      static_cast<const A*>(given_var), eps, static_cast<A*>(mu), static_cast<A*>(var),
                      static_cast<A*>(a), static_cast<A*>(z));
    });
}

void excite_statistics_grad(int dtype, int by_batch, int threads, Index n, Index c, Index p, const void* m,
                            const void* mu, const void* var, const void* a, const void* da, const void* dz,
                            const void* dz_m, void* dweight, void* dbias, void* dm, void* dv, double eps) {
    with_sum_type(dtype, [&](auto element) {
        using A = decltype(element);
        statistics_grad<A>(Map{n, c, 1, threads}, static_cast<const A*>(m), static_cast<const A*>(mu),
                           static_cast<const A*>(var), static_cast<const A*>(a), static_cast<const A*>(da),
                           static_cast<const A*>(dz), static_cast<const A*>(dz_m), eps, by_batch, p,
                           static_cast<A*>(dweight), static_cast<A*>(dbias), static_cast<A*>(dm),
                           static_cast<A*>(dv));
    });
}

}  // extern "C"
