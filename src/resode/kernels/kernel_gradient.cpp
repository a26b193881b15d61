// The kernel gradient of a 3x3 convolution (stride 1, padding 1) of channels-last bfloat16 activations, by the
// matrix units (AMX) of an x86 processor:
//
//     dW[a][b][o][i] = sum over images n and pixels (h, w) of g[n][h][w][o] x[n][h + a - 1][w + b - 1][i]
//
// An image becomes a line of pixels, with two zeros behind each row and a row of zeros between images, so that
// each of the nine shifts is one offset along the line and a sum over pixels is one matrix product:
// (channels of g, pixels) x (pixels, channels of x). The first factor is g transposed, the second x with its
// pixels in pairs, as the units want them; pairs begin at even pixels, and once more at odd ones, for odd
// offsets. Sums are single precision; images are divided among threads in order.
#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

#include "matrix_units.h"

#ifdef RESODE_MATRIX_UNITS

namespace {

using namespace resode;

constexpr int64_t BYTES = 1 << 17;  // of an activation, about, that are multiplied at once
constexpr int64_t PIXELS = 1024;    // the same, at least, where there are so many sums that they are dear to fetch

typedef uint16_t Halves __attribute__((vector_size(2 * SIDE)));
typedef uint32_t Pairs __attribute__((vector_size(4 * SIDE)));

struct Line {  // where the pixels of some images are
    int64_t height, width, pitch, image, length, padded, across;
    Line(int64_t height, int64_t width, int64_t images)
        : height(height), width(width), pitch(width + 2), image((height + 1) * pitch),
          length((images * image + DEPTH - 1) / DEPTH * DEPTH),
          padded(length + 2 * pitch + 4),                      // of x, with zeros around
          across(length % 2048 ? length : length + DEPTH) {}  // of g transposed
};

inline Halves load(const uint16_t* from) {
    Halves found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

inline void store(uint32_t* to, Halves one, Halves two) {
    Pairs both = __builtin_convertvector(one, Pairs) | __builtin_convertvector(two, Pairs) << 16;
    std::memcpy(to, &both, sizeof both);
}

// Pixels in pairs, (channels / 16, span, 16) of both values of a pair, from the pixel `origin` of a line on; odd
// pairs begin a pixel later. What lies between rows is zero already.
void pairs(const Line& line, int64_t images, int64_t channels, int64_t origin, int64_t span,
           const uint16_t* from, uint32_t* even, uint32_t* odd) {
    for (int64_t n = 0; n < images; ++n)
        for (int64_t h = 0; h < line.height; ++h) {
            const uint16_t* row = from + (n * line.height + h) * line.width * channels;
            int64_t first = (origin + n * line.image + h * line.pitch) / 2;
            for (int64_t c = 0; c < channels; c += SIDE) {
                int64_t place = c * span + first * SIDE;
                Halves before = {};
                for (int64_t w = 0; w < line.width; w += 2) {
                    Halves one = load(row + w * channels + c), two = load(row + (w + 1) * channels + c);
                    store(even + place + w / 2 * SIDE, one, two);
                    if (odd) store(odd + place + (w / 2 - 1) * SIDE, before, one);
                    before = two;
                }
                if (odd) store(odd + place + (line.width / 2 - 1) * SIDE, before, Halves{});
            }
        }
}

// 16 x 16 of 32 bits.
void transpose(const uint32_t* from, int64_t from_pitch, uint32_t* to, int64_t to_pitch) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from + i * from_pitch);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; ++j) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; ++j) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; ++j) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * to_pitch, r[i]);
}

// Add products over the line to up to six tiles of 16 x 16 sums: tile k multiplies a with b[k].
void multiply(int count, const uint16_t* a, int64_t a_bytes, const uint32_t* const* b, int64_t length,
              float* const* sums, int64_t sum_bytes) {
#define RESODE_EACH(DO) \
    DO(0) if (count > 1) { DO(1) } if (count > 2) { DO(2) } if (count > 3) { DO(3) } \
    if (count > 4) { DO(4) } if (count > 5) { DO(5) }
#define RESODE_BEGIN(k) _tile_loadd(k, sums[k], sum_bytes);
#define RESODE_STEP(k) _tile_loadd(6, b[k] + l / 2 * SIDE, 4 * SIDE); _tile_dpbf16ps(k, 7, 6);
#define RESODE_END(k) _tile_stored(k, sums[k], sum_bytes);
    RESODE_EACH(RESODE_BEGIN)
    for (int64_t l = 0; l < length; l += DEPTH) {
        _tile_loadd(7, a + l, a_bytes);
        RESODE_EACH(RESODE_STEP)
    }
    RESODE_EACH(RESODE_END)
}

