// A 3x3 convolution (stride 1, padding 1) of channels-last bfloat16 activations, by the matrix units (AMX) of an
// x86 processor, or its adjoint:
//
//     y[n][h][w][o] = sum over a, b, i of W[o][i][a][b] x[n][h + a - 1][w + b - 1][i]
//
// An image becomes a line of pixels, with a zero behind each row and a row of zeros between images, so that each
// of the nine shifts is one offset along the line. A tile holds 16 pixels that follow one another on the line;
// the channels of the three pixels that a row of the kernel sees are neighbours in memory, and are multiplied 32
// values at a time. Sums are single precision, and are rounded once. Images are divided among threads in order.
#include <algorithm>
#include <cstdint>

#include <omp.h>

#include "matrix_units.h"

#ifdef RESODE_MATRIX_UNITS
#include <sys/syscall.h>
#include <unistd.h>

namespace {

using namespace resode;

constexpr int64_t PIXELS = 512;  // of a line, about

struct Line {  // where the pixels of some images are
    int64_t height, width, pitch, image, first, length, tiles, padded;
    Line(int64_t height, int64_t width, int64_t images)
        : height(height), width(width), pitch(width + 1), image((height + 1) * pitch), first(pitch + 1),
          length(images * image - pitch - 1), tiles((length + SIDE - 1) / SIDE),
          padded((tiles + 3) / 4 * 4 * SIDE + 2 * pitch + 3) {}
};

struct Places {  // what is read and written at a block of pixels
    const uint16_t* x;
    const int32_t* place;  // of each pixel among the results, or -1
    uint16_t* y;
    int64_t channels, outputs, row;  // row: values from one row of the line to the next
};

// The kernel in tiles: (outputs / 16, 3 rows, 3 inputs / 2, 16, 2).
void arrange(int64_t inputs, int64_t outputs, bool adjoint, const float* weight, uint16_t* to) {
    int64_t pairs = 3 * inputs / 2, tiles = outputs / SIDE;
#pragma omp for
    for (int64_t j = 0; j < tiles * 3; ++j) {
        int64_t first = j / 3 * SIDE, a = j % 3;
        for (int64_t k = 0; k < pairs; ++k) {
            int64_t b = 2 * k / inputs, i = 2 * k % inputs, tap = adjoint ? 8 - 3 * a - b : 3 * a + b;
            int64_t across = adjoint ? 9 : 9 * inputs, next = adjoint ? 9 * outputs : 9;
            const float* from = weight + first * across + i * next + tap;
            __m512i lanes = _mm512_mullo_epi32(
                _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                _mm512_set1_epi32(int(across)));
            __m512i one = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_i32gather_ps(lanes, from, 4)));
            __m512i two =
                _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_i32gather_ps(lanes, from + next, 4)));
            _mm512_storeu_si512(to + (j * pairs + k) * DEPTH, _mm512_or_si512(one, _mm512_slli_epi32(two, 16)));
        }
    }
}

void store(const float* sums, const Places& at, int64_t pixels, int64_t o) {
    for (int64_t p = 0; p < pixels; ++p)
        if (at.place[p] >= 0) {
            __m256i found = (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(sums + p * SIDE));
            _mm256_storeu_si256((__m256i*)(at.y + at.place[p] * at.outputs + o), found);
        }
}

#define RESODE_ZERO _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);

// 64 pixels, 16 outputs. A half tile, where the channels want one, ends each row of the kernel.
void tall(const Places& at, const uint16_t* weight, int64_t o, float* sums) {
    int64_t stride = 2 * at.channels, tile = SIDE * at.channels, values = 3 * at.channels;
#define RESODE_FOUR(A, B) \
    _tile_loadd(B, weight, 4 * SIDE); \
    _tile_loadd(A, x, stride); _tile_dpbf16ps(0, A, B); \
    _tile_loadd(A, x + tile, stride); _tile_dpbf16ps(1, A, B); \
    _tile_loadd(A, x + 2 * tile, stride); _tile_dpbf16ps(2, A, B); \
    _tile_loadd(A, x + 3 * tile, stride); _tile_dpbf16ps(3, A, B);
    RESODE_ZERO
    for (int64_t a = 0; a < 3; ++a) {
        const uint16_t* x = at.x + a * at.row;
        int64_t k = 0;
        for (; k + DEPTH <= values; k += DEPTH, x += DEPTH, weight += DEPTH * SIDE) { RESODE_FOUR(4, 5) }
        if (k < values) {
            RESODE_FOUR(6, 7)
            weight += DEPTH * SIDE / 2;
        }
    }
    _tile_stored(0, sums, 4 * SIDE);
    _tile_stored(1, sums + 256, 4 * SIDE);
    _tile_stored(2, sums + 512, 4 * SIDE);
    _tile_stored(3, sums + 768, 4 * SIDE);
    store(sums, at, 4 * SIDE, o);
}

