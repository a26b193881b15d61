// The kernel gradient of a 3x3 convolution (stride s of 1 or 2, padding 1) of channels-last bfloat16 activations, by
// AMX tiles or AVX-512 BF16 vectors of an x86 processor:
//
//     dW[a][b][o][i] = sum over images n and pixels (h, w) of g[n][h][w][o] x[n][s h + a - 1][s w + b - 1][i]
//
// The images are copied to a line of pixels, with two zeros behind each row and a row of zeros between images, so that
// each of the nine shifts is one offset along the line and a sum over pixels is one matrix product:
// (channels of g, pixels) x (pixels, channels of x). The bf16 instructions multiply pairs of pixels, so x is stored in
// pairs that begin at even pixels, and again in pairs that begin at odd ones, for odd offsets; g is transposed for AMX
// and stored in pairs for vectors. With stride 2, the pixels of x of each parity of row and column are a line of their
// own. If x has few channels (at most 5), a pixel and its two neighbours in the row are stored as one pixel of three
// times as many channels, and shifts of rows alone remain. Sums are single precision. Each thread has a contiguous
// range of images.
#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

#include "bf16.h"

#ifdef RESODE_BF16

namespace {

using namespace resode;

constexpr int64_t BYTES = 1 << 17;  // of an activation in a group of images, about
constexpr int64_t PIXELS = 1024;    // in a group at least, if there are so many sums that they leave the cache

typedef uint16_t Halves __attribute__((vector_size(2 * SIDE)));
typedef uint32_t Pairs __attribute__((vector_size(4 * SIDE)));

struct Line {  // the layout of a group of images
    int64_t height, width, pitch, image, length, padded, across;
    Line(int64_t height, int64_t width, int64_t images)
        : height(height), width(width), pitch(width + 2), image((height + 1) * pitch),
          length((images * image + DEPTH - 1) / DEPTH * DEPTH),
          padded(length + 2 * pitch + 4),                      // of x, with zeros around
          across(length % 2048 ? length : length + DEPTH) {}  // of g transposed; rows a page apart share cache sets
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

struct Kind {  // every stride-th pixel of an image, from (row, column) on
    int64_t stride, row, column;
};

// Store pixels in pairs, (channels / 16, span, 16) of both values of a pair, from the pixel `origin` of a line on. Odd
// pairs begin one pixel later; null: not needed. Between rows the buffers are zero already.
void pairs(const Line& line, int64_t images, Kind kind, int64_t channels, int64_t origin, int64_t span,
           const uint16_t* from, uint32_t* even, uint32_t* odd) {
    int64_t step = kind.stride * channels;
    for (int64_t n = 0; n < images; ++n)
        for (int64_t h = 0; h < line.height; ++h) {
            const uint16_t* row =
                from + ((n * line.height + h) * kind.stride + kind.row) * line.width * step + kind.column * channels;
            int64_t first = (origin + n * line.image + h * line.pitch) / 2;
            for (int64_t c = 0; c < channels; c += SIDE) {
                int64_t place = c * span + first * SIDE;
                Halves before = {};
                for (int64_t w = 0; w < line.width; w += 2) {
                    Halves one = load(row + w * step + c), two = load(row + (w + 1) * step + c);
                    store(even + place + w / 2 * SIDE, one, two);
                    if (odd) store(odd + place + (w / 2 - 1) * SIDE, before, one);
                    before = two;
                }
                if (odd) store(odd + place + (line.width / 2 - 1) * SIDE, before, Halves{});
            }
        }
}

// The same for few channels: (span, 16), where the first values are those of a pixel and its neighbours in the row.
void neighbours(const Line& line, int64_t images, int64_t channels, int64_t origin, const uint16_t* from,
                uint16_t* row, uint32_t* even) {
    for (int64_t n = 0; n < images; ++n)
        for (int64_t h = 0; h < line.height; ++h) {
            int64_t values = line.width * channels, first = (origin + n * line.image + h * line.pitch) / 2;
            std::memcpy(row + channels, from + (n * line.height + h) * values, 2 * values);
            for (int64_t w = 0; w < line.width; w += 2)
                store(even + (first + w / 2) * SIDE, load(row + w * channels), load(row + (w + 1) * channels));
        }
}

// Transpose 16 x 16 numbers of 32 bits.
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

// Add the products of g and b[k] over the line to the 16 x 16 sums k, for up to six k.
#ifdef RESODE_AMX
void multiply(const Line& line, int count, const uint16_t* g, const uint32_t* const* b, float* const* sums,
              int64_t columns) {
#define RESODE_EACH(DO) \
    DO(0) if (count > 1) { DO(1) } if (count > 2) { DO(2) } if (count > 3) { DO(3) } \
    if (count > 4) { DO(4) } if (count > 5) { DO(5) }
#define RESODE_BEGIN(k) _tile_loadd(k, sums[k], 4 * columns);
#define RESODE_STEP(k) _tile_loadd(6, b[k] + l / 2 * SIDE, 4 * SIDE); _tile_dpbf16ps(k, 7, 6);
#define RESODE_END(k) _tile_stored(k, sums[k], 4 * columns);
    RESODE_EACH(RESODE_BEGIN)
    for (int64_t l = 0; l < line.length; l += DEPTH) {
        _tile_loadd(7, g + l, 2 * line.across);
        RESODE_EACH(RESODE_STEP)
    }
    RESODE_EACH(RESODE_END)
}
#else
void multiply(const Line& line, int64_t images, int count, const uint32_t* g, const uint32_t* const* b,
              float* const* sums, int64_t columns) {
    constexpr int64_t NEAR = 512;  // pixels of g that stay in the first-level cache
    int64_t rows = images * line.height, some = std::max<int64_t>(NEAR / line.width, 1);
    for (int64_t begin = 0; begin < rows; begin += some)
        for (int k = 0; k < count; ++k) {
            Sums block(sums[k], columns);
            for (int64_t row = begin; row < std::min(begin + some, rows); ++row) {
                int64_t l = row / line.height * line.image + row % line.height * line.pitch;
                block.add(g + l / 2 * SIDE, b[k] + l / 2 * SIDE, line.width / 2);
            }
            block.store(sums[k], columns);
        }
}
#endif

struct Sizes {
    int64_t inputs, outputs, stride;
    bool few() const { return inputs < SIDE; }
    int64_t columns() const { return few() ? SIDE : inputs; }  // channels of x as stored
    int64_t kinds() const { return stride * stride; }
    int64_t sums() const { return (few() ? 3 : 9) * columns() * outputs; }
};

struct Workspace {
    ZeroedBuffer<uint32_t> even, odd, g_pairs;
    ZeroedBuffer<uint16_t> g_rows, row;
    ZeroedBuffer<float> sums;
    std::vector<const uint32_t*> factors;
    std::vector<float*> places;
    void resize(const Line& line, const Sizes& sizes) {
        even.resize(line.padded / 2 * sizes.columns() * sizes.kinds());
        odd.resize(sizes.few() ? 0 : line.padded / 2 * sizes.columns() * sizes.kinds());
        g_pairs.resize(line.length / 2 * sizes.outputs);
        if (AMX) g_rows.resize(line.across * sizes.outputs);
        row.resize((line.width + 2) * sizes.inputs + SIDE);
        sums.resize(sizes.sums());
        arrange(line, sizes);
    }
    // The second factors, and the sums that each belongs to.
    void arrange(const Line& line, const Sizes& sizes) {
        factors.clear(), places.clear();
        for (int64_t i = 0; i < sizes.columns(); i += SIDE)
            for (int64_t a = 0; a < 3; ++a)
                for (int64_t b = 0; b < (sizes.few() ? 1 : 3); ++b) {
                    bool two = sizes.stride == 2;
                    int64_t kind = two ? 2 * (a != 1) + (b != 1) : 0;
                    int64_t down = two ? a != 0 : a, right = sizes.few() ? 1 : two ? b != 0 : b;
                    int64_t offset = down * line.pitch + right + 1;  // along the line of x
                    factors.push_back((offset % 2 ? odd : even).get() +
                                      (kind * sizes.columns() + i) * (line.padded / 2) + offset / 2 * SIDE);
                    places.push_back(sums.get() + (sizes.few() ? a : 3 * a + b) * sizes.outputs * sizes.columns() + i);
                }
    }
};

void multiply_group(const Line& line, int64_t images, const Sizes& sizes, const uint16_t* x, const uint16_t* g,
                 Workspace& work) {
    int64_t span = line.padded / 2, origin = line.pitch + 2, stride = sizes.stride;
    if (sizes.few())
        neighbours(line, images, sizes.inputs, origin, x, work.row.get(), work.even.get());
    else
        for (int64_t kind = 0; kind < sizes.kinds(); ++kind) {
            int64_t begin = kind * span * sizes.inputs;
            bool shifted = stride == 1 || kind % 2;  // odd offsets occur
            pairs(line, images, {stride, kind / 2, kind % 2}, sizes.inputs, origin, span, x, work.even.get() + begin,
                  shifted ? work.odd.get() + begin : nullptr);
        }
    pairs(line, images, {1, 0, 0}, sizes.outputs, 0, line.length / 2, g, work.g_pairs.get(), nullptr);
#ifdef RESODE_AMX
    for (int64_t l = 0; l < line.length; l += DEPTH)
        for (int64_t o = 0; o < sizes.outputs; o += SIDE)
            transpose(work.g_pairs.get() + o * (line.length / 2) + l / 2 * SIDE, SIDE,
                      (uint32_t*)(work.g_rows.get() + o * line.across + l), line.across / 2);
#endif
    for (size_t first = 0; first < work.factors.size(); first += 6) {
        float* sum[6];
        int count = int(std::min<size_t>(work.factors.size() - first, 6));
        std::copy_n(work.places.begin() + first, count, sum);
        for (int64_t o = 0; o < sizes.outputs; o += SIDE) {
#ifdef RESODE_AMX
            multiply(line, count, work.g_rows.get() + o * line.across, work.factors.data() + first, sum,
                     sizes.columns());
#else
            multiply(line, images, count, work.g_pairs.get() + o * (line.length / 2), work.factors.data() + first, sum,
                     sizes.columns());
#endif
            for (int k = 0; k < count; ++k) sum[k] += SIDE * sizes.columns();
        }
    }
}

}  // namespace

// Height and width are those of x; sums is (3, 3, outputs, inputs).
extern "C" void kernel_gradient(int64_t images, int64_t height, int64_t width, int64_t inputs, int64_t outputs,
                                int64_t stride, const uint16_t* x, const uint16_t* g, float* sums, int threads) {
    Sizes sizes{inputs, outputs, stride};
    int64_t small = height / stride, narrow = width / stride, columns = sizes.columns();
    int64_t image_bytes = 2 * (small + 1) * (narrow + 2) * std::max(sizes.kinds() * columns, outputs);
    int64_t pixels = columns * outputs < 128 * 128 ? 1 : PIXELS / ((small + 1) * (narrow + 2)) + 1;
    int64_t group = std::min(std::max(BYTES / image_bytes, pixels), (images + threads - 1) / threads);
    Line line(small, narrow, group);
    std::vector<const float*> found(threads);
#pragma omp parallel num_threads(threads)
    {
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();  // maybe fewer than requested
        int64_t begin = images * thread / team, end = images * (thread + 1) / team;
        thread_local Workspace work;
        work.resize(line, sizes);
        found[thread] = work.sums.get();
        TileConfig config;
        config.load();
        for (int64_t n = begin; n < end; n += group) {
            int64_t count = std::min(group, end - n);
            if (count < group) work.g_pairs.clear();  // of the group before
            multiply_group(line, count, sizes, x + n * height * width * inputs, g + n * small * narrow * outputs, work);
        }
        TileConfig::release();
    }
    for (int64_t row = 0; row < 9 * outputs; ++row) {
        int64_t tap = row / outputs, o = row % outputs;
        int64_t from = sizes.few() ? (tap / 3 * outputs + o) * columns + tap % 3 * inputs : row * columns;
        for (int64_t i = 0; i < inputs; ++i) {
            float sum = 0;
            for (const float* each : found) sum += each ? each[from + i] : 0;
            sums[row * inputs + i] = sum;
        }
    }
}
#else
extern "C" void kernel_gradient(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const uint16_t*,
                                const uint16_t*, float*, int) {}
#endif
