// The matrix units (AMX, bfloat16) of an x86 processor, and memory for them.
#pragma once

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__AVX512F__) && defined(__AVX512BF16__) && \
    defined(__linux__)
#define RESODE_MATRIX_UNITS

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#pragma GCC diagnostic ignored "-Wuninitialized"  // of GCC's own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace resode {

constexpr int64_t SIDE = 16;   // channels, pixels or pairs of a tile
constexpr int64_t DEPTH = 32;  // what a product of tiles sums over

struct Tiles {  // eight, of 16 rows of 64 bytes
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

template <class T>
class Zeros {  // aligned to cache lines; its memory stays for the next
public:
    void resize(int64_t wanted) {
        if (wanted > room) {
            data.reset(static_cast<T*>(std::aligned_alloc(64, (wanted * sizeof(T) + 63) / 64 * 64)));
            room = wanted;
        }
        size = wanted;
        clear();
    }
    void clear() { std::memset(data.get(), 0, size * sizeof(T)); }
    T* get() { return data.get(); }

private:
    struct Free {
        void operator()(T* memory) { std::free(memory); }
    };
    std::unique_ptr<T[], Free> data;
    int64_t room = 0, size = 0;
};

}  // namespace resode
#endif
