// The fused tail's two passes backward, each in one walk over memory: affine_act_grad, moments_grad. As forward.cpp.
#include "work.h"

namespace {

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
        share_values(map, [=](auto lanes, Index i, Index k) {
            constexpr int L = decltype(lanes)::value;
            fetch(x + i);
            fetch(g + i);
            store<L>(dx + i, load<L>(scale + k) * load<L>(g + i) + load<L>(constant + k) +
                                 load<L>(slope + k) * (load<L>(x + i) - load<L>(centre + k)));
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

}  // namespace

// Called by native.py. dtype: float32, float64, bfloat16, float16; rows: channels_last; act: as in `Act`.
extern "C" {

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

}  // extern "C"
