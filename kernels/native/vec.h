// Vectors of 16 floats in the compiler's own vector types: one source for AVX-512, AVX2, NEON and whatever else it knows.
// Intrinsics stand only where the types cannot say it (bfloat16 products, tiles), each beside its plain form.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef float v16 __attribute__((vector_size(64)));
typedef float v16u __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef int32_t i16u __attribute__((vector_size(64), aligned(4), may_alias));

static inline v16 load(const float* p) { return *(const v16u*)p; }
static inline void store(float* p, v16 x) { *(v16u*)p = x; }
static inline v16 all(float x) {
#if defined(__AVX512F__)
    return (v16)_mm512_set1_ps(x);
#else
    return v16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#endif
}
static inline v16 zero() { return all(0.0f); }
static inline v16 pick(i16 mask, v16 yes, v16 no) { return (v16)(((i16)yes & mask) | ((i16)no & ~mask)); }
static inline v16 max2(v16 a, v16 b) {
#if defined(__AVX512F__)
    return (v16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return pick(a > b, a, b);
#endif
}

static inline v16 load_some(const float* p, int n) {  // the first n, then zeros
#if defined(__AVX512F__)
    return (v16)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    float tmp[16] = {0};
    memcpy(tmp, p, sizeof(float) * n);
    return load(tmp);
#endif
}
static inline void store_some(float* p, v16 x, int n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#else
    memcpy(p, &x, sizeof(float) * n);
#endif
}

// Lanes are added up in one fixed order, so that a row's bits depend on nothing but the row.
static inline float sum(v16 x) {
    float a[16];
    store(a, x);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}
static inline float largest(v16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float a[16], best;
    store(a, x);
    best = a[0];
    for (int i = 1; i < 16; i++) best = a[i] > best ? a[i] : best;
    return best;
#endif
}

// e^x to 2 units in the last place for x <= 88; 0 below -87. 2^n e^r, |r| <= ln(2) / 2, e^r by its Taylor series.
static inline v16 exp16(v16 x) {
    const v16 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    v16 clamped = max2(x, all(-87.0f));
    v16 n = (clamped * all(1.44269504f) + magic) - magic;
    v16 r = clamped - n * all(0.693145752f);
    r = r - n * all(1.42860677e-6f);
    v16 p = all(1.0f / 5040);
    p = p * r + all(1.0f / 720);
    p = p * r + all(1.0f / 120);
    p = p * r + all(1.0f / 24);
    p = p * r + all(1.0f / 6);
    p = p * r + all(0.5f);
    p = p * r + all(1.0f);
    p = p * r + all(1.0f);
    i16 power = (__builtin_convertvector(n, i16) + 127) << 23;
    return pick(x < all(-87.0f), zero(), p * (v16)power);
}

static inline float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline uint16_t to_bf16(float x) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 64);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline void to_bf16(uint16_t* out, const float* x, int n) {
    int i = 0;
#if defined(__AVX512BF16__)
    for (; i + 16 <= n; i += 16) {
        __m256bh packed = _mm512_cvtneps_pbh((__m512)load(x + i));
        memcpy(out + i, &packed, 32);
    }
#endif
    for (; i < n; i++) out[i] = to_bf16(x[i]);
}
