// Batch norm on the [N, C] middle of the fused tail, and its derivative: see tail_norm.py.
#include "work.h"

namespace {

// [N, C] tensors by columns: `part(first, width)` over ranges of at most kColumns channels.
constexpr Index kColumns = 256;
template <class Part>
void share_columns(const Map& map, const Part part) {
    share<false>(map, (map.c + kColumns - 1) / kColumns, [=, channels = map.c](Index i) {
        part(i * kColumns, std::min(kColumns, channels - i * kColumns));
    });
}

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

template <class Use>
void with_sum_type(int dtype, Use&& use) {
    if (dtype == 0) use(float{});
    if (dtype == 1) use(double{});
}

}  // namespace

// Called by native.py. dtype: float32, float64, bfloat16, float16; rows: channels_last; act: as in `Act`.
extern "C" {

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
