// y = x W^T + b for weights of bfloat16 or float32, packed once into panels of 16 outputs.
//
// A panel is [k / 2][16][2] bfloat16 (or [k][16] float32): 64 bytes hold two inputs' (one input's) weights of 16 outputs,
// which is one vector, and one row of a tile on CPUs that have tiles. An output is a sum over k in one order, whatever the
// number of rows, their place, and the number of threads: a row's bits are its own.
#pragma once
#include <cstdlib>
#include <new>
#include "threads.h"
#include "vec.h"

#if defined(__AVX512F__)
constexpr int kAccumulators = 24, kMaxRows = 8;  // of 32 registers
#else
constexpr int kAccumulators = 6, kMaxRows = 6;  // 16 registers of half a vector each
#endif
constexpr int kPanel = 16, kGroup = 4, kInputs = 32;  // panels come in whole groups, inputs in multiples: zeros behind

enum class Out { store, add };

template <class T>
struct Aligned {  // memory that grows, 64-byte aligned, its contents lost when it grows
    T* data = nullptr;
    size_t size = 0;
    ~Aligned() { free(data); }
    T* need(size_t n) {
        if (n > size) {
            free(data);
            size = (n + 63) / 64 * 64;
            data = (T*)aligned_alloc(64, size * sizeof(T));
            if (!data) throw std::bad_alloc();
            memset((void*)data, 0, size * sizeof(T));
        }
        return data;
    }
};

struct Linear {
    int n = 0, k = 0, panels = 0, padded_k = 0;
    bool bf16 = false;
    Aligned<uint8_t> weight;
    const float* bias = nullptr;

    size_t panel_bytes() const { return (size_t)padded_k * kPanel * (bf16 ? 2 : 4); }

    void pack(const void* rows, const float* b, int n_, int k_, bool is_bf16) {
        n = n_, k = k_, bias = b, bf16 = is_bf16;
        padded_k = bf16 ? (k + kInputs - 1) / kInputs * kInputs : k;
        panels = ((n + kPanel - 1) / kPanel + kGroup - 1) / kGroup * kGroup;
        uint8_t* out = weight.need(panels * panel_bytes());
        for (int p = 0; p * kPanel < n; p++) {
            int lanes = n - p * kPanel < kPanel ? n - p * kPanel : kPanel;
            if (bf16) {
                uint16_t* to = (uint16_t*)(out + p * panel_bytes());
                const uint16_t* from = (const uint16_t*)rows + (size_t)p * kPanel * k;
                for (int i = 0; i < k; i += 2)
                    for (int j = 0; j < lanes; j++) {
                        to[(i / 2 * kPanel + j) * 2] = from[(size_t)j * k + i];
                        if (i + 1 < k) to[(i / 2 * kPanel + j) * 2 + 1] = from[(size_t)j * k + i + 1];
                    }
            } else {
                float* to = (float*)(out + p * panel_bytes());
                const float* from = (const float*)rows + (size_t)p * kPanel * k;
                for (int i = 0; i < k; i++)
                    for (int j = 0; j < lanes; j++) to[i * kPanel + j] = from[(size_t)j * k + i];
            }
        }
    }
};

// Inputs as the product wants them: bfloat16 rows padded with zeros, or the float32 rows themselves.
struct Inputs {
    Aligned<uint16_t> half;
    Aligned<float> whole;
    bool bf16 = false;
    int stride = 0, width = 0;

    void shape(int rows, int k, bool is_bf16) {  // rows in tens and sixes: tiles read whole
        bf16 = is_bf16, width = k;
        stride = bf16 ? (k + kInputs - 1) / kInputs * kInputs : k;
        size_t padded = (size_t)(rows + 15) / 16 * 16;
        if (bf16) half.need(padded * stride);
        else whole.need(padded * stride);
    }
    void set(int row, const float* x) {
        if (!bf16) {
            memcpy(whole.data + (size_t)row * stride, x, sizeof(float) * width);
            return;
        }
        uint16_t* to = half.data + (size_t)row * stride;
        to_bf16(to, x, width);
        if (stride > width) memset(to + width, 0, 2 * (stride - width));
    }
};

static inline void put(float* out, v16 x, const float* bias, int columns, Out how) {
    if (columns >= kPanel) {
        if (bias) x += load(bias);
        store(out, how == Out::add ? load(out) + x : x);
    } else {
        if (bias) x += load_some(bias, columns);
        store_some(out, how == Out::add ? load_some(out, columns) + x : x, columns);
    }
}

// acc + the products of a pair of bfloat16 inputs (32 bits) with 16 pairs of weights
static inline v16 pair_product(v16 acc, uint32_t pair, const uint32_t* weights) {
#if defined(__AVX512BF16__)
    return (v16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32((int)pair),
                                 (__m512bh)_mm512_loadu_si512(weights));
#else
    i16 w = *(const i16u*)weights;
    acc += all(from_bf16((uint16_t)pair)) * (v16)(w << 16);
    acc += all(from_bf16((uint16_t)(pair >> 16))) * (v16)(w & (int32_t)0xffff0000);
    return acc;
#endif
}

