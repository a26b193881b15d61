// Products of bfloat16 numbers summed in single precision on x86 processors: by AMX tiles, or by AVX-512 BF16 vectors
// where there is no AMX. RESODE_BF16 is defined if the processor has either, RESODE_AMX if it has AMX.
#pragma once

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512BF16__)
#define RESODE_BF16
#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)
#define RESODE_AMX
#endif

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#pragma GCC diagnostic ignored "-Wuninitialized"  // in GCC's own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define RESODE_INLINE __attribute__((always_inline)) inline
#define RESODE_EACH_ROW _Pragma("GCC unroll 16") for (int64_t row = 0; row < SIDE; ++row)

namespace resode {

constexpr int64_t SIDE = 16;   // rows of a tile: channels, pixels or pairs
constexpr int64_t DEPTH = 32;  // numbers that one product of tiles sums over

#ifdef RESODE_AMX
constexpr bool AMX = true;

struct TileConfig {  // of the eight tiles: 16 rows of 64 bytes each, unless shortened
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    void load() const { _tile_loadconfig(this); }
    static void release() { _tile_release(); }
    void shorten(int a, int b, int64_t pairs) { row_bytes[a] = uint16_t(4 * pairs), rows[b] = uint8_t(pairs); }
};
#else
constexpr bool AMX = false;

struct TileConfig {  // without AMX: does nothing
    void load() const {}
    static void release() {}
    void shorten(int, int, int64_t) {}
};

// 16 x 16 sums in registers. Their rows are four groups of four consecutive rows of the first factor.
class Sums {
public:
    RESODE_INLINE Sums(const float* from, int64_t pitch) {
        RESODE_EACH_ROW sum[row] = _mm512_loadu_ps(from + row * pitch);
    }
    RESODE_INLINE void store(float* to, int64_t pitch) const {
        RESODE_EACH_ROW _mm512_storeu_ps(to + row * pitch, sum[row]);
    }
    RESODE_INLINE const __m512& operator[](int64_t row) const { return sum[row]; }

    // sum[4 j + m][n] += sum over k < pairs and l < 2 of a[j][m pitch + 2 k + l] b[k][2 n + l]
    RESODE_INLINE void add(const uint16_t* const* a, int64_t pitch, const uint16_t* b, int64_t pairs) {
        const uint16_t* four[4] = {a[0], a[1], a[2], a[3]};
        int64_t three = 3 * pitch;
        for (int64_t k = 0; k < pairs; ++k, b += DEPTH) {
            auto other = (__m512bh)_mm512_loadu_si512(b);
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                add(4 * j, four[j], other);
                add(4 * j + 1, four[j] + pitch, other);
                add(4 * j + 2, four[j] + 2 * pitch, other);
                add(4 * j + 3, four[j] + three, other);
                four[j] += 2;
            }
        }
    }
    // sum[m][n] += sum over k < pairs of the dot product of the pairs a[k][m] and b[k][n]
    RESODE_INLINE void add(const uint32_t* a, const uint32_t* b, int64_t pairs) {
        for (int64_t k = 0; k < pairs; ++k, a += SIDE, b += SIDE) {
            auto other = (__m512bh)_mm512_loadu_si512(b);
            RESODE_EACH_ROW add(row, (const uint16_t*)(a + row), other);
        }
    }

private:
    RESODE_INLINE void add(int row, const uint16_t* a, __m512bh b) {
        int32_t pair;
        std::memcpy(&pair, a, sizeof pair);
        sum[row] = _mm512_dpbf16_ps(sum[row], b, (__m512bh)_mm512_set1_epi32(pair));
    }
    __m512 sum[SIDE];
};
#endif

template <class T>
class ZeroedBuffer {  // aligned to cache lines; keeps its memory when it shrinks
public:
    void resize(int64_t count) {
        if (count > capacity) {
            data.reset(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
            capacity = count;
        }
        size = count;
        clear();
    }
    void clear() { std::memset(data.get(), 0, size * sizeof(T)); }
    T* get() { return data.get(); }

private:
    struct Free {
        void operator()(T* memory) { std::free(memory); }
    };
    std::unique_ptr<T[], Free> data;
    int64_t capacity = 0, size = 0;
};

}  // namespace resode
#endif