// 32 pixels, 32 outputs.
void square(const Places& at, const uint16_t* weight, int64_t o, float* sums) {
    int64_t stride = 2 * at.channels, tile = SIDE * at.channels, values = 3 * at.channels;
    const uint16_t* other = weight + 9 * at.channels * SIDE;
    RESODE_ZERO
    for (int64_t a = 0; a < 3; ++a) {
        const uint16_t* x = at.x + a * at.row;
        for (int64_t k = 0; k < values; k += DEPTH, x += DEPTH) {
            _tile_loadd(4, x, stride);
            _tile_loadd(6, weight, 4 * SIDE);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, other, 4 * SIDE);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, x + tile, stride);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
            weight += DEPTH * SIDE;
            other += DEPTH * SIDE;
        }
    }
    _tile_stored(0, sums, 4 * SIDE);
    _tile_stored(2, sums + 256, 4 * SIDE);
    _tile_stored(1, sums + 512, 4 * SIDE);
    _tile_stored(3, sums + 768, 4 * SIDE);
    store(sums, at, 2 * SIDE, o);
    store(sums + 512, at, 2 * SIDE, o + SIDE);
}

}  // namespace

extern "C" int matrix_units_available() {
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

extern "C" void convolution(int64_t images, int64_t height, int64_t width, int64_t inputs, int64_t outputs,
                            const uint16_t* x, const float* weight, uint16_t* y, int adjoint, int threads) {
    int64_t together = std::max<int64_t>(PIXELS / ((height + 1) * (width + 1)), 1);
    together = std::min(together, (images + threads - 1) / threads);
    Line line(height, width, together);
    static thread_local Zeros<uint16_t> arranged;
    arranged.resize(9 * inputs * outputs);
    uint16_t* tiles = arranged.get();
#pragma omp parallel num_threads(threads)
    {
        arrange(inputs, outputs, adjoint != 0, weight, tiles);
        static thread_local Zeros<uint16_t> pixels;
        static thread_local Zeros<int32_t> place;
        pixels.resize(line.padded * inputs);
        place.resize((line.tiles + 3) / 4 * 4 * SIDE);
        std::fill_n(place.get(), (line.tiles + 3) / 4 * 4 * SIDE, -1);
        for (int64_t n = 0; n < together; ++n)
            for (int64_t h = 0; h < height; ++h)
                for (int64_t w = 0; w < width; ++w)
                    place.get()[n * line.image + h * line.pitch + w] = int32_t((n * height + h) * width + w);
        alignas(64) float sums[4 * SIDE * SIDE];
        Tiles shapes;
        bool whole = inputs % DEPTH == 0;
        if (!whole) shapes.row_bytes[6] = 32, shapes.rows[7] = 8;
        _tile_loadconfig(&shapes);
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();  // maybe fewer than asked for
        int64_t begin = images * thread / team, end = images * (thread + 1) / team;
        for (int64_t n = begin; n < end; n += together) {
            int64_t count = std::min(together, end - n);
            for (int64_t k = 0; k < count; ++k)
                for (int64_t h = 0; h < height; ++h)
                    std::memcpy(pixels.get() + (line.first + k * line.image + h * line.pitch) * inputs,
                                x + ((n + k) * height + h) * width * inputs, 2 * width * inputs);
            int64_t length = count * line.image - line.pitch - 1;
            if (count < together) std::fill(place.get() + length, place.get() + line.tiles * SIDE, -1);
            uint16_t* to = y + n * height * width * outputs;
            for (int64_t o = 0; o < outputs;) {
                bool wide = whole && o + DEPTH <= outputs;
                const uint16_t* factor = tiles + o * 9 * inputs;
                int64_t step = wide ? 2 * SIDE : 4 * SIDE;
                for (int64_t p = 0; p < length; p += step) {
                    Places at{pixels.get() + p * inputs, place.get() + p, to, inputs, outputs,
                              line.pitch * inputs};
                    (wide ? square : tall)(at, factor, o, sums);
                }
                o += wide ? DEPTH : SIDE;
            }
        }
        _tile_release();
    }
}
#else
extern "C" int matrix_units_available() { return 0; }
extern "C" void convolution(int64_t, int64_t, int64_t, int64_t, int64_t, const uint16_t*, const float*, uint16_t*,
                            int, int) {}
#endif