// R rows by P panels, all sums in registers
template <int R, int P, bool BF16>
static void block(const void* x, size_t stride, const uint8_t* w, size_t panel_bytes, int k, float* out, size_t out_stride,
                  const float* bias, int columns, Out how) {
    v16 acc[R][P];
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) acc[r][p] = zero();
    if constexpr (BF16) {
        const uint16_t* rows = (const uint16_t*)x;
        for (int i = 0; i < k; i += 2)
            for (int r = 0; r < R; r++) {
                uint32_t pair;
                memcpy(&pair, rows + r * stride + i, 4);
                for (int p = 0; p < P; p++)
                    acc[r][p] = pair_product(acc[r][p], pair, (const uint32_t*)(w + p * panel_bytes) + i / 2 * kPanel);
            }
    } else {
        const float* rows = (const float*)x;
        for (int i = 0; i < k; i++)
            for (int r = 0; r < R; r++) {
                v16 value = all(rows[r * stride + i]);
                for (int p = 0; p < P; p++) acc[r][p] += value * load((const float*)(w + p * panel_bytes) + i * kPanel);
            }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++)
            if (int left = columns - p * kPanel; left > 0)
                put(out + r * out_stride + p * kPanel, acc[r][p], bias ? bias + p * kPanel : nullptr, left, how);
}

constexpr int panels_for(int rows) {
    int most = kAccumulators / rows;
    return most >= 8 ? 8 : most >= 4 ? 4 : most < 1 ? 1 : most;
}

template <int R, bool BF16>
static void strip(const void* x, size_t stride, const Linear& w, int first, int last, float* out, size_t out_stride,
                  Out how) {
    constexpr int P = panels_for(R);
    int p = first;
    auto run = [&](auto count) {
        block<R, decltype(count)::value, BF16>(
            x, stride, w.weight.data + p * w.panel_bytes(), w.panel_bytes(), w.padded_k, out + p * kPanel, out_stride,
            w.bias ? w.bias + p * kPanel : nullptr, w.n - p * kPanel, how);
        p += decltype(count)::value;
    };
    while (p + P <= last) run(std::integral_constant<int, P>());
    if constexpr (P > 2)
        while (p + 2 <= last) run(std::integral_constant<int, 2>());
    while (p < last) run(std::integral_constant<int, 1>());
}

template <bool BF16>
static void rows_by_panels(const uint8_t* x, size_t stride, int rows, const Linear& w, int first, int last, float* out,
                           size_t out_stride, Out how) {
    size_t bytes = stride * (BF16 ? 2 : 4);
    for (int r = 0; r < rows;) {
        int now = rows - r < kMaxRows ? rows - r : kMaxRows;
        const uint8_t* at = x + r * bytes;
        float* to = out + r * out_stride;
        switch (now) {
            case 1: strip<1, BF16>(at, stride, w, first, last, to, out_stride, how); break;
            case 2: strip<2, BF16>(at, stride, w, first, last, to, out_stride, how); break;
            case 3: strip<3, BF16>(at, stride, w, first, last, to, out_stride, how); break;
            case 4: strip<4, BF16>(at, stride, w, first, last, to, out_stride, how); break;
            case 5: strip<5, BF16>(at, stride, w, first, last, to, out_stride, how); break;
            case 6: strip<6, BF16>(at, stride, w, first, last, to, out_stride, how); break;
#if defined(__AVX512F__)
            case 7: strip<7, BF16>(at, stride, w, first, last, to, out_stride, how); break;
            default: strip<8, BF16>(at, stride, w, first, last, to, out_stride, how); break;
#endif
        }
        r += now;
    }
}

#if defined(__AMX_BF16__) && defined(__linux__)
#include "tiles.h"
#else
static bool tiles_allowed() { return false; }
static void rows_by_tiles(const uint16_t*, size_t, int, const Linear&, int, int, float*, size_t, Out) {}
#endif

// out[r, :n] (= or +=) x[r] W^T + b for `rows` rows; `out` has rows of out_stride floats.
static void multiply(const Linear& w, const Inputs& x, int first_row, int rows, float* out, size_t out_stride, Out how,
                     int threads) {
    constexpr size_t kCached = 128 << 10;  // bytes of weights that stay near while all rows pass
    int group = (int)(kCached / w.panel_bytes()) / kGroup * kGroup;
    if (rows <= kMaxRows || group < kGroup) group = rows <= kMaxRows ? 8 : kGroup;
    if (threads == 1 && rows <= kMaxRows) group = w.panels;
    int groups = (w.panels + group - 1) / group;
    Threads::each(groups, threads, [&](int g) {
        int first = g * group, last = first + group < w.panels ? first + group : w.panels;
        if (!w.bf16)
            rows_by_panels<false>((const uint8_t*)(x.whole.data + (size_t)first_row * x.stride), x.stride, rows, w, first,
                                  last, out, out_stride, how);
        else if (tiles_allowed())
            rows_by_tiles(x.half.data + (size_t)first_row * x.stride, x.stride, rows, w, first, last, out, out_stride, how);
        else
            rows_by_panels<true>((const uint8_t*)(x.half.data + (size_t)first_row * x.stride), x.stride, rows, w, first,
                                 last, out, out_stride, how);
    });
}
