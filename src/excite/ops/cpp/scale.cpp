// The channel scale of gates that are layers on the mean, or windows of it, in one call:
//
//     s = g(taps * (W2 act(W1 mean(x) + b1) + b2)),    each of W1, W2 and the taps where there is one
//
// These are a few thousand multiplications. As operations of their own most of their time is the way from one to the
// next, and that of weights which no cache holds: their rows are shared out over the threads.
#include "mean.h"

namespace {

struct Layer {
    const float *weight, *bias;  // [outputs][inputs] and [outputs], which may be null
    Index inputs, outputs;
};

// Rows of the weights that are multiplied together.
constexpr int kTogether = 4;

template <int rows>
inline void products(const float* x, const float* w, Index inputs, float* out) {
    Pack<float, 16> sums[rows] = {};
    float rest[rows] = {};
    each(inputs, [&](auto lanes, Index i) {
        constexpr int L = decltype(lanes)::value;
        const auto value = load<L>(x + i);
        for (int r = 0; r < rows; ++r) {
            fetch(w + r * inputs + i);
            if constexpr (L == 1) rest[r] += value * load<L>(w + r * inputs + i);
            else sums[r] += value * load<L>(w + r * inputs + i);
        }
    });
    for (int r = 0; r < rows; ++r) out[r] = total_of(sums[r]) + rest[r];
}

// out [N, outputs] from x [N, inputs]; `then(y)` is written.
template <class Then>
void apply(const Layer& layer, Index n, int threads, const float* x, float* out, const Then then) {
    const Map work{n, layer.outputs, layer.inputs, threads};
    const Index groups = (layer.outputs + kTogether - 1) / kTogether;
    share<false>(work, groups, [=](Index group) {
        const Index first = group * kTogether, many = std::min<Index>(kTogether, layer.outputs - first);
        const float* w = layer.weight + first * layer.inputs;
        for (Index i = 0; i < n; ++i) {
            float y[kTogether];
            const float* row = x + i * layer.inputs;
            if (many == kTogether) products<kTogether>(row, w, layer.inputs, y);
            else
                for (Index r = 0; r < many; ++r) products<1>(row, w + r * layer.inputs, layer.inputs, y + r);
            for (Index r = 0; r < many; ++r)
                out[i * layer.outputs + first + r] = then(y[r] + (layer.bias ? layer.bias[first + r] : 0));
        }
    });
}

inline float activated(float y, int act) {
    if (act == relu) return activate<relu, float, 1>(y);
    if (act == silu) return activate<silu, float, 1>(y);
    return act == hardswish ? activate<hardswish, float, 1>(y) : y;
}

struct GateFunction {
    int kind;  // 0 sigmoid, 1 hard sigmoid
    float slope, factor;
};

inline float gated(float y, const GateFunction g) {
    if (g.kind == 0) return g.factor / (exponential<float, 1>(-y) + 1);
    y = y * g.slope + 0.5f;
    y = y < 0 ? 0 : y;
    return g.factor * (y > 1 ? 1 : y);
}

// Windows of `count` neighbours, zeros beyond the ends.
void windows(const float* z, Index n, Index channels, const float* taps, Index count, float* out) {
    for (Index i = 0; i < n; ++i)
        for (Index c = 0; c < channels; ++c) {
            float sum = 0;
            const Index from = c - count / 2;
            for (Index t = std::max<Index>(0, -from); t < std::min(count, channels - from); ++t)
                sum += taps[t] * z[i * channels + from + t];
            out[i * channels + c] = sum;
        }
}

}  // namespace

// What scale.py tells of a gate, once. w1 [hidden, K], w2 [C, hidden or K], taps [count]: any of them may be null.
// Without w2 channels may be 0.
struct Gate {
    const float *w1, *b1, *w2, *b2, *taps;
    Index hidden, channels, count;
    int act, function;
    float slope, factor;
};

// x [N, K, P] of float32, s [N, C].
extern "C" void excite_scale(int, int rows, int threads, Index n, Index k, Index p, const float* x, float* s,
                             const Gate* told) {
    Gate gate = *told;
    if (!gate.channels) gate.channels = gate.w1 ? gate.hidden : k;
    std::vector<float> room(n * (k + gate.hidden + 2 * gate.channels));
    float *in = room.data(), *middle = in + n * k, *z = middle + n * gate.hidden, *windowed = z + n * gate.channels;
    const GateFunction g{gate.function, gate.slope, gate.factor};
    mean<float>(Map{n, k, p, threads}, rows, x, in);
    Index width = k;
    if (gate.w1) {
        const auto then = [act = gate.act](float y) { return activated(y, act); };
        apply(Layer{gate.w1, gate.b1, k, gate.hidden}, n, threads, in, middle, then);
        in = middle, width = gate.hidden;
    }
    const Layer second{gate.w2, gate.b2, width, gate.channels};
    if (gate.w2 && !gate.taps) return apply(second, n, threads, in, s, [=](float y) { return gated(y, g); });
    if (gate.w2) {
        apply(second, n, threads, in, z, [](float y) { return y; });
        in = z;
    }
    if (gate.taps) {
        windows(in, n, gate.channels, gate.taps, gate.count, windowed);
        in = windowed;
    }
    for (Index i = 0; i < n * gate.channels; ++i) s[i] = gated(in[i], g);
}
