// A 1x1 convolution that knows the gates on either side: out = act(s (W (t x) + b) + shortcut), in one walk over the maps.
//
// Maps are "rows" (channels_last): N samples of P positions of K channels in, of C channels out. The weights come in
// panels of `kPanel` output channels, [panel][K][kPanel], the last one filled up with zeros. A tile of kTile positions
// times a panel is kept in registers over all K channels; scale, bias, shortcut and activation are applied before it
// is written; a scale t of the input goes into a copy of the panel. Each output element is one sum over K in order, so
// results do not depend on the number of threads.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Index = int64_t;

// As many registers as there are hold a tile, one row of the panel and one element of x.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kVectors = 4;
#elif defined(__AVX__)
constexpr int kLanes = 8, kVectors = 2;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kVectors = 4;
#else
constexpr int kLanes = 4, kVectors = 2;
#endif
constexpr int kTile = 6, kPanel = kLanes * kVectors;
// Positions taken together read no more of x than half a megabyte, which stays in a core's cache while the panels pass.
constexpr Index kBlockBytes = Index(1) << 19;

typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4)));

inline Vector load(const float* from) {
    return *reinterpret_cast<const Vector*>(from);
}

struct Step {
    const float *bias, *scale, *shortcut;  // scale and shortcut may be null
    float* out;
    int act;  // 0 none, 1 clamp to [low, high], 3 hardswish
    float low, high;
};

inline Vector clamped(Vector x, float low, float high) {
    x = x < low ? Vector{} + low : x;  // a NaN is not less, and stays
    return x > high ? Vector{} + high : x;
}

// The first `count` numbers, zeros after them.
inline Vector part(const float* from, Index count) {
    Vector x{};
    std::memcpy(&x, from, sizeof(float) * count);
    return x;
}

template <bool Whole>
inline Vector read(const float* from, Index count) {
    return Whole ? load(from) : part(from, count);
}

// One vector of output channels of one position.
template <bool Whole>
inline void finish(Vector y, const Step& step, Vector bias, Vector scale, Index at, Index count) {
    y = (y + bias) * scale;
    if (step.shortcut) y += read<Whole>(step.shortcut + at, count);
    if (step.act == 1) y = clamped(y, step.low, step.high);
    if (step.act == 3) y = y * clamped(y + 3, 0, 6) / 6;
    if (Whole)
        *reinterpret_cast<Vector*>(step.out + at) = y;
    else
        std::memcpy(step.out + at, &y, sizeof(float) * count);
}

// M positions times the first V vectors of a panel; of the last vector `count` channels exist.
template <int M, int V>
inline void tile(const float* x, Index k, const float* panel, const Step& step, Index at, Index c, Index count) {
    Vector sums[M][V] = {};
    for (Index i = 0; i < k; ++i, panel += kPanel) {
        Vector row[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) row[v] = load(panel + v * kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vector element = x[m * k + i] - Vector{};
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sums[m][v] += element * row[v];
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
        const bool whole = v + 1 < V || count == kLanes;
        const Index from = v * kLanes, many = whole ? kLanes : count;
        const Vector bias = part(step.bias + from, many);
        const Vector scale = step.scale ? part(step.scale + from, many) : Vector{} + 1;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            if (whole)
                finish<true>(sums[m][v], step, bias, scale, at + m * c + from, many);
            else
                finish<false>(sums[m][v], step, bias, scale, at + m * c + from, many);
        }
    }
}

// Positions [begin, end) of one sample times one panel.
template <int V>
void column(const float* x, Index k, const float* panel, const Step& step, Index begin, Index end, Index c, Index c0,
            Index count) {
    Index i = begin;
    for (; i + kTile <= end; i += kTile) tile<kTile, V>(x + i * k, k, panel, step, i * c + c0, c, count);
    switch (end - i) {
        case 5: tile<5, V>(x + i * k, k, panel, step, i * c + c0, c, count); break;
        case 4: tile<4, V>(x + i * k, k, panel, step, i * c + c0, c, count); break;
        case 3: tile<3, V>(x + i * k, k, panel, step, i * c + c0, c, count); break;
        case 2: tile<2, V>(x + i * k, k, panel, step, i * c + c0, c, count); break;
        case 1: tile<1, V>(x + i * k, k, panel, step, i * c + c0, c, count); break;
    }
}

// A panel for one sample: every row times its channel's scale.
const float* scaled(const float* panel, Index k, const float* scale, std::vector<float>& room) {
    room.resize(k * kPanel);
    for (Index i = 0; i < k; ++i)
        for (int v = 0; v < kPanel; ++v) room[i * kPanel + v] = panel[i * kPanel + v] * scale[i];
    return room.data();
}

// Positions [begin, end) of one sample times the panels [first, last); `taken` scales the input's channels, or is null.
void block(const float* x, Index k, const float* w, const float* taken, const Step& step, Index begin, Index end,
           Index first, Index last, Index c) {
    static thread_local std::vector<float> room;
    for (Index p = first; p < last; ++p) {
        const Index c0 = p * kPanel, valid = std::min<Index>(kPanel, c - c0);
        const Index vectors = (valid + kLanes - 1) / kLanes, count = valid - (vectors - 1) * kLanes;
        Step own = step;
        own.bias += c0;
        if (own.scale) own.scale += c0;
        const float* panel = taken ? scaled(w + c0 * k, k, taken, room) : w + c0 * k;
        if (vectors == 1) column<1>(x, k, panel, own, begin, end, c, c0, count);
        if (vectors == 2) column<2>(x, k, panel, own, begin, end, c, c0, count);
        if constexpr (kVectors > 2) {
            if (vectors == 3) column<3>(x, k, panel, own, begin, end, c, c0, count);
            if (vectors == 4) column<4>(x, k, panel, own, begin, end, c, c0, count);
        }
    }
}

Index ceil_div(Index a, Index b) {
    return (a + b - 1) / b;
}

}  // namespace

extern "C" {

// Output channels in a panel of the weights.
int excite_pointwise_panel() {
    return kPanel;
}

// x [N, P, K], w in panels, bias [C], taken [N, K] or null, scale [N, C] or null, shortcut [N, P, C] or null, out
// [N, P, C], which may be shortcut. Float32 rows only; `type` and `rows` are there because every function has them.
void excite_pointwise(int type, int rows, int threads, int64_t n, int64_t c, int64_t p, const float* x, const float* w,
                      const float* bias, const float* taken, const float* scale, const float* shortcut, float* out,
                      int64_t k, int act, float low, float high) {
    (void)type, (void)rows;
    const Index panels = ceil_div(c, kPanel);
    Index blocks = ceil_div(p * k * 4, kBlockBytes);
    const Index positions = ceil_div(ceil_div(p, blocks), kTile) * kTile;
    blocks = ceil_div(p, positions);
    // Few positions are shared out by output channels as well.
    const Index chunks = std::clamp<Index>(ceil_div(2 * threads, n * blocks), 1, panels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (Index task = 0; task < n * blocks * chunks; ++task) {
        const Index chunk = task % chunks, i = task / chunks % blocks, sample = task / chunks / blocks;
        Step step{bias, scale ? scale + sample * c : nullptr, shortcut ? shortcut + sample * p * c : nullptr,
                  out + sample * p * c, act, low, high};
        block(x + sample * p * k, k, w, taken ? taken + sample * k : nullptr, step, i * positions,
              std::min(p, (i + 1) * positions), panels * chunk / chunks, panels * (chunk + 1) / chunks, c);
    }
}

}  // extern "C"
