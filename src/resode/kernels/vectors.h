// Vectors of 16 single-precision numbers, stored in memory as such or as bfloat16.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace resode {

constexpr int LANES = 16;

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
struct BFloat16 {
    uint16_t bits;
};

inline Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline Vector load(const BFloat16* p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
#ifdef __AVX512F__
    return (Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)h), 16);
#else
    return (Vector)(__builtin_convertvector(h, Bits) << 16);
#endif
}
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }
inline void store(BFloat16* p, Vector v) {  // rounded to nearest, ties to even; NaN stays NaN
#ifdef __AVX512BF16__
    Halves h = (Halves)_mm512_cvtneps_pbh((__m512)v);
#else
    Bits bits = (Bits)v;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Bits nan = Bits{} + 0x7fc0;
    Halves h = __builtin_convertvector(v == v ? rounded : nan, Halves);
#endif
    std::memcpy(p, &h, sizeof h);
}

}  // namespace resode
