// Numbers of the compiled passes: maps are read and written as T, computed on as Sum<T>, L of them at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

using Index = int64_t;

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

}  // namespace