struct Workspace {
    Zeros<uint32_t> even, odd, g_pairs;
    Zeros<uint16_t> g_rows;
    Zeros<float> sums;
    void resize(const Line& line, int64_t inputs, int64_t outputs) {
        even.resize(line.padded / 2 * inputs);
        odd.resize(line.padded / 2 * inputs);
        g_pairs.resize(line.length / 2 * outputs);
        g_rows.resize(line.across * outputs);
        sums.resize(9 * inputs * outputs);
    }
};

void some_images(const Line& line, int64_t images, int64_t inputs, int64_t outputs, const uint16_t* x,
                 const uint16_t* g, Workspace& work) {
    int64_t span = line.padded / 2;
    pairs(line, images, inputs, line.pitch + 2, span, x, work.even.get(), work.odd.get());
    pairs(line, images, outputs, 0, line.length / 2, g, work.g_pairs.get(), nullptr);
    for (int64_t l = 0; l < line.length; l += DEPTH)
        for (int64_t o = 0; o < outputs; o += SIDE)
            transpose(work.g_pairs.get() + o * (line.length / 2) + l / 2 * SIDE, SIDE,
                      (uint32_t*)(work.g_rows.get() + o * line.across + l), line.across / 2);
    int64_t factors = 9 * (inputs / SIDE);
    for (int64_t first = 0; first < factors; first += 6) {
        const uint32_t* b[6];
        float* sum[6];
        int count = int(std::min<int64_t>(factors - first, 6));
        for (int k = 0; k < count; ++k) {
            int64_t tap = (first + k) % 9, i = (first + k) / 9 * SIDE;
            int64_t offset = tap / 3 * line.pitch + tap % 3 + 1;  // a pixel's shift along the line of x
            b[k] = (offset % 2 ? work.odd : work.even).get() + i * span + offset / 2 * SIDE;
            sum[k] = work.sums.get() + tap * outputs * inputs + i;
        }
        for (int64_t o = 0; o < outputs; o += SIDE) {
            multiply(count, work.g_rows.get() + o * line.across, 2 * line.across, b, line.length, sum,
                     4 * inputs);
            for (int k = 0; k < count; ++k) sum[k] += SIDE * inputs;
        }
    }
}

}  // namespace

extern "C" void kernel_gradient(int64_t images, int64_t height, int64_t width, int64_t inputs, int64_t outputs,
                                const uint16_t* x, const uint16_t* g, float* sums, int threads) {
    int64_t image_bytes = 2 * (height + 1) * (width + 2) * std::max(inputs, outputs);
    int64_t pixels = inputs * outputs < 128 * 128 ? 1 : PIXELS / ((height + 1) * (width + 2)) + 1;
    int64_t together = std::min(std::max(BYTES / image_bytes, pixels), (images + threads - 1) / threads);
    Line line(height, width, together);
    int64_t size = 9 * inputs * outputs;
    std::vector<const float*> found(threads);
#pragma omp parallel num_threads(threads)
    {
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();  // maybe fewer than asked for
        int64_t begin = images * thread / team, end = images * (thread + 1) / team;
        thread_local Workspace work;
        work.resize(line, inputs, outputs);
        found[thread] = work.sums.get();
        Tiles tiles;
        _tile_loadconfig(&tiles);
        for (int64_t n = begin; n < end; n += together) {
            int64_t count = std::min(together, end - n);
            if (count < together) work.g_pairs.clear();  // of the images before
            some_images(line, count, inputs, outputs, x + n * height * width * inputs,
                        g + n * height * width * outputs, work);
        }
        _tile_release();
    }
    for (int64_t k = 0; k < size; ++k) {
        float sum = 0;
        for (const float* each : found) sum += each ? each[k] : 0;
        sums[k] = sum;
    }
}
#else
extern "C" void kernel_gradient(int64_t, int64_t, int64_t, int64_t, int64_t, const uint16_t*, const uint16_t*,
                                float*, int) {}
#endif
