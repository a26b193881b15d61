// AMX in software, so that code for AMX tiles can be tested on a processor without it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __AMX_TILE__ 1
#define __AMX_BF16__ 1

namespace software {

struct Configuration {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

struct Tile {
    alignas(64) uint8_t row[16][64];
};

inline thread_local Configuration shape = {};
inline thread_local Tile tile[8] = {};

inline void check(bool legal) {  // the processor would raise a fault, too
    if (!legal) std::abort();
}
inline void configure(const void* from) {
    std::memcpy(&shape, from, sizeof shape);
    check(shape.palette == 1);
    std::memset(tile, 0, sizeof tile);
}
inline void zero(int t) {
    check(shape.rows[t]);
    std::memset(&tile[t], 0, sizeof tile[t]);
}
inline void load(int t, const void* from, int64_t stride) {
    zero(t);
    for (int r = 0; r < shape.rows[t]; ++r) std::memcpy(tile[t].row[r], (const char*)from + r * stride, shape.row_bytes[t]);
}
inline void store(int t, void* to, int64_t stride) {
    check(shape.rows[t]);
    for (int r = 0; r < shape.rows[t]; ++r) std::memcpy((char*)to + r * stride, tile[t].row[r], shape.row_bytes[t]);
}
inline void multiply(int c, int a, int b) {
    int rows = shape.rows[c], pairs = shape.row_bytes[a] / 4;
    check(rows && shape.rows[a] == rows && shape.rows[b] == pairs && shape.row_bytes[b] == shape.row_bytes[c]);
    for (int r = 0; r < rows; ++r) {
        __m512 sum = _mm512_load_ps(tile[c].row[r]);
        for (int k = 0; k < pairs; ++k) {
            int32_t pair;
            std::memcpy(&pair, tile[a].row[r] + 4 * k, sizeof pair);
            sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_load_si512(tile[b].row[k]));
        }
        _mm512_store_ps(tile[c].row[r], sum);
    }
}
}  // namespace software

#include <sys/syscall.h>
#include <unistd.h>
#ifndef PERMISSION
#define PERMISSION 0L
#endif
#define syscall(...) PERMISSION

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(from) software::configure(from)
#define _tile_release() (software::shape = {})
#define _tile_loadd(t, from, stride) software::load(t, from, stride)
#define _tile_stored(t, to, stride) software::store(t, to, stride)
#define _tile_zero(t) software::zero(t)
#define _tile_dpbf16ps(c, a, b) software::multiply(c, a, b)
